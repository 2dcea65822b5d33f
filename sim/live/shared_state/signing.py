"""Whether an entry of the log, a snapshot or a view of the replicas comes from a gateway that knows the pool's key.

Each is signed by who writes it (HMAC-SHA-256, 128 bits of it) together with the pool, the log (its epoch) and what it
is. An event carries a number of its sender that only grows, whatever becomes of connections, so that what was heard
once is not heard again; a name is used by one process only, so that no number comes back with another one.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
from collections.abc import Iterable

UNSIGNED = "-"
_HEX = 32
LEAST_KEY_BYTES = 16


def gateway_name() -> str:
    """Return a name that no other process has."""
    host = "".join(each if each.isalnum() or each in "-." else "-" for each in socket.gethostname())
    return f"{host}-{os.getpid()}-{secrets.token_hex(3)}"


class Signer:
    """Signs and checks for one pool; without a key nothing is signed and everything is believed."""

    def __init__(self, pool: str, key: bytes | None) -> None:
        self._pool = pool
        self._key = key

    @property
    def has_key(self) -> bool:
        """Whether anything is signed."""
        return self._key is not None

    def sign(self, *parts: str | int) -> str:
        """Return the signature of some text, with its kind and epoch among the parts."""
        if self._key is None:
            return UNSIGNED
        return hmac.digest(self._key, self._joined(parts), "sha256").hex()[:_HEX]

    def believes(self, signature: str, *parts: str | int) -> bool:
        """Whether a signature is that of this text."""
        return self._key is None or hmac.compare_digest(signature.encode(), self.sign(*parts).encode())

    def fingerprint(self) -> str:
        """Return what tells two keys apart and gives none away; empty without a key."""
        return "" if self._key is None else hmac.digest(self._key, b"fingerprint", "sha256").hex()[:8]

    def _joined(self, parts: Iterable[str | int]) -> bytes:
        # The length of each part stands before it, so that no two lists of parts give the same text.
        return "".join(f"{len(text)}:{text}" for text in map(str, (self._pool, *parts))).encode()
