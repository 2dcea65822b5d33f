"""Replicas of several kinds in one pool: what fits where, what there is together, and whether the books balance."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.api import (
    Arrived,
    Failed,
    Finished,
    Forward,
    InFlight,
    PoolCapacity,
    Refuse,
    ReplicaKind,
    ReplicaLedger,
    RequestView,
)
from policies.core import GatewayCore
from policies.no_control import NoControlPolicy
from policies.registry import ROUTERS
from policies.routers.expected_time import LeastExpectedTime, LeastExpectedTimeRouter
from sim.cluster.engine_group import shares, shares_by
from sim.cluster.kinds import decode_tokens_per_s, kinds_of
from sim.experiments.run import run_scenario
from sim.scenario.load import ScenarioError, load_scenario
from tokenpools.testing.policy_contract import SPECS

VIEW = RequestView("r", "spot", "t", 100, 100)


def scenario(**changed: Any) -> Any:
    given_ = {"horizon_s": 60, "warmup_s": 5, "timeline_interval_s": "null", "pool.router": "round-robin", **changed}
    return load_scenario(
        "two-gpu-kinds",
        overrides=[f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in given_.items()],
    )


def test_the_pool_has_what_its_kinds_have_together() -> None:
    pool = scenario().pool
    # 2 x 48 + 4 x 16 slots, 2 x 3600 + 4 x 800 tokens/s, (2 x 3072 + 4 x 512) blocks of 16 tokens of 131072 bytes.
    assert pool.capacity() == PoolCapacity(6, 160, 10_400.0, 8192 * 16 * 131072.0)
    assert pool.capacity(1) == PoolCapacity(1, 48, 3600.0, 3072 * 16 * 131072.0)
    assert [one.max_num_seqs for one in pool.profiles] == [48, 48, 16, 16, 16, 16]
    with pytest.raises(ScenarioError, match="the pool has 160"):
        scenario(**{"pool.entitlements[0].baseline": "{slots: 161}"})


def test_speeds_are_those_of_full_replicas_over_the_mean() -> None:
    fast, *_, slow = scenario().pool.profiles
    # 48 / (0.015 + 48 * 1.5e-4 + 48 * 512 * 3e-8), and 16 / (0.03 + 16 * 6e-4 + 16 * 512 * 1e-7)
    assert decode_tokens_per_s(fast) == pytest.approx(48 / 0.02293728)
    assert decode_tokens_per_s(slow) == pytest.approx(16 / 0.0404192)
    kinds = kinds_of([fast, slow])
    assert kinds[0].speed / kinds[1].speed == pytest.approx((48 / 0.02293728) / (16 / 0.0404192))
    assert kinds[0].speed + kinds[1].speed == pytest.approx(2.0)
    assert (kinds[1].slots, kinds[1].context_tokens) == (16, 8192)


@pytest.mark.parametrize("changed", [
    {"pool.also[0].profile.kv_bytes_per_token": 65536},
    {"pool.autoscaler": "{kind: utilisation, max_replicas: 4}"},
    {"events": "[{at_s: 10, fail: 6}]"},
    {"events": "[{at_s: 10, capacity: {slots: 161}}]"},
])  # fmt: skip
def test_what_does_not_go_together_is_refused(changed: dict[str, str]) -> None:
    with pytest.raises(ScenarioError):
        scenario(**changed)


@given(total=st.integers(0, 500), weights=st.lists(st.integers(1, 60), min_size=1, max_size=8))
def test_a_total_is_split_in_proportion_and_nothing_is_lost(total: int, weights: list[int]) -> None:
    parts = shares_by(total, weights)
    assert sum(parts) == total
    assert all(abs(part - total * weight / sum(weights)) <= 1 for part, weight in zip(parts, weights, strict=True))
    assert shares_by(total, [7] * len(weights)) == shares(total, len(weights))


# --------------------------------------------------------------------------------------------------------------------
# The core


def core_of(kinds: dict[int, ReplicaKind], router: str = "round-robin", *, retry: bool = False) -> GatewayCore:
    entry: Any = ROUTERS[router]
    core = GatewayCore(
        entitlements=SPECS, capacity=PoolCapacity(len(kinds), sum(kind.slots for kind in kinds.values())),
        replica_ids=range(len(kinds)), policy=NoControlPolicy(), router=entry.build(entry.params()), kinds=kinds,
        max_context_tokens=max(kind.context_tokens or 0 for kind in kinds.values()), retry_failed=retry,
    )
    core.start(0.0)
    return core


LONG_AND_SHORT = {0: ReplicaKind(4, 1000, 2.0), 1: ReplicaKind(4, 200, 0.5), 2: ReplicaKind(4, 200, 0.5)}


@pytest.mark.parametrize("router", sorted(ROUTERS))
def test_a_request_goes_only_where_it_fits_under_every_router(router: str) -> None:
    core = core_of(LONG_AND_SHORT, router, retry=True)
    for number in range(9):
        said = core.handle(Arrived(RequestView(f"r{number}", "spot", "t", 150, 100)), 0.0)
        assert said == (Forward(f"r{number}", 0, 100),)
    # The replica that it fits in lost it, and no other will do.
    core.handle(Failed("r0"), 1.0)
    assert "r0" not in core.pool.in_flight
    (refused,) = core.handle(Arrived(RequestView("x", "spot", "t", 950, 100)), 1.0)
    assert isinstance(refused, Refuse)
    assert refused.retry_after_s is None


def test_expected_time_by_hand() -> None:
    router = LeastExpectedTimeRouter(LeastExpectedTime())
    fast, slow = ReplicaLedger(0, speed=1.5, outstanding_tokens=700), ReplicaLedger(1, speed=0.5)
    assert router.route(VIEW, [fast, slow]) == 1  # 900 / 1.5 = 600 against 200 / 0.5 = 400
    slow.outstanding_tokens = 200
    assert router.route(VIEW, [fast, slow]) == 0  # 600 against 800
    fast.ready = False
    assert router.route(VIEW, [fast, slow]) == 1


def test_measured_speeds_follow_answers() -> None:
    router = LeastExpectedTimeRouter(LeastExpectedTime(speeds="measured", smoothing=0.5))
    books = [ReplicaLedger(0), ReplicaLedger(1)]

    def answered(replica: int, output_tokens: int, service_s: float) -> None:
        flight = InFlight(VIEW, None, replica, 0.0, 100, 200)  # type: ignore[arg-type]
        router.completed(flight, output_tokens, service_s)

    assert router.route(VIEW, books) == 0
    answered(0, 100, 4.0)  # 0.04 s a token; the other counts as the fastest seen
    assert router.route(VIEW, books) == 0
    answered(1, 100, 2.0)  # 0.02
    assert router.route(VIEW, books) == 1
    answered(1, 100, 10.0)  # (0.02 + 0.1) / 2 = 0.06
    assert router.token_s == {0: 0.04, 1: pytest.approx(0.06)}
    assert router.route(VIEW, books) == 0


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["arrive", "arrive", "finish", "fail"]), st.integers(1, 300), st.integers(0, 30)),
        max_size=60,
    ),
    router=st.sampled_from(sorted(ROUTERS)),
)
def test_books_balance_and_every_request_is_where_it_fits(steps: list[tuple[str, int, int]], router: str) -> None:
    core, offered, ended, refused = core_of(LONG_AND_SHORT, router, retry=True), 0, 0, 0
    for now_s, (what, tokens, which) in enumerate(steps):
        flying = list(core.pool.in_flight)
        if what == "arrive":
            offered += 1
            said = core.handle(Arrived(RequestView(f"r{offered}", "spot", "t", tokens, 5 * which + 1)), now_s)
            refused += any(isinstance(step, Refuse) for step in said)
        elif flying:
            name = flying[which % len(flying)]
            core.handle(Finished(name, 1) if what == "finish" else Failed(name), now_s)
            ended += name not in core.pool.in_flight
        for flight in core.pool.in_flight.values():
            most = LONG_AND_SHORT[flight.replica_id].context_tokens
            assert flight.request.prompt_tokens + flight.max_output_tokens <= (most or 0)
        assert offered == ended + refused + len(core.pool.in_flight)
        for book in core.pool.replicas:
            there = [one for one in core.pool.in_flight.values() if one.replica_id == book.replica_id]
            assert (book.in_flight, book.outstanding_tokens) == (len(there), sum(one.reserved_tokens for one in there))


# --------------------------------------------------------------------------------------------------------------------
# Whole runs


@pytest.mark.parametrize("policy", ["none", "token-pool", "vtc", "predictive-pool", "dlpm"])
def test_a_run_conserves_requests_through_failures_and_lost_capacity(policy: str) -> None:
    events = [
        {"at_s": 10, "fail": 0}, {"at_s": 15, "fail": 4}, {"at_s": 20, "capacity": {"slots": 80}},
        {"at_s": 30, "restore": 0}, {"at_s": 35, "capacity": {}},
    ]  # fmt: skip
    found = run_scenario(
        scenario(events=events, policies=[{"kind": policy}], **{"pool.on_failure": "retry", "horizon_s": 40}),
        check_invariants=True,
    )
    requests = found.requests.to_pandas()
    final = requests[requests["final"]]
    assert final["request_id"].is_unique
    assert set(final["outcome"]) <= {"finished", "refused", "failed", "waiting", "running", "evicted"}
    served = requests[requests["replica"] >= 2]
    asked = served["prompt_tokens"] + served["max_output_tokens"].fillna(256)
    assert (asked <= 8192).all()
    assert ((requests["prompt_tokens"] + requests["max_output_tokens"].fillna(256)) > 8192).any()


def test_knowing_speeds_beats_not_knowing_them() -> None:
    late = {}
    for router in ("least-outstanding-tokens", "least-expected-time"):
        requests = run_scenario(scenario(**{"pool.router": router, "horizon_s": 90})).requests.to_pandas()
        done = requests[requests["outcome"] == "finished"]
        late[router] = float((done["first_token_s"] - done["arrival_s"]).quantile(0.99))
    assert late["least-expected-time"] < 0.5 * late["least-outstanding-tokens"], late
