"""Where a replica is a queue with a known answer, it gives that answer.

References
----------
L. Kleinrock, "Queueing Systems", vol. 1, Wiley, 1975: chapters 3 (M/M/m) and 5 (M/G/1).
L. Kleinrock, "Queueing Systems", vol. 2, Wiley, 1976: chapter 4 (processor sharing).
J. D. C. Little, "A proof for the queuing formula L = lambda W", Operations Research 9 (1961) 383-387.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.queues import REPLICATIONS, MissError, Path, check, demand_of, interval, poisson_path, profile, run
from cluster.single_server import Job, play_alone, prefill_s, service_s
from sim.cluster.engine_settings import EngineSettings
from sim.cluster.replica import Replica
from sim.cluster.waiting import FcfsQueue
from sim.engine.step_time import LinearStepTime
from workloads.lengths import Constant, Empirical, LengthLaw, Uniform

# --------------------------------------------------------------------------------------------------------------------
# Batch of one: exact on every path

steps = st.builds(
    LinearStepTime,
    base_s=st.sampled_from([0.0, 0.013, 0.1]),
    per_decode_sequence_s=st.sampled_from([0.001, 0.02]),
    per_prefill_token_s=st.sampled_from([0.0001, 0.0007]),
    per_context_token_s=st.sampled_from([0.0, 0.00031]),
    per_prefill_pair_s=st.sampled_from([0.0, 0.000011]),
)
jobs = st.lists(
    st.tuples(
        st.one_of(st.just(0.0), st.floats(0, 0.05), st.floats(0, 3)),  # gap to the one before
        st.integers(1, 60),
        st.integers(1, 30),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(requests=jobs, step=steps, chunk=st.sampled_from([1, 7, 64]), scheduling=st.sampled_from(["fcfs", "priority"]))
def test_a_batch_of_one_serves_one_by_one_in_order(
    requests: list[Job], step: LinearStepTime, chunk: int, scheduling: str
) -> None:
    play_alone(requests, step, chunk, scheduling)


# --------------------------------------------------------------------------------------------------------------------
# Batch of one: M/G/1

STEP = LinearStepTime(
    base_s=0.05, per_prefill_token_s=0.001, per_decode_sequence_s=0.01, per_context_token_s=0.0002,
    per_prefill_pair_s=1e-5,
)  # fmt: skip
M_G_1: dict[str, tuple[LengthLaw, LengthLaw]] = {
    "uniform": (Uniform(low=10, high=100), Uniform(low=1, high=20)),
    "two lengths": (Constant(value=20), Empirical(values=(2, 40), weights=(0.9, 0.1))),
    "M/D/1": (Constant(value=64), Constant(value=8)),
}


def support(law: LengthLaw) -> list[tuple[int, float]]:
    """Return every length with its probability."""
    if isinstance(law, Constant):
        return [(law.value, 1.0)]
    if isinstance(law, Uniform):
        return [(tokens, 1 / (law.high - law.low + 1)) for tokens in range(law.low, law.high + 1)]
    assert isinstance(law, Empirical)
    assert law.weights
    return list(zip(law.values, law.weights, strict=True))


def waiting_mg1_s(rate_per_s: float, mean_s: float, second_moment_s2: float) -> float:
    """Mean wait in M/G/1, first come first served (Pollaczek-Khinchine)."""
    return rate_per_s * second_moment_s2 / (2 * (1 - rate_per_s * mean_s))


def check_mg1(case: str, replica: type = Replica, replications: int = REPLICATIONS) -> None:
    prompt, output = M_G_1[case]
    services = [(service_s(STEP, p, o), pp * po) for p, pp in support(prompt) for o, po in support(output)]
    mean_s = math.fsum(s * p for s, p in services)
    rate_per_s = 0.6 / mean_s
    theory_s = waiting_mg1_s(rate_per_s, mean_s, math.fsum(s * s * p for s, p in services))
    prefills_s = np.array([0.0] + [prefill_s(STEP, p, 8192) for p in range(1, 101)])

    def mean_wait_s(replication: int) -> float:
        path = poisson_path(
            rate_per_s, profile(STEP, slots=1), output, prompt=prompt, replication=replication, requests=4000,
            replica=replica,
        )  # fmt: skip
        return float(np.mean(path.first_token_s - path.arrival_s - prefills_s[path.prompt_tokens]))

    check(theory_s, interval(mean_wait_s, replications), share=0.15)


@pytest.mark.parametrize("case", M_G_1)
def test_a_batch_of_one_is_pollaczek_khinchine(case: str) -> None:
    check_mg1(case)


def test_deterministic_service_waits_half_as_long_as_exponential() -> None:
    # Not of the simulator: that the formula above is the one in the book, at two points where the book gives a number.
    assert math.isclose(waiting_mg1_s(0.5, 1.0, 2.0), 1.0)  # M/M/1 at rho = 1/2
    assert math.isclose(waiting_mg1_s(0.5, 1.0, 1.0), 0.5)  # M/D/1


# --------------------------------------------------------------------------------------------------------------------
# A few slots, iterations of one length: M/M/m

SLOTS = 4
MEAN_TOKENS = 500


def waiting_mmm_s(rate_per_s: float, mean_s: float, servers: int) -> float:
    """Mean wait in M/M/m (Erlang's C formula)."""
    offered = rate_per_s * mean_s
    terms = [offered**k / math.factorial(k) for k in range(servers)]
    last = offered**servers / math.factorial(servers) * servers / (servers - offered)
    return last / (sum(terms) + last) * mean_s / (servers - offered)


class Geometric:
    """Lengths with the lack of memory that exponential service has."""

    def draw(self, rng: np.random.Generator, n: int) -> Any:
        return rng.geometric(1 / MEAN_TOKENS, n)


def check_mmm(replica: type = Replica, replications: int = REPLICATIONS) -> None:
    step = LinearStepTime(base_s=0.001)
    mean_s = MEAN_TOKENS * step.base_s
    rate_per_s = 0.75 * SLOTS / mean_s

    def mean_wait_s(replication: int) -> float:
        path = poisson_path(
            rate_per_s, profile(step, slots=SLOTS), Geometric(), replication=replication, requests=5000, replica=replica
        )
        return float(np.mean(path.first_token_s - path.arrival_s - step.base_s))

    # Who finds a free slot still waits for the end of the iteration.
    theory_s = waiting_mmm_s(rate_per_s, mean_s, SLOTS)
    check(theory_s, interval(mean_wait_s, replications), share=0.15, bias_s=step.base_s)


def test_a_few_slots_are_erlang_c() -> None:
    check_mmm()


# --------------------------------------------------------------------------------------------------------------------
# Iterations as long as their batch: processor sharing

TOKEN_S = 0.001
SHARED = LinearStepTime(base_s=0.0, per_prefill_token_s=TOKEN_S, per_decode_sequence_s=TOKEN_S)
LOAD = 0.6
TWO_LENGTHS = Empirical(values=(100, 5050), weights=(9 / 11, 2 / 11))  # mean 1000, cv 1.9
M_G_1_PS: dict[str, LengthLaw] = {
    "constant": Constant(value=1000),
    "two lengths": TWO_LENGTHS,
    "uniform": Uniform(low=1, high=1999),
}


@cache
def ps_path(case: str, replication: int, replica: type) -> Path:
    law, of = M_G_1_PS[case], profile(SHARED, slots=1000)
    return poisson_path(LOAD, of, law, replication=replication, requests=4000, replica=replica)


def check_ps(
    case: str, replica: type = Replica, tokens: int | None = None, replications: int = REPLICATIONS
) -> None:
    """Check the mean response of all requests, or of those with so many tokens: service / (1 - load), for each."""
    assert math.isclose(TOKEN_S * math.fsum(o * p for o, p in support(M_G_1_PS[case])), 1.0)

    def mean_response_s(replication: int) -> float:
        path = ps_path(case, replication, replica)
        chosen = path.output_tokens == tokens if tokens else slice(None)
        return float(np.mean((path.finish_s - path.arrival_s)[chosen]))

    # Whoever comes waits for the end of an iteration, and shares in whole tokens.
    bias_s = 10 * TOKEN_S
    theory_s = (tokens * TOKEN_S if tokens else 1.0) / (1 - LOAD)
    check(theory_s, interval(mean_response_s, replications), share=0.1, bias_s=bias_s)


ONE_SET_OF_PATHS = pytest.mark.xdist_group("two lengths")  # `ps_path` keeps them, in one worker


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[ONE_SET_OF_PATHS] if case == "two lengths" else []) for case in M_G_1_PS]
)
def test_a_step_as_long_as_its_batch_is_processor_sharing_whatever_the_lengths(case: str) -> None:
    check_ps(case)


@ONE_SET_OF_PATHS
@pytest.mark.parametrize("tokens", TWO_LENGTHS.values)
def test_processor_sharing_slows_every_length_alike(tokens: int) -> None:
    check_ps("two lengths", tokens=tokens)


# --------------------------------------------------------------------------------------------------------------------
# Little's law


class CountedReplica(Replica[Any]):
    """Adds up the time that requests are present, from its own counts."""

    present_s = 0.0
    _seen_s = 0.0
    made: list[CountedReplica] = []  # noqa: RUF012

    def __init__(self, settings: EngineSettings, **heard: Any) -> None:
        super().__init__(settings, **heard)
        self.made.append(self)

    def _add(self, now_s: float) -> None:
        self.present_s += (self.running_count + self.waiting_count) * (now_s - self._seen_s)
        self._seen_s = now_s

    def submit(self, request: Any, now_s: float) -> None:
        self._add(now_s)
        super().submit(request, now_s)

    def boundary(self, now_s: float) -> None:
        self._add(now_s)
        super().boundary(now_s)


@settings(max_examples=80, deadline=None)
@given(
    requests=jobs, step=steps, slots=st.integers(1, 8), spare_tokens=st.integers(0, 60),
    block_tokens=st.sampled_from([1, 4, 16]), room=st.floats(1, 4), scheduling=st.sampled_from(["fcfs", "priority"]),
)  # fmt: skip
def test_littles_law_holds_on_every_path(
    requests: list[Job], step: LinearStepTime, slots: int, spare_tokens: int, block_tokens: int, room: float,
    scheduling: str,
) -> None:  # fmt: skip
    gaps, prompts, outputs, _ = (list(column) for column in zip(*requests, strict=True))
    kv_blocks = int(math.ceil(90 / block_tokens) * room)  # room for the longest, so that every request finishes
    CountedReplica.made.clear()
    path = run(
        [demand_of(np.cumsum(gaps).tolist(), prompts, outputs)],
        profile(
            step, slots=slots, batched_tokens=slots + spare_tokens, kv_blocks=kv_blocks, block_tokens=block_tokens,
            scheduling=scheduling,
        ),
        replica=CountedReplica,
    )  # fmt: skip
    (replica,) = CountedReplica.made
    sojourns_s = math.fsum(path.finish_s - path.arrival_s)
    assert math.isclose(replica.present_s, sojourns_s, rel_tol=1e-9)


# --------------------------------------------------------------------------------------------------------------------
# Bugs that must not get past these tests


class OneTooMany(Replica[Any]):
    def __init__(self, settings: EngineSettings, **heard: Any) -> None:
        super().__init__(replace(settings, max_num_seqs=settings.max_num_seqs + 1), **heard)


class OnlyTwo(Replica[Any]):
    def __init__(self, settings: EngineSettings, **heard: Any) -> None:
        super().__init__(replace(settings, max_num_seqs=2), **heard)


class OneIterationMore(Replica[Any]):
    def submit(self, request: Any, now_s: float) -> None:
        request.output_tokens += 1
        super().submit(request, now_s)


class LateWake(Replica[Any]):
    """Loses the wake-up of an idle engine, and finds the request an iteration later."""

    def submit(self, request: Any, now_s: float) -> None:
        super().submit(request, now_s if self.wake_s < math.inf else now_s + STEP.base_s)


FEW = 8  # replications: these bugs are not subtle
ALIKE = [(gap_s, 10, 5, 0) for gap_s in (0.0, 0.0, 0.001, 0.0, 5.0)]


@pytest.mark.parametrize("bug", [OneTooMany, OneIterationMore, LateWake])
def test_the_single_server_catches(bug: type) -> None:
    play_alone(ALIKE, STEP, 64, "fcfs")
    with pytest.raises(AssertionError):
        play_alone(ALIKE, STEP, 64, "fcfs", bug)


@pytest.mark.parametrize("bug", [OneTooMany, OneIterationMore])
def test_pollaczek_khinchine_catches(bug: type) -> None:
    with pytest.raises(MissError):
        check_mg1("uniform", bug, FEW)


def test_erlang_c_catches_a_slot_too_many() -> None:
    with pytest.raises(MissError):
        check_mmm(OneTooMany, FEW)


def test_processor_sharing_catches_a_batch_that_does_not_take_everyone() -> None:
    with pytest.raises(MissError):
        check_ps("constant", OnlyTwo, replications=FEW)


def test_last_come_first_served_shows_in_the_order_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FcfsQueue, "push", FcfsQueue.push_front)
    check_mg1("M/D/1", replications=FEW)  # a mean wait is blind to the order
    with pytest.raises(AssertionError):
        play_alone(ALIKE, STEP, 64, "fcfs")
