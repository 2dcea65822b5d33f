"""LiteLLM's proxy hooks around the core: one admission for a request of a client, whatever LiteLLM tries for it.

The hooks take LiteLLM's objects as they come and import nothing of it, but for the exception that it turns into an
answer. Between hooks a request is known by a name in its metadata, which only this module can have put there.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from sim.adapters.admission.config import GateConfig, gate_config
from sim.adapters.admission.door import Door
from sim.adapters.admission.errors import AdmissionError, unreadable
from sim.adapters.admission.requests import Admissions, Entry
from sim.adapters.admission.usage import NO_USAGE, usage_from
from sim.adapters.admission.waiting import verdict
from sim.adapters.litellm.calls import Calls, is_free, is_measured
from sim.adapters.litellm.identity import tenant_of
from sim.errors import InputError, TokenpoolsError
from sim.live.gateway.error_responses import ApiError
from sim.live.gateway.sse import Usage

LOG = logging.getLogger("tokenpools.litellm")

CONFIG_VARIABLE = "TOKENPOOLS_GATE"
"""The environment variable that names the gate's configuration."""

_NAME = "tokenpools_request"
_PLACES = ("metadata", "litellm_metadata")
_TOO_MANY, _TIMEOUT = 429, 408

Answer = Callable[[AdmissionError], Exception]


def proxy_exception(error: AdmissionError) -> Exception:
    """Return what LiteLLM answers with a status and headers.

    Its own exception, since some of its paths (completions, embeddings) drop the headers of FastAPI's.
    """
    from litellm.proxy._types import ProxyException  # type: ignore[import-not-found]

    said = error.body["error"]
    made: Exception = ProxyException(
        message=said["message"], type=said["type"], param=said["param"], code=error.status, headers=dict(error.headers),
        provider_specific_fields={"error": said},
    )
    return made


class StreamCutError(Exception):
    """What ends a stream with an event that says why; LiteLLM breaks off a stream that ends by an answer's error."""

    def __init__(self, error: AdmissionError) -> None:
        super().__init__(str(error))
        self.message = str(error)
        self.status_code = error.status
        self.type = error.body["error"]["type"]
        self.param = None
        self.headers = dict(error.headers)


class Hooks:
    """The hooks, with LiteLLM's names and arguments.

    Parameters
    ----------
    config : of the gate; that which `CONFIG_VARIABLE` names if not given. It is read at the first request, or by
        `open`.
    answer : makes an exception of a refusal.
    """

    def __init__(
        self, config: GateConfig | Mapping[str, Any] | str | Path | None = None, *, answer: Answer = proxy_exception
    ) -> None:
        self._given = config
        self._answer = answer
        self._door: Door | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._entries: dict[str, Entry] = {}

    @property
    def door(self) -> Door:
        """The core and its requests, on the loop that serves.

        Raises
        ------
        TokenpoolsError : there is no configuration, or it is none.
        """
        loop = asyncio.get_running_loop()
        if self._door is None or self._loop is not loop:
            given = self._given if self._given is not None else os.environ.get(CONFIG_VARIABLE)
            if not given:
                raise InputError(CONFIG_VARIABLE, "is not set", "set it to the path of the gate's configuration")
            config = gate_config(given)
            self._door, self._loop = Door(config), loop
            self._calls = Calls(config.pool.capacity(1).slots)
            self._entries.clear()
            atexit.register(self._door.admissions.close)  # LiteLLM has no hook for its end, and a recording has one
        return self._door

    @property
    def admissions(self) -> Admissions:
        """See `door`."""
        return self.door.admissions

    async def open(self) -> None:
        """Begin before the first request, where there is a configuration: show the pages, reach the shared state.

        What is wrong with it is logged, and then said to every request.
        """
        if self._given is None and not os.environ.get(CONFIG_VARIABLE):
            return
        try:
            await self.door.ready()
        except TokenpoolsError as error:
            LOG.error("nobody is let in: %s", error)

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str  # noqa: ARG002
    ) -> dict[str, Any]:
        """Admit a request before LiteLLM routes it; held ones wait here."""
        call_type = str(call_type)
        if is_free(call_type):
            return data
        door = self.door
        if not door.is_ready:
            await door.ready()
        admissions = door.admissions
        try:
            entry = admissions.admit(
                tenant=tenant_of(user_api_key_dict, admissions.tenants), entitlement=None, service_class=None,
                attempt=1, **self._calls.asked(data, call_type, admissions.core),
            )
            await verdict(admissions, entry, door.config.held_s)
        except ApiError as problem:
            raise self._answer(unreadable(problem)) from None
        except AdmissionError as error:
            raise self._answer(error) from None
        self._note(data, entry, measured=is_measured(call_type))
        return data

    async def async_post_call_success_hook(self, data: dict[str, Any], user_api_key_dict: Any, response: Any) -> Any:  # noqa: ARG002
        """Settle an answer in one piece by its usage. Streams settle when they end."""
        if not data.get("stream"):
            entry = self._take(data)
            if entry is not None:
                self.admissions.finish(entry, _told(getattr(response, "usage", None) or response))
        return response

    async def async_post_call_failure_hook(
        self, request_data: dict[str, Any], original_exception: Exception, user_api_key_dict: Any,  # noqa: ARG002
        traceback_str: str | None = None,  # noqa: ARG002
    ) -> None:
        """Settle what failed at all replicas that LiteLLM tried, or was refused as its client's fault."""
        entry = self._take(request_data)
        if entry is None:
            return
        status = getattr(original_exception, "status_code", None)
        if isinstance(status, int) and 400 <= status < 500 and status not in (_TOO_MANY, _TIMEOUT):
            self.admissions.cancel(entry, sent=True, refused=True)
        else:
            self.admissions.fail(entry)

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: AsyncIterator[Any], request_data: dict[str, Any]  # noqa: ARG002
    ) -> AsyncIterator[Any]:
        """Pass a stream on, count its tokens, and settle it however it ends."""
        entry = self._take(request_data)
        if entry is None:
            async for chunk in response:
                yield chunk
            return
        admissions, usage, tokens = self.admissions, None, 0
        try:
            async for chunk in response:
                if entry.error is not None:
                    raise StreamCutError(entry.error)
                usage = getattr(chunk, "usage", None) or usage
                tokens += _says_something(chunk)
                admissions.progress_to(entry, tokens)
                yield chunk
        except Exception:
            admissions.fail(entry)
            raise
        except BaseException:  # the client has left: the generator is closed, or its task cancelled
            admissions.cancel(entry, sent=True)
            raise
        admissions.finish(entry, _told(usage))

    def _note(self, data: dict[str, Any], entry: Entry, *, measured: bool) -> None:
        """Give a request a name that nobody can guess, in place of any that its client has sent."""
        name = secrets.token_hex(16)
        found = [data[place] for place in _PLACES if isinstance(data.get(place), dict)]
        if not found:
            found = [data.setdefault("litellm_metadata", {})]
        for metadata in found:
            metadata[_NAME] = name
        self._entries[name] = entry
        task = asyncio.current_task()
        if task is not None:  # the last resort: no hook of LiteLLM's comes after a client has left
            task.add_done_callback(lambda _: self._left(name, measured))

    def _take(self, data: Mapping[str, Any]) -> Entry | None:
        """Return the request, once: the first hook that hears of its end settles it."""
        for place in _PLACES:
            metadata = data.get(place)
            name = metadata.get(_NAME) if isinstance(metadata, dict) else None
            if isinstance(name, str) and name in self._entries:
                return self._entries.pop(name)
        return None

    def _left(self, name: str, measured: bool) -> None:
        """Settle what no hook has heard of again: who left pays for what was seen, who cannot be watched for all."""
        entry = self._entries.pop(name, None)
        if entry is None:
            return
        if measured:
            self.admissions.cancel(entry, sent=True)
        else:
            self.admissions.finish(entry)


def _told(given: Any) -> Usage:
    """Return a usage; LiteLLM puts noughts in place of one that the model server has not told."""
    found = usage_from(given)
    return found if found.prompt_tokens or found.output_tokens else NO_USAGE


def _says_something(chunk: Any) -> int:
    """Whether a chunk of a stream has text of an answer, taken for one token."""
    for choice in getattr(chunk, "choices", None) or ():
        said = getattr(choice, "delta", None) or choice
        if any(getattr(said, name, None) for name in ("content", "text", "reasoning_content", "tool_calls")):
            return 1
    return 0
