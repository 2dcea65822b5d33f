from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from policies.api import PoolCapacity, Resources, ServiceClass
from policies.token_pool.allocation import (
    UNLIMITED,
    ZERO,
    Claim,
    Grant,
    Vector,
    allocate,
    baseline_vector,
    capacity_vector,
    vector,
)
from policies.token_pool.limits import whole_slots

D, G, E, S, P = ServiceClass
BURSTING = (D, G, E)
SLACK = 1e-6
amounts = st.floats(0.01, 100.0)
vectors = st.tuples(amounts, amounts, amounts)


@st.composite
def claims(draw: st.DrawFn, classes: tuple[ServiceClass, ...] = (D, G, E, S, P)) -> Claim:
    service_class = draw(st.sampled_from(classes))
    demand = draw(st.one_of(st.just(ZERO), vectors))
    baseline: Vector = ZERO
    limit = draw(st.one_of(st.just(UNLIMITED), vectors))
    if service_class in BURSTING:
        baseline = draw(vectors)
        if draw(st.booleans()):
            baseline = (math.inf, math.inf, baseline[2])
        if service_class is G:
            limit = baseline
        limit = (max(baseline[0], limit[0]), max(baseline[1], limit[1]), max(baseline[2], limit[2]))
    return Claim(service_class, draw(st.floats(0.1, 100.0)), baseline, limit, demand)


pools = st.lists(claims(), min_size=1, max_size=7)
capacities = st.tuples(st.floats(0.5, 300.0), st.floats(0.5, 300.0), st.floats(0.5, 300.0))


def used(claim: Claim, share: float) -> Vector:
    """What a grant takes out of the pool: of a dedicated one its baseline, used or not, and its burst on top."""
    if claim.service_class is not D:
        return tuple(need * share for need in claim.demand)  # type: ignore[return-value]
    base = min(share, within(claim.demand, claim.baseline))
    return tuple(
        (b if math.isfinite(b) else need * base) + need * (share - base)
        for need, b in zip(claim.demand, claim.baseline, strict=True)
    )  # type: ignore[return-value]


def worst(need: Vector, capacity: Vector) -> float:
    return max(n / c for n, c in zip(need, capacity, strict=True))


def within(demand: Vector, bound: Vector) -> float:
    return min([1.0, *(b / n for n, b in zip(demand, bound, strict=True) if n > b)])


def protected_fit(pool: list[Claim], capacity: Vector) -> bool:
    total = [0.0, 0.0, 0.0]
    for claim in pool:
        if claim.service_class in (D, G):
            for d, amount in enumerate(used(claim, within(claim.demand, claim.baseline))):
                total[d] += amount
    return all(t <= c for t, c in zip(total, capacity, strict=True))


@settings(max_examples=120, deadline=None)
@given(pools, capacities)
def test_what_is_granted_fits_the_pool_and_everybody_s_limit(pool: list[Claim], capacity: Vector) -> None:
    grants = allocate(pool, capacity)
    for d in range(3):
        assert sum(grant.granted[d] for grant in grants) <= capacity[d] * (1 + SLACK)
        if protected_fit(pool, capacity):
            taken = sum(used(claim, grant.share)[d] for claim, grant in zip(pool, grants, strict=True))
            assert taken <= capacity[d] * (1 + SLACK)
        for claim, grant in zip(pool, grants, strict=True):
            assert 0 <= grant.share <= 1 + SLACK
            assert grant.granted[d] <= claim.limit[d] * (1 + SLACK)
            assert grant.limit[d] <= claim.limit[d] * (1 + SLACK)
            assert grant.limit[d] >= grant.granted[d] * (1 - SLACK)


@settings(max_examples=120, deadline=None)
@given(pools, capacities)
def test_nothing_that_somebody_could_use_is_left(pool: list[Claim], capacity: Vector) -> None:
    grants = allocate(pool, capacity)
    if not protected_fit(pool, capacity):
        return
    left = [
        capacity[d] - sum(used(claim, grant.share)[d] for claim, grant in zip(pool, grants, strict=True))
        for d in range(3)
    ]
    for claim, grant in zip(pool, grants, strict=True):
        if grant.share < within(claim.demand, claim.limit) - SLACK:
            assert any(
                left[d] <= SLACK * capacity[d] for d in range(3) if claim.demand[d] > 0
            ), (claim, grant, left)


@settings(max_examples=120, deadline=None)
@given(pools, capacities)
def test_baselines_that_fit_are_met(pool: list[Claim], capacity: Vector) -> None:
    total = [0.0, 0.0, 0.0]
    for claim in pool:
        if claim.service_class in BURSTING:
            for d, amount in enumerate(used(claim, within(claim.demand, claim.baseline))):
                total[d] += amount
    if any(t > c for t, c in zip(total, capacity, strict=True)):
        return
    for claim, grant in zip(pool, allocate(pool, capacity), strict=True):
        if claim.service_class in BURSTING:
            assert grant.share >= within(claim.demand, claim.baseline) * (1 - SLACK)


@settings(max_examples=120, deadline=None)
@given(pools, capacities, st.integers(0, 6), st.tuples(*[st.floats(1.0, 20.0)] * 3))
@example([Claim(E, 1.0, ZERO, UNLIMITED, (1.0, 4.0, 1.0)), Claim(E, 1.0, ZERO, UNLIMITED, (3.0, 1.0, 1.0))],
         (9.0, 18.0, 100.0), 0, (9.0, 1.0, 1.0))  # fmt: skip
def test_who_claims_more_than_it_uses_gets_no_more_use(
    pool: list[Claim], capacity: Vector, who: int, factor: Vector
) -> None:
    who %= len(pool)
    claim = pool[who]
    if not any(claim.demand):
        return
    honest = allocate(pool, capacity)[who].granted
    claimed = tuple(need * more for need, more in zip(claim.demand, factor, strict=True))
    lied = allocate([*pool[:who], claim._replace(demand=claimed), *pool[who + 1 :]], capacity)[who].granted  # type: ignore[arg-type]
    useful = min([1.0, *(got / need for got, need in zip(lied, claim.demand, strict=True))])
    assert useful <= honest[0] / claim.demand[0] * (1 + 1e-5) + SLACK


@settings(max_examples=80, deadline=None)
@given(
    st.lists(claims((D, D, D, E, S)), min_size=2, max_size=6), st.tuples(*[st.floats(0.5, 40.0)] * 3),
    st.integers(0, 6), st.tuples(*[st.floats(1.0, 20.0)] * 3),
)  # fmt: skip
def test_nor_where_dedicated_baselines_hardly_fit(
    pool: list[Claim], capacity: Vector, who: int, factor: Vector
) -> None:
    test_who_claims_more_than_it_uses_gets_no_more_use.hypothesis.inner_test(pool, capacity, who, factor)


def test_nor_does_it_where_dedicated_baselines_exceed_the_capacity() -> None:
    dedicated = ServiceClass.DEDICATED
    idle = Claim(dedicated, 1.0, (1.0, 1.0, 1.0), UNLIMITED, ZERO)
    more = (math.inf, math.inf, 2.0)
    honest = allocate([idle, idle, Claim(dedicated, 1.0, more, UNLIMITED, (1.0, 1.0, 1.0))], (1.0, 1.0, 1.0))[2]
    lied = allocate([idle, idle, Claim(dedicated, 1.0, more, UNLIMITED, (2.0, 2.0, 2.0))], (1.0, 1.0, 1.0))[2]
    assert lied.granted[0] <= honest.granted[0] + SLACK


@settings(max_examples=120, deadline=None)
@given(st.lists(claims(), min_size=1, max_size=7), st.floats(0.5, 300.0), st.floats(1.0, 5.0))
def test_with_one_resource_nobody_loses_when_it_grows(pool: list[Claim], slots: float, factor: float) -> None:
    pool = [
        claim._replace(demand=(0.0, 0.0, claim.demand[2]), baseline=(math.inf, math.inf, claim.baseline[2]))
        if any(claim.baseline) else claim._replace(demand=(0.0, 0.0, claim.demand[2]))
        for claim in pool
    ]  # fmt: skip
    less = allocate(pool, (math.inf, math.inf, slots))
    more = allocate(pool, (math.inf, math.inf, slots * factor))
    for before, after in zip(less, more, strict=True):
        assert after.granted[2] >= before.granted[2] * (1 - SLACK) - SLACK


@settings(max_examples=150, deadline=None)
@given(pools, capacities, st.floats(1.0, 5.0))
def test_with_more_replicas_nobody_loses(pool: list[Claim], capacity: Vector, factor: float) -> None:
    # Of every class, whatever the others do: all that ask need something of everything, as requests do.
    larger = (capacity[0] * factor, capacity[1] * factor, capacity[2] * factor)
    for before, after in zip(allocate(pool, capacity), allocate(pool, larger), strict=True):
        assert after.share >= before.share - SLACK


def test_but_somebody_may_when_one_resource_of_several_grows_alone() -> None:
    pool = [Claim(S, 1.0, ZERO, UNLIMITED, (200.0, 100.0, 0.0)), Claim(S, 1.0, ZERO, UNLIMITED, (100.0, 200.0, 0.0))]
    before = allocate(pool, (10.0, 10.0, math.inf))
    assert [grant.granted[1] for grant in before] == pytest.approx([10 / 3, 20 / 3])
    # The first is now held back by what the second needs most of: both have half of that.
    after = allocate(pool, (100.0, 10.0, math.inf))
    assert [grant.granted[1] for grant in after] == pytest.approx([5, 5])


def steps(pool: list[Claim], capacity: Vector, reference: Vector) -> list[list[float]]:
    """Dominant shares per weight in the order of the steps, each step from the worst off."""
    grants = allocate(pool, capacity)
    rows: list[list[float]] = []
    for service_class in (E, S, P):
        row = [
            (worst(grant.granted, reference) / claim.weight, grant.share >= within(claim.demand, claim.limit) - SLACK)
            for claim, grant in zip(pool, grants, strict=True)
            if claim.service_class is service_class and any(claim.demand)
        ]
        rows.append(sorted(share for share, _ in row))
    return rows


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from([E, S, P]).flatmap(lambda c: st.lists(claims((c,)), min_size=1, max_size=6)),
    capacities,
    st.floats(1.0, 4.0),
)
def test_with_more_replicas_the_shares_never_get_worse_from_the_bottom(
    pool: list[Claim], capacity: Vector, factor: float
) -> None:
    pool = [claim._replace(baseline=ZERO) for claim in pool]
    larger = (capacity[0] * factor, capacity[1] * factor, capacity[2] * factor)
    before, after = steps(pool, capacity, capacity), steps(pool, larger, capacity)
    for worse, better in zip(before, after, strict=True):
        for low, high in zip(worse, better, strict=True):
            if abs(low - high) > SLACK * max(low, high):
                assert high > low
                break


@settings(max_examples=60, deadline=None)
@given(pools, capacities, st.randoms(use_true_random=False))
def test_the_order_of_the_claims_does_not_matter(pool: list[Claim], capacity: Vector, order: object) -> None:
    places = list(range(len(pool)))
    order.shuffle(places)  # type: ignore[attr-defined]
    straight = allocate(pool, capacity)
    shuffled = allocate([pool[i] for i in places], capacity)
    for place, grant in zip(places, shuffled, strict=True):
        assert grant.granted == pytest.approx(straight[place].granted, rel=1e-6, abs=1e-6)


def test_dominant_resource_fairness_by_the_book() -> None:
    # Ghodsi et al., section 4.1: 9 CPUs and 18 GB; tasks of (1, 4) and (3, 1) get 3 and 2.
    pool = [
        Claim(S, 1.0, ZERO, UNLIMITED, (100.0, 400.0, 0.0)),
        Claim(S, 1.0, ZERO, UNLIMITED, (300.0, 100.0, 0.0)),
    ]
    grants = allocate(pool, (9.0, 18.0, math.inf))
    assert grants[0].granted[:2] == pytest.approx((3.0, 12.0))
    assert grants[1].granted[:2] == pytest.approx((6.0, 2.0))


def slots(amount: float) -> Vector:
    return (0.0, 0.0, amount)


def held(amount: float) -> Vector:
    return (math.inf, math.inf, amount)


def test_classes_by_hand() -> None:
    pool = [
        Claim(D, 1.0, held(4), held(4), slots(1)),
        Claim(G, 1.0, held(4), held(4), slots(9)),
        Claim(E, 3.0, held(4), UNLIMITED, slots(10)),
        Claim(E, 1.0, held(4), UNLIMITED, slots(2)),
        Claim(S, 1.0, ZERO, UNLIMITED, slots(50)),
    ]
    grants = allocate(pool, (math.inf, math.inf, 20.0))
    # 4 dedicated (3 idle, not lent), 4 guaranteed, 4 and 2 elastic; 6 left, all to the burst of the first elastic.
    assert [grant.granted[2] for grant in grants] == pytest.approx([1, 4, 10, 2, 0])
    assert [grant.limit[2] for grant in grants] == pytest.approx([4, 4, 10, 4, 0])
    grants = allocate(pool, (math.inf, math.inf, 12.0))
    # 4 left for baselines of 4 and 2 at weights 3 and 1.
    assert [grant.granted[2] for grant in grants] == pytest.approx([1, 4, 3, 1, 0])
    grants = allocate(pool, (math.inf, math.inf, 25.0))
    # Nothing short but for spot: the elastic may each have what the spot has.
    assert [grant.granted[2] for grant in grants] == pytest.approx([1, 4, 10, 2, 5])
    assert [grant.limit[2] for grant in grants] == pytest.approx([4, 4, 15, 7, 5])


def test_who_asks_for_nothing_may_still_come_at_the_level_of_the_others() -> None:
    pool = [
        Claim(E, 1.0, held(8), UNLIMITED, slots(8)),
        Claim(E, 1.0, held(8), UNLIMITED, ZERO),
    ]
    grants = allocate(pool, (math.inf, math.inf, 4.0))
    assert [grant.granted[2] for grant in grants] == pytest.approx([4, 0])
    assert grants[1].limit[2] == pytest.approx(4)


def test_a_resource_nobody_is_short_of_limits_nobody() -> None:
    pool = [Claim(S, 1.0, ZERO, UNLIMITED, (10.0, 90.0, 1.0)), Claim(S, 1.0, ZERO, UNLIMITED, (10.0, 30.0, 1.0))]
    grants = allocate(pool, (1000.0, 100.0, 10.0))
    assert [grant.granted[1] for grant in grants] == pytest.approx([70, 30])
    assert grants[0].limit[0] > 900


@settings(max_examples=150, deadline=None)
@given(pools, capacities)
def test_whole_slots_never_sum_to_more_than_there_is(pool: list[Claim], capacity: Vector) -> None:
    capacity = (capacity[0], capacity[1], math.floor(capacity[2]) + 1.0)
    grants = allocate(pool, capacity)
    whole = whole_slots(pool, grants, capacity[2])
    for claim, grant, most in zip(pool, grants, whole, strict=True):
        assert abs(most - grant.limit[2]) < 1
        assert most == math.floor(most)
        if claim.service_class in (D, G):
            assert most >= grant.limit[2] - SLACK
        elif grant.limit[2] > SLACK:
            assert most >= 1
    # Those who are short of slots cannot go beyond the pool together; but who has less than one has one.
    if protected_fit(pool, capacity):
        total = 0.0
        for claim, grant, most in zip(pool, grants, whole, strict=True):
            amount = used(claim, grant.share)[2]
            short = grant.limit[2] <= grant.granted[2] + 1e-12 and amount >= 1 and claim.service_class not in (D, G)
            total += most if short else math.floor(amount)
        assert total <= capacity[2] + SLACK


def test_a_part_of_a_slot_goes_to_the_class_then_the_baseline_then_the_weight() -> None:
    pool = [
        Claim(S, 1.0, ZERO, UNLIMITED, slots(9)), Claim(E, 20.0, held(5), UNLIMITED, slots(12)),
        Claim(E, 90.0, held(5), UNLIMITED, slots(9)), Claim(E, 1.0, held(9), UNLIMITED, slots(9)),
    ]  # fmt: skip
    grants = [Grant(0.5, slots(amount), slots(amount)) for amount in (1.5, 5.5, 6.5, 2.5)]  # 14 whole ones, 4 halves
    assert whole_slots(pool, grants, 14.0) == [1, 5, 6, 2]
    assert whole_slots(pool, grants, 15.0) == [1, 5, 6, 3]
    assert whole_slots(pool, grants, 16.0) == [1, 5, 7, 3]
    assert whole_slots(pool, grants, 17.5) == [1, 6, 7, 3]
    assert whole_slots(pool, grants, 18.0) == whole_slots(pool, grants, math.inf) == [2, 6, 7, 3]
    assert whole_slots(pool[:1], [Grant(0.1, slots(0.4), slots(0.4))], 0.0) == [1]


def test_many_small_parts_leave_what_they_leave_together() -> None:
    pool = [Claim(E, 1.0, held(1), UNLIMITED, slots(0.3)) for _ in range(10)]
    pool.append(Claim(S, 1.0, ZERO, UNLIMITED, slots(9)))
    grants = allocate(pool, (math.inf, math.inf, 10.0))
    assert whole_slots(pool, grants, 10.0)[-1] == 7  # of 10, when ten tenants use 3 on average; not 0


def test_resources_as_numbers() -> None:
    assert baseline_vector(Resources()) == ZERO
    assert baseline_vector(Resources(None, None, 3)) == (math.inf, math.inf, 3)
    assert vector(Resources(1.0, None, 3), 7.0) == (1.0, 7.0, 3)
    assert capacity_vector(PoolCapacity(1, 16, None, 5.0)) == (math.inf, 5.0, 16)
