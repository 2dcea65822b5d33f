from __future__ import annotations

import json
import math
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import wire
from policies.api import Event, Failed, Instruction, Reason, Refuse, RequestView
from policies.wire import WireError, event_from, instruction_from, to_plain

NUMBERS = st.one_of(st.floats(allow_nan=False), st.integers(-(10**12), 10**18))


def values_of(hint: object) -> st.SearchStrategy[object]:
    if isinstance(hint, type) and hasattr(hint, "_fields"):
        hints = typing.get_type_hints(hint)
        return st.tuples(*(values_of(hints[name]) for name in hint._fields)).map(hint._make)
    plain = {
        str: st.text(max_size=12), int: st.integers(), float: NUMBERS, bool: st.booleans(),
        Reason: st.sampled_from(Reason),
    }  # fmt: skip
    if hint in plain:
        return plain[hint]  # type: ignore[index]
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and arguments[-1] is not ...:
        return st.tuples(*(values_of(each) for each in arguments))
    if typing.get_origin(hint) is tuple:
        return st.lists(values_of(arguments[0]), max_size=4).map(tuple)
    return st.one_of(st.none(), values_of(arguments[0]))


EVENTS = st.one_of(*(values_of(kind) for kind in typing.get_args(Event)))
INSTRUCTIONS = st.one_of(*(values_of(kind) for kind in typing.get_args(Instruction)))


def exact(value: object) -> object:
    """Equal where type and every bit are: 1 is not 1.0, 0.0 is not -0.0."""
    return repr(value)


def test_every_event_and_instruction_has_a_name() -> None:
    assert set(wire.EVENTS.values()) == set(typing.get_args(Event))
    assert set(wire.INSTRUCTIONS.values()) == set(typing.get_args(Instruction))
    assert not set(wire.EVENTS) & set(wire.INSTRUCTIONS)


@given(EVENTS)
def test_an_event_comes_back_exactly(event: Event) -> None:
    text = json.dumps(to_plain(event), allow_nan=False)
    back = event_from(json.loads(text))
    assert type(back) is type(event)
    assert exact(back) == exact(event)


@given(INSTRUCTIONS)
def test_an_instruction_comes_back_exactly(instruction: Instruction) -> None:
    back = instruction_from(json.loads(json.dumps(to_plain(instruction), allow_nan=False)))
    assert type(back) is type(instruction)
    assert exact(back) == exact(instruction)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=8,
)


@given(st.one_of(JSON, st.tuples(st.sampled_from(sorted(wire.EVENTS)), st.lists(JSON, max_size=5)).map(
    lambda pair: [pair[0], *pair[1]]
)))
def test_whatever_is_read_is_an_event_or_refused(data: object) -> None:
    try:
        event = event_from(data)
    except WireError:
        return
    assert exact(event_from(json.loads(json.dumps(to_plain(event))))) == exact(event)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("tick", "begins with one of"),
        (["tock"], "unknown name 'tock'"),
        (["tick", 1], "tick: found 1 fields; expected 0"),
        (["finished", "r1", 3], "finished: found 2 fields; expected 4"),
        (["finished", "r1", True, 0, None], "finished.output_tokens: found True; expected a whole number"),
        (["finished", "r1", 3.0, 0, None], "finished.output_tokens: found 3.0; expected a whole number"),
        (["first_token", 7], "first_token.request_id: found 7; expected text"),
        (["arrived", ["r", "e", "t", 1, None, 1]], "arrived.request: RequestView: found 6 fields; expected 7"),
        (["arrived", ["r", "e", "t", "1", None, 1, 0]], "prompt_tokens: found '1'"),
        (["replica_report", 0, math.nan, 1, 1, 0.5], "seen_at_s: found nan; expected a number"),
        (["capacity_changed", [1, 4, None, None], 0], "ready_replicas: found 0; expected a list"),
    ],
)
def test_a_refusal_says_where_and_what(data: object, said: str) -> None:
    with pytest.raises(WireError) as caught:
        event_from(data)
    assert said in str(caught.value)


def test_what_json_cannot_hold() -> None:
    assert to_plain(Refuse("r", Reason.TOKENS, 429, None, math.inf, -math.inf))[-2:] == ["inf", "-inf"]
    with pytest.raises(WireError, match="NaN"):
        to_plain(Refuse("r", Reason.TOKENS, 429, math.nan, 1, 1))
    with pytest.raises(WireError, match="unknown name 'failed'"):
        instruction_from(to_plain(Failed("r")))
    assert to_plain(RequestView("r", "e", "t", 1, None)) == ["r", "e", "t", 1, None, 1, 0]
