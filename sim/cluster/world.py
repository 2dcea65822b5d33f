"""One run: a scenario's demand through one policy, from the first arrival to the horizon."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, cast

import simpy

from policies.api import (
    AdmissionPolicy,
    CacheSeeing,
    Clairvoyant,
    EntitlementSpec,
    Event,
    Gauge,
    Instruction,
    PoolLedger,
    Router,
    Scaler,
)
from policies.core import GatewayCore
from sim.cluster.agenda import SCRAPE, Agenda, Alarm
from sim.cluster.arrivals import Arrivals
from sim.cluster.attempt_log import AttemptLog
from sim.cluster.clock import Clock
from sim.cluster.engine_request import NEVER_S
from sim.cluster.faults import Pool, PoolEvent, apply_events, provisioned
from sim.cluster.fleet import Fleet
from sim.cluster.gateway import SimulatedGateway
from sim.cluster.kinds import context_tokens, kinds_of
from sim.cluster.node import Node
from sim.cluster.sampler import Sampler
from sim.engine.replica_life import Life
from sim.records.schema import RequestColumns, TimelineBlock
from sim.scenario.profile import Profile
from workloads.clients import Chance
from workloads.generate import WorkloadSpec, split_over_keys
from workloads.requests import Demand

if TYPE_CHECKING:
    from policies.hierarchy import HierarchySpec
    from policies.shadow import Opinion, ShadowedCore
    from sim.cluster.gateways import Gateways

_STALLED_S = 3600.0
"""How long nothing at all happens before who is held at the gateway is taken to be held for good."""
Core: TypeAlias = "GatewayCore | Gateways | ShadowedCore"
Logged = tuple[float, Event, Sequence[Instruction]]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What one run is made of.

    Attributes
    ----------
    horizon_s : when the run ends; None: when every request has ended.
    timeline_interval_s : between samples; None: no timeline.
    scrape_interval_s : between reports of the replicas to policies that want them.
    chances : of each workload, what its clients' jitter is drawn from; empty for none.
    scaler, most_replicas, life : who scales the pool, up to how many replicas, and how long that takes; None: nobody.
    retry_failed : whether what a lost replica had is sent to another.
    notice_s : how late the gateway hears of changes of capacity and of the replicas' metrics.
    shadows : policy and router of each policy that watches without acting (`policies.shadow`); of one gateway only.
    others, share_s : policy and router of each further gateway, and the seconds between two exchanges of their books.
    hierarchy : limits and budgets above the entitlements; None where there are none.
    also : profiles of further replicas, of other kinds; they come after the others, and nobody scales them.
    leases : whether gateways hold parts of the limits, see `policies.limit_leases`.
    """

    profile: Profile
    replicas: int
    entitlements: Sequence[EntitlementSpec]
    workloads: Sequence[WorkloadSpec]
    demands: Sequence[Demand]
    policy: AdmissionPolicy
    router: Router
    events: Sequence[PoolEvent]
    horizon_s: float | None
    default_max_output_tokens: int
    timeline_interval_s: float | None
    scrape_interval_s: float
    chances: Sequence[Chance | None] = ()
    scaler: Scaler | None = None
    most_replicas: int | None = None
    life: Life = field(default_factory=Life)
    retry_failed: bool = False
    notice_s: float = 0.0
    others: Sequence[tuple[AdmissionPolicy, Router]] = ()
    share_s: float | None = None
    leases: bool = False
    hierarchy: HierarchySpec | None = None
    shadows: Mapping[str, tuple[AdmissionPolicy, Router]] = field(default_factory=dict)
    also: Sequence[Profile] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """What a run gave: the attempts as columns, the timeline, the decisions if they were asked for, and its counts.

    ``gpu_s`` is the GPU-seconds that the replicas held, None where nobody scales them.
    """

    columns: RequestColumns
    timeline: list[TimelineBlock]
    decisions: list[Logged]
    end_s: float
    simulated_events: int
    iterations: int
    preemptions: int
    gpu_s: float | None = None
    opinions: Sequence[Opinion] = ()


def simulate(
    world: World,
    *,
    record_decisions: bool = False,
    on_progress: Callable[[float, int], None] | None = None,
    through: Callable[[GatewayCore], GatewayCore] | None = None,
    check_invariants: bool = False,
) -> Outcomes:
    """Run it.

    Parameters
    ----------
    on_progress : hears simulated seconds and ended attempts at every sample of the timeline.
    through : handed the core of each gateway before the run begins; what it returns takes the core's place.
    check_invariants : whether `policies.invariants` looks on, which ends the run at the first violation.

    Raises
    ------
    InvariantError : an invariant did not hold.
    """
    workloads, demands = split_over_keys(world.workloads, world.demands)
    if len(workloads) > len(world.workloads):
        chances = [*world.chances, *[None] * (len(workloads) - len(world.workloads))] if world.chances else ()
        world = replace(world, workloads=workloads, demands=demands, chances=chances)
    env = Clock()
    core = _core(world, world.policy, world.router, world.scaler)
    others = [_core(world, policy, router, None) for policy, router in world.others]
    if through is not None:
        core, *others = (through(one) for one in (core, *others))
    if check_invariants:
        from policies.invariants import CheckedCore, Checker

        core, *others = (cast("GatewayCore", CheckedCore(one, Checker())) for one in (core, *others))
    policies = [world.policy, *(policy for policy, _ in world.others)]
    watching = [policy for policy, _ in world.shadows.values()]
    opinions: list[Opinion] = []
    gateways: Core = core
    shadowed: ShadowedCore | None = None
    if others:
        from sim.cluster.gateways import Gateways

        gateways = Gateways([core, *others], policies, world.share_s, leases=world.leases)
    elif world.shadows:
        from policies.shadow import ShadowedCore

        beside = {name: _core(world, policy, router, None) for name, (policy, router) in world.shadows.items()}
        gateways = shadowed = ShadowedCore(core, beside, opinions.append)
    deciding = (*policies, *watching, *_routers(world))
    with_prefixes = any(getattr(one, "wants_prefixes", False) for one in deciding)
    decisions: list[Logged] = []
    tenants = {e.name: e.tenant for e in world.entitlements}
    gateway = SimulatedGateway(
        env,
        gateways,
        world.workloads,
        [tenants[w.entitlement] for w in world.workloads],
        following=[None if demand.plan is None else demand.plan.begin() for demand in world.demands],
        chances=world.chances,
        notice_s=world.notice_s,
        ttft_slos_s=_ttft_slos_s(world),
        with_prefixes=with_prefixes,
        with_adapters=any(one.lora is not None for one in (world.profile, *world.also)),
        with_sessions=any(getattr(one, "wants_sessions", False) for one in deciding),
        log=(lambda *entry: decisions.append(entry)) if record_decisions else None,
    )
    for one in deciding:
        if isinstance(one, Clairvoyant) and one.needs_lengths:
            one.tell_lengths(gateway.output_tokens_of)
        if isinstance(one, CacheSeeing) and one.needs_caches:
            one.tell_caches(gateway.cached_tokens_at)
    first = [world.profile] * max(world.replicas, world.most_replicas or 0)
    nodes = [Node(env, i, profile, gateway) for i, profile in enumerate([*first, *world.also])]
    pool = Pool(nodes)
    fleet = None
    if world.scaler is not None:
        fleet = Fleet(
            env, nodes, world.replicas, world.life,
            on_change=lambda: gateway.capacity_changed(pool.capacity(), pool.ready()), on_cut=gateway.fail,
        )  # fmt: skip
        gateway.when_scaled(fleet.scale)
    # Events at the same instant act in the order of these lines: the pool changes before demand meets it.
    if world.events:
        env.process(apply_events(env, world.events, pool, nodes, gateway, fleet))
    gateway.connect(nodes)
    log = AttemptLog(
        gateway.attempts, gateway.unsettled, [w.entitlement for w in world.workloads], world.entitlements
    )  # fmt: skip
    arrivals = Arrivals(
        env, world.workloads, world.demands, gateway,
        with_prefixes=any(one.prefix_caching for one in (world.profile, *world.also)) or with_prefixes,
        # With async scheduling an engine may count against one that has ended, until its next plan.
        every_chunk=None if any(one.async_scheduling for one in (world.profile, *world.also)) else log.look,
    )  # fmt: skip
    interval_s = world.timeline_interval_s
    report = (lambda now_s: on_progress(now_s, gateway.ended)) if on_progress else None
    sampler = None
    if interval_s is not None:
        gauges = partial(_gauges, world, core.pool, fleet)
        sampler = Sampler(env.agenda, gauges, pool, nodes, interval_s, report)
        sampler.begin()
    if gateways.wants_reports:
        _begin_scrapes(env.agenda, gateway, world.scrape_interval_s)
    if world.horizon_s is None:
        _run_until_drained(env, arrivals, gateway, nodes, max((e.at_s for e in world.events), default=0.0))
    else:
        env.run(until=world.horizon_s)
    gateway.close()
    if shadowed is not None:
        shadowed.close()
    columns = log.columns()  # and no attempt is kept: gateway and replicas know each other, a cycle
    return Outcomes(
        columns=columns,
        timeline=sampler.blocks(columns, env.now) if sampler is not None else [],
        decisions=decisions,
        end_s=env.now,
        simulated_events=env.agenda.set_so_far,
        iterations=sum(node.replica.iterations for node in nodes),
        preemptions=sum(node.replica.preemptions for node in nodes),
        gpu_s=None if fleet is None else fleet.gpu_s(),
        opinions=opinions,
    )


def _routers(world: World) -> list[Router]:
    return [world.router, *(router for _, router in world.others), *(router for _, router in world.shadows.values())]


def _ttft_slos_s(world: World) -> list[float] | None:
    """Return each workload's objective, where the engines go by them."""
    if not any(one.goes_by_deadlines for one in (world.profile, *world.also)):
        return None
    slos_s = {e.name: NEVER_S if e.ttft_slo_s is None else e.ttft_slo_s for e in world.entitlements}
    return [slos_s[w.entitlement] for w in world.workloads]


def _core(world: World, policy: AdmissionPolicy, router: Router, scaler: Scaler | None) -> GatewayCore:
    profiles = [*[world.profile] * world.replicas, *world.also]
    hierarchy = None
    if world.hierarchy is not None:
        from policies.hierarchy import Hierarchy

        hierarchy = Hierarchy(world.hierarchy, world.entitlements, world.profile.kv_bytes_per_token)
    return GatewayCore(
        entitlements=world.entitlements,
        capacity=provisioned(profiles),
        replica_ids=range(len(profiles)),
        kinds=kinds_of(profiles) if world.also else None,
        policy=policy,
        router=router,
        default_max_output_tokens=world.default_max_output_tokens,
        max_context_tokens=max(context_tokens(profile) for profile in profiles),
        scaler=scaler,
        retry_failed=world.retry_failed,
        hierarchy=hierarchy,
    )


def _gauges(world: World, pool: PoolLedger, fleet: Fleet | None, now_s: float) -> Iterable[Gauge]:
    """Return what neither the replicas nor the records tell."""
    gauges = world.policy.gauges(pool, now_s)
    if fleet is not None and world.scaler is not None:
        return [*gauges, *world.scaler.gauges(), *fleet.gauges()]
    return gauges


def _begin_scrapes(agenda: Agenda, gateway: SimulatedGateway, every_s: float) -> None:
    """Report the replicas every ``every_s``, at 0 first."""
    count = itertools.count(1)

    def scrape(alarm: Alarm) -> None:
        gateway.scrape()
        agenda.set(alarm, max(agenda.now_s, next(count) * every_s), SCRAPE)

    agenda.set(Alarm(scrape), agenda.now_s, SCRAPE)


def _run_until_drained(
    env: Clock, arrivals: Arrivals, gateway: SimulatedGateway, nodes: Sequence[Node], last_change_s: float
) -> None:
    """Run until all requests came and ended, or those left wait for slots or blocks that are lost for good.

    Samplers and ticks go on for ever, so the queue never empties. Who waits at the gateway waits for good where nothing
    changed for `_STALLED_S` although all replicas had nothing to do: a policy may let requests in by the time alone.
    """
    drained = env.event()

    def check() -> None:
        if not arrivals.left and not drained.triggered:
            drained.succeed()

    def look() -> Generator[simpy.Event, None, None]:
        wait_s = 1.0
        before: tuple[tuple[str, ...], int] | None = None
        while True:
            yield env.timeout(wait_s)
            idle = env.now > last_change_s and all(node.replica.wake_s == NEVER_S for node in nodes)
            now = None
            if idle and gateway.nobody_comes:
                now = gateway.held, sum(node.replica.iterations for node in nodes)
                if not now[0] or (wait_s >= _STALLED_S and now == before):
                    check()
            before = now
            wait_s *= 2  # seldom enough to cost nothing

    gateway.when_drained(check)
    if arrivals.left:
        env.process(look())
        env.run(until=drained)
