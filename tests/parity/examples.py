"""One or more sets of parameters for every registered policy: what the contract and the parity suites run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from policies.adaptive import Adaptive
from policies.bands import Bands
from policies.cap import Cap
from policies.class_slots import ClassSlots
from policies.cohort import Cohort
from policies.concur import Concur
from policies.dagor import Dagor
from policies.datarobot import DataRobot, QuotaRule
from policies.dedicated import Dedicated
from policies.dlpm import Dlpm
from policies.fair_queue import Drr, FairQueue, Las, Vtc
from policies.fairserve import FairServe
from policies.llm_d_flow_control import LlmDFlowControl
from policies.no_control import NoControl
from policies.parts.estimates import Flat, Quantile, TenantMean
from policies.parts.orders import Debt, DeficitRoundRobin, DominantResource, FirstCome, RecentUse, StrictClass
from policies.parts.saturation import InFlightShare, Ledger, PredictedTtft, QueueAndKv
from policies.polyserve import PolyServe
from policies.predictive_pool.params import PredictivePool
from policies.presets.gateways import AzurePtu, Bedrock, EnvoyAiGateway, Kuadrant, LiteLlm, SmgTenants
from policies.presets.schedulers import Dynamo, K8sApf, Kthena, LlmD, Smg
from policies.prio_reserve import PrioReserve
from policies.ptu import Ptu
from policies.rate_limit import Limits, RateLimit
from policies.reserve import Reserve
from policies.slo_feasible import SloFeasible
from policies.token_pool.params import TokenPool
from policies.window import Longer, Window

EXAMPLES: dict[str, Any] = {
    "none": NoControl(),
    "cap": Cap(max_in_flight_per_replica=2, queue_requests=4, timeout_s=5.0),
    "cap, no queue": Cap(max_in_flight_per_replica=None, queue_requests=0, status=529),
    "window": Window(requests_per_min=30, tokens_per_min=2000, also=(Longer(tokens=3000, window_s=100.0),)),
    "reserve": Reserve(requests_per_min=30, tokens_per_min=2000),
    "window, demote": Window(tokens_per_min=600, over="demote", starts="first-request", refuse_at="above"),
    "reserve, spill": Reserve(tokens_per_min=600, over="spill", cached_weight=0.0),
    "reserve, fixed": Reserve(tokens_per_min=2000, meter="fixed", estimate=Flat(tokens=100), ttl_s=2.0),
    "reserve, sliding": Reserve(tokens_per_min=2000, meter="sliding", estimate=TenantMean(), debt=False),
    "ptu": Ptu(requests_per_min=60, tokens_per_min=2000, horizon_s=10.0),
    "fair-queue": FairQueue(timeout_s=5.0, queue_requests=6),
    "fair-queue, strict": FairQueue(order=StrictClass(), within="edf", timeout_s=None),
    "fair-queue, drf": FairQueue(order=DominantResource(), within="shortest", charge="prompt", queue_tokens=100),
    "fair-queue, debt": FairQueue(order=Debt(), charge="predicted", estimate=Quantile(), weights={"spot": 2.0}),
    "fair-queue, recent": FairQueue(order=RecentUse(window_s=5.0), charge="end", timeout_status=504),
    "fair-queue, first come": FairQueue(order=FirstCome(), occupancy=1.5),
    "vtc": Vtc(),
    "vtc, predicted": Vtc(charge="predicted", estimate=TenantMean(), half_life_s=10.0, weights={"elastic": 3.0}),
    "drr": Drr(quantum=64, queue_requests=4, when_full="displace"),
    "drr, tenants": Drr(flow="tenant", charge="prompt"),
    "las": Las(half_life_s=5.0),
    "prio-reserve": PrioReserve(requests_per_min=60, tokens_per_min=3000, weights={"spot": 0.3}, cache_s=5.0),
    "bands": Bands(ceilings="holdback", timeout_s=5.0, evict=True, tick_s=0.5),
    "bands, reports": Bands(
        saturation=QueueAndKv(stale_s=1.0), ceilings="soft-reflective", queue_requests=3, tick_s=0.5,
    ),
    "bands, ttft": Bands(saturation=PredictedTtft(budget_s=0.01), tick_s=0.5),
    "bands, legacy": Bands(saturation=InFlightShare(requests_per_replica=2, tokens_per_replica=400), legacy=True),
    "bands, drr": Bands(saturation=Ledger(), order=DeficitRoundRobin(quantum=64), tick_s=0.5),
    "class-slots": ClassSlots(floors=(1, 1, 0, 0), queues=(2, 2, 2, 2), timeouts_s=(2.0, 2.0, 4.0, 8.0)),
    "cohort": Cohort(period_s=2.0, timeout_s=10.0),
    "cohort, dominant": Cohort(measure="dominant", shares={"spot": 3.0}, lend=1.0, borrow=1.0, within="edf"),
    "slo-feasible": SloFeasible(first_tokens_per_s=50.0, tpot_slo_s=500.0),
    "slo-feasible, relegate": SloFeasible(infeasible="relegate", first_tokens_per_s=50.0, smoothing=0.5),
    "adaptive": Adaptive(initial=6, least=5, most=9),
    "adaptive, aimd": Adaptive(limit="aimd", initial=6, least=5, most=9, slow_s=0.5, weights={"spot": 2.0}),
    "adaptive, vegas": Adaptive(limit="vegas", initial=6, least=5, most=9),
    "dagor": Dagor(threshold_s=0.2, rotate_s=7.0),
    "litellm": LiteLlm(tokens_per_min=3000, weights={"spot": 0.3}),
    "envoy-ai-gateway": EnvoyAiGateway(tokens=3000, output_weight=1.5),
    "kuadrant": Kuadrant(tokens=3000, amount=200, ttl_s=5.0),
    "kuadrant, check-report": Kuadrant(tokens=3000, mode="check-report"),
    "llm-d": LlmD(),
    "llm-d, concurrency": LlmD(detector="concurrency", ceilings="holdback", evict=True),
    "llm-d-flow-control": LlmDFlowControl(staleness="ignore", tick_s=0.01),
    "llm-d-flow-control, concurrency": LlmDFlowControl(
        detector="concurrency", evict=True, fairness="program-aware", prefill_replicas=(1,), tick_s=0.05,
    ),
    "llm-d-flow-control, hybrid": LlmDFlowControl(
        detector="hybrid", ceilings="holdback", fairness="round-robin", ordering="slo-deadline", tick_s=0.05,
    ),
    "dlpm": Dlpm(quantum=64, looks_at=3),
    "dlpm, tenants": Dlpm(flow="tenant", memory_s=5.0, timeout_s=10.0),
    "concur": Concur(agents=2, idle_s=5.0),
    "fairserve": FairServe(
        user_per_min=20, app_per_min=10, overloaded_running=2, overloaded_kv_tokens=50, system_tokens={"spot": 10},
        weights={"spot": 2.0},
    ),
    "polyserve": PolyServe(tpot_slo_s={"spot": 0.022}),
    "polyserve, refusing": PolyServe(refuse_late=True, per_prompt_token_s=0.05),
    "datarobot": DataRobot(capacity=3000, reserved={"spot": 0.4}, threshold=0.5),
    "datarobot, rules": DataRobot(
        capacity=60, unit="requests", rules=(
            QuotaRule(rule="concurrentRequests", limit=3), QuotaRule(rule="inputSequenceLength", limit=5000),
            QuotaRule(rule="token", limit=2000), QuotaRule(rule="requests", limit=20),
        ),
    ),
    "smg": Smg(),
    "smg-tenants": SmgTenants(tokens_per_min=3000),
    "azure-ptu": AzurePtu(units=1.0, per_entitlement={"spot": 2.0}),
    "bedrock": Bedrock(tokens_per_min=3000),
    "dynamo": Dynamo(quantum=64, weights={"spot": 2.0}),
    "kthena": Kthena(window_s=10.0),
    "k8s-apf": K8sApf(),
    "dedicated": Dedicated(max_in_flight_per_replica=2),
    "dedicated, named": Dedicated(replicas={"spot": 1}),
    "rate-limit": RateLimit(requests_per_min=30, tokens_per_min=2000, per_entitlement={"spot": Limits()}),
    "rate-limit, sliding": RateLimit(requests_per_min=30, tokens_per_min=2000, window="sliding"),
    "predictive-pool": PredictivePool(),
    "predictive-pool, no parts": PredictivePool(
        hold=False, reserve="max-tokens", overbook=0.0, take_back=False, cached_weight=1.0, trickle=0.0,
        share_by="entitlement", capacity="declared",
    ),
    "predictive-pool, small queue": PredictivePool(
        queue_requests=4, queue_tokens=200, timeout_s=5.0, parents={"spot": "low"}, tick_s=0.5,
        prefill_ahead_s=0.01, quantile=0.9, answers=10, trickle=0.2,
    ),
    "token-pool": TokenPool(mode="paper", max_request_tokens=300),
    "token-pool, frozen": TokenPool(mode="paper", weight_at="admission", metering="completions", tick_s=1.0),
    "token-pool, robust": TokenPool(mode="robust", max_request_tokens=300),
}


def renamed(params: Any, names: Mapping[str, str]) -> Any:
    """Return the parameters for a pool whose entitlements have other names."""
    changed = {
        one.name: {names.get(key, key): value for key, value in getattr(params, one.name).items()}
        for one in fields(params)
        if isinstance(getattr(params, one.name), Mapping)
    }
    return replace(params, **changed)
