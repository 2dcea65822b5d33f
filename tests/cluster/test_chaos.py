"""Whole pools under everything at once: autoscalers, crashes, late news, several gateways, promises that end."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.checks import check_conservation, check_outcomes, check_times
from cluster.worlds import CLASSES, LONGEST_TOKENS, Mapped, Run, cell_of, clients, lengths, profiles, rows_of, watched
from policies.api import Admit, EntitlementState, Event, Instruction, PoolLedger, Reason, ServiceClass
from policies.core import GatewayCore
from policies.token_pool.policy import TokenPoolPolicy
from sim.cluster import world as module
from sim.cluster.fleet import Fleet
from sim.cluster.world import simulate
from sim.experiments.run import world_of
from sim.records.schema import Outcome


@st.composite
def entitlements(draw: Any, i: int) -> tuple[Mapped, Mapped]:
    service_class = draw(st.sampled_from((*CLASSES, "dedicated", "preemptible")))
    begins_s = draw(st.sampled_from([0.0, 0.0, 0.0, 2.5, 6.0]))
    entitlement: Mapped = {
        "name": f"t{i}", "service_class": service_class, "ttft_slo_s": draw(st.sampled_from([None, 0.5, 20.0])),
        "from_s": begins_s, "until_s": draw(st.sampled_from([None, None, None, begins_s + 3.0])),
    }  # fmt: skip
    amounts: Mapped = {}
    for name, values in (("slots", [0, 1, 2, 3.5]), ("tokens_per_s", [0, 10, 60]), ("kv_bytes", [0, 60_000, 200_000])):
        if draw(st.booleans()):
            amounts[name] = draw(st.sampled_from(values))
    if service_class in CLASSES[:3]:
        entitlement["baseline"] = amounts
    else:
        entitlement["limit"] = amounts
    workload: Mapped = {
        "entitlement": f"t{i}", "requests": draw(st.integers(1, 25)), "client": draw(clients),
        "arrivals": {"kind": "poisson", "rate_per_s": draw(st.sampled_from([1.0, 4.0, 12.0]))},
        "prompt_tokens": draw(lengths), "output_tokens": draw(lengths),
    }  # fmt: skip
    return entitlement, workload


@st.composite
def pools(draw: Any) -> Mapped:
    profile = draw(profiles())
    profile.update(tokens_per_s=draw(st.sampled_from([60.0, 400.0])), kv_bytes_per_token=1000.0)
    profile["max_model_tokens"] = LONGEST_TOKENS
    replicas, most = draw(st.integers(1, 3)), draw(st.integers(3, 4))
    kind = draw(st.sampled_from(["none", "none", "capacity", "utilisation", "saturation", "sla"]))
    policy = draw(st.sampled_from(["robust", "robust", "paper"])) if kind != "capacity" else "robust"
    scaler: Mapped = {"kind": kind}
    if kind != "none":
        fixed = draw(st.booleans())
        scaler |= {"min_replicas": replicas if fixed else 1, "max_replicas": replicas if fixed else most}
        scaler |= {"every_s": draw(st.sampled_from([0.5, 2.0])), "down_after_s": draw(st.sampled_from([0.0, 3.0]))}
    gateways = draw(st.sampled_from([1, 1, 1, 2, 3]))
    share_s = draw(st.sampled_from([0.1, 1.0, *([None] if kind == "none" else [])])) if gateways > 1 else None
    events: list[Mapped] = []
    for _ in range(draw(st.integers(0, 3))):
        at_s, back_s = draw(st.sampled_from([0.0, 1.0, 2.125, 5.0])), draw(st.sampled_from([0.5, 1.5]))
        what = draw(st.sampled_from(["fail", "slow", *(["slots", "kv_blocks"] if kind == "none" else [])]))
        which = draw(st.integers(0, replicas - 1))
        if what == "fail":
            events += [{"at_s": at_s, "fail": which}, {"at_s": at_s + back_s, "restore": which}]
        elif what == "slow":
            events += [{"at_s": at_s, "slow": which, "factor": 5.0},
                       {"at_s": at_s + back_s, "slow": which, "factor": 1.0}]  # fmt: skip
        else:
            total = replicas * profile["max_num_seqs" if what == "slots" else "kv_blocks"]
            events += [{"at_s": at_s, "capacity": {what: draw(st.integers(0, total))}},
                       {"at_s": at_s + back_s, "capacity": "full"}]  # fmt: skip
    events += [{"at_s": 7.0, "restore": i} for i in range(replicas)]
    if kind == "none":
        events.append({"at_s": 7.0, "capacity": "full"})
    pairs = [draw(entitlements(i)) for i in range(draw(st.integers(1, 5)))]
    return {
        "version": 1, "seed": draw(st.integers(0, 99)), "horizon_s": draw(st.sampled_from([None, 9.0])),
        "timeline_interval_s": 0.5, "record_decisions": True,
        "pool": {
            "profile": profile, "replicas": replicas, "autoscaler": scaler, "gateways": gateways,
            "share_every_s": share_s, "entitlements": [entitlement for entitlement, _ in pairs],
            "oversubscribed": True, "notice_s": draw(st.sampled_from([0.0, 0.05, 1.0, 5.0])),
            "on_failure": draw(st.sampled_from(["fail", "retry"])), "start_up_s": draw(st.sampled_from([0.0, 1.5])),
            "drain_s": draw(st.sampled_from([0.0, 1.0, 30.0])),
            "router": draw(st.sampled_from(["round-robin", "least-outstanding-tokens"])),
        },
        "workload": [workload for _, workload in pairs],
        "events": events,
        "policies": [{"kind": "token-pool", "mode": policy, "tick_s": draw(st.sampled_from([0.5, 2.0])),
                      "equalise": draw(st.sampled_from([0.0, 0.3])), "max_request_tokens": LONGEST_TOKENS}],
    }  # fmt: skip


def check_core(core: GatewayCore) -> None:
    """Its books agree with one another after every event."""
    pool, policy = core.pool, core._policy
    assert isinstance(policy, TokenPoolPolicy)
    for book in pool.replicas:
        assert book.in_flight >= 0
        assert book.outstanding_tokens >= 0
    for name, ledger in pool.entitlements.items():
        mine = [flight for flight in pool.in_flight.values() if flight.ledger is ledger]
        assert ledger.in_flight >= len(mine)
        assert ledger.reserved_tokens >= sum(flight.reserved_tokens for flight in mine)
        account = policy._accounts[name]
        assert account.limit_slots >= 0
        assert account.limit_kv_bytes >= 0
        assert account.weight > 0
        assert all(0 <= part < math.inf for part in (*account.demand, *account.granted, account.burst))
        assert abs(account.debt) < math.inf
        if ledger.state is EntitlementState.BOUND and account.protected and policy._allocated:
            promised = ledger.spec.baseline.slots
            assert promised is None or account.limit_slots >= promised
    assert policy._reserved_tokens == sum(flight.reserved_tokens for flight in pool.in_flight.values())
    idle = [account.idle_slots for account in policy._accounts.values()]
    assert math.isclose(policy._idle_dedicated, sum(idle), abs_tol=1e-6)
    preemptible = {
        request_id for request_id, flight in pool.in_flight.items()
        if flight.ledger.spec.service_class is ServiceClass.PREEMPTIBLE
    }  # fmt: skip
    assert set(policy._preemptible) == preemptible


class CheckedPolicy(TokenPoolPolicy):
    """Lets nobody but who was promised a slot into a pool that has none free."""

    def decide(self, request: Any, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Any:
        verdict = super().decide(request, max_output_tokens, pool, now_s)
        account = self._accounts[request.entitlement]
        inside = account.protected and pool.entitlements[request.entitlement].in_flight < account.exempt_slots
        if inside and not isinstance(verdict, Admit):
            assert verdict.reason is not Reason.LOW_PRIORITY
        if isinstance(verdict, Admit) and self.rules.full_pool == "free-or-evict" and not inside:
            others_idle = self._idle_dedicated - account.idle_slots
            flying = len(pool.in_flight) + pool.others_in_flight - len(verdict.evict) + 1
            assert flying <= pool.capacity.slots - others_idle + 1e-9
        return verdict


def play(scenario: Mapped) -> tuple[Run, list[Fleet]]:
    """Run a scenario and look into its cores after every event."""
    fleets: list[Fleet] = []

    class WatchedFleet(Fleet):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            fleets.append(self)

    with patch("policies.token_pool.policy.TokenPoolPolicy", CheckedPolicy):
        world = world_of(cell_of(scenario))
    with watched() as watch:

        class CheckedCore(module.GatewayCore):  # type: ignore[name-defined, misc]  # the watched one
            def handle(self, event: Event, now_s: float) -> Sequence[Instruction]:
                said = super().handle(event, now_s)
                check_core(self)
                return said  # type: ignore[no-any-return]

        with patch("sim.cluster.world.GatewayCore", CheckedCore), patch("sim.cluster.world.Fleet", WatchedFleet):
            outcomes = simulate(world, record_decisions=True)
    return Run(world, outcomes, rows_of(outcomes), watch), fleets


@settings(max_examples=80, deadline=None)
@given(pools())
def test_books_hold_whatever_happens_to_the_pool(scenario: Mapped) -> None:
    run, fleets = play(scenario)
    check_conservation(run)
    check_times(run)
    check_outcomes(run)
    cores = run.watch.cores
    flying = {row.request_id for row in run.rows if row.outcome in (Outcome.RUNNING, Outcome.WAITING)}
    assert set().union(*(core.pool.in_flight for core in cores)) == flying
    assert sum(len(core.pool.in_flight) for core in cores) == len(flying)
    if run.world.horizon_s is None:
        run.watch.settle()
        assert not flying
        for node in run.watch.nodes:
            assert node.replica.running_count == node.replica.waiting_count == node.replica.kv.used_blocks == 0
    for fleet in fleets:
        least, most = scenario["pool"]["autoscaler"]["min_replicas"], scenario["pool"]["autoscaler"]["max_replicas"]
        assert least <= fleet._wanted <= most
        assert 0 <= fleet.gpu_s() <= 2 * most * run.outcomes.end_s + 1e-9


@settings(max_examples=20, deadline=None)
@given(pools())
def test_a_pool_in_chaos_repeats_itself(scenario: Mapped) -> None:
    one, two = (play(copy.deepcopy(scenario))[0] for _ in range(2))
    assert repr(one.rows) == repr(two.rows)
