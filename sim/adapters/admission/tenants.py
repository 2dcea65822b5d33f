"""Whose budget a request is served on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from policies.api import EntitlementSpec, ServiceClass
from sim.adapters.admission.errors import ambiguous, unknown


class Tenants:
    """Finds the entitlement of a request.

    Parameters
    ----------
    named : the entitlement of names that are no tenant of the pool.
    otherwise : the entitlement of whoever is not known; None: they are refused.
    """

    def __init__(
        self, specs: Sequence[EntitlementSpec], named: Mapping[str, str], otherwise: str | None = None
    ) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._of: dict[str, list[EntitlementSpec]] = {}
        for spec in specs:
            self._of.setdefault(spec.tenant, []).append(spec)
        for tenant, name in named.items():
            self._of[tenant] = [self._specs[name]]
        self._otherwise = None if otherwise is None else self._specs[otherwise]

    def __contains__(self, tenant: str) -> bool:
        return tenant in self._of

    def find(
        self, tenant: str, entitlement: str | None = None, service_class: str | None = None
    ) -> EntitlementSpec:
        """Return what a tenant is served under.

        An entitlement of another tenant is never found: its name alone opens nothing.

        Raises
        ------
        RefusedError : 403 where the tenant has no such entitlement, 400 where it has several and names none.
        ValueError : there is no such service class.
        """
        wanted = None if service_class is None else ServiceClass(service_class)
        own = self._of.get(tenant)
        if own is None:
            if self._otherwise is None:
                raise unknown(tenant)
            own = [self._otherwise]
        if len(own) == 1 and entitlement is None and wanted is None:
            return own[0]
        fit = [
            spec for spec in own
            if entitlement in (None, spec.name) and wanted in (None, spec.service_class)
        ]  # fmt: skip
        if len(fit) == 1:
            return fit[0]
        if not fit:
            raise unknown(tenant)
        raise ambiguous(tenant, [spec.name for spec in fit])
