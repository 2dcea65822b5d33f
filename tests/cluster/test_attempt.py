"""What an attempt says of itself."""

from __future__ import annotations

from sim.cluster.attempt import Attempt
from sim.records.attempt_table import NUMBERS, numbers_by_name
from sim.records.schema import Outcome


def test_an_attempts_numbers_are_those_that_are_recorded_each_in_its_place() -> None:
    attempt = Attempt("a-1", 20, 3, 4, 5.5, 6.5, 7, 8, 9)
    attempt.delivered_tokens, attempt.cached_tokens, attempt.replica, attempt.preemptions = 10, 11, 12, 13
    attempt.forwarded_s, attempt.first_token_s, attempt.finish_s, attempt.retry_after_s = 14.5, 15.5, 16.5, 17.5
    attempt.outcome, attempt.http_status, attempt.final = Outcome.EVICTED, 503, False
    assert len(set(attempt.numbers())) == len(NUMBERS)  # no two are alike, so that none can stand for another
    assert attempt.numbers() == numbers_by_name(attempt)
