"""Routers that look at text, reports and draws: by hand, and what must hold whatever they are shown."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.api import ReplicaLedger, ReplicaReport, RequestView
from policies.registry import ROUTERS
from policies.routers.prefix_aware import PrefixAware, PrefixAwareRouter
from policies.routers.prefix_index import PrefixIndex, members
from policies.routers.scored import Random, RandomRouter, Scored, ScoredRouter
from policies.routers.slo_tier import SloTier, SloTierRouter, Tier


def asks(name: str, prompt_tokens: int, *lines: tuple[int, int]) -> RequestView:
    return RequestView(name, "e", "t", prompt_tokens, 1, prefix=lines)


def books(*reports: tuple[int, float]) -> list[ReplicaLedger]:
    """Replicas by what they last reported: waiting, KV cache in use."""
    return [
        ReplicaLedger(number, report=ReplicaReport(number, 0.0, 4, waiting, used))
        for number, (waiting, used) in enumerate(reports)
    ]


# --------------------------------------------------------------------------------------------------------------------
# The index


def test_blocks_run_along_lines_and_a_block_across_an_end_counts_to_the_next() -> None:
    index = PrefixIndex()
    # 64 tokens a block: line 7 ends at 150, so it has two blocks whole; 300 tokens are five blocks, the last partial.
    assert index.blocks_of(asks("r", 300, (7, 150), (8, 1 << 40))) == [(7, 0), (7, 1), (8, 2), (8, 3), (8, 4)]
    assert index.blocks_of(asks("r", 300, (7, 150))) == [(7, 0), (7, 1), ("r", 2), ("r", 3), ("r", 4)]
    assert index.blocks_of(asks("r", 300)) == []
    assert len(PrefixIndex(most_tokens=128).blocks_of(asks("r", 300, (7, 1000)))) == 2


def test_matches_are_counted_until_nobody_holds_a_block_and_need_not_be_contiguous() -> None:
    index = PrefixIndex()
    index.sent([1, 2, 3], 0, 0.0)
    index.sent([1, 3], 2, 0.0)
    index.sent([4], 5, 0.0)
    # Replica 0 has all three. Replica 2 lacks block 2 and still counts block 3. Block 9 ends the walk.
    assert index.matches([1, 2, 3, 9, 4]) == [(3, 0b1), (2, 0b100)]
    assert index.matches([9, 1]) == []


def test_the_least_recently_sent_block_goes_first_and_only_sending_refreshes() -> None:
    index = PrefixIndex(blocks_per_replica=3)
    index.sent([1, 2, 3], 0, 0.0)
    index.matches([1])  # a look refreshes nothing
    index.sent([1], 0, 1.0)
    index.sent([4], 0, 2.0)
    assert [index.matches([block]) for block in (1, 2, 3, 4)] == [[(1, 1)], [], [(1, 1)], [(1, 1)]]
    assert index.blocks_held(0) == 3


def test_what_was_not_sent_again_in_time_is_forgotten() -> None:
    index = PrefixIndex(memory_s=10.0)
    index.sent([1, 2], 0, 0.0)
    index.sent([1], 0, 6.0)
    index.forget_old(10.0)
    assert index.matches([1, 2]) == [(2, 1)]  # exactly as old as is remembered
    index.forget_old(10.5)
    assert index.matches([1, 2]) == [(1, 1)]
    index.forget_old(16.5)
    assert index.matches([1, 2]) == []
    assert index.blocks_held(0) == 0


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["sent", "sent", "sent", "forget", "old"]),
            st.integers(0, 70),
            st.lists(st.integers(0, 12), min_size=1, max_size=8, unique=True),
        ),
        max_size=60,
    ),
    asked=st.lists(st.integers(0, 12), max_size=10, unique=True),
)
def test_the_index_counts_as_plain_lists_do(steps: list[tuple[str, int, list[int]]], asked: list[int]) -> None:
    index, now_s = PrefixIndex(blocks_per_replica=6, memory_s=20.0), 0.0
    plain: dict[int, list[tuple[int, float]]] = {}  # by replica: blocks and when they were sent, the last at the end
    for what, replica, blocks in steps:
        now_s += 1.0
        if what == "sent":
            index.sent(list(blocks), replica, now_s)
            kept = [one for one in plain.get(replica, []) if one[0] not in blocks]
            plain[replica] = (kept + [(block, now_s) for block in blocks])[-6:]
        elif what == "forget":
            index.forget(replica)
            plain.pop(replica, None)
        else:
            index.forget_old(now_s)
            plain = {one: [(b, s) for b, s in held if s >= now_s - 20.0] for one, held in plain.items()}
    counts: Counter[int] = Counter()
    for block in asked:
        holders = [one for one, held in plain.items() if any(block == b for b, _ in held)]
        if not holders:
            break
        counts.update(holders)
    found = {one: count for count, among in index.matches(list(asked)) for one in members(among)}
    assert found == dict(counts)
    assert [count for count, _ in index.matches(list(asked))] == sorted(set(counts.values()), reverse=True)


# --------------------------------------------------------------------------------------------------------------------
# Scores


def test_scores_by_hand_with_the_weights_of_llm_d() -> None:
    router = ScoredRouter(Scored())
    replicas = books((0, 0.5), (4, 0.1), (2, 0.0))
    # Queue: 1, 0, 0.5, times 2. KV: 0.5, 0.9, 1.0, times 2. Sums: 3.0, 1.8, 3.0: the first and the third are drawn.
    drawn = {router.route(asks(f"r{number}", 64), replicas) for number in range(40)}
    assert drawn == {0, 2}
    # 10 blocks of a text that replica 1 has 8 of: 1.8 + 3 * 0.8 = 4.2, above 3.0.
    router.caches._index.sent([(7, place) for place in range(8)], 1, 0.0)  # type: ignore[union-attr]
    assert router.route(asks("x", 640, (7, 640)), replicas) == 1
    # It was sent there, so all ten are known from now on. Of a text with 3 of 10 there, 1.8 + 0.9 = 2.7 is not enough.
    assert router.caches._index.matches([(7, 9)]) == [(1, 0b10)]  # type: ignore[union-attr]
    router.caches._index.sent([(8, place) for place in range(3)], 1, 0.0)  # type: ignore[union-attr]
    assert router.route(asks("y", 640, (8, 640)), replicas) in (0, 2)


def test_a_replica_that_reported_nothing_counts_as_idle_and_equal_queues_score_alike() -> None:
    router = ScoredRouter(Scored(prefix_weight=0))
    replicas = [*books((3, 0.0)), ReplicaLedger(1)]
    assert {router.route(asks(f"r{number}", 64), replicas) for number in range(10)} == {1}
    alike = books((3, 0.2), (3, 0.1))
    assert {router.route(asks(f"s{number}", 64), alike) for number in range(10)} == {1}


def test_old_reports_are_believed_and_scores_are_made_anew_when_one_comes() -> None:
    router = ScoredRouter(Scored(prefix_weight=0))
    replicas = books((0, 0.0), (5, 0.0))
    router.follow(replicas)
    assert [router.route(asks(f"r{number}", 64), replicas) for number in range(3)] == [0, 0, 0]
    replicas[0].report = ReplicaReport(0, 1.0, 4, 9, 0.0)
    router.reported(replicas[0])
    assert router.route(asks("s", 64), replicas) == 1


def test_a_lost_replica_is_forgotten_since_its_cache_is_gone() -> None:
    router = PrefixAwareRouter(PrefixAware())
    replicas = books((0, 0.0), (0, 0.0))
    router.follow(replicas)
    replicas[0].outstanding_tokens = 100
    assert router.route(asks("a", 640, (7, 640)), replicas) == 1
    assert router.route(asks("b", 640, (7, 640)), replicas) == 1
    replicas[1].ready = False
    router.follow(replicas)
    replicas[1].ready = True
    router.follow(replicas)
    replicas[1].outstanding_tokens = 200
    assert router.route(asks("c", 640, (7, 640)), replicas) == 0


def test_affinity_ends_where_a_replica_owes_more_than_the_slack_beyond_the_least() -> None:
    router = PrefixAwareRouter(PrefixAware(slack_tokens=1000))
    replicas = books((0, 0.0), (0, 0.0), (0, 0.0))
    assert router.route(asks("a", 640, (7, 640)), replicas) == 0
    replicas[0].outstanding_tokens, replicas[1].outstanding_tokens = 1000, 10
    assert router.route(asks("b", 640, (7, 640)), replicas) == 0
    replicas[0].outstanding_tokens = 1001
    assert router.route(asks("c", 640, (7, 640)), replicas) == 2  # the least owed; it has the text from here on
    assert router.route(asks("d", 640, (7, 640)), replicas) == 2


def test_a_tier_fills_its_fullest_replica_and_then_those_of_tighter_tiers() -> None:
    tiers = (
        Tier(entitlements=("tight",), replicas=1, most_in_flight=2),
        Tier(entitlements=(), replicas=2, most_in_flight=3),
    )  # fmt: skip
    # The fourth is the last tier's, too.
    router, replicas = SloTierRouter(SloTier(tiers=tiers)), books(*[(0, 0.0)] * 4)
    taken = []
    for number in range(13):
        chosen = router.route(RequestView(f"r{number}", "loose", "t", 1, 1), replicas)
        assert chosen is not None
        replicas[chosen].in_flight += 1
        taken.append(chosen)
    # Three each on 1, 2 and 3, two on the tight one, then the least loaded of its own.
    assert taken == [1, 1, 1, 2, 2, 2, 3, 3, 3, 0, 0, 1, 2]
    assert router.route(RequestView("t", "tight", "t", 1, 1), replicas) == 0
    replicas[0].ready = False
    assert router.route(RequestView("u", "tight", "t", 1, 1), replicas) == 3


def test_draws_are_even_and_follow_from_the_seed() -> None:
    replicas = books(*[(0, 0.0)] * 5)
    taken = [[RandomRouter(Random(seed=seed)).route(asks("r", 1), replicas) for _ in range(1)] for seed in (1, 1, 2)]
    assert taken[0] == taken[1]
    router = RandomRouter(Random(seed=3))
    counts = Counter(router.route(asks("r", 1), replicas) for _ in range(5000))
    assert set(counts) == set(range(5))
    assert max(abs(count - 1000) for count in counts.values()) < 5 * (5000 * 0.2 * 0.8) ** 0.5


# --------------------------------------------------------------------------------------------------------------------
# Whatever they are shown

steps = st.lists(
    st.tuples(st.sampled_from(["route"] * 5 + ["away", "back", "report"]), st.integers(0, 7), st.integers(0, 5)),
    max_size=80,
)
KINDS = sorted(kind for kind in ROUTERS if ROUTERS[kind].build is not None)


@pytest.mark.parametrize("kind", KINDS)
@given(steps=steps)
def test_no_router_takes_a_replica_that_is_dead_or_draining(kind: str, steps: list[tuple[str, int, int]]) -> None:
    entry: Any = ROUTERS[kind]
    replicas = books(*[(0, 0.0)] * 8)
    router = entry.build(entry.params())
    follows = hasattr(router, "follow")
    if follows:
        router.follow(replicas)
    for number, (what, which, text) in enumerate(steps):
        if what == "route":
            taken = router.route(asks(f"r{number}", 64 * (which + 1), (text, 64 * (which + 1))), replicas)
            assert (taken is None) == (not any(book.ready for book in replicas))
            if taken is not None:
                assert replicas[taken].ready
                replicas[taken].outstanding_tokens += 64
        elif what == "report":
            replicas[which].report = ReplicaReport(which, float(number), 1, text, text / 5)
            if hasattr(router, "reported"):
                router.reported(replicas[which])
        else:
            replicas[which].ready = what == "back"
            if follows:
                router.follow(replicas)


@pytest.mark.parametrize("params", [Scored(), PrefixAware()], ids=["scored", "prefix-aware"])
def test_a_route_costs_no_more_than_so_many_looks_at_256_replicas(params: Any) -> None:
    """By counted work, not by a clock: calls of Python functions for each of 200 requests of 24 blocks."""
    import sys

    calls = {}
    for count in (16, 256):
        entry: Any = ROUTERS[params.kind]
        router, chance = entry.build(params), random.Random(1)
        replicas = books(*[(chance.randrange(4), chance.random()) for _ in range(count)])
        router.follow(replicas)
        requests = [asks(f"r{n}", 1536, (chance.randrange(12), 1200), (100 + n, 1536)) for n in range(600)]
        for request in requests[:400]:
            router.route(request, replicas)
        made = 0

        def traced(frame: Any, event: str, arg: Any) -> Any:
            nonlocal made
            frame.f_trace_opcodes = True
            if event == "opcode":
                made += 1
            return traced

        sys.settrace(traced)
        try:
            for request in requests[400:]:
                router.route(request, replicas)
        finally:
            sys.settrace(None)
        calls[count] = made / 200
    per_replica = (calls[256] - calls[16]) / 240
    assert per_replica <= 60, calls  # bytecodes for each further replica
