"""Which headers go through, in either direction."""

from __future__ import annotations

import re
from collections.abc import Iterable

from multidict import CIMultiDict

Headers = list[tuple[bytes, bytes]]

_HOP_BY_HOP = frozenset((
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer",
    b"transfer-encoding", b"upgrade",
))  # fmt: skip
_NOT_TO_UPSTREAM = _HOP_BY_HOP | {
    b"host", b"content-length", b"expect", b"authorization", b"x-api-key", b"x-request-id",
}  # fmt: skip
_NOT_TO_CLIENT = _HOP_BY_HOP | {b"date", b"server", b"x-request-id", b"set-cookie"}
_LONGEST_ID = 128
_ORIGIN = re.compile(rb"^[A-Za-z][A-Za-z0-9+.-]*://[^/]*")


def bearer(secret: str | None) -> dict[str, str]:
    """Return the header that shows a key or token; none where there is none."""
    return {} if secret is None else {"authorization": f"Bearer {secret}"}


def to_upstream(headers: Headers, *, api_key: str | None, request_id: str, own: bytes, read: bool) -> CIMultiDict[str]:
    """Return the headers of a request as an upstream gets them: the client's key stays here.

    Parameters
    ----------
    own : header of the gateway's, for nobody else.
    read : whether the gateway reads the answer, which must not be compressed then.
    """
    named = _named_by_connection(headers)
    found: CIMultiDict[str] = CIMultiDict()
    for name, value in headers:
        if name not in _NOT_TO_UPSTREAM and name != own and name not in named:
            found.add(name.decode("latin-1"), value.decode("latin-1"))
    if read:
        found["accept-encoding"] = "identity"
    found["x-request-id"] = request_id
    found.update(bearer(api_key))
    return found


def to_client(raw: Iterable[tuple[bytes, bytes]], request_id: str, more: Headers, *, length: bool) -> Headers:
    """Return the headers of an answer as the client gets them; ``length`` keeps the upstream's content-length.

    Where it sends the client elsewhere, the way leads through the gateway again.
    """
    found = []
    for name, value in raw:
        lower = name.lower()
        if lower not in _NOT_TO_CLIENT and (length or lower != b"content-length"):
            found.append((lower, _ORIGIN.sub(b"", value) if lower == b"location" else value))
    found.append((b"x-request-id", request_id.encode()))
    found += more
    return found


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
