"""In which order flows are served that wait at the gateway; a flow is an entitlement or a tenant.

An order hears who begins and ceases to wait, what is started and what is used, and says whose turn it is. Costs are in
weighted tokens and already divided by the flow's weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from policies.api import EntitlementSpec, ServiceClass
from policies.parts.order import Order
from policies.parts.orders_by_turn import ByClass, Drf, Drr, InTurn
from policies.parts.orders_by_use import ByDebt, Las, Vtc
from policies.parts.orders_by_use import RecentUse as LeastRecentUse

CLASS_RANK: Mapping[ServiceClass, int] = {each: rank for rank, each in enumerate(ServiceClass)}
"""0 for the most protected."""

HALF_LIFE = {"gt": 0, "description": "give seconds after which what was used counts half, e.g. 60, or null for never"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstCome:
    """The first come of all, whoever it belongs to."""

    kind: Literal["first-come"] = "first-come"


@dataclass(frozen=True, slots=True, kw_only=True)
class StrictClass:
    """The most protected class first; inside a class, the first come."""

    kind: Literal["strict-class"] = "strict-class"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRobin:
    """One request of each in turn."""

    kind: Literal["round-robin"] = "round-robin"


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualTokenCounter:
    """Who was served least, counting from when it last began to wait (arXiv 2401.00588)."""

    kind: Literal["vtc"] = "vtc"
    half_life_s: float | None = field(default=None, metadata=HALF_LIFE)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeficitRoundRobin:
    """Each in turn, as many as its quanta pay for."""

    kind: Literal["drr"] = "drr"
    quantum: float = field(default=1024.0, metadata={"gt": 0, "description": "give weighted tokens a turn, e.g. 1024"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastAttainedService:
    """Who was served least of late, and a little who waits longest (llm-d's program-aware plugin)."""

    kind: Literal["las"] = "las"
    half_life_s: float = field(default=60.0, metadata=HALF_LIFE)
    wait_share: float = field(
        default=0.2, metadata={"ge": 0, "le": 1, "description": "give what waiting counts against service, e.g. 0.2"}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentUse:
    """Who used least in the last ``window_s`` (kthena)."""

    kind: Literal["recent-use"] = "recent-use"
    window_s: float = field(default=300.0, metadata={"gt": 0, "description": "give seconds to look back, e.g. 300"})


@dataclass(frozen=True, slots=True, kw_only=True)
class DominantResource:
    """Who holds the smallest share of what it holds most of, slots or KV cache (DRF)."""

    kind: Literal["drf"] = "drf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Debt:
    """Who got least of its promised rate of late.

    Promises are in plain tokens, so give ``output_weight: 1``, or an answer counts twice against them.
    """

    kind: Literal["debt"] = "debt"
    smoothing: float = field(
        default=0.9, metadata={"ge": 0, "lt": 1, "description": "give what a tick leaves of the old debt, e.g. 0.9"}
    )


OrderParams = (
    FirstCome | StrictClass | RoundRobin | VirtualTokenCounter | DeficitRoundRobin | LeastAttainedService | RecentUse
    | DominantResource | Debt
)
ORDERS: Mapping[str, type] = {
    "first-come": FirstCome, "strict-class": StrictClass, "round-robin": RoundRobin, "vtc": VirtualTokenCounter,
    "drr": DeficitRoundRobin, "las": LeastAttainedService, "recent-use": RecentUse, "drf": DominantResource,
    "debt": Debt,
}  # fmt: skip


def order_of(
    params: OrderParams, members: Mapping[str, list[EntitlementSpec]], weights: Mapping[str, float],
    kv_bytes_per_token: float | None,
) -> Order:
    """Return an order over flows; ``members`` are each flow's entitlements."""
    if isinstance(params, FirstCome):
        return ByClass(dict.fromkeys(members, 0))
    if isinstance(params, StrictClass):
        return ByClass({flow: min(CLASS_RANK[one.service_class] for one in specs) for flow, specs in members.items()})
    if isinstance(params, RoundRobin):
        return InTurn()
    if isinstance(params, VirtualTokenCounter):
        return Vtc(params.half_life_s)
    if isinstance(params, DeficitRoundRobin):
        return Drr(params.quantum)
    if isinstance(params, LeastAttainedService):
        return Las(params.half_life_s, params.wait_share)
    if isinstance(params, RecentUse):
        return LeastRecentUse(params.window_s)
    if isinstance(params, DominantResource):
        return Drf(kv_bytes_per_token, weights)
    promised = {
        flow: sum(one.baseline.tokens_per_s or 0.0 for one in specs) for flow, specs in members.items()
    }
    return ByDebt(params.smoothing, promised)
