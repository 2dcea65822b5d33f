"""Policies that watch a running gateway: each has a core of its own that hears what the acting one hears.

See `policies.shadow`. A new configuration may make a shadow the acting policy: it then begins with what the shadow
remembers, as far as the policy is `policies.api.Inheriting`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from policies.api import EntitlementSpec, Inheriting, Instruction
from policies.core import GatewayCore
from policies.shadow import Opinion, ShadowedCore
from sim.live.gateway.changeover import CoreOf, changeover


class Shadowing:
    """Puts the shadows of a configuration beside its core.

    Parameters
    ----------
    core_of : makes the core of a pool and policy.
    on_opinion : told of what each shadow said of each attempt.
    """

    def __init__(self, core_of: CoreOf, on_opinion: Callable[[Opinion], None]) -> None:
        self._core_of = core_of
        self._tell = on_opinion

    def begin(self, acting: GatewayCore, head: Mapping[str, Any]) -> GatewayCore:
        """Return what drives a core that has not started and its shadows; the core itself where there are none."""
        shadows = self._shadows(head, ())
        return cast("GatewayCore", ShadowedCore(acting, shadows, self._tell)) if shadows else acting

    def change_over(
        self, head: Mapping[str, Any], old: GatewayCore, now_s: float
    ) -> tuple[GatewayCore, Sequence[Instruction]]:
        """Return the core of ``head`` with its shadows, which has taken over from ``old``, and what it says to do."""
        before = old if isinstance(old, ShadowedCore) else None
        acting, said = changeover(self._core_of, head, old if before is None else before.acting, now_s)
        if before is not None:
            before.close()
            watched = before.shadow(str(head["policy"].get("name")))
            if watched is not None and isinstance(acting.policy, Inheriting):
                acting.policy.inherit(watched.policy, acting.pool, now_s)
        names = [one["name"] for one in head["pool"]["entitlements"]]
        leaving = [book.spec for name, book in acting.pool.entitlements.items() if name not in names]
        shadows = self._shadows(head, leaving)
        if not shadows:
            return acting, said
        driver = ShadowedCore(acting, shadows, self._tell)
        return cast("GatewayCore", driver), driver.join(said, now_s)

    def _shadows(self, head: Mapping[str, Any], leaving: Sequence[EntitlementSpec]) -> dict[str, GatewayCore]:
        found = {}
        for policy in head.get("shadow", ()):
            found[str(policy["name"])] = self._core_of(
                {**head, "policy": {**policy, "autoscaler": {"kind": "none"}}}, leaving
            )
        return found
