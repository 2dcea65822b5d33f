"""Closed loops, conversations and agents: what is drawn, and what comes after what in the simulator."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.experiments.demands import demands
from sim.experiments.run import run_scenario
from sim.scenario.load import parse_scenario
from sim.seeds import stream
from workloads.clients import Adversarial
from workloads.generate import WorkloadSpec, generate
from workloads.interactive import Agents, ClosedLoop, Sessions, geometric, positive
from workloads.lengths import Constant, Lognormal

LENGTHS = {"prompt_tokens": Constant(value=100), "output_tokens": Constant(value=50)}


def demand(law, horizon_s=1000.0, requests=None, seed=3, **lengths):
    spec = WorkloadSpec(name="w", entitlement="e", arrivals=law, requests=requests, **(LENGTHS | lengths))
    return generate(spec, functools.partial(stream, seed, 0), horizon_s, None)


def played(found, chain=0, answer_s=1.0, fails_at=None):
    """Requests of one chain as (step, arrival, prompt) when each is answered after a second."""
    run = found.plan.begin()
    coming = [(float(found.arrival_s[chain]), 1, int(found.prompt_tokens[chain]))]
    seen = []
    while coming:
        coming.sort()
        at_s, step, prompt = coming.pop(0)
        seen.append((step, at_s, prompt))
        end_s = at_s + answer_s
        follow_ups = run.ended(chain, step, step != fails_at, end_s)
        coming += [(end_s + after.delay_s, after.step, after.prompt_tokens) for after in follow_ups]
    return seen


def test_a_conversation_repeats_what_was_said():
    found = demand(Sessions(rate_per_s=0.5, mean_turns=5, mean_think_s=10, system_tokens=400))
    for chain in range(20):
        seen = played(found, chain)
        assert [step for step, _, _ in seen] == list(range(1, len(seen) + 1))
        assert [prompt for _, _, prompt in seen] == [400 + 100 + 150 * k for k in range(len(seen))]


def test_a_context_is_cut_where_it_ends():
    found = demand(Sessions(rate_per_s=0.5, mean_turns=20, mean_think_s=10, max_context_tokens=600))
    assert max(prompt for chain in range(20) for _, _, prompt in played(found, chain)) == 600


def test_turns_and_thinking_times_have_the_means_asked_for():
    rng = np.random.default_rng(1)
    turns = geometric(rng, 40_000, 4.0)
    assert abs(turns.mean() - 4.0) < 4 * turns.std() / 200
    assert turns.min() == 1
    assert abs(np.mean(turns == 1) - 0.25) < 0.01
    assert geometric(rng, 5, 1.0).tolist() == [1] * 5
    waits_s = positive(rng, 40_000, 10.0, 0.5)
    assert abs(waits_s.mean() - 10.0) < 4 * 5.0 / 200
    assert waits_s.std() / waits_s.mean() == pytest.approx(0.5, rel=0.03)


def test_a_longer_horizon_adds_conversations_and_changes_none():
    law = Sessions(rate_per_s=0.5, mean_turns=5, mean_think_s=10)
    lengths = {"prompt_tokens": Lognormal(mean=100, cv=1.0)}
    short, long = demand(law, 100.0, **lengths), demand(law, 400.0, **lengths)
    assert len(short) < len(long)
    for chain in range(len(short)):
        assert played(short, chain) == played(long, chain)


def test_a_refusal_ends_a_conversation_or_does_not():
    law = Sessions(rate_per_s=0.5, mean_turns=30, mean_think_s=10)
    assert len(played(demand(law), fails_at=2)) == 2
    assert len(played(demand(dataclasses.replace(law, after_refusal="go-on")), fails_at=2)) > 2


AGENTS = Agents(rate_per_s=0.5, mean_steps=10, fan_out=3, fan_out_share=0.4, mean_tool_s=2, system_tokens=1000)


def test_a_step_waits_for_all_calls_of_the_one_before():
    found = demand(AGENTS)
    plan = found.plan
    fanned = 0
    for chain in range(30):
        start = int(plan.ends[chain - 1]) if chain else 0
        seen = {step: (at_s, prompt) for step, at_s, prompt in played(found, chain)}
        assert len(seen) == plan.ends[chain] - start
        stages = plan.stage[start : plan.ends[chain]]
        said = 0
        for stage in range(stages[-1] + 1):
            mine = [step + 1 for step in np.flatnonzero(stages == stage)]
            fanned += len(mine) > 1
            assert len(mine) in (1, 3)
            if stage:
                before = max(seen[step + 1][0] for step in np.flatnonzero(stages == stage - 1)) + 1.0
                assert all(seen[step][0] >= before - 1e-9 for step in mine)
            assert {seen[step][1] for step in mine} == {1000 + said + 100}
            said += 150 * len(mine)
    assert fanned > 10


@given(seed=st.integers(0, 50), limit=st.integers(0, 20))
def test_tasks_can_be_limited_and_none_is_lost(seed, limit):
    found = demand(AGENTS, requests=limit, seed=seed)
    assert len(found) == limit
    whole = demand(AGENTS, seed=seed)
    for chain in range(limit):
        assert played(found, chain) == played(whole, chain)


def test_users_of_a_closed_loop_ask_one_after_another_with_time_to_think():
    found = demand(ClosedLoop(users=5, mean_think_s=4.0), horizon_s=500.0)
    assert len(found) == 5
    seen = played(found)
    gaps_s = np.diff([at_s for _, at_s, _ in seen])
    assert np.all(gaps_s > 1.0)
    assert abs(gaps_s.mean() - 5.0) < 4 * 4.0 / math.sqrt(len(gaps_s))
    assert seen[-1][1] < 500.0


def test_a_closed_loop_is_the_same_people_whoever_is_served_first():
    lengths = {"prompt_tokens": Lognormal(mean=100, cv=1.0)}
    found = demand(ClosedLoop(users=3, mean_think_s=4.0), horizon_s=1000.0, **lengths)
    slow, fast = played(found, 1, answer_s=9.0), played(found, 1, answer_s=0.1)
    assert [prompt for _, _, prompt in slow] == [prompt for _, _, prompt in fast][: len(slow)]


def test_keys_cannot_divide_requests_that_wait_for_each_other():
    with pytest.raises(ValueError, match="keys cannot divide requests that wait"):
        WorkloadSpec(name="w", entitlement="e", arrivals=AGENTS, client=Adversarial(keys=("f",)), **LENGTHS)


# ---------------------------------------------------------------------------------------------------- in the simulator

PROFILE = {
    "step_time": {"kind": "linear", "base_s": 0.02, "per_prefill_token_s": 1e-5},
    "max_num_seqs": 8,
    "max_num_batched_tokens": 2048,
    "kv_blocks": 20_000,
}


def run(*workload, horizon_s=200.0, policies=("none",), entitlements=("e", "f")):
    names = [{"name": name, "service_class": "spot"} for name in entitlements]
    scenario = {"version": 1, "seed": 5, "pool": {"profile": PROFILE, "entitlements": names}}
    scenario |= {"workload": list(workload), "policies": list(policies)}
    if horizon_s is not None:
        scenario["horizon_s"] = horizon_s
    result = run_scenario(parse_scenario(scenario, "test"))
    table = result.requests.to_pandas()
    table["chain"] = table.request_id.str.rpartition("-")[2].str.partition(".")[0].astype(int)
    table["step"] = pd.to_numeric(
        table.request_id.str.rpartition("-")[2].str.partition(".")[2], errors="coerce"
    ).fillna(1)
    return table


def workload(arrivals, entitlement="e", **fields):
    return {"entitlement": entitlement, "arrivals": arrivals, "prompt_tokens": 100, "output_tokens": 50} | fields


def test_a_closed_loop_never_has_more_requests_than_users():
    table = run(workload({"kind": "closed-loop", "users": 12, "mean_think_s": 0.5}))
    assert len(table) > 500
    starts, ends = np.sort(table.arrival_s), np.sort(table.finish_s.fillna(1e9))
    in_system = np.arange(1, len(starts) + 1) - np.searchsorted(ends, starts, side="right")
    assert in_system.max() <= 12
    by_user = table.sort_values(["chain", "step"]).groupby("chain")
    waits = table.arrival_s - by_user.finish_s.shift()
    assert waits.dropna().min() >= -1e-9
    # The law of response time: users / throughput = time in the system + thinking time.
    done = table.dropna(subset="finish_s")
    cycle_s = 12 / (len(done) / 200.0)
    assert cycle_s == pytest.approx((done.finish_s - done.arrival_s).mean() + 0.5, rel=0.05)


def test_a_closed_loop_stops_at_its_number_and_a_run_without_horizon_ends():
    table = run(workload({"kind": "closed-loop", "users": 4, "mean_think_s": 0.5}, requests=50), horizon_s=None)
    assert len(table) == 50
    assert set(table.outcome) == {"finished"}
    table = run(
        workload({"kind": "sessions", "rate_per_s": 1, "mean_turns": 3, "mean_think_s": 2}, requests=20), horizon_s=None
    )
    assert table.chain.nunique() == 20
    assert set(table.outcome) == {"finished"}


def test_turns_come_after_answers_and_policies_meet_the_same_conversations():
    sessions = {"kind": "sessions", "rate_per_s": 2, "mean_turns": 4, "mean_think_s": 3}
    table = run(workload(sessions), policies=("none", {"kind": "rate-limit", "requests_per_min": 1e6}))
    table = table.sort_values(["policy", "chain", "step"])
    before = table.groupby(["policy", "chain"], observed=True).finish_s.shift()
    assert (table.arrival_s - before).dropna().min() >= -1e-9
    assert (table.step[before.isna()] == 1).all()
    prompts = table.pivot_table(
        index=["chain", "step"], columns="policy", values="prompt_tokens", observed=True
    ).dropna()
    assert (prompts.nunique(axis=1) == 1).all()


def test_the_impatient_go_when_their_patience_ends_and_free_their_place():
    waiting = workload({"kind": "poisson", "rate_per_s": 12}, client={"kind": "impatient", "patience_s": 2.5})
    table = run(waiting)
    gone = table[table.outcome == "cancelled"]
    assert len(gone) > 50
    assert (gone.finish_s - gone.arrival_s).to_numpy() == pytest.approx(2.5)
    assert gone.first_token_s.isna().all()
    assert (gone.http_status == 499).all()
    served = table[table.outcome == "finished"]
    assert (served.first_token_s - served.arrival_s).max() <= 2.5
    # 8 slots and 50 steps of a little over 20 ms: about 7.7 a second, if what is cancelled leaves nothing behind.
    assert len(served) / 200.0 > 6.5


def test_waiting_for_the_last_token_cancels_in_mid_answer():
    impatient = {"kind": "impatient", "patience_s": 0.5, "waits_for": "last-token"}
    table = run(workload({"kind": "poisson", "rate_per_s": 1}, client=impatient))
    assert set(table.outcome) == {"cancelled"}
    assert table.output_tokens.between(5, 30).mean() > 0.9


def test_patience_counts_from_the_first_attempt():
    client = {"kind": "impatient", "patience_s": 3.0, "max_attempts": 100}
    table = run(
        workload({"kind": "poisson", "rate_per_s": 3}, client=client),
        policies=({"kind": "rate-limit", "requests_per_min": 30, "burst_s": 2},),
    )
    assert (table.arrival_s - table.first_arrival_s).max() < 3.0
    assert table.attempt.max() > 1


def test_an_adversary_uses_all_its_keys_and_asks_for_more():
    client = {"kind": "adversarial", "inflate": 4, "keys": ["f"], "max_attempts": 2}
    table = run(workload({"kind": "poisson", "rate_per_s": 2}, client=client, name="bad"))
    shares = table.entitlement.value_counts(normalize=True)
    assert shares["e"] == pytest.approx(0.5, abs=0.01)
    assert set(table.max_output_tokens) == {200}
    assert set(table.output_tokens[table.outcome == "finished"]) == {50}


def test_streams_have_names_nobody_else_s_arrivals_move():
    def scenario(*extra, policies=("none",)):
        names = [{"name": name, "service_class": "spot"} for name in ("e", "f")]
        kinds = [
            {"kind": "poisson", "rate_per_s": 2},
            {"kind": "mmpp", "rates_per_s": [1, 9], "means_s": [5, 5]},
            {"kind": "diurnal", "rate_per_s": 2, "amplitude": 0.5, "period_s": 60},
            {"kind": "sessions", "rate_per_s": 1, "mean_turns": 3, "mean_think_s": 5},
            {"kind": "closed-loop", "users": 5, "mean_think_s": 5},
        ]
        listed = [
            workload(kind, name=kind["kind"], output_tokens={"kind": "lognormal", "mean": 50, "cv": 1})
            for kind in kinds
        ]
        value = {"version": 1, "seed": 5, "horizon_s": 100, "pool": {"profile": PROFILE, "entitlements": names}}
        return parse_scenario(value | {"workload": [*extra, *listed], "policies": list(policies)}, "test")

    alone = demands(scenario(), 0)
    joined = demands(scenario(workload({"kind": "poisson", "rate_per_s": 9}, "f", name="new")), 0)[1:]
    other = demands(scenario(policies=("token-pool",)), 0)
    for first, second, third in zip(alone, joined, other, strict=True):
        for name in ("arrival_s", "prompt_tokens", "output_tokens"):
            assert np.array_equal(getattr(first, name), getattr(second, name))
            assert np.array_equal(getattr(first, name), getattr(third, name))
    assert not np.array_equal(demands(scenario(), 1)[0].arrival_s[:50], alone[0].arrival_s[:50])


def text(prefixes, index, tokens):
    """Each token of a request by the line it lies on."""
    of = []
    for name, end in prefixes.of(index):
        of += [name] * (min(end, tokens) - len(of))
    return of


@pytest.mark.parametrize("max_context_tokens", [131_072, 1500])
def test_calls_of_an_agent_share_what_was_said_before(max_context_tokens):
    law = Agents(
        rate_per_s=1, mean_steps=6, mean_tool_s=1, fan_out=3, fan_out_share=0.5, system_tokens=333,
        max_context_tokens=max_context_tokens,
    )  # fmt: skip
    plan = demand(law, horizon_s=20).plan
    start, apart, cut = 0, 0, 0
    for end in plan.ends.tolist():
        said = 333
        for i in range(start, end):
            if i and plan.stage[i] != plan.stage[i - 1]:
                said = 333 + 150 * (i - start)
            first_of_step = i == start or plan.stage[i] != plan.stage[i - 1]
            mine = text(plan.prefixes, i, int(plan.prompt_tokens[i]))
            others = text(plan.prefixes, start, 10_000)
            alike = next((k for k, (a, b) in enumerate(zip(mine, others, strict=False)) if a != b), len(mine))
            if said + 100 > max_context_tokens:
                cut += 1
                assert alike == 333
            elif first_of_step:
                assert alike == said + 100
            else:
                apart += 1
                assert alike == said
        start = end
    assert apart > 10
    assert (cut > 0) == (max_context_tokens == 1500)
