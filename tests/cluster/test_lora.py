"""Adapters at a replica, in times that were worked out on paper, and in whole runs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.api import ReplicaLedger, RequestView
from policies.routers.adapter_aware import AdapterAware, AdapterAwareRouter
from sim.cluster.engine_request import ENDED, NEVER_S, EngineRequest
from sim.cluster.engine_settings import EngineSettings
from sim.cluster.lora import LoraReplica
from sim.cluster.replica import Replica
from sim.engine.lora import Lora
from sim.engine.step_time import LinearStepTime
from sim.experiments.run import run_scenario
from sim.scenario.load import ScenarioError, load_scenario

STEP = LinearStepTime(base_s=1.0)


class Host:
    """A replica with adapters, and a clock beside it."""

    def __init__(self, **lora: Any) -> None:
        given_: dict[str, Any] = {"adapters": {"x": 10, "y": 20}, "max_loras": 1, "load_s": 5.0, "swap_s": 0.5,
                                  "rank_cost": 0.01} | lora  # fmt: skip
        settings_ = EngineSettings(
            step_time=STEP, max_num_seqs=4, max_num_batched_tokens=64, kv_blocks=100, block_tokens=4
        )
        self.heard: list[tuple[str, EngineRequest, float]] = []
        self.wake_s = NEVER_S
        self.replica: LoraReplica[EngineRequest] = LoraReplica(
            Lora(**given_), make=lambda listener, arm: Replica(settings_, listener=listener, arm=arm),
            listener=self, arm=self._arm,
        )  # fmt: skip

    def _arm(self, at_s: float) -> None:
        self.wake_s = at_s

    def on_first_token(self, request: EngineRequest, now_s: float) -> None:
        self.heard.append(("first", request, now_s))

    def on_finish(self, request: EngineRequest, now_s: float) -> None:
        self.heard.append(("end", request, now_s))

    def submit(self, at_s: float, adapter: str, output: int = 2) -> EngineRequest:
        self.until(at_s)
        request = EngineRequest(4, output)
        request.adapter = adapter
        self.replica.submit(request, at_s)
        return request

    def until(self, until_s: float) -> None:
        while self.wake_s <= until_s:
            at_s, self.wake_s = self.wake_s, NEVER_S
            self.replica.boundary(at_s)

    def when(self, what: str, request: EngineRequest) -> float:
        (found,) = [at_s for said, one, at_s in self.heard if said == what and one is request]
        return found


def test_a_cold_adapter_is_loaded_and_makes_iterations_longer_by_the_largest_rank() -> None:
    host = Host(max_loras=2)
    base = host.submit(0.0, "some-model")
    x = host.submit(0.0, "x", 4)
    y = host.submit(0.25, "y")
    host.until(100.0)
    assert [host.when(what, base) for what in ("first", "end")] == [1.0, 2.0]  # no adapter in use: 1 s an iteration
    # x is loaded at 5, y after it at 10. x alone: 1.1 s an iteration.
    assert host.when("first", x) == pytest.approx(6.1)
    assert host.when("end", x) == pytest.approx(9.4)
    # y alone again: 1.2 s.
    assert [host.when(what, y) for what in ("first", "end")] == [pytest.approx(11.2), pytest.approx(12.4)]
    assert (host.replica.loads, host.replica.swaps) == (2, 0)


def test_an_adapter_in_use_keeps_its_place_and_one_in_the_host_s_memory_comes_back_soon() -> None:
    host = Host()
    x = host.submit(0.0, "x", 4)
    y = host.submit(1.0, "y")
    assert host.replica.waiting_count == 2
    host.until(100.0)
    assert host.when("end", x) == pytest.approx(9.4)  # loaded at 5, 4 iterations of 1.1
    assert host.when("first", y) == pytest.approx(9.4 + 5.0 + 1.2)  # there is one place, and x had it until then
    again = host.submit(100.0, "x")
    host.until(200.0)
    assert host.when("first", again) == pytest.approx(101.6)  # 0.5 s from the host's memory, 1.1 s
    assert (host.replica.loads, host.replica.swaps) == (2, 1)


def test_the_least_recently_used_goes_and_so_it_does_from_the_host_s_memory() -> None:
    host = Host(adapters={"x": 1, "y": 1, "z": 1}, max_loras=2, max_cpu_loras=2, rank_cost=0.0)
    for number, adapter in enumerate("xyxz"):
        host.submit(100.0 * number, adapter)
    host.until(400.0)
    assert host.replica.resident == ("x", "z")  # y had been used longest ago
    host.submit(500.0, "x")
    host.submit(600.0, "y")
    host.until(700.0)
    # Of x, y, z the host keeps the last two that were loaded: y and z after z came. y is warm; then x is gone there.
    assert (host.replica.loads, host.replica.swaps) == (3, 1)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["submit"] * 4 + ["abort", "fail", "wait"]), st.sampled_from(["x", "y", "z", ""]),
            st.integers(1, 6), st.floats(0, 4),
        ),
        max_size=40,
    ),
    places=st.integers(1, 3),
)  # fmt: skip
def test_every_request_ends_and_no_more_adapters_are_there_than_places(
    steps: list[tuple[str, str, int, float]], places: int
) -> None:
    host, now_s, known = Host(adapters={"x": 1, "y": 2, "z": 3}, max_loras=places, load_s=1.5), 0.0, []
    for what, adapter, amount, wait_s in steps:
        now_s += wait_s
        host.until(now_s)
        if what == "submit":
            known.append(host.submit(now_s, adapter, amount))
        elif what == "abort" and known:
            host.replica.abort(known[amount % len(known)], now_s)
        elif what == "fail":
            host.replica.fail(now_s)
        assert len(host.replica.resident) <= places
    host.until(now_s + 1000.0)
    assert all(request.state == ENDED for request in known)
    assert (host.replica.running_count, host.replica.waiting_count) == (0, 0)
    ended = [request for what, request, _ in host.heard if what == "end"]
    assert len(ended) == len(set(ended))
    assert host.wake_s == NEVER_S


def test_affinity_by_hand() -> None:
    router = AdapterAwareRouter(AdapterAware(slack_tokens=100, adapters=1))
    books = [ReplicaLedger(0), ReplicaLedger(1)]

    def asks(model: str) -> int | None:
        return router.route(RequestView("r", "e", "t", 1, 1, model=model), books)

    assert asks("x") == 0
    books[0].outstanding_tokens = 100
    assert asks("x") == 0
    assert asks("y") == 1
    books[0].outstanding_tokens = 101
    assert asks("x") == 1  # x is there too now, and y, of which one was kept, is not
    books[1].outstanding_tokens = 50
    assert asks("x") == 1
    assert asks("y") == 1


def test_knowing_adapters_saves_loads_and_their_waits() -> None:
    late = {}
    for router in ("least-outstanding-tokens", "{kind: adapter-aware, adapters: 4}"):
        scenario = load_scenario(
            "multi-lora", overrides=[f"pool.router={router}", "horizon_s=90", "warmup_s=10", "timeline_interval_s=null"]
        )
        requests = run_scenario(scenario, check_invariants=True).requests.to_pandas()
        late[router] = float((requests["slo_met"]).mean())
    without, knowing = late.values()
    assert knowing > without + 0.1, late


def test_adapters_beside_several_engines_are_refused() -> None:
    with pytest.raises(ScenarioError, match="lora"):
        load_scenario("multi-lora", overrides=["pool.profile.data_parallel=2"])
