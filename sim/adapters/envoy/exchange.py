"""One HTTP exchange in Envoy, from its headers to its settlement; without gRPC, tasks or waiting.

The upstream gets nothing of a request's body before the core has let it in: earlier pieces are kept here. What the
modes of the filter allow decides how: with ``FULL_DUPLEX_STREAMED`` (and ``BUFFERED``) the headers wait for the
body too, so that the endpoint can be chosen; with ``STREAMED`` they are on their way by then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import Any

from policies.api import EntitlementSpec
from sim.adapters.admission.asked import asked_of
from sim.adapters.admission.errors import AdmissionError
from sim.adapters.admission.requests import Admissions, Entry
from sim.adapters.envoy import responses as say
from sim.adapters.envoy.answer import Answer, body_of
from sim.adapters.envoy.config import ExtProcConfig
from sim.adapters.envoy.identity import Identify
from sim.adapters.envoy.protos.external_processor_pb2 import (
    HttpBody,
    HttpHeaders,
    ProcessingRequest,
    ProcessingResponse,
)
from sim.adapters.envoy.protos.processing_mode_pb2 import ProcessingMode
from sim.live.gateway.endpoints import Endpoints
from sim.live.gateway.error_responses import ApiError, allowance_headers
from sim.live.gateway.media import sound_sequences, sound_tokens
from sim.live.gateway.prompt_text import session_said
from sim.live.gateway.prompt_tokens import EstimatingCounter
from sim.live.gateway.request_body import Endpoint, ParsedBody, read_body, upstream_body
from sim.live.gateway.settings import Estimate

NONE, STREAMED, DUPLEX = ProcessingMode.NONE, ProcessingMode.STREAMED, ProcessingMode.FULL_DUPLEX_STREAMED
_PIECE_BYTES = 62_000
"""Of a body in one message: Envoy's buffers hold 64 KiB by default. [choice]"""
_BYTES_PER_TOKEN = 4
_MOST_ATTEMPTS = 100
_TOO_MANY, _TIMEOUT = 429, 408

Says = list[ProcessingResponse]


class State(Enum):
    """How far an exchange has come."""

    ASKING = auto()
    HELD = auto()
    SENT = auto()
    PASSING = auto()
    OVER = auto()


class Processor:
    """What all exchanges share."""

    def __init__(
        self, config: ExtProcConfig, admissions: Admissions, identify: Identify, counter: EstimatingCounter
    ) -> None:
        self.config = config
        self.admissions = admissions
        self.identify = identify
        self.counter = counter
        self.endpoints = Endpoints(config.paths)
        self.slots = config.pool.capacity(1).slots
        self.rule = config.prompt_tokens if isinstance(config.prompt_tokens, Estimate) else Estimate()


class Exchange:
    """One exchange: `handle` every message of Envoy's, and send what it returns, in this order.

    Attributes
    ----------
    held : the request, as long as it waits for the core's verdict; then call `decided`.
    """

    def __init__(self, processor: Processor) -> None:
        self._with = processor
        self._state = State.ASKING
        self._request_mode = self._response_mode = STREAMED
        self._body: list[bytes] = []
        self._size_bytes = 0
        self._has_body = True
        self._headers: dict[str, bytes] = {}
        self._path = ""
        self._endpoint: Endpoint | None = None
        self._spec: EntitlementSpec | None = None
        self._asked: ParsedBody | None = None
        self._subset: frozenset[str] | None = None
        self._entry: Entry | None = None
        self._answer: Answer | None = None
        self._cut = False

    @property
    def held(self) -> Entry | None:
        """See the class."""
        return self._entry if self._state is State.HELD else None

    @property
    def entry(self) -> Entry | None:
        """The request, once the core was asked."""
        return self._entry

    @property
    def is_over(self) -> bool:
        """Whether Envoy was given an answer of ours: it says nothing more."""
        return self._state is State.OVER

    def handle(self, message: ProcessingRequest) -> Says:
        """Take a message and return the answers to it; none where they must wait."""
        kind = message.WhichOneof("request")
        if self._state is State.OVER or kind is None:
            return []
        try:
            return _HANDLERS[kind](self, message)
        except ApiError as problem:
            headers = {name.decode(): value.decode() for name, value in problem.headers()}
            return self._refuse(problem.status, headers, {"error": problem.error()}, problem.code)
        except AdmissionError as problem:
            return self._refuse(problem.status, problem.headers, problem.body, problem.reason)

    def decided(self) -> Says:
        """Go on with a request that was held, now that its verdict is there."""
        assert self._entry is not None
        error = self._entry.error
        if error is not None:
            return self._refuse(error.status, error.headers, error.body, error.reason)
        return self._send_on()

    def refuse(self, error: AdmissionError) -> Says:
        """Answer in place of the upstream."""
        return self._refuse(error.status, error.headers, error.body, error.reason)

    def evicted(self) -> Says:
        """Say at once that the place was taken back, where Envoy takes that unasked; else the next piece says it."""
        entry = self._entry
        if entry is None or entry.error is None or self._state is not State.SENT or self._cut:
            return []
        if self._answer is None:
            return self.refuse(entry.error)
        if self._response_mode == DUPLEX:
            self._cut, self._state = True, State.OVER
            return [say.streamed(self._answer.cut(entry.error.body["error"]), end=True, of_request=False)]
        return []

    def left(self) -> None:
        """Settle, now that Envoy has ended the stream: at its end, or because client or upstream have gone."""
        if self._entry is not None and self._entry.open:
            self._with.admissions.cancel(self._entry, sent=self._state is not State.HELD)
        self._state = State.OVER

    # ----------------------------------------------------------------------------------------------------------------
    # The request

    def _request_headers(self, message: ProcessingRequest) -> Says:
        if message.HasField("protocol_config"):
            self._request_mode = message.protocol_config.request_body_mode
            self._response_mode = message.protocol_config.response_body_mode
        found = message.request_headers
        self._has_body = not found.end_of_stream
        headers = self._headers = say.headers_of(found)
        self._path = headers.get(":path", b"").partition(b"?")[0].decode("latin-1")
        endpoint = self._with.endpoints.find(self._path)
        if endpoint is None and self._with.config.other_paths == "pass":
            self._state = State.PASSING
            return [say.request_headers()]
        self._endpoint = self._allowed(endpoint, headers)
        self._spec = self._with.identify(headers, self._path)
        self._subset = _subset_of(message)
        if not self._has_body:
            return self._decide()
        if self._request_mode == DUPLEX:
            return []
        return [say.request_headers(say.mutation(removed=self._removed(self._request_mode == STREAMED)))]

    def _allowed(self, endpoint: Endpoint | None, headers: Mapping[str, bytes]) -> Endpoint:
        """Return what the path is.

        Raises
        ------
        ApiError : there is nothing such here, or the filter's modes do not show what is needed.
        """
        if endpoint is None or endpoint.owned:
            raise ApiError(404, "not_found", f"There is nothing at {self._path[:200]!r}.")
        method = headers.get(":method", b"").decode("latin-1")
        if method not in endpoint.methods:
            raise ApiError(405, "method_not_allowed", f"{self._path[:200]} takes {', '.join(endpoint.methods)}.")
        missing = ""
        if self._has_body and self._request_mode == NONE:
            missing = "a request_body_mode"
        elif endpoint.generates and self._response_mode == NONE:
            missing = "a response_body_mode"
        elif self._with.config.destinations and self._has_body and self._request_mode == STREAMED:
            missing = "request_body_mode FULL_DUPLEX_STREAMED or BUFFERED, to choose an endpoint"
        if missing:
            said = f"The filter ext_proc needs {missing}."
            raise ApiError(500, "misconfigured", said, kind="server_error", may_retry=False)
        length = headers.get("content-length", b"")
        if length.isdigit() and int(length[:20]) > self._with.config.body_bytes:
            self._too_large()
        return endpoint

    def _request_body(self, message: ProcessingRequest) -> Says:
        piece = message.request_body
        if self._state is State.PASSING:
            return self._pass(piece, of_request=True)
        self._body.append(piece.body)
        self._size_bytes += len(piece.body)
        if self._size_bytes > self._with.config.body_bytes:
            self._too_large()
        if piece.end_of_stream or self._request_mode not in (STREAMED, DUPLEX):
            return self._decide()
        return [] if self._request_mode == DUPLEX else [say.request_body(b"")]

    def _request_trailers(self, message: ProcessingRequest) -> Says:  # noqa: ARG002
        if self._state is State.ASKING:
            if self._request_mode != DUPLEX:
                raise ApiError(400, "invalid_request", "A request with trailers is not taken here.")
            return [*self._decide(), say.REQUEST_TRAILERS]
        return [say.REQUEST_TRAILERS]

    def _decide(self) -> Says:
        """Ask the core, now that all of the request is there."""
        endpoint, spec = self._endpoint, self._spec
        assert endpoint is not None
        assert spec is not None
        body = b"".join(self._body)
        self._body = [body]
        asked = self._ask_for(endpoint, body) if endpoint.read else self._ask_unread(endpoint, body)
        entry = self._entry = self._with.admissions.admit(
            tenant=spec.tenant, entitlement=spec.name, service_class=None, attempt=_attempt(self._headers), **asked
        )
        if entry.is_held:
            self._state = State.HELD
            return [say.more_time(self._with.config.held_s + 1.0)]
        return self._send_on()

    def _ask_for(self, endpoint: Endpoint, body: bytes) -> dict[str, Any]:
        """Return the arguments of an admission, of a body that is read."""
        config = self._with.config
        parsed = read_body(endpoint, body, config.choices, config.prompts)
        if parsed.background:
            raise ApiError(400, "invalid_value", "Nothing is made in the background here.", param="background")
        if parsed.previous is not None:
            text = "Stored responses are not known here; send what was said before."
            raise ApiError(400, "invalid_value", text, param="previous_response_id")
        asked = asked_of(endpoint, parsed, self._with.counter, self._with.admissions.core, self._with.slots)
        parsed.drop_fields()
        self._asked = parsed
        asked["session"] = session_said(lambda name: self._headers.get(name.decode())) or parsed.session
        return asked

    def _ask_unread(self, endpoint: Endpoint, body: bytes) -> dict[str, Any]:
        """Return the arguments of an admission, of a body that is priced by its size."""
        tokens = max(1, len(body) // _BYTES_PER_TOKEN)
        sequences, most = endpoint.sequences, endpoint.output_tokens if endpoint.generates else 0
        if endpoint.shape == "audio":
            tokens = sound_tokens(len(body), self._with.rule)
            sequences = sound_sequences(tokens)
            if sequences > 1:
                most = self._with.admissions.core.default_max_output_tokens * sequences
        return {
            "prompt_tokens": tokens, "max_tokens": most,
            "context_tokens": 1, "priority": 0, "sequences": max(1, min(sequences, self._with.slots)),
        }  # fmt: skip

    def _send_on(self) -> Says:
        """Let a request go to its replica."""
        entry, config = self._entry, self._with.config
        assert entry is not None
        assert entry.replica_id is not None
        destination = config.destinations[entry.replica_id] if config.destinations else None
        if destination is not None and self._subset is not None and destination not in self._subset:
            self._with.admissions.cancel(entry, sent=False)
            text = "No replica of the pool is among the endpoints that were offered."
            raise ApiError(503, "no_capacity", text, kind="server_error", retry_after_s=1.0)
        self._state = State.SENT
        body = self._upstream_body(entry)
        self._body = []
        settled = [] if destination is None else [(say.DESTINATION, destination.encode())]
        if not self._has_body:
            change = say.mutation(settled, self._removed(False))
            said = [say.request_headers(change, clear_route=destination is not None)]
        elif self._request_mode == DUPLEX:
            change = say.mutation(settled, self._removed(True))
            said = [say.request_headers(change, clear_route=destination is not None), *_pieces(body)]
        elif self._request_mode == STREAMED:
            return [say.request_body(body)]
        else:
            change = say.mutation([*settled, ("content-length", b"%d" % len(body))])
            said = [say.request_body(body, change, clear_route=destination is not None)]
        if destination is not None:
            say.picked(said[0], destination)
        return said

    def _upstream_body(self, entry: Entry) -> bytes:
        body, asked, endpoint, config = self._body[0], self._asked, self._endpoint, self._with.config
        assert endpoint is not None
        if asked is None:
            return body
        default = entry.max_output_tokens // asked.sequences if config.write_default_limit else None
        return upstream_body(
            body, endpoint, asked, default_output_tokens=default, priority=entry.priority,
            continuous=config.continuous_usage, cache_salt=None,
        )

    def _removed(self, length: bool) -> list[str]:
        """Return the headers that a request goes on without: the picker's is ours, and answers must be readable."""
        return ["accept-encoding", say.DESTINATION, *(["content-length"] if length else [])]

    def _too_large(self) -> None:
        limit = self._with.config.body_bytes
        raise ApiError(413, "request_too_large", f"The body is larger than {limit} bytes.")

    # ----------------------------------------------------------------------------------------------------------------
    # The answer

    def _response_headers(self, message: ProcessingRequest) -> Says:
        headers = say.headers_of(message.response_headers)
        entry, status = self._entry, _status(headers)
        if self._state is not State.SENT or entry is None:  # Envoy's own, e.g. because the client is slow
            self.left()
            self._state = State.PASSING
            return [say.response_headers()]
        if entry.error is not None:
            return self.refuse(entry.error)
        admissions, endpoint = self._with.admissions, self._endpoint
        assert endpoint is not None
        allowance = admissions.core.allowance(entry.entitlement, admissions.now_s())
        told = [(name.decode(), value) for name, value in allowance_headers(allowance)]
        told.append(("x-request-id", entry.request_id.encode()))
        if status >= 400:
            if status < 500 and status not in (_TOO_MANY, _TIMEOUT):
                admissions.cancel(entry, sent=True, refused=True)
            else:
                admissions.fail(entry)
            self._state = State.PASSING
        else:
            self._answer = Answer(endpoint, self._asked, headers)
            if message.response_headers.end_of_stream or self._response_mode == NONE:
                self._finish()
        removed = ["content-length"] if self._answer is not None and self._answer.changes else []
        return [say.response_headers(say.mutation(told, removed))]

    def _response_body(self, message: ProcessingRequest) -> Says:
        piece, answer, entry = message.response_body, self._answer, self._entry
        if self._state is not State.SENT or answer is None or entry is None:
            return self._pass(piece, of_request=False)
        if entry.error is not None:
            return self._cut_off(answer, entry.error)
        shown = answer.feed(piece.body, end=piece.end_of_stream)
        if answer.tokens:
            self._with.admissions.progress_to(entry, answer.tokens)
        if piece.end_of_stream or self._response_mode not in (STREAMED, DUPLEX):
            self._finish()
        if self._response_mode == DUPLEX:
            return [say.streamed(shown, end=piece.end_of_stream, of_request=False)]
        return [say.response_body(None if shown == piece.body else shown)]

    def _response_trailers(self, message: ProcessingRequest) -> Says:  # noqa: ARG002
        said: Says = []
        if self._state is State.SENT and self._answer is not None:
            shown = self._answer.feed(b"", end=True)
            if shown and self._response_mode == DUPLEX:
                said.append(say.streamed(shown, end=False, of_request=False))
            self._finish()
        return [*said, say.RESPONSE_TRAILERS]

    def _cut_off(self, answer: Answer, error: AdmissionError) -> Says:
        """End an answer in the middle: its stream says so in place of the next piece, then Envoy breaks it off."""
        if not self._cut:
            self._cut = True
            return [say.response_body(answer.cut(error.body["error"]))]
        return self.refuse(error)

    def _finish(self) -> None:
        entry, answer = self._entry, self._answer
        assert entry is not None
        assert answer is not None
        if answer.is_good:
            self._with.admissions.finish(entry, answer.usage())
        else:
            self._with.admissions.fail(entry)
        self._state = State.PASSING

    # ----------------------------------------------------------------------------------------------------------------

    def _pass(self, piece: HttpBody, *, of_request: bool) -> Says:
        if (self._request_mode if of_request else self._response_mode) == DUPLEX:
            return [say.streamed(piece.body, end=piece.end_of_stream, of_request=of_request)]
        return [say.request_body(None) if of_request else say.response_body(None)]

    def _refuse(self, status: int, headers: Mapping[str, str], body: Mapping[str, object], reason: str) -> Says:
        if self._entry is not None and self._entry.open:
            self._with.admissions.cancel(self._entry, sent=False)
        self._state, self._body = State.OVER, []
        return [say.immediate(status, headers, body_of(body, self._path), reason)]


_HANDLERS: dict[str, Callable[[Exchange, ProcessingRequest], Says]] = {
    "request_headers": Exchange._request_headers, "request_body": Exchange._request_body,
    "request_trailers": Exchange._request_trailers, "response_headers": Exchange._response_headers,
    "response_body": Exchange._response_body, "response_trailers": Exchange._response_trailers,
}  # fmt: skip


def _pieces(body: bytes) -> Says:
    starts = range(0, max(1, len(body)), _PIECE_BYTES)
    return [
        say.streamed(body[start : start + _PIECE_BYTES], end=start + _PIECE_BYTES >= len(body), of_request=True)
        for start in starts
    ]  # fmt: skip


def _subset_of(message: ProcessingRequest) -> frozenset[str] | None:
    """Return the endpoints that may be chosen, where Envoy says so."""
    known = message.metadata_context.filter_metadata
    if say.SUBSET_NAMESPACE not in known or say.SUBSET not in known[say.SUBSET_NAMESPACE].fields:
        return None
    value = known[say.SUBSET_NAMESPACE].fields[say.SUBSET]
    if value.WhichOneof("kind") == "string_value":
        return frozenset(one.strip() for one in value.string_value.split(",") if one.strip())
    return frozenset(one.string_value for one in value.list_value.values)


def _attempt(headers: Mapping[str, bytes]) -> int:
    """Return which attempt this is, as OpenAI's clients count their retries."""
    said = headers.get("x-stainless-retry-count", b"0")
    return 1 + min(_MOST_ATTEMPTS, int(said)) if said.isdigit() and len(said) < 6 else 1


def _status(headers: Mapping[str, bytes]) -> int:
    said = headers.get(":status", b"")
    return int(said) if said.isdigit() and len(said) == 3 else 502


__all__ = ["Exchange", "HttpHeaders", "Processor", "State"]
