"""One run: a scenario's demand through one policy, from the first arrival to the horizon."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import simpy

from policies.api import AdmissionPolicy, EntitlementSpec, Event, Instruction, Router
from policies.core import GatewayCore
from sim.cluster.attempt import Attempt
from sim.cluster.clock import call_at
from sim.cluster.faults import Pool, PoolEvent, apply_events, provisioned
from sim.cluster.gateway import SimulatedGateway
from sim.cluster.node import Node
from sim.cluster.sampler import Sampler
from sim.profiles import Profile
from sim.records import REASONS, RequestColumns, TimelineBlock
from workloads.generate import WorkloadSpec
from workloads.requests import Demand

_CHUNK = 50_000  # arrivals turned into Python numbers at a time, to bound memory
_REASON = {"": -1, **{name: i for i, name in enumerate(REASONS)}}

Logged = tuple[float, Event, Sequence[Instruction]]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What one run is made of.

    Attributes
    ----------
    horizon_s : when the run ends; None: when every request has ended.
    timeline_interval_s : between samples; None: no timeline.
    scrape_interval_s : between reports of the replicas to policies that want them.
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


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """What a run gave: the attempts as columns, the timeline, the decisions if they were asked for, and its counts."""

    columns: RequestColumns
    timeline: list[TimelineBlock]
    decisions: list[Logged]
    end_s: float
    simulated_events: int
    iterations: int
    preemptions: int


def simulate(
    world: World,
    *,
    record_decisions: bool = False,
    on_progress: Callable[[float, int], None] | None = None,
) -> Outcomes:
    """Run it. ``on_progress`` hears simulated seconds and ended attempts at every sample of the timeline."""
    env = simpy.Environment()
    core = GatewayCore(
        entitlements=world.entitlements,
        capacity=provisioned(world.profile, world.replicas),
        replica_ids=range(world.replicas),
        policy=world.policy,
        router=world.router,
        default_max_output_tokens=world.default_max_output_tokens,
        max_context_tokens=world.profile.max_model_tokens,
    )
    decisions: list[Logged] = []
    tenants = {e.name: e.tenant for e in world.entitlements}
    gateway = SimulatedGateway(
        env,
        core,
        world.workloads,
        [tenants[w.entitlement] for w in world.workloads],
        log=(lambda *entry: decisions.append(entry)) if record_decisions else None,
    )
    nodes = [Node(env, i, world.profile, gateway) for i in range(world.replicas)]
    pool = Pool(world.profile, nodes)
    # Events at the same instant act in the order of these lines: the pool changes before demand meets it.
    if world.events:
        env.process(apply_events(env, world.events, pool, nodes, gateway))
    gateway.connect(nodes)
    arrivals = _Arrivals(env, world, gateway)
    interval_s = world.timeline_interval_s
    report = (lambda now_s: on_progress(now_s, gateway.ended)) if on_progress else None
    sampler = None
    if interval_s is not None:
        gauges = partial(world.policy.gauges, core.pool)
        sampler = Sampler(env, gauges, pool, nodes, interval_s, report)
        env.process(sampler.run())
    if world.policy.wants_reports:
        env.process(_scrapes(env, gateway, world.scrape_interval_s))
    if world.horizon_s is None:
        _run_until_drained(env, arrivals, gateway)
    else:
        env.run(until=world.horizon_s)
    gateway.close()
    columns = _columns(gateway.attempts, world)
    return Outcomes(
        columns=columns,
        timeline=sampler.blocks(columns, env.now) if sampler is not None else [],
        decisions=decisions,
        end_s=env.now,
        simulated_events=next(env._eid),
        iterations=sum(node.replica.iterations for node in nodes),
        preemptions=sum(node.replica.preemptions for node in nodes),
    )


class _Arrivals:
    """Brings every workload's requests to the gateway, on one clock."""

    def __init__(self, env: simpy.Environment, world: World, gateway: SimulatedGateway) -> None:
        self._env = env
        self._arrive = gateway.arrive
        self._names = [w.name for w in world.workloads]
        self._priorities = [w.priority for w in world.workloads]
        self._rows = self._in_order(world.demands)
        self.left = sum(len(d) for d in world.demands)
        if self.left:
            self._next = next(self._rows)
            call_at(env, self._next[0], self._ring)

    def _ring(self, _: simpy.Event) -> None:
        row = self._next
        env = self._env
        self.left -= 1
        if self.left:
            self._next = next(self._rows)
            call_at(env, self._next[0], self._ring)
        at_s, w, n, prompt_tokens, output_tokens, asked_tokens = row
        self._arrive(
            Attempt(
                f"{self._names[w]}-{n}", 1, w, self._priorities[w], at_s, at_s, prompt_tokens, output_tokens, asked_tokens
            )
        )

    @staticmethod
    def _in_order(demands: Sequence[Demand]) -> Iterator[tuple[float, int, int, int, int, int]]:
        """Yield (arrival, workload, number, prompt, output, asked) by time; ties in the order of the workloads."""
        arrival_s = np.concatenate([d.arrival_s for d in demands])
        order = np.argsort(arrival_s, kind="stable")
        columns = (
            arrival_s,
            np.repeat(np.arange(len(demands)), [len(d) for d in demands]),
            np.concatenate([np.arange(len(d)) for d in demands]),
            np.concatenate([d.prompt_tokens for d in demands]),
            np.concatenate([d.output_tokens for d in demands]),
            np.concatenate([d.max_output_tokens for d in demands]),
        )
        for start in range(0, len(order), _CHUNK):
            part = order[start : start + _CHUNK]
            yield from zip(*(column[part].tolist() for column in columns), strict=True)


def _scrapes(env: simpy.Environment, gateway: SimulatedGateway, every_s: float) -> Generator[simpy.Event, None, None]:
    """Report the replicas every ``every_s``, at 0 first."""
    scrapes = 0
    while True:
        gateway.scrape()
        scrapes += 1
        yield env.timeout(max(0.0, scrapes * every_s - env.now))


def _run_until_drained(env: simpy.Environment, arrivals: _Arrivals, gateway: SimulatedGateway) -> None:
    """Run until all requests came and ended. Samplers and ticks go on for ever, so the queue never empties."""
    while arrivals.left or gateway.busy:
        env.step()


def _columns(attempts: list[Attempt], world: World) -> RequestColumns:
    """Turn attempts into columns."""
    index = {e.name: i for i, e in enumerate(world.entitlements)}
    entitlement = [index[w.entitlement] for w in world.workloads]
    return RequestColumns(
        request_id=[a.request_id for a in attempts],
        attempt=[a.number for a in attempts],
        final=[a.final for a in attempts],
        entitlement=[entitlement[a.workload] for a in attempts],
        entitlements=world.entitlements,
        prompt_tokens=[a.prompt_tokens for a in attempts],
        max_output_tokens=[a.asked_tokens for a in attempts],
        output_tokens=[a.delivered_tokens for a in attempts],
        cached_tokens=np.zeros(len(attempts), np.int64),
        arrival_s=[a.arrival_s for a in attempts],
        first_arrival_s=[a.first_arrival_s for a in attempts],
        forwarded_s=[a.forwarded_s for a in attempts],
        replica=[a.replica for a in attempts],
        first_token_s=[a.first_token_s for a in attempts],
        finish_s=[a.finish_s for a in attempts],
        outcome=[a.outcome for a in attempts],
        reason=[_REASON[a.reason] for a in attempts],
        http_status=[a.http_status for a in attempts],
        retry_after_s=[a.retry_after_s for a in attempts],
        preemptions=[a.preemptions for a in attempts],
    )
