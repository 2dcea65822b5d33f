"""Of the calls that several cores ask for, the driver keeps the earliest."""

from __future__ import annotations

from policies.api import CallMeAt, Reason, Refuse
from policies.calls import Calls


def test_the_earliest_is_kept_and_an_earlier_one_takes_its_place() -> None:
    calls = Calls(2)
    assert calls.next() == ()
    other = Refuse("r", Reason.TOKENS, 429, 1.0, 2.0, 1.0)
    assert calls.heard(0, (other, CallMeAt(5.0))) == [other]
    assert calls.heard(1, (CallMeAt(7.0),)) == []
    assert calls.next() == (CallMeAt(5.0),)
    assert calls.earlier() == ()
    calls.heard(1, (CallMeAt(3.0),))
    assert calls.earlier() == (CallMeAt(3.0),)
    assert calls.earlier() == ()
    assert not calls.take(0, 3.0)
    assert calls.take(1, 3.0)
    assert not calls.take(1, 100.0)
    assert calls.next() == (CallMeAt(5.0),)
