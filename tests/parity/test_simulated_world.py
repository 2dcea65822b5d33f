"""What the SimPy gateway was told in a whole simulated run, told again to a fresh core and to the asyncio gateway."""

from __future__ import annotations

import random
from dataclasses import asdict

import pytest
from cluster.busy_day import busy
from cluster.worlds import Mapped, cell_of

from parity.examples import EXAMPLES, renamed
from parity.replay import Entry, replay
from policies.api import (
    Arrived,
    CallMeAt,
    CapacityChanged,
    Evict,
    Failed,
    Finished,
    FirstToken,
    Forward,
    Progress,
    Reason,
    Refuse,
    Tick,
)
from policies.core import GatewayCore
from sim.cluster.faults import provisioned
from sim.cluster.world import World, simulate
from sim.experiments.run import world_of

ALWAYS = {Reason.NOT_BOUND, Reason.NO_CAPACITY, Reason.CONTEXT_LENGTH}
POOL = ALWAYS | {Reason.CONCURRENCY, Reason.TOKENS}
REASONS = {
    "none": ALWAYS,
    "bucket": ALWAYS | {Reason.REQUESTS, Reason.TOKENS},
    "window": ALWAYS | {Reason.REQUESTS},
    "paper": POOL | {Reason.TOO_LARGE, Reason.LOW_PRIORITY},
    "robust": ALWAYS | {Reason.CONCURRENCY, Reason.TOKENS, Reason.KV_CACHE, Reason.POOL_FULL},
    "frozen": ALWAYS | {Reason.CONCURRENCY, Reason.KV_CACHE, Reason.POOL_FULL},
}


def fresh_core(scenario: Mapped) -> GatewayCore:
    """Return the core of a world that was built anew: its policy remembers nothing of the run that was recorded."""
    world: World = world_of(cell_of(scenario))
    return GatewayCore(
        entitlements=world.entitlements,
        capacity=provisioned([world.profile] * world.replicas),
        replica_ids=range(world.replicas),
        policy=world.policy,
        router=world.router,
        default_max_output_tokens=world.default_max_output_tokens,
        max_context_tokens=world.profile.max_model_tokens,
    )


def recorded(scenario: Mapped) -> list[Entry]:
    log = simulate(world_of(cell_of(scenario)), record_decisions=True).decisions
    return [(now_s, event, tuple(steps)) for now_s, event, steps in log]


def retold(core: GatewayCore, log: list[Entry]) -> list[Entry]:
    core.start(0.0)
    return [(now_s, event, tuple(core.handle(event, now_s))) for now_s, event, _ in log]


def on_the_second(scenario: Mapped) -> Mapped:
    """Let arrivals, iterations and ticks fall on the same instants, where only the order of events tells them apart."""
    step = scenario["pool"]["profile"]["step_time"]
    step.update({"base_s": 0.25, "per_decode_sequence_s": 0.0, "per_prefill_token_s": 0.0, "per_context_token_s": 0.0})
    for i, workload in enumerate(scenario["workload"]):
        workload["arrivals"] = {"kind": "even", "rate_per_s": (1.0, 2.0)[i % 2], "phase_s": 0.0}
    return scenario


@pytest.mark.parametrize("policy", REASONS)
def test_both_gateways_do_the_same_bit_for_bit_in_a_run_where_everything_happens(policy: str) -> None:
    scenario = busy(policy)
    log = recorded(scenario)
    assert retold(fresh_core(scenario), log) == log
    assert replay(fresh_core(scenario), [(now_s, event) for now_s, event, _ in log]) == log

    steps = [step for _, _, said in log for step in said]
    kinds = {type(event) for _, event, _ in log}
    assert {Arrived, Finished, Failed, CapacityChanged, Tick} <= kinds
    assert ({FirstToken, Progress} <= kinds) == (policy in ("paper", "robust"))  # those who meter work
    assert {Forward, Refuse, CallMeAt} <= {type(step) for step in steps}
    assert any(isinstance(step, Evict) for step in steps) or policy not in ("robust", "frozen")
    assert {step.reason for step in steps if isinstance(step, Refuse)} >= REASONS[policy]
    assert len({step.replica_id for step in steps if isinstance(step, Forward)}) == 2


@pytest.mark.parametrize("policy", REASONS)
def test_both_gateways_do_the_same_where_many_events_share_an_instant(policy: str) -> None:
    scenario = on_the_second(busy(policy))
    log = recorded(scenario)
    assert len({now_s for now_s, _, _ in log}) < len(log) / 2
    assert retold(fresh_core(scenario), log) == log
    assert replay(fresh_core(scenario), [(now_s, event) for now_s, event, _ in log]) == log


@pytest.mark.parametrize("name", [name for name in EXAMPLES if not name.startswith(("none", "rate-limit", "token"))])
def test_every_other_policy_does_the_same_bit_for_bit(name: str) -> None:
    params = renamed(EXAMPLES[name], {"spot": "t4", "elastic": "t2"})
    scenario = busy("none") | {"policies": [{"name": name, **asdict(params)}]}
    log = recorded(scenario)
    assert retold(fresh_core(scenario), log) == log
    assert replay(fresh_core(scenario), [(now_s, event) for now_s, event, _ in log]) == log


@pytest.mark.parametrize("policy", ["bucket", "paper", "robust"])
def test_one_event_left_out_shows(policy: str) -> None:
    scenario = busy(policy)
    log = recorded(scenario)
    ends = [i for i, (_, event, _) in enumerate(log) if isinstance(event, Finished)]
    missed = random.Random(1).choice(ends[: len(ends) // 4])
    core = fresh_core(scenario)
    core.start(0.0)
    assert any(tuple(core.handle(event, now_s)) != said for now_s, event, said in log[:missed] + log[missed + 1 :])
