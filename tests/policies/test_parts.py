"""The parts that policies are made of, each against a plain model of itself."""

from __future__ import annotations

import math
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.api import EntitlementLedger, EntitlementSpec, EntitlementState, InFlight, RequestView, ServiceClass
from policies.meters import FixedWindow, LeakyUtilisation
from policies.parts.estimates import DefaultCap, Flat, MaxTokens, Oracle, PromptOnly, Quantile, TenantMean, estimator
from policies.parts.heaps import KeyedHeap
from policies.parts.lines import Line, Waiting
from policies.parts.orders import LeastAttainedService, RecentUse, VirtualTokenCounter, order_of
from policies.parts.orders_by_turn import Drr
from policies.parts.prefill import PrefillClock

SPEC = EntitlementSpec(name="a", tenant="t", service_class=ServiceClass.SPOT)
BOOK = EntitlementLedger(SPEC, EntitlementState.BOUND)


def view(name: str = "r", prompt: int = 100, most: int | None = 400) -> RequestView:
    return RequestView(name, "a", "t", prompt, most)


def ended(output: int, prompt: int = 100) -> InFlight:
    return InFlight(view(prompt=prompt), BOOK, 0, 0.0, 400, prompt + 400, True, output)


# --------------------------------------------------------------------------------------------------------------------
# Meters


@given(st.lists(st.tuples(st.floats(0, 40), st.floats(0.1, 30)), max_size=40), st.booleans())
def test_a_fixed_window_holds_what_was_charged_since_it_began(steps: list[tuple[float, float]], by_clock: bool) -> None:
    meter = FixedWindow(limit=50, window_s=60, by_clock=by_clock)
    now_s, began_s, used = 0.0, -math.inf, 0.0
    for wait_s, amount in steps:
        now_s += wait_s
        if now_s >= began_s + 60:
            began_s, used = (math.floor(now_s / 60) * 60 if by_clock else now_s), 0.0
        assert meter.used(now_s) == pytest.approx(used)
        meter.reserve(amount, now_s)
        used += amount
        assert meter.available(now_s) == pytest.approx(50 - used)
        assert meter.wait_s(60, now_s) is None
        assert meter.left_s(now_s) == pytest.approx(began_s + 60 - now_s)


@given(st.lists(st.tuples(st.floats(0, 40), st.floats(-10, 60)), max_size=40))
def test_utilisation_drains_to_one_when_it_says(steps: list[tuple[float, float]]) -> None:
    meter = LeakyUtilisation(rate_per_s=2.0, horizon_s=10.0)
    now_s = 0.0
    for wait_s, amount in steps:
        now_s += wait_s
        meter.add(amount, now_s)
        assert meter.level(now_s) >= 0
        wait = meter.wait_s(now_s)
        assert (wait > 0) == (meter.utilisation(now_s) > 1 + 1e-9)
        assert meter.utilisation(now_s + wait) <= 1 + 1e-6
        if wait > 0.1:
            assert meter.utilisation(now_s + wait - 0.1) > 1


@pytest.mark.parametrize("make", [
    lambda: FixedWindow(limit=0), lambda: FixedWindow(limit=1, window_s=0),
    lambda: LeakyUtilisation(rate_per_s=0, horizon_s=1), lambda: LeakyUtilisation(rate_per_s=1, horizon_s=0),
])  # fmt: skip
def test_impossible_meters_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match="give numbers above 0"):
        make()  # type: ignore[operator]


# --------------------------------------------------------------------------------------------------------------------
# Estimates


def test_fixed_estimates() -> None:
    assert estimator(MaxTokens()).output_tokens(view(), 400) == 400
    assert estimator(DefaultCap()).output_tokens(view(), 400) == 400
    assert estimator(DefaultCap()).output_tokens(view(most=None), 256) == 1024
    assert estimator(Flat(tokens=5000)).output_tokens(view(), 400) == 4900
    assert estimator(PromptOnly()).output_tokens(view(), 400) == 0


def test_a_mean_is_of_the_last_and_never_above_what_is_allowed() -> None:
    mean = estimator(TenantMean(last=2))
    assert mean.output_tokens(view(), 400) == 400
    for output in (10, 100, 300):
        mean.learn(ended(output))
    assert mean.output_tokens(view(), 400) == 200
    assert mean.output_tokens(view(), 150) == 150


@given(st.sampled_from([0.5, 0.8, 0.9]), st.integers(0, 1000))
def test_a_quantile_lies_above_its_share_of_answers(q: float, shift: int) -> None:
    guess = estimator(Quantile(q=q, step=0.02))
    answers = [1 + (37 * (k + shift)) % 199 for k in range(3000)]  # every length from 1 to 199 as often
    below = 0
    for k, output in enumerate(answers):
        if k >= 1000:
            below += output <= guess.output_tokens(view(), 400)
        guess.learn(ended(output))
    assert abs(below / 2000 - q) < 0.05


def test_an_oracles_error_is_lognormal_and_hangs_on_the_request_alone() -> None:
    one, other = estimator(Oracle(sigma=0.5)), estimator(Oracle(sigma=0.5))
    for each in (one, other):
        each.length_of = lambda _: 1000  # type: ignore[attr-defined]
    names = [f"r{k}" for k in range(4000)]
    guesses = [one.output_tokens(view(name), 10**9) for name in names]
    assert [other.output_tokens(view(name), 10**9) for name in reversed(names)] == guesses[::-1]
    logs = [math.log(guess / 1000) for guess in guesses]
    mean = sum(logs) / len(logs)
    assert abs(mean) < 0.03  # 0.5 / sqrt(4000) = 0.008
    assert abs(math.sqrt(sum((x - mean) ** 2 for x in logs) / len(logs)) - 0.5) < 0.03


# --------------------------------------------------------------------------------------------------------------------
# Heaps, lines, orders

names = st.sampled_from("abcdefg")


@given(st.lists(st.tuples(names, st.none() | st.integers(0, 9)), max_size=200))
def test_a_keyed_heap_is_a_dictionary_that_knows_its_least(steps: list[tuple[str, int | None]]) -> None:
    heap, model = KeyedHeap(), {}
    came: dict[str, int] = {}
    for at, (name, key) in enumerate(steps):
        if key is None:
            if name in model:
                heap.remove(name)
                del model[name]
        else:
            heap.set(name, (key,))
            if name not in model:
                came[name] = at
            model[name] = (key,)
        assert (len(heap), name in heap) == (len(model), name in model)
        if model:
            least, _, first = min((key, came[name], name) for name, key in model.items())
            assert heap.least() == (least, first)  # of equals, who was put in first


line_steps = st.one_of(st.integers(0, 5), st.just("pop"), st.tuples(st.just("drop"), st.integers(0, 30)))


@given(st.lists(line_steps, max_size=150))
def test_a_line_is_a_sorted_list(steps: list[object]) -> None:
    line, model = Line(), []
    for number, step in enumerate(steps):
        if isinstance(step, int):
            item = Waiting(view(f"r{number}"), 1, "a", number, float(step), 0.0)
            line.push(item)
            model.append((float(step), number, item))
        elif model and step == "pop":
            assert line.pop() is min(model)[2]
            model.remove(min(model))
        elif model and isinstance(step, tuple):
            chosen = model.pop(step[1] % len(model))
            line.drop(chosen[2])
        assert line.length == len(model)
        if model:
            assert line.head() is min(model)[2]


def waiting(cost: float, since_s: float = 0.0) -> Waiting:
    return Waiting(view(), 1, "a", since_s, 0.0, cost)


class _SlowDrr:
    """Deficit round robin, one turn after the other."""

    def __init__(self, quantum: float, costs: dict[str, deque[float]]) -> None:
        self.quantum, self.costs, self.ring = quantum, costs, deque(costs)
        self.deficit, self.paid = dict.fromkeys(costs, 0.0), False

    def next(self) -> str:
        while True:
            flow = self.ring[0]
            cost = max(1.0, self.costs[flow][0])
            if not self.paid and cost > self.deficit[flow]:
                self.deficit[flow] += self.quantum
                self.paid = True
            if cost <= self.deficit[flow]:
                self.deficit[flow] -= cost
                self.costs[flow].popleft()
                if not self.costs[flow]:
                    self.ring.popleft()
                    self.deficit[flow], self.paid = 0.0, False
                return flow
            self.ring.rotate(-1)
            self.paid = False


@given(st.integers(1, 40), st.lists(st.lists(st.integers(1, 900), min_size=1, max_size=8), min_size=1, max_size=5))
def test_drr_gives_missing_turns_at_once_and_serves_as_if_one_by_one(quantum: int, sizes: list[list[int]]) -> None:
    costs = {f"f{k}": deque(map(float, each)) for k, each in enumerate(sizes)}
    slow = _SlowDrr(quantum, {flow: deque(each) for flow, each in costs.items()})
    order, lines = Drr(quantum), {flow: Line() for flow in costs}
    for flow, each in costs.items():
        for cost in each:
            lines[flow].push(waiting(cost))
        order.joined(flow, lines[flow].head(), 0.0)
    for _ in range(sum(map(len, sizes))):
        flow = order.pick(lines, 0.0)
        assert order.pick(lines, 0.0) == flow  # asking again changes nothing
        item = lines[flow].head()
        lines[flow].drop(item)
        if not lines[flow].length:
            order.left(flow)
        order.charge(flow, item.cost, 0.0)
        assert flow == slow.next()


def test_least_attained_service_is_the_formula_of_its_source() -> None:
    """Of 0.8 (1 - a) + 0.2 w the largest is picked, each from 0 (least) to 1 (most); a halves every 60 s."""
    flows = ["a", "b", "c", "d"]
    members = {name: [SPEC] for name in flows}
    order = order_of(LeastAttainedService(), members, dict.fromkeys(flows, 1.0), None)
    charges = [("a", 500.0, 0.0), ("b", 300.0, 10.0), ("c", 900.0, 50.0), ("b", 100.0, 90.0), ("d", 50.0, 100.0)]
    heads = {"a": 95.0, "b": 20.0, "c": 101.0, "d": 104.0}
    for flow, since_s in heads.items():
        order.joined(flow, waiting(1.0, since_s), since_s)
    for flow, cost, at_s in charges:
        order.charge(flow, cost, at_s)
    for now_s in (105.0, 130.0, 400.0, 60_000.0):
        used = {flow: sum(c * 0.5 ** ((now_s - at) / 60) for f, c, at in charges if f == flow) for flow in flows}
        waited = {flow: now_s - since_s for flow, since_s in heads.items()}

        def place(of: dict[str, float], flow: str) -> float:
            return (of[flow] - min(of.values())) / (max(of.values()) - min(of.values()))

        score = {flow: 0.8 * (1 - place(used, flow)) + 0.2 * place(waited, flow) for flow in flows}
        assert order.pick({}, now_s) == max(score, key=score.__getitem__)


def test_counters_that_fade_keep_their_order_for_ever() -> None:
    members = {name: [SPEC] for name in "ab"}
    order = order_of(VirtualTokenCounter(half_life_s=1.0), members, dict.fromkeys("ab", 1.0), None)
    for name in "ab":
        order.joined(name, waiting(1.0), 0.0)
    for now_s in range(0, 20_000, 300):  # 2^20000 is no float
        order.charge("a", 10.0, float(now_s))
        order.charge("b", 9.0, float(now_s))
        assert order.pick({}, float(now_s)) == "b"
    order.charge("b", 2.0, 19_900.0)
    assert order.pick({}, 19_900.0) == "a"


def test_recent_use_forgets_after_its_window() -> None:
    order = order_of(RecentUse(window_s=10.0), {name: [SPEC] for name in "ab"}, dict.fromkeys("ab", 1.0), None)
    for name in "ab":
        order.joined(name, waiting(1.0), 0.0)
    order.charge("a", 5.0, 0.0)
    order.charge("b", 4.0, 5.0)
    assert (order.pick({}, 9.9), order.pick({}, 10.0)) == ("b", "a")


def test_a_prefill_clock_learns_the_rate_from_what_was_ahead() -> None:
    clock = PrefillClock(tokens_per_s=1000.0, fresh_share=0.5)
    flights = [InFlight(view(f"r{k}", 500), BOOK, 0, 0.0, 400, 900) for k in range(2)]
    for flight in flights:
        clock.admitted(flight)
    assert clock.wait_s(500, 0, 1) == 1.5
    assert clock.wait_s(500, 1000, 2) == 1.5  # a thousand more at the gateway, two replicas
    clock.first_token(flights[0], 1.0)  # 500 in 1 s
    assert clock.tokens_per_s == 750
    clock.first_token(flights[1], 2.0)  # 1000 in 2 s: again 500
    assert clock.tokens_per_s == 625
    assert clock.outstanding_tokens == 0
