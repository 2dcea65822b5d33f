"""Cross-origin requests of browsers: what a page of another origin may ask, and may see of the answer.

Keys are sent by the page itself and never by cookies, so no origin gains by being let in what it could not have anyway.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from sim.live.gateway.headers import Headers

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_EXPOSED = (
    b"x-request-id, retry-after, retry-after-ms, x-should-retry, x-ratelimit-limit-requests, "
    b"x-ratelimit-remaining-requests, x-ratelimit-reset-requests, x-ratelimit-limit-tokens, "
    b"x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)
_KEEP_S = b"600"


class Cors:
    """Which origins may ask; ``*`` is all."""

    def __init__(self, origins: Collection[str]) -> None:
        self._all = "*" in origins
        self._origins = frozenset(one.encode() for one in origins)

    def allowed(self, origin: bytes | None) -> Headers:
        """Return the headers that let a page of an origin see an answer; none where it may not."""
        if origin is None or not (self._all or origin in self._origins):
            return []
        if self._all:
            return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", _EXPOSED)]
        return [
            (b"access-control-allow-origin", origin), (b"vary", b"origin"),
            (b"access-control-expose-headers", _EXPOSED),
        ]  # fmt: skip

    def preflight(self, methods: tuple[str, ...], asked: dict[bytes, bytes]) -> Headers:
        """Return the headers that answer OPTIONS on a path that takes ``methods``. No key is needed for that."""
        listed = ", ".join((*methods, "OPTIONS")).encode()
        found = self.allowed(asked.get(b"origin"))
        if not found or b"access-control-request-method" not in asked:
            return [(b"allow", listed)]
        wanted = asked.get(b"access-control-request-headers")
        found += [(b"access-control-allow-methods", listed), (b"access-control-max-age", _KEEP_S)]
        if wanted is not None:
            found.append((b"access-control-allow-headers", wanted))
        return found

    def through(self, origin: bytes, send: Send) -> Send:
        """Return a ``send`` that says on each answer what an origin may see, whatever the upstream said of it."""
        mine = self.allowed(origin)

        async def say(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                kept = [one for one in message["headers"] if not one[0].startswith(b"access-control-")]
                message = {**message, "headers": kept + mine}
            await send(message)

        return say
