from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.clients import Adversarial, Drop, Impatient, OpenAiSdk, Retry, deadline_s

outcomes = st.sampled_from(["refused", "evicted", "failed", "finished", "cancelled", "running", "waiting"])
endings = {
    "outcome": outcomes,
    "http_status": st.sampled_from([200, 400, 413, 429, 500, 503]),
    "retry_after_s": st.none() | st.floats(0, 100),
    "attempt": st.integers(1, 10),
    "now_s": st.floats(0, 1e6),
}
retries = st.builds(
    Retry,
    max_attempts=st.integers(1, 10),
    honour_retry_after=st.booleans(),
    delay_s=st.floats(0, 10),
    max_retry_after_s=st.floats(0, 60),
    retry_interrupted=st.booleans(),
)


@given(**endings)
def test_drop_never_tries_again(**ending):
    assert Drop().next_attempt_s(**ending) is None


@given(client=retries, **endings)
def test_no_retry_goes_back_in_time_or_over_the_cap_or_after_success(client, **ending):
    at_s = client.next_attempt_s(**ending)
    if at_s is not None:
        assert at_s >= ending["now_s"]
        assert ending["attempt"] < client.max_attempts
        assert ending["outcome"] in ("refused", "evicted", "failed")


POLITE = Retry(max_attempts=3, delay_s=2.0, max_retry_after_s=10.0)
IMPATIENT = Retry(max_attempts=3, delay_s=0.0, honour_retry_after=False)


@pytest.mark.parametrize(
    ("client", "outcome", "status", "retry_after_s", "attempt", "expected_s"),
    [
        (POLITE, "refused", 429, 4.0, 1, 104.0),
        (POLITE, "refused", 429, 4.0, 2, 104.0),
        (POLITE, "refused", 429, 4.0, 3, None),  # the third attempt was the last
        (POLITE, "refused", 429, 10.0, 1, 110.0),
        (POLITE, "refused", 429, 10.5, 1, None),  # longer than it is willing to wait
        (POLITE, "refused", 429, 0.0, 1, 100.0),
        (POLITE, "refused", 413, None, 1, None),  # never
        (POLITE, "refused", 503, None, 1, 102.0),  # no time named, but not the request's fault
        (POLITE, "failed", 500, None, 1, 102.0),
        (POLITE, "evicted", 429, None, 1, 102.0),  # it was let in once: not a "never"
        (POLITE, "evicted", 429, 5.0, 1, 105.0),
        (POLITE, "finished", 200, None, 1, None),
        (POLITE, "cancelled", 499, None, 1, None),
        (IMPATIENT, "refused", 429, 30.0, 1, 100.0),
        (IMPATIENT, "refused", 429, None, 2, 100.0),
        (IMPATIENT, "refused", 429, 30.0, 3, None),
        (Retry(retry_interrupted=False), "failed", 500, 1.0, 1, None),
        (Retry(retry_interrupted=False), "evicted", 429, 1.0, 1, None),
        (Retry(retry_interrupted=False), "refused", 429, 1.0, 1, 101.0),
        (Retry(max_attempts=1), "refused", 429, 1.0, 1, None),
    ],
)
def test_when_a_client_tries_again(client, outcome, status, retry_after_s, attempt, expected_s):
    assert client.next_attempt_s(outcome, status, retry_after_s, attempt, 100.0) == expected_s


class Fixed:
    def __init__(self, value):
        self.value = value

    def random(self):
        return self.value


@pytest.mark.parametrize(
    ("outcome", "status", "retry_after_s", "attempt", "waits_s"),
    [  # openai 3.54.0, _base_client.py, with the middle of its jitter: 1 - 0.25 * 0.5
        ("refused", 429, None, 1, 0.5 * 0.875),
        ("refused", 429, None, 2, 1.0 * 0.875),
        ("refused", 429, None, 3, None),  # two retries
        ("refused", 429, 7.0, 1, 7.0),
        ("refused", 429, 120.0, 1, 120.0),
        ("refused", 429, 120.5, 1, None),
        ("refused", 429, 0.0, 1, 0.5 * 0.875),  # a Retry-After of 0 counts as none
        ("refused", 408, None, 1, 0.5 * 0.875),
        ("refused", 409, None, 1, 0.5 * 0.875),
        ("refused", 503, 5.0, 1, 5.0),
        ("refused", 400, 5.0, 1, None),
        ("refused", 403, None, 1, None),
        ("evicted", 503, None, 1, None),  # a stream that broke off is not asked for again
        ("failed", 502, None, 1, None),
        ("finished", 200, None, 1, None),
        ("cancelled", 499, None, 1, None),
    ],
)
def test_the_openai_library_s_retries(outcome, status, retry_after_s, attempt, waits_s):
    at_s = OpenAiSdk().next_attempt_s(outcome, status, retry_after_s, attempt, 100.0, Fixed(0.5))
    assert at_s == (None if waits_s is None else 100.0 + waits_s)


def test_the_openai_library_s_waits_double_to_8_s_and_lose_up_to_a_quarter():
    client = OpenAiSdk(max_retries=1000)
    waits = [client.next_attempt_s("refused", 429, None, attempt, 0.0) for attempt in range(1, 8)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    least = client.next_attempt_s("refused", 429, None, 1, 0.0, Fixed(1.0 - 2**-53))
    assert least == pytest.approx(0.375)
    assert client.next_attempt_s("refused", 429, None, 1000, 0.0) == 8.0
    assert OpenAiSdk(retry_interrupted=True).next_attempt_s("failed", 502, None, 1, 0.0) == 0.5


def test_only_the_impatient_have_a_deadline():
    assert deadline_s(Impatient(patience_s=5.0), 10.0) == 15.0
    assert deadline_s(OpenAiSdk(), 10.0) == math.inf
    client = Impatient(patience_s=5.0, max_attempts=2)
    assert client.next_attempt_s("refused", 429, 3.0, 1, 100.0) == 103.0
    assert Impatient(patience_s=5.0).next_attempt_s("refused", 429, 3.0, 1, 100.0) is None


def test_an_adversary_comes_back_whatever_it_is_told_and_asks_for_more():
    client = Adversarial(max_attempts=3, delay_s=0.1, inflate=2.5)
    assert client.next_attempt_s("refused", 429, 500.0, 1, 10.0) == 10.1
    assert client.next_attempt_s("refused", 429, None, 2, 10.0) == 10.1
    assert client.next_attempt_s("refused", 429, 500.0, 3, 10.0) is None
    assert client.next_attempt_s("refused", 400, None, 1, 10.0) is None  # what is malformed stays so
    assert client.next_attempt_s("finished", 200, None, 1, 10.0) is None
    assert client.requested_max_tokens(np.array([10, 3, 0])).tolist() == [25, 8, 0]
