from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.clients import Drop, Retry

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
