"""A short slice of `make fuzz`: every seed, and some changes of them, the same every time."""

from __future__ import annotations

import random

import pytest

from fuzz.mutations import mutated
from fuzz.targets import TARGETS, FindingError, attempt, refusing, seeds
from sim.errors import InputError, ScenarioError
from workloads.formats.errors import TraceError

COUNTS = {
    "scenario": 40, "serve": 60, "manifest": 150, "profile": 100, "trace": 60, "sweep": 100, "recording": 80,
    "result": 8,
}  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_no_file_is_refused_and_nothing_else_happens(name: str) -> None:
    chance = random.Random(name)
    start = seeds(name)
    assert start
    for data in start:
        attempt(name, data)
    for _ in range(COUNTS[name]):
        attempt(name, mutated(chance.choice(start), chance, start))


@pytest.mark.parametrize("text", ["two\nlines", "a \x00", "x" * 3000])
def test_an_error_that_is_not_one_short_line_is_a_finding(text: str) -> None:
    with pytest.raises(FindingError), refusing():
        raise TraceError("a", None, "b", text)


def test_what_a_file_names_is_shortened_in_errors() -> None:
    long = "n" * 3000
    for error in (ScenarioError(long, long, long, "mend it"), InputError(long, long, "mend it")):
        assert len(str(error)) < 1500
        assert str(error).endswith("nnn; mend it")
    give = f"give {long}"
    for error in (ScenarioError(long, long, "it is long", give), InputError(long, "it is long", give)):
        assert len(str(error)) < 1300
        assert ": it is long; give nnn" in str(error)


def test_what_is_no_error_for_the_user_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("pool")

    monkeypatch.setitem(TARGETS, "scenario", broken)
    with pytest.raises(KeyError):
        attempt("scenario", b"")
