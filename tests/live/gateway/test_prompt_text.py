"""What of a prompt's text becomes names of blocks, and what of a request its session; whatever a client sends."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.api import RequestView
from policies.routers.prefix_index import MOST_PREFIX_TOKENS, PrefixIndex
from sim.live.gateway.endpoints import CHAT, COMPLETIONS, Endpoints
from sim.live.gateway.error_responses import ApiError
from sim.live.gateway.prompt_text import Prefix, prefix_of, session_in, session_name
from sim.live.gateway.request_body import read_body
from sim.live.gateway.settings import Estimate

RULE = Estimate()


def chat(*texts: Any, **more: Any) -> dict[str, Any]:
    """Return a conversation: user and assistant in turn."""
    roles = ("user", "assistant")
    return {"model": "m", "messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)], **more}


def of(fields: dict[str, Any], shape: str = "chat", salt: str = "") -> Prefix:
    return prefix_of(shape, fields, salt, RULE)


def common(one: Prefix, other: Prefix) -> int:
    """Return how many blocks two prompts begin with alike, and check that none after them is."""
    alike = [a == b for a, b in zip(one, other, strict=False)]
    count = next((i for i, same in enumerate(alike) if not same), len(alike))
    assert not any(alike[count:])
    return count


WORDS = "".join(random.Random(1).choices("abcdefgh ", k=4000))


def test_a_turn_has_all_blocks_of_the_one_before() -> None:
    first = of(chat(WORDS[:1000]))
    second = of(chat(WORDS[:1000], WORDS[1000:1400], WORDS[2000:2100]))
    assert len(first) == 3
    assert [end for _, end in first] == [64, 128, 192]
    assert common(first, second) == 3
    assert len(second) > len(first)


@pytest.mark.parametrize(
    "other",
    [
        chat("x" + WORDS[1:1000]), chat(WORDS[:1000], model="other"), chat(WORDS[:1000], cache_salt="mine"),
        chat(WORDS[:1000], tools=[{"type": "function", "function": {"name": "f"}}]),
        {"model": "m", "messages": [{"role": "system", "content": WORDS[:1000]}]},
    ],
)
def test_what_an_engine_would_not_find_has_another_name(other: dict[str, Any]) -> None:
    assert common(of(chat(WORDS[:1000])), of({**chat(), **other})) == 0


def test_tenants_whose_caches_are_apart_have_nothing_in_common() -> None:
    one = chat(WORDS[:1000])
    assert common(of(one, salt="a"), of(one, salt="b")) == 0
    assert of(one, salt="a") == of(one, salt="a")


def test_a_difference_shows_from_its_block_on() -> None:
    text = WORDS[:2048]
    changed = text[:1000] + "!" + text[1001:]
    found = common(of({"prompt": text}, "completion"), of({"prompt": changed}, "completion"))
    assert found == 1000 // 256


def test_parts_say_what_text_says_and_marks_of_caches_do_not_count() -> None:
    text = chat(WORDS[:1000])
    marked = [{"type": "text", "text": WORDS[:1000], "cache_control": {"type": "ephemeral"}}]
    assert of(chat(marked)) == of(text)


def test_pictures_are_told_apart_and_are_as_long_as_they_cost() -> None:
    def picture(url: str) -> Prefix:
        return of(chat([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]))

    one, other = picture("https://a/1.png"), picture("https://a/2.png")
    assert len(one) == len(other) == RULE.media_tokens // 64
    assert common(one, other) == 0
    assert common(one, picture("https://a/1.png")) == len(one)


def test_token_ids_are_blocks_of_as_many() -> None:
    ids = list(range(1000))
    found = of({"prompt": ids}, "completion")
    assert [end for _, end in found] == [64 * i for i in range(1, 16)]
    assert common(found, of({"prompt": [*ids[:640], 7, *ids[641:]]}, "completion")) == 10
    assert of({"prompt": [ids, [1]]}, "completion") == found


def test_names_are_the_same_in_every_process() -> None:
    code = (
        "from sim.live.gateway.prompt_text import prefix_of; from sim.live.gateway.settings import Estimate;"
        "print(prefix_of('completion', {'model': 'm', 'prompt': 'abcd' * 200}, 's', Estimate()))"
    )
    program = [sys.executable, "-c", "import tokenpools; " + code]
    said = subprocess.run(program, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == str(of({"model": "m", "prompt": "abcd" * 200}, "completion", "s"))


def test_an_index_finds_a_conversation_where_it_was_sent() -> None:
    index = PrefixIndex()

    def view(name: str, fields: dict[str, Any]) -> RequestView:
        tokens = len(json.dumps(fields["messages"])) // 4
        return RequestView(name, "e", "t", tokens, 10, prefix=of(fields))

    first = index.blocks_of(view("r1", chat(WORDS[:1000])))
    index.sent(first, 1, 0.0)
    second = index.blocks_of(view("r2", chat(WORDS[:1000], "yes", WORDS[1000:1300])))
    stranger = index.blocks_of(view("r3", chat(WORDS[3000:4000])))
    assert index.matches(second) == [(3, 1 << 1)]
    assert index.matches(stranger) == []


@pytest.mark.parametrize("shape", ["pooling", "pairs", "text", "audio", "none"])
def test_shapes_without_a_prompt_to_go_on_from_have_no_names(shape: str) -> None:
    assert of({"prompt": WORDS, "input": WORDS, "messages": chat(WORDS)["messages"]}, shape) == ()


@pytest.mark.parametrize("field", [{"prompt_embeds": "AAAA"}, {"previous_response_id": "resp_1"}])
def test_where_the_beginning_is_not_known_there_are_no_names(field: dict[str, str]) -> None:
    assert of({"prompt": WORDS, **field}, "completion") == ()


def test_a_huge_prompt_is_looked_at_as_far_as_routers_look() -> None:
    for fields, shape in (
        ({"prompt": "a" * 2_000_000}, "completion"), ({"prompt": [7] * 500_000}, "completion"),
        (chat(*["b" * 1000] * 5000), "chat"), (chat([{"text": "c" * 20}] * 100_000), "chat"),
    ):  # fmt: skip
        assert len(of(fields, shape)) == MOST_PREFIX_TOKENS // 64


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec=None), max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=12), inner, max_size=5),
    max_leaves=20,
)  # fmt: skip
NAMES = st.sampled_from((
    "prompt", "messages", "input", "tools", "system", "instructions", "documents", "metadata", "user", "conversation",
    "prompt_cache_key", "cache_salt", "model", "type", "role", "content", "text",
))  # fmt: skip


@given(
    shape=st.sampled_from(("completion", "chat", "messages", "responses")),
    fields=st.dictionaries(NAMES, JSON | st.dictionaries(NAMES, JSON) | st.lists(st.dictionaries(NAMES, JSON))),
    rule=st.builds(Estimate, bytes_per_token=st.floats(0.1, 20.0)),
)
def test_whatever_a_body_holds_there_are_names_or_none(shape: str, fields: dict[str, Any], rule: Estimate) -> None:
    found = prefix_of(shape, fields, "s", rule)
    assert found == prefix_of(shape, json.loads(json.dumps(fields)), "s", rule)
    assert [end for _, end in found] == [64 * i for i in range(1, len(found) + 1)]
    assert all(type(name) is int and 0 <= name < 2**64 for name, _ in found)
    assert type(session_in(shape, fields)) is str


def test_what_is_nested_too_deeply_is_refused() -> None:
    depth = 100_000
    body = b'{"model":"m","prompt":"a","x":' + b"[" * depth + b"]" * depth + b"}"
    with pytest.raises(ApiError, match="nested too deeply"):
        read_body(COMPLETIONS, body, 16, 16, salt="")
    inner: Any = "a"
    for _ in range(900):  # what a parser takes and a walk through it may not
        inner = [inner]
    found = Endpoints().find("/v1/responses")
    assert found is not None
    with contextlib.suppress(ApiError):
        read_body(found, json.dumps({"model": "m", "input": inner}).encode(), 16, 16, salt="")


def test_nobody_pays_who_does_not_ask() -> None:
    body = json.dumps(chat(WORDS)).encode()
    assert read_body(CHAT, body, 16, 16).prefix == ()
    assert read_body(CHAT, body, 16, 16, salt="").prefix == of(chat(WORDS))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt_cache_key": "k", "user": "u"}, "k"),
        ({"metadata": {"session_id": "s", "user_id": "i"}, "user": "u"}, "s"),
        ({"metadata": {"user_id": "i"}}, "i"), ({"user": "u"}, "u"), ({"conversation": "c"}, "c"),
        ({"conversation": {"id": "c"}, "user": "u"}, "c"), ({}, ""), ({"user": ""}, ""),
        ({"user": 7, "metadata": [], "prompt_cache_key": {}, "conversation": {"id": []}}, ""),
        ({"metadata": {"session_id": 7}, "user": "u"}, "u"), ({"user": "x" * 10**6}, "x" * 512),
    ],
)
def test_a_body_names_its_session_in_the_fields_of_the_apis(fields: dict[str, Any], said: str) -> None:
    assert session_in("responses", fields) == said


def test_a_session_is_one_tenants_and_not_to_be_read() -> None:
    assert session_name("", "acme") == ""
    one = session_name("ann@example.com", "acme")
    assert one == session_name("ann@example.com", "acme")
    assert one != session_name("ann@example.com", "other")
    assert "ann" not in one
    assert len(session_name("\ud800" * 500, "t\ud800")) == len(one) == 16
