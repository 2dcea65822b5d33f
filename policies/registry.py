"""The names a scenario may use for policies and routers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from policies.api import AdmissionPolicy, Chance, EntitlementSpec, PoolCapacity, Router, Scaler
from policies.lazy_mapping import LazyMapping, imported

if TYPE_CHECKING:
    from policies.no_control import NoControl
    from policies.rate_limit import RateLimit
    from policies.routing_params import LeastOutstandingTokens, RoundRobin
    from policies.scaling.capacity import Capacity
    from policies.scaling.fixed import Fixed
    from policies.scaling.rules import Saturation, Sla, Utilisation
    from policies.token_pool.params import TokenPool

Built = TypeVar("Built", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a policy claims, and the contract suite holds it to.

    Attributes
    ----------
    work_conserving : nobody is held or refused while the replicas have a free slot and KV cache for it.
    keeps_floors : a flood of others does not keep an entitlement from the slots of its baseline.
    refuses_oversize : what it could never let in is refused without a Retry-After.
    reads_baselines : what it decides depends on the slots that entitlements were promised (`EntitlementSpec.baseline`).
    """

    work_conserving: bool = False
    keeps_floors: bool = False
    refuses_oversize: bool = True
    reads_baselines: bool = False


@dataclass(frozen=True, slots=True)
class Entry(Generic[Built]):
    """A kind: the dataclass that a scenario fills in, and what makes a working object of it.

    Attributes
    ----------
    params : the dataclass; its ``kind`` is the name it is registered under.
    build : for a policy ``build(params, *, entitlements, kv_bytes_per_token, chance)``, for a router ``build(params)``,
        for an autoscaler ``build(params, *, policy, entitlements, per_replica)``.
        What it returns has memory and serves one pool. ValueError where the parameters do not fit the entitlements.
    traits : what a policy claims.
    """

    params: type
    build: Callable[..., Built]
    traits: Traits = Traits()


def _found(place: str) -> Any:
    """Return what ``module:name`` of this package is."""
    return imported(f"policies.{place}")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an entry's parts are: ``module:name`` in this package.

    ``build`` may be a name in the module of ``params``, or a function here.
    """

    params: str
    build: str | Callable[..., Any]
    traits: Traits = Traits()

    def entry(self) -> Entry[Any]:
        build = self.build
        if isinstance(build, str):
            build = _found(build if ":" in build else f"{self.params.partition(':')[0]}:{build}")
        return Entry(_found(self.params), build, self.traits)


def import_all() -> None:
    """Import every module that something registered is in."""
    for one in (POLICIES, ROUTERS, SCALERS, PARTS):
        for _ in one.values():
            pass


def _no_control(
    params: NoControl, *, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None, chance: Chance  # noqa: ARG001
) -> AdmissionPolicy:
    from policies.no_control import NoControlPolicy

    return NoControlPolicy()


def _rate_limit(
    params: RateLimit, *, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None, chance: Chance  # noqa: ARG001
) -> AdmissionPolicy:
    from policies.rate_limit import RateLimitPolicy

    return RateLimitPolicy(params, entitlements)


def _token_pool(
    params: TokenPool, *, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None, chance: Chance
) -> AdmissionPolicy:
    from policies.token_pool.policy import TokenPoolPolicy

    return TokenPoolPolicy(params, entitlements, kv_bytes_per_token=kv_bytes_per_token, chance=chance)


class Preset(Protocol):
    """A name that stands for another policy's parameters."""

    def expand(self) -> Any:
        """Return those parameters."""
        ...


def _preset(params: Preset, **setting: Any) -> AdmissionPolicy:
    expanded = params.expand()
    return POLICIES[expanded.kind].build(expanded, **setting)


def _round_robin(params: RoundRobin) -> Router:  # noqa: ARG001
    from policies.routing import RoundRobinRouter

    return RoundRobinRouter()


def _least_outstanding_tokens(params: LeastOutstandingTokens) -> Router:  # noqa: ARG001
    from policies.routing import LeastOutstandingTokensRouter

    return LeastOutstandingTokensRouter()


def _fixed(
    params: Fixed, *, policy: AdmissionPolicy, entitlements: Sequence[EntitlementSpec], per_replica: PoolCapacity  # noqa: ARG001
) -> None:
    return None


def _utilisation(
    params: Utilisation, *, policy: AdmissionPolicy, entitlements: Sequence[EntitlementSpec], per_replica: PoolCapacity  # noqa: ARG001
) -> Scaler:
    from policies.scaling.governor import Governor
    from policies.scaling.rules import UtilisationRule

    return Governor(params, UtilisationRule(params))


def _saturation(
    params: Saturation, *, policy: AdmissionPolicy, entitlements: Sequence[EntitlementSpec], per_replica: PoolCapacity  # noqa: ARG001
) -> Scaler:
    from policies.scaling.governor import Governor
    from policies.scaling.rules import SaturationRule

    return Governor(params, SaturationRule(params), wants_reports=True)


def _sla(
    params: Sla, *, policy: AdmissionPolicy, entitlements: Sequence[EntitlementSpec], per_replica: PoolCapacity  # noqa: ARG001
) -> Scaler:
    from policies.scaling.governor import Governor
    from policies.scaling.rules import SlaRule

    return Governor(params, SlaRule(params, per_replica), wants_progress=True)


def _capacity(
    params: Capacity, *, policy: AdmissionPolicy, entitlements: Sequence[EntitlementSpec], per_replica: PoolCapacity
) -> Scaler:
    from policies.scaling.capacity import CapacityRule
    from policies.scaling.governor import Governor

    return Governor(params, CapacityRule(params, policy, entitlements, per_replica))


_CONSERVES = Traits(work_conserving=True)

POLICIES: Mapping[str, Entry[AdmissionPolicy]] = LazyMapping({
    "none": _Place("no_control:NoControl", _no_control, Traits(work_conserving=True, refuses_oversize=False)),
    "cap": _Place("cap:Cap", "CapPolicy"),
    "rate-limit": _Place("rate_limit:RateLimit", _rate_limit),
    "window": _Place("window:Window", "WindowPolicy", Traits(refuses_oversize=False)),
    "reserve": _Place("reserve:Reserve", "ReservePolicy"),
    "ptu": _Place("ptu:Ptu", "PtuPolicy", Traits(refuses_oversize=False)),
    "prio-reserve": _Place("prio_reserve:PrioReserve", "PrioReservePolicy", Traits(refuses_oversize=False)),
    "bands": _Place("bands:Bands", "BandsPolicy"),
    "class-slots": _Place("class_slots:ClassSlots", "ClassSlotsPolicy"),
    "cohort": _Place("cohort:Cohort", "CohortPolicy", Traits(reads_baselines=True)),
    "slo-feasible": _Place("slo_feasible:SloFeasible", "SloFeasiblePolicy"),
    "adaptive": _Place("adaptive:Adaptive", "AdaptivePolicy"),
    "dagor": _Place("dagor:Dagor", "DagorPolicy"),
    "dedicated": _Place("dedicated:Dedicated", "DedicatedPolicy", Traits(keeps_floors=True)),
    "fair-queue": _Place("fair_queue:FairQueue", "FairQueuePolicy", _CONSERVES),
    "vtc": _Place("fair_queue:Vtc", "FairQueuePolicy", _CONSERVES),
    "drr": _Place("fair_queue:Drr", "FairQueuePolicy", _CONSERVES),
    "las": _Place("fair_queue:Las", "FairQueuePolicy", _CONSERVES),
    "dlpm": _Place("dlpm:Dlpm", "DlpmPolicy", _CONSERVES),
    "concur": _Place("concur:Concur", "ConcurPolicy"),
    "fairserve": _Place("fairserve:FairServe", "FairServePolicy"),
    "polyserve": _Place("polyserve:PolyServe", "PolyServePolicy"),
    "token-pool": _Place("token_pool.params:TokenPool", _token_pool, Traits(keeps_floors=True, reads_baselines=True)),
    "predictive-pool": _Place(
        "predictive_pool.params:PredictivePool", "predictive_pool.policy:PredictivePoolPolicy",
        Traits(reads_baselines=True),
    ),
    "litellm": _Place("presets.gateways:LiteLlm", _preset, Traits(refuses_oversize=False)),
    "envoy-ai-gateway": _Place("presets.gateways:EnvoyAiGateway", _preset, Traits(refuses_oversize=False)),
    "kuadrant": _Place("presets.gateways:Kuadrant", _preset, Traits(refuses_oversize=False)),
    "llm-d": _Place("presets.schedulers:LlmD", _preset),
    "llm-d-flow-control": _Place("llm_d_flow_control:LlmDFlowControl", "LlmDFlowControlPolicy"),
    "datarobot": _Place("datarobot:DataRobot", "DataRobotPolicy", Traits(refuses_oversize=False)),
    "smg": _Place("presets.schedulers:Smg", _preset),
    "smg-tenants": _Place("presets.gateways:SmgTenants", _preset, Traits(refuses_oversize=False)),
    "azure-ptu": _Place("presets.gateways:AzurePtu", _preset, Traits(refuses_oversize=False)),
    "bedrock": _Place("presets.gateways:Bedrock", _preset),
    "dynamo": _Place("presets.schedulers:Dynamo", _preset, _CONSERVES),
    "kthena": _Place("presets.schedulers:Kthena", _preset, _CONSERVES),
    "k8s-apf": _Place("presets.schedulers:K8sApf", _preset, Traits(reads_baselines=True)),
}, _Place.entry)
"""Who is let in."""

PARTS: Mapping[str, Mapping[str, type]] = LazyMapping({
    "estimate": "parts.estimates:ESTIMATES", "order": "parts.orders:ORDERS",
    "saturation": "parts.saturation:SATURATIONS",
}, _found)
"""What policies are made of: for each field that holds a part, the kinds it may be."""

ROUTERS: Mapping[str, Entry[Router]] = LazyMapping({
    "round-robin": _Place("routing:RoundRobin", _round_robin),
    "least-outstanding-tokens": _Place("routing:LeastOutstandingTokens", _least_outstanding_tokens),
    "least-expected-time": _Place("routers.expected_time:LeastExpectedTime", "LeastExpectedTimeRouter"),
    "random": _Place("routers.scored:Random", "RandomRouter"),
    "scored": _Place("routers.scored:Scored", "ScoredRouter"),
    "prefix-aware": _Place("routers.prefix_aware:PrefixAware", "PrefixAwareRouter"),
    "adapter-aware": _Place("routers.adapter_aware:AdapterAware", "AdapterAwareRouter"),
    "slo-tier": _Place("routers.slo_tier:SloTier", "SloTierRouter"),
}, _Place.entry)
"""Which replica takes a request."""

SCALERS: Mapping[str, Entry[Scaler | None]] = LazyMapping({
    "none": _Place("scaling.fixed:Fixed", _fixed),
    "capacity": _Place("scaling.capacity:Capacity", _capacity),
    "utilisation": _Place("scaling.rules:Utilisation", _utilisation),
    "saturation": _Place("scaling.rules:Saturation", _saturation),
    "sla": _Place("scaling.rules:Sla", _sla),
}, _Place.entry)
"""How many replicas there should be."""
