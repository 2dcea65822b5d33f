"""The names a scenario may use for policies and routers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

from policies.adaptive import Adaptive, AdaptivePolicy
from policies.api import AdmissionPolicy, Chance, EntitlementSpec, PoolCapacity, Router, Scaler
from policies.bands import Bands, BandsPolicy
from policies.cap import Cap, CapPolicy
from policies.class_slots import ClassSlots, ClassSlotsPolicy
from policies.cohort import Cohort, CohortPolicy
from policies.concur import Concur, ConcurPolicy
from policies.dagor import Dagor, DagorPolicy
from policies.datarobot import DataRobot, DataRobotPolicy
from policies.dedicated import Dedicated, DedicatedPolicy
from policies.dlpm import Dlpm, DlpmPolicy
from policies.fair_queue import Drr, FairQueue, FairQueuePolicy, Las, Vtc
from policies.fairserve import FairServe, FairServePolicy
from policies.llm_d_flow_control import LlmDFlowControl, LlmDFlowControlPolicy
from policies.no_control import NoControl, NoControlPolicy
from policies.parts.estimates import ESTIMATES
from policies.parts.orders import ORDERS
from policies.parts.saturation import SATURATIONS
from policies.polyserve import PolyServe, PolyServePolicy
from policies.predictive_pool.params import PredictivePool
from policies.predictive_pool.policy import PredictivePoolPolicy
from policies.presets.gateways import AzurePtu, Bedrock, EnvoyAiGateway, Kuadrant, LiteLlm, SmgTenants
from policies.presets.schedulers import Dynamo, K8sApf, Kthena, LlmD, Smg
from policies.prio_reserve import PrioReserve, PrioReservePolicy
from policies.ptu import Ptu, PtuPolicy
from policies.rate_limit import RateLimit, RateLimitPolicy
from policies.reserve import Reserve, ReservePolicy
from policies.routers.adapter_aware import AdapterAware, AdapterAwareRouter
from policies.routers.expected_time import LeastExpectedTime, LeastExpectedTimeRouter
from policies.routers.prefix_aware import PrefixAware, PrefixAwareRouter
from policies.routers.scored import Random, RandomRouter, Scored, ScoredRouter
from policies.routers.slo_tier import SloTier, SloTierRouter
from policies.routing import LeastOutstandingTokens, LeastOutstandingTokensRouter, RoundRobin, RoundRobinRouter
from policies.scaling.capacity import Capacity, CapacityRule
from policies.scaling.governor import Governor
from policies.scaling.rules import Fixed, Saturation, SaturationRule, Sla, SlaRule, Utilisation, UtilisationRule
from policies.slo_feasible import SloFeasible, SloFeasiblePolicy
from policies.token_pool.params import TokenPool
from policies.token_pool.policy import TokenPoolPolicy
from policies.window import Window, WindowPolicy

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


def _no_control(
    params: NoControl, *, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None, chance: Chance  # noqa: ARG001
) -> AdmissionPolicy:
    return NoControlPolicy()


def _rate_limit(
    params: RateLimit, *, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None, chance: Chance  # noqa: ARG001
) -> AdmissionPolicy:
    return RateLimitPolicy(params, entitlements)


def _token_pool(
    params: TokenPool, *, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None, chance: Chance
) -> AdmissionPolicy:
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
    return RoundRobinRouter()


def _least_outstanding_tokens(params: LeastOutstandingTokens) -> Router:  # noqa: ARG001
    return LeastOutstandingTokensRouter()


def _fixed(
    params: Fixed, *, policy: AdmissionPolicy, entitlements: Sequence[EntitlementSpec], per_replica: PoolCapacity  # noqa: ARG001
) -> None:
    return None


def _utilisation(
    params: Utilisation, *, policy: AdmissionPolicy, entitlements: Sequence[EntitlementSpec], per_replica: PoolCapacity  # noqa: ARG001
) -> Scaler:
    return Governor(params, UtilisationRule(params))


def _saturation(
    params: Saturation, *, policy: AdmissionPolicy, entitlements: Sequence[EntitlementSpec], per_replica: PoolCapacity  # noqa: ARG001
) -> Scaler:
    return Governor(params, SaturationRule(params), wants_reports=True)


def _sla(
    params: Sla, *, policy: AdmissionPolicy, entitlements: Sequence[EntitlementSpec], per_replica: PoolCapacity  # noqa: ARG001
) -> Scaler:
    return Governor(params, SlaRule(params, per_replica), wants_progress=True)


def _capacity(
    params: Capacity, *, policy: AdmissionPolicy, entitlements: Sequence[EntitlementSpec], per_replica: PoolCapacity
) -> Scaler:
    return Governor(params, CapacityRule(params, policy, entitlements, per_replica))


_CONSERVES = Traits(work_conserving=True)

POLICIES: Mapping[str, Entry[AdmissionPolicy]] = MappingProxyType({
    "none": Entry(NoControl, _no_control, Traits(work_conserving=True, refuses_oversize=False)),
    "cap": Entry(Cap, CapPolicy),
    "rate-limit": Entry(RateLimit, _rate_limit),
    "window": Entry(Window, WindowPolicy, Traits(refuses_oversize=False)),
    "reserve": Entry(Reserve, ReservePolicy),
    "ptu": Entry(Ptu, PtuPolicy, Traits(refuses_oversize=False)),
    "prio-reserve": Entry(PrioReserve, PrioReservePolicy, Traits(refuses_oversize=False)),
    "bands": Entry(Bands, BandsPolicy),
    "class-slots": Entry(ClassSlots, ClassSlotsPolicy),
    "cohort": Entry(Cohort, CohortPolicy, Traits(reads_baselines=True)),
    "slo-feasible": Entry(SloFeasible, SloFeasiblePolicy),
    "adaptive": Entry(Adaptive, AdaptivePolicy),
    "dagor": Entry(Dagor, DagorPolicy),
    "dedicated": Entry(Dedicated, DedicatedPolicy, Traits(keeps_floors=True)),
    "fair-queue": Entry(FairQueue, FairQueuePolicy, _CONSERVES),
    "vtc": Entry(Vtc, FairQueuePolicy, _CONSERVES),
    "drr": Entry(Drr, FairQueuePolicy, _CONSERVES),
    "las": Entry(Las, FairQueuePolicy, _CONSERVES),
    "dlpm": Entry(Dlpm, DlpmPolicy, _CONSERVES),
    "concur": Entry(Concur, ConcurPolicy),
    "fairserve": Entry(FairServe, FairServePolicy),
    "polyserve": Entry(PolyServe, PolyServePolicy),
    "token-pool": Entry(TokenPool, _token_pool, Traits(keeps_floors=True, reads_baselines=True)),
    "predictive-pool": Entry(PredictivePool, PredictivePoolPolicy, Traits(reads_baselines=True)),
    "litellm": Entry(LiteLlm, _preset, Traits(refuses_oversize=False)),
    "envoy-ai-gateway": Entry(EnvoyAiGateway, _preset, Traits(refuses_oversize=False)),
    "kuadrant": Entry(Kuadrant, _preset, Traits(refuses_oversize=False)),
    "llm-d": Entry(LlmD, _preset),
    "llm-d-flow-control": Entry(LlmDFlowControl, LlmDFlowControlPolicy),
    "datarobot": Entry(DataRobot, DataRobotPolicy, Traits(refuses_oversize=False)),
    "smg": Entry(Smg, _preset),
    "smg-tenants": Entry(SmgTenants, _preset, Traits(refuses_oversize=False)),
    "azure-ptu": Entry(AzurePtu, _preset, Traits(refuses_oversize=False)),
    "bedrock": Entry(Bedrock, _preset),
    "dynamo": Entry(Dynamo, _preset, _CONSERVES),
    "kthena": Entry(Kthena, _preset, _CONSERVES),
    "k8s-apf": Entry(K8sApf, _preset, Traits(reads_baselines=True)),
})
"""Who is let in."""

PARTS: Mapping[str, Mapping[str, type]] = MappingProxyType({
    "estimate": ESTIMATES, "order": ORDERS, "saturation": SATURATIONS,
})
"""What policies are made of: for each field that holds a part, the kinds it may be."""

ROUTERS: Mapping[str, Entry[Router]] = MappingProxyType({
    "round-robin": Entry(RoundRobin, _round_robin),
    "least-outstanding-tokens": Entry(LeastOutstandingTokens, _least_outstanding_tokens),
    "least-expected-time": Entry(LeastExpectedTime, LeastExpectedTimeRouter),
    "random": Entry(Random, RandomRouter),
    "scored": Entry(Scored, ScoredRouter),
    "prefix-aware": Entry(PrefixAware, PrefixAwareRouter),
    "adapter-aware": Entry(AdapterAware, AdapterAwareRouter),
    "slo-tier": Entry(SloTier, SloTierRouter),
})
"""Which replica takes a request."""

SCALERS: Mapping[str, Entry[Scaler | None]] = MappingProxyType({
    "none": Entry(Fixed, _fixed),
    "capacity": Entry(Capacity, _capacity),
    "utilisation": Entry(Utilisation, _utilisation),
    "saturation": Entry(Saturation, _saturation),
    "sla": Entry(Sla, _sla),
})
"""How many replicas there should be."""
