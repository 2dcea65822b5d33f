"""Who asks: from an API key to an entitlement, and from there down, never up.

Keys are long random strings, so one SHA-256 is as good as a slow hash. Where a key is looked for depends on a secret of
this process and the time to compare does not depend on the content: neither tells anything about the stored hashes.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from policies.api import EntitlementSpec, ServiceClass
from policies.parts.orders import CLASS_RANK
from sim.live.gateway.error_responses import ApiError
from sim.live.gateway.settings import Key

PREFIX = "tp-"
_KEY_BYTES = 32
_LONGEST_KEY = 512


def new_key() -> str:
    """Return a fresh key: 256 random bits."""
    return PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def hashed(key: str | bytes) -> bytes:
    """Return what a configuration keeps of a key."""
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).digest()


class Identity:
    """Finds keys and the entitlements that they open."""

    def __init__(
        self, keys: Iterable[Key], entitlements: Sequence[EntitlementSpec], class_header: str,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._wall_clock = wall_clock
        self._secret = secrets.token_bytes(32)
        self._keys = {self._place(key.digest): key for key in keys}
        self._specs = {spec.name: spec for spec in entitlements}
        self._header = class_header.lower().encode()

    def _place(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self._secret, digest_size=16).digest()

    def salt(self, tenant: str) -> str:
        """Return what keeps a tenant's prefix cache to itself: the same for as long as its keys are, in any process."""
        digests = sorted(key.digest for key in self._keys.values() if self._specs[key.entitlement].tenant == tenant)
        return hashlib.blake2b(tenant.encode(), key=hashed(b"".join(digests)), digest_size=16).hexdigest()

    def identify(
        self, headers: Mapping[bytes, bytes], *, by_x_api_key: bool = False
    ) -> tuple[Key, EntitlementSpec]:
        """Return the key of a request and what it is served under.

        Parameters
        ----------
        by_x_api_key : whether the key may come as Anthropic's clients send it.

        Raises
        ------
        ApiError : 401 without a known key, 403 where the class asked for is not below the key's own.
        """
        said = headers.get(b"authorization", b"")
        scheme, _, secret = said.partition(b" ")
        secret = secret.strip()
        if by_x_api_key and b"x-api-key" in headers:
            other = headers[b"x-api-key"].strip()
            if secret and secret != other:
                raise ApiError(400, "invalid_request", "authorization and x-api-key name different keys; send one.")
            scheme, secret = b"bearer", other
        if scheme.lower() != b"bearer" or not secret:
            raise ApiError(401, "invalid_api_key", "No API key was given: send Authorization: Bearer KEY.",
                          kind="authentication_error")
        digest = hashed(secret[:_LONGEST_KEY])
        key = self._keys.get(self._place(digest))
        if key is None or not hmac.compare_digest(key.digest, digest):
            raise ApiError(401, "invalid_api_key", "The API key is not known here.", kind="authentication_error")
        if key.expires_s is not None and self._wall_clock() >= key.expires_s:
            raise ApiError(401, "invalid_api_key", "The API key has expired.", kind="authentication_error")
        spec = self._specs[key.entitlement]
        wanted = headers.get(self._header)
        return key, spec if wanted is None else self._lowered(spec, wanted.decode("latin-1").strip().lower())

    def _lowered(self, spec: EntitlementSpec, wanted: str) -> EntitlementSpec:
        """Return the tenant's own entitlement of a lower class."""
        if wanted == spec.service_class:
            return spec
        names = [str(one) for one in ServiceClass]
        if wanted not in names:
            raise ApiError(400, "invalid_service_class", f"A service class is one of {', '.join(names)}.",
                          param=self._header.decode())
        if CLASS_RANK[ServiceClass(wanted)] < CLASS_RANK[spec.service_class]:
            raise ApiError(403, "service_class_not_allowed", f"This key is for {spec.service_class}: ask for a class "
                           "below it, never above.", kind="permission_error", param=self._header.decode())
        for other in self._specs.values():
            if other.tenant == spec.tenant and other.service_class == wanted:
                return other
        raise ApiError(403, "service_class_not_allowed", f"Your tenant has no {wanted} entitlement.",
                      kind="permission_error", param=self._header.decode())
