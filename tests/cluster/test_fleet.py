from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cluster.clock import Clock
from sim.cluster.fleet import Fleet, State
from sim.engine.replica_life import Life
from sim.experiments.run import run_cell
from sim.records.schema import Outcome
from sim.scenario.load import expand, parse_scenario

LIFE = Life(start_up_s=10.0, drain_s=30.0, look_s=1.0, gpus=2)


class Engine:
    running_count = 0
    waiting_count = 0


class Stub:
    def __init__(self) -> None:
        self.up = self.reachable = True
        self.replica = Engine()


class Yard:
    def __init__(self, nodes: int = 4, ready: int = 2, life: Life = LIFE) -> None:
        self.clock = Clock()
        self.nodes = [Stub() for _ in range(nodes)]
        self.changes: list[float] = []
        self.cut: list[Stub] = []
        self.fleet = Fleet(
            self.clock, self.nodes, ready, life,  # type: ignore[arg-type]
            on_change=lambda: self.changes.append(self.clock.now), on_cut=self.cut.append,  # type: ignore[arg-type]
        )

    def until(self, at_s: float) -> None:
        self.clock.run(until=at_s)

    @property
    def up(self) -> list[bool]:
        return [node.up for node in self.nodes]


def test_starting_takes_time_and_is_paid_for() -> None:
    yard = Yard()
    yard.until(5.0)
    yard.fleet.scale(3)
    yard.until(14.9)
    assert yard.up == [True, True, False, False]
    yard.until(15.1)
    assert yard.up == [True, True, True, False]
    assert yard.changes == [15.0]
    yard.until(20.0)
    assert yard.fleet.gpu_s() == pytest.approx(2 * (2 * 20 + 15))


def test_a_start_that_is_called_off_never_becomes_ready() -> None:
    yard = Yard()
    yard.fleet.scale(4)
    yard.until(5.0)
    yard.fleet.scale(2)
    yard.fleet.scale(3)  # a start of its own, from here
    yard.until(14.0)
    assert yard.up == [True, True, False, False]
    yard.until(16.0)
    assert yard.up == [True, True, True, False]


def test_leaving_waits_for_what_runs_and_not_for_ever() -> None:
    yard = Yard(ready=3)
    yard.nodes[2].replica.running_count = 1
    yard.fleet.scale(2)
    assert yard.up == [True, True, False, False]
    assert yard.nodes[2].reachable
    yard.until(5.5)
    assert yard.fleet.count(State.DRAINING) == 1
    yard.nodes[2].replica.running_count = 0
    yard.until(6.5)
    assert yard.fleet.count(State.OFF) == 2
    assert (yard.nodes[2].reachable, yard.cut) == (False, [])
    yard.nodes[1].replica.waiting_count = 1
    yard.fleet.scale(1)
    yard.until(36.6)
    assert yard.cut == [yard.nodes[1]]


def test_who_drains_comes_back_at_once() -> None:
    yard = Yard(ready=3)
    yard.nodes[2].replica.running_count = 1
    yard.fleet.scale(2)
    yard.until(3.0)
    yard.fleet.scale(3)
    assert yard.up == [True, True, True, False]
    yard.until(100.0)
    assert yard.up == [True, True, True, False]


def test_another_replaces_a_lost_one_and_leaves_when_it_returns() -> None:
    yard = Yard()
    yard.fleet.failed(0)
    yard.until(11.0)
    assert yard.up == [False, True, True, False]
    yard.fleet.restored(0)
    assert yard.up == [True, True, False, False]
    yard.fleet.restored(3)  # was never lost
    assert yard.fleet.count(State.READY) == 2


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.5, 15), st.sampled_from(["scale", "fail", "restore", "busy"]), st.integers(0, 3)),
        max_size=20,
    )
)
def test_states_and_switches_agree_on_every_path(steps: list[tuple[float, str, int]]) -> None:
    yard = Yard()
    fleet, spent = yard.fleet, 0.0
    for wait_s, what, which in steps:
        if what == "scale":
            fleet.scale(which + 1)
        elif what == "busy":
            yard.nodes[which].replica.running_count ^= 1
        else:
            getattr(fleet, {"fail": "failed", "restore": "restored"}[what])(which)
        yard.until(yard.clock.now + wait_s)
        assert fleet.gpu_s() >= spent
        spent = fleet.gpu_s()
        for node, state in zip(yard.nodes, fleet._states, strict=True):
            assert node.up == (state is State.READY)
            assert node.reachable == (state in (State.READY, State.DRAINING))
        assert spent <= 2 * 4 * yard.clock.now + 1e-9


# --------------------------------------------------------------------------------------------------------------------
# In a whole world

BASE: dict[str, Any] = {
    "version": 1, "seed": 5, "horizon_s": 120, "timeline_interval_s": 1.0,
    "pool": {
        "profile": {
            "step_time": {"kind": "linear", "base_s": 0.05, "per_decode_sequence_s": 0.001},
            "max_num_seqs": 4, "max_num_batched_tokens": 512, "kv_blocks": 100, "kv_bytes_per_token": 1.0,
            "tokens_per_s": 120,
        },
        "replicas": 2,
        "entitlements": [
            {"name": "e", "service_class": "elastic", "ttft_slo_s": 2, "baseline": {"slots": 8, "tokens_per_s": 240}},
        ],
    },
    "workload": [
        {
            "entitlement": "e", "arrivals": {"kind": "poisson", "rate_per_s": 2.0}, "prompt_tokens": 16,
            "output_tokens": 32,
        },
    ],
    "policies": ["none"],
}  # fmt: skip


def play(**more: Any) -> Any:
    scenario = {**BASE, **{key: value for key, value in more.items() if key != "pool"}}
    scenario["pool"] = {**BASE["pool"], **more.get("pool", {})}
    (cell,) = expand(parse_scenario(scenario, "fleet.yaml"))
    return run_cell(cell)


def counts(result: Any) -> dict[str, int]:
    column = result.requests.column("outcome").to_pylist()
    return {name: column.count(name) for name in set(column)}


def gauge(result: Any, metric: str) -> list[float]:
    table = result.timeline.to_pandas()
    return list(table[(table.scope == "pool") & (table.metric == metric)].value)


CRASH = [{"at_s": 30, "fail": 0}, {"at_s": 60, "restore": 0}]


def test_what_a_lost_replica_had_fails_or_is_retried_elsewhere() -> None:
    failing, retried = play(events=CRASH), play(events=CRASH, pool={"on_failure": "retry"})
    assert counts(failing)["failed"] == 4
    assert failing.stats["lost_tokens"] > 0
    assert "failed" not in counts(retried)
    assert retried.stats["lost_tokens"] == 0
    assert counts(retried)["finished"] >= counts(failing)["finished"]


def test_a_late_notice_costs_requests_that_a_gateway_sends_to_a_dead_replica() -> None:
    soon, late = play(events=CRASH), play(events=CRASH, pool={"notice_s": 5.0, "router": "round-robin"})
    assert counts(late)["failed"] > counts(soon)["failed"]
    assert "failed" not in counts(play(events=CRASH, pool={"notice_s": 5.0, "on_failure": "retry"}))


def test_a_slow_replica_is_slow_until_it_is_not() -> None:
    slow = [{"at_s": 20, "slow": 0, "factor": 5}, {"at_s": 60, "slow": 0, "factor": 1}]
    table = play(events=slow, pool={"router": "round-robin"}).requests.to_pandas()
    tpot = (table.finish_s - table.first_token_s) / 31
    during = (table.arrival_s > 22) & (table.arrival_s < 40) & (table.replica == 0)
    after = (table.arrival_s > 80) & (table.outcome == "finished")
    assert tpot[during].mean() > 3 * tpot[after].mean()
    assert tpot[(table.arrival_s < 50) & (table.replica == 1)].mean() < 1.5 * tpot[after].mean()


SCALERS = {
    "capacity": {"kind": "capacity", "max_replicas": 6, "every_s": 5, "down_after_s": 60},
    "utilisation": {"kind": "utilisation", "max_replicas": 6, "every_s": 5, "down_after_s": 60},
    "saturation": {
        "kind": "saturation", "max_replicas": 6, "every_s": 5, "down_after_s": 60, "queue_most": 2, "queue_spare": 1,
    },
    "sla": {"kind": "sla", "max_replicas": 6, "every_s": 5, "down_after_s": 60},
}  # fmt: skip


@pytest.mark.parametrize("kind", SCALERS)
def test_every_autoscaler_grows_with_a_peak_and_shrinks_after_it(kind: str) -> None:
    quiet, peak = {"kind": "poisson", "rate_per_s": 1.0}, {"kind": "poisson", "rate_per_s": 7.0}
    work = {"entitlement": "e", "prompt_tokens": 16, "output_tokens": 32}
    result = play(
        horizon_s=600,
        workload=[
            {**work, "arrivals": quiet},
            {**work, "name": "peak", "arrivals": peak, "from_s": 100, "until_s": 300},
        ],
        policies=["token-pool" if kind == "capacity" else "none"],
        pool={
            "autoscaler": SCALERS[kind], "start_up_s": 10, "drain_s": 60,
            "entitlements": [
                {**BASE["pool"]["entitlements"][0], "baseline": {"slots": 24, "tokens_per_s": 600}},
            ],
        },
    )  # fmt: skip
    ready = gauge(result, "ready_replicas")
    assert max(ready) >= 4
    assert ready[-1] <= 2
    assert max(ready) <= 6
    assert result.stats["gpu_s"] == pytest.approx(sum(
        ready + starting + draining
        for ready, starting, draining in zip(
            gauge(result, "ready_replicas"), gauge(result, "starting_replicas"), gauge(result, "draining_replicas"),
            strict=True,
        )
    ), rel=0.02)  # fmt: skip
    assert "failed" not in counts(result)


def test_a_pool_that_promises_more_than_it_has_grows_until_all_leases_are_bound() -> None:
    entitlements = [
        {"name": name, "service_class": "guaranteed", "baseline": {"slots": 8}, "from_s": from_s}
        for name, from_s in (("e", 0.0), ("f", 0.0), ("g", 60.0))
    ]
    result = play(
        policies=["token-pool"],
        pool={
            "entitlements": entitlements, "start_up_s": 10,
            "autoscaler": {"kind": "capacity", "max_replicas": 8, "every_s": 5, "headroom": 1.0, "lead_s": 30.0},
        },
    )  # fmt: skip
    promised, provisioned = gauge(result, "promised_slots"), gauge(result, "provisioned_slots")
    assert promised[0] == 8
    assert promised[-1] == 24
    assert all(p <= has for p, has in zip(promised[20:], provisioned[20:], strict=True))
    assert promised[59] == 16  # g is not in force yet, but there will be room when it is
    assert promised[61] == 24


def test_evicted_tokens_are_counted_and_the_client_is_told() -> None:
    result = play(
        policies=["token-pool"],
        pool={"entitlements": [
            {"name": "e", "service_class": "guaranteed", "baseline": {"slots": 8}},
            {"name": "p", "service_class": "preemptible"},
        ]},
        workload=[
            {**BASE["workload"][0], "from_s": 30},
            {
                **BASE["workload"][0], "entitlement": "p", "arrivals": {"kind": "even", "rate_per_s": 4},
                "output_tokens": 64,
            },
        ],
    )  # fmt: skip
    table = result.requests.to_pandas()
    evicted = table[table.outcome == Outcome.EVICTED.name.lower()]
    assert len(evicted) > 3
    assert set(evicted.reason) == {"preempted"}
    assert set(evicted.http_status) == {503}
    assert set(evicted.entitlement) == {"p"}
    assert result.stats["lost_tokens"] == evicted.output_tokens.sum() > 0
    assert gauge(result, "kv_used_fraction")[-1] < 0.9


@pytest.mark.parametrize("router", ["round-robin", "least-outstanding-tokens"])
@pytest.mark.parametrize("capacity", [{"slots": 1}, {"kv_blocks": 1}])
def test_a_replica_that_is_left_nothing_takes_no_requests(router: str, capacity: Any) -> None:
    work = {**BASE["workload"][0], "prompt_tokens": 8, "output_tokens": 4, "from_s": 31}
    events = [{"at_s": 30, "capacity": capacity}, {"at_s": 70, "capacity": "full"}]
    table = play(events=events, workload=[work], pool={"router": router}).requests.to_pandas()
    assert set(table[table.arrival_s < 70].replica) == {0}
    assert set(table[table.arrival_s > 70].replica) == {0, 1}


def test_a_pool_that_is_left_nothing_keeps_what_comes_waiting() -> None:
    table = play(events=[{"at_s": 30, "capacity": {"slots": 0}}, {"at_s": 40, "capacity": "full"}]).requests.to_pandas()
    came = table[(table.arrival_s > 30) & (table.arrival_s < 40)]
    assert set(came.outcome) == {"finished"}
    assert came.first_token_s.min() > 40
