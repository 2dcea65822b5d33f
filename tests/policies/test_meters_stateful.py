"""No sequence of reserving and settling lets more through a meter than `policies.meters` documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from policies.meters import ContinuousBucket, FixedWindow, LeakyUtilisation, SlidingWindow

LIMIT, WINDOW_S, RATE = 100.0, 60.0, 2.0


@dataclass
class Paid:
    """A reservation: when, how much of it counts, and what the meter returned for it."""

    at_s: float
    amount: float
    reserved: float
    token: Any
    settled_s: float | None = None


class Metered(RuleBasedStateMachine):
    """Reserves when it may, settles in any order at any time."""

    meter: Any

    def __init__(self) -> None:
        super().__init__()
        self.meter = self.make()
        self.now_s = 0.0
        self.open: list[Paid] = []
        self.all: list[Paid] = []

    def make(self) -> Any:
        raise NotImplementedError

    def settle(self, paid: Paid, actual: float) -> None:
        self.meter.settle(paid.token, actual, self.now_s)

    @rule(gap_s=st.sampled_from([0.0, 0.5, 7.0, 29.0, 59.5, 60.0, 61.0, 200.0]))
    def wait(self, gap_s: float) -> None:
        self.now_s += gap_s

    @rule(amount=st.sampled_from([1.0, 10.0, 50.0, 99.0, 100.0]))
    def ask(self, amount: float) -> None:
        if self.meter.wait_s(amount, self.now_s) == 0:
            paid = Paid(self.now_s, amount, amount, self.meter.reserve(amount, self.now_s))
            self.open.append(paid)
            self.all.append(paid)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 50), share=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    def end(self, which: int, share: float) -> None:
        paid = self.open.pop(which % len(self.open))
        self.settle(paid, share * paid.reserved)
        paid.settled_s, paid.amount = self.now_s, share * paid.reserved


class SlidingMachine(Metered):
    def make(self) -> SlidingWindow:
        return SlidingWindow(limit=LIMIT, window_s=WINDOW_S)

    def settle(self, paid: Paid, actual: float) -> None:
        self.meter.settle_or_charge(paid.token, actual, self.now_s)

    @invariant()
    def no_window_holds_more_than_the_limit(self) -> None:
        held = sum(paid.amount for paid in self.all if paid.at_s + WINDOW_S > self.now_s)
        assert held <= LIMIT + 1e-6
        # A refund in time goes to the window that paid, one that is late to nobody.
        inside = [one for one in self.all if one.at_s + WINDOW_S > self.now_s]
        assert self.meter.available(self.now_s) == pytest.approx(LIMIT - sum(one.amount for one in inside))


class FixedMachine(Metered):
    def make(self) -> FixedWindow:
        return FixedWindow(limit=LIMIT, window_s=WINDOW_S)

    @invariant()
    def every_window_paid_for_at_most_the_limit(self) -> None:
        by_window: dict[int, float] = {}
        for paid in self.all:
            by_window[int(paid.at_s // WINDOW_S)] = by_window.get(int(paid.at_s // WINDOW_S), 0.0) + (
                paid.amount if paid.settled_s is None or paid.settled_s // WINDOW_S == paid.at_s // WINDOW_S
                else paid.reserved
            )
        assert all(total <= LIMIT + 1e-6 for total in by_window.values()), by_window
        now = by_window.get(int(self.now_s // WINDOW_S), 0.0)
        assert self.meter.available(self.now_s) == pytest.approx(LIMIT - now)


class BucketMachine(Metered):
    def make(self) -> ContinuousBucket:
        return ContinuousBucket(rate_per_s=RATE, depth=LIMIT)

    def settle(self, paid: Paid, actual: float) -> None:
        self.meter.settle(paid.reserved, actual, self.now_s)

    @invariant()
    def no_interval_lets_through_more_than_is_documented(self) -> None:
        assert self.meter.available(self.now_s) <= LIMIT + 1e-9
        for first in self.all[-8:]:
            span = [one for one in self.all if one.at_s >= first.at_s]
            through = sum(one.amount for one in span)
            given_back = sum(
                one.reserved - one.amount for one in self.all
                if one.at_s < first.at_s and one.settled_s is not None and one.settled_s >= first.at_s
            )
            elapsed_s = max(one.at_s for one in span) - first.at_s
            assert through <= LIMIT + RATE * elapsed_s + given_back + 1e-6


class UtilisationMachine(Metered):
    """Whoever finds utilisation at most 1 is let in, whatever it takes."""

    def make(self) -> LeakyUtilisation:
        return LeakyUtilisation(rate_per_s=RATE, horizon_s=LIMIT / RATE)

    @rule(amount=st.sampled_from([1.0, 10.0, 50.0, 99.0, 400.0]))
    def ask(self, amount: float) -> None:
        if self.meter.wait_s(self.now_s) == 0:
            self.meter.add(amount, self.now_s)
            self.open.append(Paid(self.now_s, amount, amount, None))
            self.all.append(self.open[-1])

    def settle(self, paid: Paid, actual: float) -> None:
        self.meter.add(actual - paid.reserved, self.now_s)

    @invariant()
    def no_interval_lets_through_more_than_is_documented(self) -> None:
        assert self.meter.level(self.now_s) >= 0
        for first in self.all[-8:]:
            span = [one for one in self.all if one.at_s >= first.at_s]
            given_back = sum(
                one.reserved - one.amount for one in self.all
                if one.at_s < first.at_s and one.settled_s is not None and one.settled_s >= first.at_s
            )
            elapsed_s = max(one.at_s for one in span) - first.at_s
            through = sum(one.amount for one in span)
            # What the last of them takes is let in above 1, and was the larger for what is given back since.
            assert through <= LIMIT + span[-1].amount + RATE * elapsed_s + given_back + 1e-6


MACHINES = [SlidingMachine, FixedMachine, BucketMachine, UtilisationMachine]


@pytest.mark.parametrize("machine", MACHINES, ids=lambda one: one.__name__)
def test_no_sequence_lets_more_through_than_is_documented(machine: type[Metered]) -> None:
    checked = settings(max_examples=60, stateful_step_count=30, deadline=None,
                       suppress_health_check=[HealthCheck.too_slow])
    run_state_machine_as_test(machine, settings=checked)


def test_a_refund_never_goes_to_another_window() -> None:
    window = FixedWindow(limit=100)
    late = window.reserve(90, 50.0)
    window.reserve(100, 70.0)
    window.settle(late, 0, 71.0)
    assert window.available(71.0) == 0
    window.settle(late, 95, 71.0)  # what it used beyond its reservation counts now
    assert window.available(71.0) == -5


def test_what_is_used_beyond_a_reservation_that_has_left_counts_from_then_on() -> None:
    window = SlidingWindow(limit=100)
    charge = window.reserve(10, 0.0)
    window.settle_or_charge(charge, 70, 61.0)
    assert window.available(61.0) == 40
    assert window.available(121.5) == 100
