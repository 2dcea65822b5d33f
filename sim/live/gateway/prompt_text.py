"""What routers and queues may know of a prompt's text: names of its blocks, and the session that it belongs to.

A prompt is laid out as bytes in the order in which chat templates put it (tools, system, messages), four of which are a
token unless the configuration says otherwise; token ids are as many bytes each. Every block of 64 tokens is named by a
hash of all up to its end, of the model and of whose cache it is, so that equal names mean equal beginnings in every
process. Which tokens an engine makes of it only the engine knows: the names are a guess at its cache, never a price.

Texts and what clients call their sessions go no further than this: the core, recordings and shared state hold hashes.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any

from policies.routers.prefix_index import LEAST_BLOCK_TOKENS, MOST_PREFIX_TOKENS
from sim.live.gateway.json_text import Json
from sim.live.gateway.media import media_tokens
from sim.live.gateway.settings import Estimate

SESSION_HEADERS = (b"x-tokenpools-session", b"x-session-id")
"""The first is the gateway's own and goes no further; the other is what clients and other routers use."""
Prefix = tuple[tuple[int, int], ...]

_BEFORE = {
    "chat": ("chat_template", "chat_template_kwargs", "documents", "tools", "functions"),
    "messages": ("tools", "system"), "responses": ("tools", "instructions"),
}  # fmt: skip
"""What stands before the prompt itself, by the endpoint's shape."""
_PROMPT = {"completion": "prompt", "chat": "messages", "messages": "messages", "responses": "input"}
_UNSAID = frozenset(("type", "cache_control", "status", "detail"))
"""Fields that are no text of a prompt; cache_control moves on with every turn."""
_PLAIN = frozenset(("content", "text", "role"))
_TOKEN_MASK = 2**32 - 1
_LONGEST_SESSION = 512
"""Characters of a session's name that are looked at."""


def prefix_of(shape: str, fields: Json, salt: str, rule: Estimate) -> Prefix:
    """Return the lines of a prompt's text (`policies.api.RequestView.prefix`): one for each full block.

    Of several prompts it is the first's. There are none where the text is not known: embeddings, a stored response
    that it goes on from, or a shape that has no prompt to continue.

    Parameters
    ----------
    salt : whose cache it is; requests of different salts have nothing in common.

    Raises
    ------
    RecursionError : it is nested too deeply.
    """
    name = _PROMPT.get(shape)
    if name is None or fields.get("prompt_embeds") is not None or fields.get("previous_response_id") is not None:
        return ()
    prompt = fields.get(name)
    layout = _Layout(rule)
    for before in _BEFORE.get(shape, ()):
        if fields.get(before):
            layout.add(before)
            layout.add(fields[before])
    if shape == "completion" and type(prompt) is list and prompt and type(prompt[0]) is not int:
        prompt = prompt[0]
    layout.add(prompt)
    own = (fields.get("model"), salt, fields.get("cache_salt"))
    return _named(layout.whole(), json.dumps(own).encode(), layout.block_bytes)


def _named(text: bytes, own: bytes, block_bytes: int) -> Prefix:
    running = blake2b(own, digest_size=8)
    lines = []
    for number, start in enumerate(range(0, len(text) - block_bytes + 1, block_bytes), 1):
        running.update(text[start : start + block_bytes])
        lines.append((int.from_bytes(running.digest()), number * LEAST_BLOCK_TOKENS))
    return tuple(lines)


class _Layout:
    """A prompt as bytes, as much of it as routers look at."""

    def __init__(self, rule: Estimate) -> None:
        self._rule = rule
        self._token_bytes = max(1, round(rule.bytes_per_token))
        self.block_bytes = LEAST_BLOCK_TOKENS * self._token_bytes
        self._parts: list[bytes] = []
        self._left = MOST_PREFIX_TOKENS * self._token_bytes

    def whole(self) -> bytes:
        """Return what was added."""
        return b"".join(self._parts)

    def add(self, value: Any) -> None:
        """Add what a value holds: texts as they are, names of fields that an API does not have, numbers as text."""
        if self._left <= 0 or value is None:
            return
        if type(value) is str:
            self._put(value[: self._left].encode(errors="surrogatepass"))
        elif type(value) is dict:
            self._add_fields(value)
        elif type(value) is list:
            if value and type(value[0]) is int:
                self._put(self._ids(value[: self._left // self._token_bytes + 1]))
            else:
                for one in value:
                    self.add(one)
                    if self._left <= 0:
                        return
        else:
            self._put(str(value).encode())

    def _add_fields(self, value: dict[str, Any]) -> None:
        tokens = media_tokens(value, self._rule)
        if tokens is not None:  # as long as what it costs, and another one for every other picture
            digest = blake2b(json.dumps(value).encode()).digest()
            self._put((digest * (tokens * self._token_bytes // len(digest) + 1))[: tokens * self._token_bytes])
            return
        for name, one in value.items():
            if name in _UNSAID:
                continue
            if name == "role":
                self._put(b"\x1e")
            elif name not in _PLAIN:
                self._put(b"\x1f" + name[: self._left].encode(errors="surrogatepass") + b"\x1f")
            self.add(one)

    def _put(self, part: bytes) -> None:
        part = part[: self._left]
        self._parts.append(part)
        self._left -= len(part)

    def _ids(self, ids: Iterable[Any]) -> bytes:
        wide = array("I", [one & _TOKEN_MASK if type(one) is int else 0 for one in ids]).tobytes()
        if self._token_bytes == 4:
            return wide
        # As many bytes as a token of text has, so that blocks are of as many tokens: the low ones, or filled up.
        each = (wide[start : start + 4] for start in range(0, len(wide), 4))
        return b"".join(one[: self._token_bytes].ljust(self._token_bytes, b"\0") for one in each)


def session_said(header: Callable[[bytes], bytes | None]) -> str:
    """Return what a client's headers call its conversation or agent; empty where they do not."""
    said = next((said for name in SESSION_HEADERS if (said := header(name))), b"")
    return said[:_LONGEST_SESSION].decode("latin-1")


def session_in(shape: str, fields: Json) -> str:
    """Return what a body calls its conversation or agent, the first that is there; empty where nothing does.

    ``prompt_cache_key`` and ``user`` are OpenAI's, ``conversation`` is of its responses, ``metadata.session_id``
    anybody's and ``metadata.user_id`` Anthropic's, where agents write their session into it.
    """
    metadata, conversation = fields.get("metadata"), fields.get("conversation")
    inner = metadata if type(metadata) is dict else {}
    named = conversation.get("id") if type(conversation) is dict else conversation
    for said in (
        fields.get("prompt_cache_key"), inner.get("session_id"), named if shape == "responses" else None,
        inner.get("user_id"), fields.get("user"),
    ):  # fmt: skip
        if type(said) is str and said:
            return said[:_LONGEST_SESSION]
    return ""


def session_name(said: str, tenant: str) -> str:
    """Return the session as the core knows it: a hash, of one tenant's alone."""
    return blake2b(json.dumps([tenant, said]).encode(), digest_size=8).hexdigest() if said else ""
