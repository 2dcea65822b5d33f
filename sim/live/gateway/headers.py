"""Which headers go through, in either direction."""

from __future__ import annotations

import re
from collections.abc import Iterable

Headers = list[tuple[bytes, bytes]]

_HOP_BY_HOP = frozenset((
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer",
    b"transfer-encoding", b"upgrade",
))  # fmt: skip
_NOT_TO_UPSTREAM = _HOP_BY_HOP | {
    b"host", b"content-length", b"expect", b"authorization", b"x-api-key", b"x-request-id", b"x-tokenpools-session",
}  # fmt: skip
_ROUTERS = (
    b"x-data-parallel-", b"data-parallel-", b"x-dp-rank", b"x-kv-", b"x-prefill", b"x-decode", b"x-gateway-",
    b"x-worker-", b"x-routing-", b"x-session-id-routing", b"x-llm-d-", b"x-nv-", b"x-dynamo-",
)  # fmt: skip
"""Beginnings of headers by which routers steer an engine: whose cache, which rank, which worker."""
_ONLY_ONCE = (b"authorization", b"x-api-key", b"host", b"content-length", b"content-type", b"x-tokenpools-class")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_NOT_TO_CLIENT = _HOP_BY_HOP | {b"date", b"server", b"x-request-id", b"set-cookie"}
_LONGEST_ID = 128
_ORIGIN = re.compile(rb"^[A-Za-z][A-Za-z0-9+.-]*://[^/]*")


class BadAnswerError(Exception):
    """An upstream's answer is none that may be passed on."""


def bearer(secret: str | None) -> dict[str, str]:
    """Return the header that shows a key or token; none where there is none."""
    return {} if secret is None else {"authorization": f"Bearer {secret}"}


def bearer_header(secret: str | None) -> Headers:
    """Return the header that shows a key or token, as it is sent; none where there is none."""
    return [] if secret is None else [(b"authorization", b"Bearer " + secret.encode("latin-1"))]


def to_upstream(headers: Headers, *, api_key: str | None, request_id: str, own: bytes, read: bool) -> Headers:
    """Return the headers of a request as an upstream gets them: the client's key stays here.

    Parameters
    ----------
    headers : of the client; their names in lower case.
    own : header of the gateway's, for nobody else.
    read : whether the gateway reads the answer, which must not be compressed then.
    """
    named = _named_by_connection(headers)
    found = [
        header for header in headers
        if (name := header[0]) not in _NOT_TO_UPSTREAM and name != own and name not in named
        and not name.startswith(_ROUTERS) and not (read and name == b"accept-encoding")
    ]  # fmt: skip
    if read:
        found.append((b"accept-encoding", b"identity"))
    found.append((b"x-request-id", request_id.encode()))
    found += bearer_header(api_key)
    return found


def to_client(raw: Iterable[tuple[bytes, bytes]], request_id: str, more: Headers, *, length: bool) -> Headers:
    """Return the headers of an answer as the client gets them; ``length`` keeps the upstream's content-length.

    Where it sends the client elsewhere, the way leads through the gateway again.
    """
    found = []
    own = {name for name, _ in more}  # of two limits the client would take either
    for name, value in raw:
        lower = name.lower()
        if lower not in _NOT_TO_CLIENT and lower not in own and (length or lower != b"content-length"):
            found.append((lower, _ORIGIN.sub(b"", value) if lower == b"location" else value))
    found.append((b"x-request-id", request_id.encode()))
    found += more
    return found


def check_answer(raw: Iterable[tuple[bytes, bytes]]) -> None:
    """Look whether an upstream's headers may be passed on.

    Raises
    ------
    BadAnswerError : one holds what no header may hold.
    """
    for name, value in raw:
        if _CONTROL.search(value) or _CONTROL.search(name):
            raise BadAnswerError("a header holds control characters")


def client_id(headers: dict[bytes, bytes]) -> str:
    """Return what the client called its request, fit for a log."""
    said = headers.get(b"x-request-id")
    if said is None:
        return ""
    return "".join(c if c.isprintable() else "?" for c in said[:_LONGEST_ID].decode("latin-1"))


def _named_by_connection(headers: Headers) -> frozenset[bytes]:
    """Return the headers that ``connection`` names: they are for one hop too."""
    said = [value for name, value in headers if name == b"connection"]
    return frozenset(part.strip().lower() for value in said for part in value.split(b","))


def single_headers(headers: Headers, *, needs_host: bool) -> dict[bytes, bytes]:
    """Return the headers by name.

    Raises
    ------
    ValueError : one that says who asks, or whom, stands there twice, or a host is missing.
    """
    found = dict(headers)
    if len(found) < len(headers):
        for name in _ONLY_ONCE:
            if sum(one == name for one, _ in headers) > 1:
                raise ValueError(f"The header {name.decode()} stands there twice.")
    if needs_host and b"host" not in found:
        raise ValueError("The header host is missing.")
    return found
