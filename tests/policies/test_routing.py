from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from policies.api import ReplicaLedger, RequestView
from policies.routing import LeastOutstandingTokensRouter, RoundRobinRouter

REQUEST = RequestView("r", "e", "t", 1, 1)
replicas = st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=8).map(
    lambda rows: [
        ReplicaLedger(number, ready=ready, outstanding_tokens=tokens) for number, (ready, tokens) in enumerate(rows)
    ]
)


def test_round_robin_takes_turns_and_skips_what_is_not_ready() -> None:
    books = [ReplicaLedger(number) for number in (1, 4, 7, 9)]
    router = RoundRobinRouter()
    assert [router.route(REQUEST, books) for _ in range(5)] == [1, 4, 7, 9, 1]
    books[1].ready = books[2].ready = False
    assert [router.route(REQUEST, books) for _ in range(3)] == [9, 1, 9]
    books[1].ready = True
    assert [router.route(REQUEST, books) for _ in range(3)] == [1, 4, 9]


@given(books=replicas, data=st.data())
def test_least_outstanding_is_the_least_then_the_lowest_in_any_order(
    books: list[ReplicaLedger], data: st.DataObject
) -> None:
    ready = [(book.outstanding_tokens, book.replica_id) for book in books if book.ready]
    shuffled = data.draw(st.permutations(books))
    assert LeastOutstandingTokensRouter().route(REQUEST, shuffled) == (min(ready)[1] if ready else None)


@given(books=replicas)
def test_no_router_takes_a_replica_that_is_not_ready(books: list[ReplicaLedger]) -> None:
    for router in (RoundRobinRouter(), LeastOutstandingTokensRouter()):
        taken = router.route(REQUEST, books)
        assert (taken is None) == (not any(book.ready for book in books))
        assert taken is None or books[taken].ready


@given(
    start=st.lists(st.integers(0, 9), min_size=33, max_size=40),
    steps=st.lists(st.tuples(st.sampled_from(["route", "end", "away", "back"]), st.integers(0, 39), st.integers(0, 9))),
)
def test_a_large_pool_that_is_followed_gives_what_a_look_at_every_replica_gives(
    start: list[int], steps: list[tuple[str, int, int]]
) -> None:
    books = [ReplicaLedger(number, outstanding_tokens=tokens) for number, tokens in enumerate(start)]
    router = LeastOutstandingTokensRouter()
    router.follow(books)
    for what, number, tokens in steps:
        book = books[number % len(books)]
        if what == "route":
            taken = router.route(REQUEST, books)
            assert taken == LeastOutstandingTokensRouter().route(REQUEST, books)
            if taken is not None:
                books[taken].outstanding_tokens += tokens
        elif what == "end":
            book.outstanding_tokens = max(0, book.outstanding_tokens - tokens)
            router.lighter(book)
        else:
            book.ready = what == "back"
            router.follow(books)
