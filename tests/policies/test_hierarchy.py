"""The tree above entitlements: limits of groups, what siblings leave, budgets by day and month, over any policy."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity.examples import EXAMPLES

from policies import snapshot
from policies.api import (
    Arrived,
    Cancelled,
    EntitlementSpec,
    Finished,
    Forward,
    PoolCapacity,
    Reason,
    Refuse,
    RequestView,
    Resources,
    ServiceClass,
)
from policies.budgets import Balance, Budget, BudgetAccount, Calendar, Price
from policies.core import GatewayCore
from policies.handover import hand_over
from policies.hierarchy import (
    Hierarchy,
    HierarchySpec,
    Node,
    Reserved,
    Settled,
    entitlement_id,
    group_id,
    key_id,
)
from policies.invariants import CheckedCore, Checker
from policies.no_control import NoControl, NoControlPolicy
from policies.routing import RoundRobinRouter
from policies.wire import event_from, to_plain
from tokenpools.testing import PolicyContract, make_core
from tokenpools.testing.policy_contract import SPECS, Auditor, steps

DAY_S = 86_400.0
A_MONTH = "month"
ORG, TEAM = group_id("org"), group_id("team")
PRICES = {"": Price(prompt=1.0, output=2.0, cached=0.5), "large": Price(prompt=10.0, output=20.0)}


def tree(*budgets: Budget, slots: float | None = None, calendar: Calendar | None = None, **more: Any) -> HierarchySpec:
    """Return a tree: org > team > the first three classes, org > the others; the budgets are the organisation's."""
    nodes = [
        Node(node_id=ORG, limit=Resources(None, None, slots), budgets=budgets), Node(node_id=TEAM, parent=ORG),
        *(Node(node_id=entitlement_id(spec.name), parent=TEAM) for spec in SPECS[:3]),
        *(Node(node_id=entitlement_id(spec.name), parent=ORG) for spec in SPECS[3:]),
    ]  # fmt: skip
    return HierarchySpec(nodes=tuple(nodes), prices=PRICES, calendar=calendar or Calendar(), **more)


WIDE = tree(
    Budget(unit="tokens", per="day", limit=5e6, carry_over="both"), Budget(unit="money", per="month", limit=900.0),
    slots=6,
)  # fmt: skip


class TestPoliciesBelowATree(PolicyContract):
    examples = {  # noqa: RUF012
        name: EXAMPLES[name] for name in ("token-pool", "rate-limit", "fair-queue")
    }  # fmt: skip

    def core(self, params: Any, specs: Sequence[EntitlementSpec] = SPECS) -> GatewayCore:
        return make_core(params, specs, above=WIDE)


@pytest.mark.parametrize("kind", sorted(EXAMPLES))
@settings(max_examples=5, deadline=None)
@given(steps=steps, seed=st.integers(0, 99))
def test_every_policy_keeps_the_limits_and_books_of_a_narrow_tree(kind: str, steps: list[Any], seed: int) -> None:
    narrow = tree(Budget(unit="tokens", per="day", limit=2000.0), slots=3)
    core = CheckedCore(make_core(EXAMPLES[kind], above=narrow), Checker(every_events=1))
    auditor = Auditor(core)  # type: ignore[arg-type]
    for step in steps:
        auditor.step(*step)
        assert core.hierarchy is not None
        assert core.hierarchy.in_flight(ORG) <= 3
    auditor.end(random.Random(seed))
    assert core.hierarchy is not None
    assert core.hierarchy.in_flight(ORG) == 0
    (state,) = core.hierarchy.all_budgets(auditor.now_s)
    assert state.used == sum(book.worked_tokens for book in core.pool.entitlements.values())


def spec(name: str, service_class: str, slots: float | None = None, rate: float | None = None) -> EntitlementSpec:
    return EntitlementSpec(
        name=name, tenant=name, service_class=ServiceClass(service_class), baseline=Resources(rate, None, slots)
    )


class Small:
    """A core of two teams' members under a group, and what it is asked."""

    def __init__(self, members: Sequence[EntitlementSpec], above: HierarchySpec) -> None:
        self.core = GatewayCore(
            entitlements=members, capacity=PoolCapacity(1, 100), replica_ids=[0], policy=NoControlPolicy(),
            router=RoundRobinRouter(), hierarchy=Hierarchy(above, members, 16.0),
        )
        self.core.start(0.0)
        self.number = 0

    def ask(self, name: str, now_s: float = 0.0, tokens: tuple[int, int] = (10, 10), **more: Any) -> Any:
        self.number += 1
        view = RequestView(f"r{self.number}", name, name, *tokens, **more)
        return self.core.handle(Arrived(view), now_s)[-1]

    def end(self, now_s: float, output_tokens: int = 10, **more: Any) -> None:
        self.core.handle(Finished(f"r{self.number}", output_tokens, **more), now_s)


def group(members: Sequence[str], **of_the_group: Any) -> HierarchySpec:
    nodes = [Node(node_id=ORG, **of_the_group), *(Node(node_id=entitlement_id(name), parent=ORG) for name in members)]
    return HierarchySpec(nodes=tuple(nodes), prices=PRICES)


def answers(world: Small, name: str, times: int, now_s: float = 0.0) -> list[type]:
    return [type(world.ask(name, now_s)) for _ in range(times)]


def test_a_group_bounds_what_its_members_have_together_and_says_so() -> None:
    world = Small([spec("a", "spot"), spec("b", "spot")], group("ab", limit=Resources(None, None, 3)))
    assert answers(world, "a", 2) == [Forward] * 2
    assert answers(world, "b", 1) == [Forward]
    refused = world.ask("b")
    assert (refused.reason, refused.status, refused.available) == (Reason.PARENT_LIMIT, 429, 0.0)
    assert refused.retry_after_s == 1.0


def test_what_a_member_leaves_is_its_siblings_by_class() -> None:
    members = [spec("d", "dedicated", 2), spec("g", "guaranteed", 3), spec("s", "spot")]
    above = group("dgs", limit=Resources(None, None, 8))
    quiet = Small(members, above)
    # Nobody asked for anything lately: the guaranteed baseline is open to spot, the dedicated one never is.
    assert answers(quiet, "s", 7) == [Forward] * 6 + [Refuse]
    busy = Small(members, above)
    assert answers(busy, "g", 1) == [Forward]  # it is there: two more of its own stay free for it
    assert answers(busy, "s", 4) == [Forward] * 3 + [Refuse]
    assert answers(busy, "g", 2) == [Forward] * 2
    assert answers(busy, "d", 2) == [Forward] * 2
    assert answers(busy, "d", 1) == [Refuse]
    # After ten idle seconds a protected member's slots are open again.
    later = Small(members, above)
    assert answers(later, "g", 1) == [Forward]
    later.end(1.0)
    assert answers(later, "s", 4, 5.0) == [Forward] * 3 + [Refuse]
    assert answers(later, "s", 4, 11.0) == [Forward] * 3 + [Refuse]


def test_a_groups_rate_keeps_what_a_busy_sibling_was_promised() -> None:
    members = [spec("g", "guaranteed", rate=50.0), spec("s", "spot")]
    world = Small(members, group("gs", limit=Resources(100.0)))
    assert type(world.ask("g", tokens=(5, 5))) is Forward
    taken = 0
    while type(world.ask("s", tokens=(5, 5))) is Forward:
        taken += 10
    assert taken == 500  # 1000 tokens at once, of which 490 of the sibling's 500 and its 10 stay
    assert type(world.ask("g", tokens=(200, 200))) is Forward
    assert type(world.ask("s", tokens=(5000, 5000))) is Refuse
    late = Small(members, group("gs", limit=Resources(100.0)))
    assert type(late.ask("s", tokens=(5000, 5000))) is Forward  # larger than the bucket: it may, and pays it off
    refused = late.ask("s", 1.0, tokens=(5, 5))
    assert refused.retry_after_s == pytest.approx((9000 + 10 - 100) / 100)


def test_a_key_has_limits_below_its_entitlement() -> None:
    nodes = (
        Node(node_id=key_id("ci"), parent=entitlement_id("a"), limit=Resources(None, None, 1),
             budgets=(Budget(unit="tokens", per="day", limit=100.0),)),
    )  # fmt: skip
    world = Small([spec("a", "spot")], HierarchySpec(nodes=nodes))
    assert type(world.ask("a", key="ci")) is Forward
    assert world.ask("a", key="ci").reason == Reason.PARENT_LIMIT
    assert type(world.ask("a", key="other")) is Forward
    assert [state.node for state in world.core.budgets("a", "ci", 0.0)] == [key_id("ci")]
    assert world.core.budgets("a", "other", 0.0) == []


# ---------------------------------------------------------------------------------------------------------- budgets


def test_a_budget_refuses_until_its_period_ends_and_settles_to_what_was_used() -> None:
    start_s = 3 * DAY_S + 1000
    world = Small([spec("a", "spot")], group("a", budgets=(Budget(unit="tokens", per="day", limit=100.0),)))
    assert type(world.ask("a", wall_s=start_s, tokens=(10, 80))) is Forward
    refused = world.ask("a", 1.0, wall_s=start_s + 1, tokens=(10, 10))
    assert (refused.reason, refused.needed, refused.available) == (Reason.BUDGET, 20, 10)
    assert refused.retry_after_s == DAY_S - 1001
    assert not world.core.pool.entitlements["a"].demanded_tokens - 90  # it was no demand to the policy
    world.core.handle(Finished("r1", 20), 2.0)
    assert type(world.ask("a", 3.0, wall_s=start_s + 3, tokens=(10, 60))) is Forward
    assert world.ask("a", 3.0, wall_s=start_s + 3, tokens=(1, 1)).reason == Reason.BUDGET
    assert type(world.ask("a", DAY_S, wall_s=start_s + DAY_S, tokens=(10, 90))) is Forward
    never = world.ask("a", DAY_S, wall_s=start_s + DAY_S, tokens=(10, 91))
    assert (never.reason, never.retry_after_s) == (Reason.BUDGET, None)


def test_money_goes_by_the_model_and_by_what_was_cached() -> None:
    world = Small([spec("a", "spot")], group("a", budgets=(Budget(unit="money", per="month", limit=1.0),)))
    world.ask("a", tokens=(1000, 1000), model="large")
    assert world.core.hierarchy is not None
    (state,) = world.core.hierarchy.all_budgets(0.0)
    assert state.used == pytest.approx(0.03)
    world.end(1.0, 500)
    world.ask("a", 2.0, tokens=(1000, 1000), model="small")
    world.end(3.0, 500, cached_tokens=600)
    (state,) = world.core.hierarchy.all_budgets(3.0)
    assert state.used == pytest.approx(0.02 + (400 * 1.0 + 600 * 0.5 + 500 * 2.0) / 1e6)


def test_a_request_is_paid_by_the_period_in_which_it_came() -> None:
    account = BudgetAccount(Budget(unit="tokens", per="month", limit=100.0, carry_over="unused", carry_most=30.0))
    assert account.charge(7, 80.0) == 7
    assert account.roll(8) == 8
    assert (account.limit, account.used) == (120.0, 0.0)
    account.correct(7, -40.0)  # it used 40: 60 were left, of which 30 are carried over
    assert account.limit == 130.0
    account.correct(6, -40.0)  # of a period that is long over
    assert (account.limit, account.used) == (130.0, 0.0)


@pytest.mark.parametrize(
    ("rule", "used", "limits"),
    [("none", 60.0, [100, 100]), ("unused", 60.0, [140, 200]), ("debt", 60.0, [100, 100]), ("both", 60.0, [140, 200]),
     ("none", 130.0, [100, 100]), ("unused", 130.0, [100, 200]), ("debt", 130.0, [70, 100]),
     ("both", 130.0, [70, 170])],
)  # fmt: skip
def test_carry_over(rule: Any, used: float, limits: list[float]) -> None:
    account = BudgetAccount(Budget(unit="tokens", per="day", limit=100.0, carry_over=rule))
    account.charge(1, used)
    found = []
    for day in (2, 3):
        account.roll(day)
        found.append(account.limit)
    assert found == limits


def test_a_clock_that_goes_back_over_the_end_of_a_month_spends_nothing_twice() -> None:
    calendar = Calendar()
    april_s = calendar.ends_s("month", 2026 * 12 + 2)
    world = Small([spec("a", "spot")], group("a", budgets=(Budget(unit="tokens", per="month", limit=100.0),)))
    assert type(world.ask("a", wall_s=april_s - 5, tokens=(10, 90))) is Forward
    assert type(world.ask("a", 10.0, wall_s=april_s + 5, tokens=(10, 80))) is Forward
    back = world.ask("a", 20.0, wall_s=april_s - 10, tokens=(10, 10))
    assert (back.reason, back.available) == (Reason.BUDGET, 10)
    assert back.retry_after_s == calendar.ends_s("month", 2026 * 12 + 3) - (april_s - 10)
    assert world.core.hierarchy is not None
    kept = world.core.hierarchy.balances()
    again = Hierarchy(group("a", budgets=(Budget(unit="tokens", per="month", limit=100.0),)), [spec("a", "spot")], None)
    again.restore(kept)
    again.heard(RequestView("x", "a", "a", 1, 1, wall_s=april_s - 10), 0.0)
    assert [state.remaining for state in again.all_budgets(0.0)] == [10]


@given(wall_s=st.floats(0, 4e9), offset_h=st.integers(-12, 14), per=st.sampled_from(["day", "month"]))
def test_every_time_is_in_the_period_that_ends_after_it(wall_s: float, offset_h: int, per: Any) -> None:
    calendar = Calendar(utc_offset_s=3600.0 * offset_h)
    period = calendar.period(per, wall_s)
    assert wall_s < calendar.ends_s(per, period)
    assert wall_s >= calendar.ends_s(per, period - 1) or wall_s < 2 * DAY_S
    assert calendar.period(per, calendar.ends_s(per, period)) == period + 1


@given(day=st.integers(0, 600_000))
def test_months_are_those_of_the_gregorian_calendar(day: int) -> None:
    date = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)
    month = Calendar().period("month", day * DAY_S + 0.5)
    assert divmod(month, 12) == (date.year, date.month - 1)
    after = datetime(date.year + date.month // 12, date.month % 12 + 1, 1, tzinfo=UTC)
    assert Calendar().ends_s("month", month) == after.timestamp()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_charges_and_corrections_add_up_whatever_the_order(data: Any) -> None:
    """Nothing is lost or doubled: what all periods were charged is what was used."""
    account = BudgetAccount(Budget(unit="tokens", per="day", limit=1e9))
    used: dict[int, float] = {}
    day = 1
    open_charges: list[tuple[int, float]] = []
    for _ in range(data.draw(st.integers(1, 40))):
        what = data.draw(st.sampled_from(["charge", "charge", "correct", "next"]))
        if what == "next":
            day += 1
            open_charges = [each for each in open_charges if each[0] >= day - 1]
            account.roll(day)
        elif what == "charge":
            amount = data.draw(st.integers(1, 100))
            open_charges.append((account.charge(day, amount), amount))
            used[day] = used.get(day, 0) + amount
        elif open_charges:
            period, amount = open_charges.pop()
            actual = data.draw(st.integers(0, 150))
            account.correct(period, actual - amount)
            used[period] += actual - amount
        assert account.used == used.get(day, 0)
        assert account.last_used == used.get(day - 1, 0) or account.period == 1


# ------------------------------------------------------------------------------------------- snapshots, wire, reload


def test_a_restored_core_goes_on_with_the_same_accounts() -> None:
    world = Small([spec("a", "spot")], group("a", budgets=(Budget(unit="tokens", per="day", limit=100.0),)))
    world.ask("a", wall_s=5 * DAY_S, tokens=(10, 70))
    text = json.dumps(snapshot.take(world.core), allow_nan=False)
    twin = snapshot.restore(json.loads(text))
    for core in (world.core, twin):
        core.handle(Cancelled("r1", 5), 1.0)
        assert core.hierarchy is not None
        assert [(state.used, state.limit) for state in core.hierarchy.all_budgets(1.0)] == [(15, 100)]


def test_key_model_and_time_cross_the_wire_and_old_recordings_are_read() -> None:
    view = RequestView("r", "a", "a", 1, 2, key="ci", model="m", wall_s=1.5)
    assert event_from(json.loads(json.dumps(to_plain(Arrived(view))))) == Arrived(view)
    assert len(to_plain(Arrived(RequestView("r", "a", "a", 1, 2)))[1]) == 7  # type: ignore[arg-type]


def test_a_new_configuration_goes_on_with_accounts_and_charges() -> None:
    budget = Budget(unit="tokens", per="day", limit=100.0)
    members = [spec("a", "spot")]
    old = Small(members, group("a", budgets=(budget,)))
    old.ask("a", wall_s=5 * DAY_S, tokens=(10, 70))
    above = group("a", budgets=(replace(budget, limit=300.0), replace(budget, per="month", limit=1000.0)))
    new = Small(members, above).core
    fresh = GatewayCore(
        entitlements=members, capacity=PoolCapacity(1, 100), replica_ids=[0], policy=NoControlPolicy(),
        router=RoundRobinRouter(), hierarchy=Hierarchy(above, members, None),
    )  # fmt: skip
    del new
    hand_over(old.core, fresh, PoolCapacity(1, 100), 2.0)
    assert fresh.hierarchy is not None
    assert [(s.per, s.used, s.limit) for s in fresh.hierarchy.all_budgets(2.0)] == [
        ("day", 80, 300), ("month", 80, 1000),
    ]  # fmt: skip
    fresh.handle(Finished("r1", 20), 3.0)
    assert [s.used for s in fresh.hierarchy.all_budgets(3.0)] == [30, 30]
    assert list(fresh.hierarchy.faults(fresh.pool)) == []


def test_the_journal_tells_every_charge_and_its_end() -> None:
    world = Small([spec("a", "spot")], group("a", budgets=(Budget(unit="tokens", per="day", limit=100.0),)))
    hierarchy = world.core.hierarchy
    assert hierarchy is not None
    hierarchy.journal = []
    world.ask("a", wall_s=5 * DAY_S, tokens=(10, 70), key="k")
    world.end(1.0, 20)
    reserved, settled = hierarchy.journal
    assert isinstance(reserved, Reserved)
    assert [(c.node, c.period, c.amount) for c in reserved.charges] == [(ORG, 5, 80)]
    assert isinstance(settled, Settled)
    assert [c.amount for c in settled.changes] == [-50]
    assert (settled.key, settled.prompt_tokens, settled.output_tokens) == ("k", 10, 20)
    assert settled.wall_s == 5 * DAY_S + 1


def test_what_waits_in_a_queue_is_judged_again_when_its_turn_comes() -> None:
    queue = EXAMPLES["fair-queue"]
    core = make_core(queue, above=tree(Budget(unit="tokens", per="day", limit=150.0)), slots=2)
    core.start(0.0)
    said = [core.handle(Arrived(RequestView(f"r{n}", "spot", "t", 10, 50)), 0.0) for n in range(3)]
    kinds = [type(each[-1]).__name__ for each in said]
    assert kinds == ["Forward", "Forward", "Refuse"]


def test_balances_survive_being_written_down() -> None:
    account = BudgetAccount(Budget(unit="tokens", per="day", limit=10.0, carry_over="both"))
    account.charge(3, 14.0)
    account.roll(4)
    other = BudgetAccount(account.budget)
    other.restore(Balance(*json.loads(json.dumps(account.balance()))))
    assert other.balance() == account.balance()


def test_no_control_is_what_it_was_without_a_tree() -> None:
    assert make_core(NoControl()).hierarchy is None
