"""Attention of uneven contexts, by hand."""

from __future__ import annotations

import pytest

from sim.calibration.kernel_tables import unsplit_batch
from sim.cluster.uneven_contexts import UnevenContexts


def batch(contexts: list[int], *, clock: int = 10_000, skew: float = 0.0, m: float = 0.0, unsplit: int = 0) -> float:
    books = UnevenContexts(skew, m, unsplit)
    for tokens in contexts:
        books.add(clock - tokens)
    return books.more_tokens(clock, sum(contexts))


def test_the_longest_few_take_as_long_as_the_longest():
    # Of 900, 500, 400 and 100 the three longest lack 0, 400 and 500 to the longest; half of a fourth lacks 400 more.
    contexts = [400, 900, 100, 500]
    assert batch(contexts, m=3.0) == 900
    assert batch(contexts, m=3.5) == 1300
    assert batch(contexts, m=9.0) == 1700  # there are no more than four
    assert batch(contexts, m=1.0) == 0


def test_even_contexts_and_small_batches_lose_nothing():
    assert batch([700] * 40, m=8.0) == 0
    assert batch([900, 100], m=2.0, unsplit=3) == 0
    assert batch([900, 100, 100], m=2.0, unsplit=3) == 800
    assert batch([], m=8.0) == 0


def test_what_is_lost_changes_with_who_is_there_and_not_with_time():
    books = UnevenContexts(0.0, 2.0, 0)
    for tokens in (50, 80, 20):
        books.add(1000 - tokens)
    assert books.more_tokens(1000, 150) == books.more_tokens(1040, 270) == 30
    books.remove(1000 - 80)
    assert books.more_tokens(1000, 70) == 30
    books.remove(1000 - 50)
    assert books.more_tokens(1000, 20) == 0


def test_skew_is_two_deviations_for_each():
    # 300 and 100: the deviation is 100, so 0.1 of two deviations for each of two.
    assert batch([300, 100], skew=0.1) == pytest.approx(0.1 * 2 * 100 * 2)


@pytest.mark.parametrize(
    ("multiprocessors", "kv_heads", "batch"),
    [
        (128, 8, 25),  # RTX 4090: 0.8 x 256 blocks are 25.6 sequences; 25 is captured as 32, 24 as itself
        (188, 8, 33),  # RTX PRO 6000: 37.6, captured as 40
        (188, 4, 73),
        (8, 16, 1),
    ],
)
def test_contexts_are_read_in_one_piece_from_a_batch_on(multiprocessors, kv_heads, batch):
    assert unsplit_batch(multiprocessors, kv_heads) == batch
