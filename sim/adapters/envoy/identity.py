"""Whose a request in Envoy is: by a header that Envoy sets, or by an API key."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from policies.api import EntitlementSpec
from sim.adapters.admission.errors import RefusedError
from sim.adapters.admission.tenants import Tenants
from sim.adapters.envoy.config import ExtProcConfig
from sim.live.gateway.authentication import Identity
from sim.live.gateway.error_responses import ApiError
from sim.live.gateway.settings import Key

Identify = Callable[[Mapping[str, bytes], str], EntitlementSpec]
"""From the headers of a request and its path to what it is served under; raises what to answer."""


def identify_by(config: ExtProcConfig, tenants: Tenants) -> Identify:
    """Return what finds the entitlement of a request, as the configuration says."""
    if config.keys:
        return _by_key(config)
    header, class_header = config.tenant_header or "", config.class_header.lower()

    def by_header(headers: Mapping[str, bytes], path: str) -> EntitlementSpec:  # noqa: ARG001
        said = headers.get(header, b"").decode("utf-8", "replace").strip()
        if not said and config.unknown_tenant is None:
            raise RefusedError(
                ApiError(401, "unknown_tenant", f"The request has no {header}.", kind="authentication_error"),
                "unknown_tenant",
            )
        wanted = headers.get(class_header, b"").decode("utf-8", "replace").strip().lower() or None
        try:
            return tenants.find(said, None, wanted)
        except ValueError:
            text = f"{wanted!r} in {class_header} is no service class."
            raise RefusedError(ApiError(400, "invalid_service_class", text), "unknown_tenant") from None

    return by_header


def _by_key(config: ExtProcConfig) -> Identify:
    keys = [Key(name=one.name, entitlement=one.entitlement, digest=bytes.fromhex(one.sha256)) for one in config.keys]
    known = Identity(keys, [one.spec() for one in config.pool.entitlements], config.class_header)

    def by_key(headers: Mapping[str, bytes], path: str) -> EntitlementSpec:
        named = {name.encode(): value for name, value in headers.items()}
        return known.identify(named, by_x_api_key=path.startswith("/v1/messages"))[1]

    return by_key
