from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.live.gateway import sse
from sim.live.gateway.sse import BrokenStreamError, Splitter, Usage, cut_event, event, split, usage_of
from sim.live.gateway.stream_reader import StreamReader
from sim.live.replicas.upstreams import json_object


def chunk(text: str, **more: Any) -> bytes:
    return event({"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}}]}
                 | more)


def reading(show_usage: bool = False, shape: str = "chat", **more: Any) -> StreamReader:
    return StreamReader(shape, show_usage, False, **more)


USAGE = event({"id": "c", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}})
DONE = b"data: [DONE]\n\n"
TRAPS = ['"usage"', '"error"', "data: x", "[DONE]", "\n\n"]
texts = st.lists(st.text(max_size=12) | st.sampled_from(TRAPS), max_size=8)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(said=texts, cuts=st.lists(st.integers(0, 5000), max_size=30), crlf=st.booleans(), hide=st.booleans())
def test_any_cut_of_a_stream_gives_the_same_events_and_hides_no_text(
    said: list[str], cuts: list[int], crlf: bool, hide: bool
) -> None:
    data = b"".join(map(chunk, said)) + USAGE + DONE
    wanted = data.replace(USAGE, b"") if hide else data
    if crlf:
        data, wanted = data.replace(b"\n", b"\r\n"), wanted.replace(b"\n", b"\r\n")
    splitter, reader, out = Splitter(10_000), reading(not hide), b""
    for piece in pieces(data, cuts):
        whole = splitter.feed(piece)
        if whole:
            assert whole.endswith((b"\n\n", b"\r\n\r\n"))
            out += reader.read(whole)
    assert out == wanted
    assert (reader.events, reader.done, reader.error, splitter.rest) == (len(said), True, None, b"")
    assert reader.usage == Usage(5, 7, 0)


SHAPES = (
    '{"id":"c","choices":[{"index":0,"delta":{"content":%s},"finish_reason":null}]}',
    '{"choices":[{"index":0,"text":%s,"finish_reason":null}]}', '{"choices":[{"index":1,"text":%s}]}',
    '{"choices":[{"index":0,"delta":{"reasoning_content":%s}}]}', '{"choices":[{"delta":{"content":%s}}],"usage":null}',
    '{"choices":[{"index":0,"delta":{"content":%s},"finish_reason":"stop"}]}', '{"error":{"content":%s}}',
    '{"choices":[{"delta":{"content":%s}}],"usage":{"completion_tokens":3}}',
    '{"usage":{"prompt_tokens":5},"choices":[]}',
)  # fmt: skip
FORMS = (
    "data: {}\n\n", "data:{}\n\n", "data: {}\r\n\r\n", "event: x\ndata: {}\n\n", "data: {}\n\n: ping\n\n",
    "data: {}\n\n\n",
)  # fmt: skip
events = st.builds(
    lambda form, shape, text: form.replace("{}", shape.replace("%s", text), 1).encode(),
    st.sampled_from((FORMS[0], FORMS[0], *FORMS)), st.sampled_from((SHAPES[0], SHAPES[0], *SHAPES)),
    st.builds(json.dumps, st.text(max_size=9) | st.sampled_from(TRAPS))
    | st.sampled_from(('"usage"', '"finish_reason"', '"a\n\ndata: [DONE]\n\n"', '"a","finish_reason":"stop","b":"c"')),
)


@given(said=st.lists(events, max_size=12), answers=st.integers(1, 2), shape=st.sampled_from(["chat", "messages"]))
def test_an_event_that_fits_the_mould_is_found_to_say_what_reading_it_finds(
    said: list[bytes], answers: int, shape: str
) -> None:
    """Whatever stands in it: the short way and the long one know the same after every event."""
    short, long = (reading(shape=shape, answers=answers) for _ in range(2))
    for data in said:
        out = data if short.fits(data) else short.read(data)
        assert out == long.read(data)
        for name in ("tokens", "events", "usage", "error", "done", "complete", "first", "_by_choice", "_finished"):
            assert getattr(short, name) == getattr(long, name), name


def test_most_events_fit_the_mould() -> None:
    reader = reading()
    say = b'data: {"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n'
    assert not reader.fits(say % b"a")  # nothing is known yet
    for text in (b"a", b"b"):
        reader.read(say % text)  # the first is parsed, the second is found to say no more
    assert [reader.fits(say % text) for text in (b"", b" data: x", b"\xe2\x82\xac")] == [True] * 3
    assert (reader.events, reader.tokens) == (5, 5)
    assert [reader.fits(one) for one in (
        say % b'\\"', say % b"\\n", say % b'"', say % b"\n", say % b"\r", (say % b"a")[:-1], (say % b"a")[1:],
        say % b"a" + say % b"b", say.replace(b"null", b'"stop"') % b"a", b"data: [DONE]\n\n", b"",
        (say % b"").replace(b'""', b'"'),
    )] == [False] * 12  # fmt: skip
    assert reader.events == 5
    other = say.replace(b"content", b"reasoning_content")
    assert not reader.fits(other % b"a")
    reader.read(other % b"a")
    assert reader.fits(other % b"b")


@given(st.lists(st.sampled_from([b"data: x", b"data:", b"data: ", b"x", b"\n", b"\n\n", b"\r\n", b"\r"]), max_size=12))
def test_events_are_cut_and_read_as_the_standard_has_it(parts: list[bytes]) -> None:
    """However they are written: the quick way for what nearly all write is the long one's."""
    data = b"".join(parts)
    ends = [found.end() for found in sse._END.finditer(data)]
    if ends[-1:] != [len(data)]:
        ends.append(len(data))
    assert split(data) == [data[a:b] for a, b in itertools.pairwise([0, *ends]) if b > a]
    for one in split(data):
        assert sse.data_of(one) == b"\n".join(sse._DATA.findall(one))


def test_what_is_not_whole_waits_up_to_a_bound() -> None:
    splitter = Splitter(100)
    assert splitter.feed(b"data: a") == b""
    assert splitter.feed(b"\n") == b""
    assert splitter.feed(b"\ndata: b") == b"data: a\n\n"
    with pytest.raises(BrokenStreamError):
        splitter.feed(b"x" * 200)


@pytest.mark.parametrize("error", [{"message": "full", "code": 503}, "full"])
def test_an_error_event_is_found_and_kept_back(error: Any) -> None:
    reader = reading()
    assert reader.read(chunk("a") + event({"error": error}) + DONE) == chunk("a") + DONE
    assert reader.error is not None
    assert reader.error["message"] == "full"


def test_comments_and_other_events_go_through() -> None:
    data = b": keep-alive\n\nevent: ping\ndata: {}\n\ndata: not json, [DONE] in it\n\n"
    reader = reading()
    assert reader.read(data) == data


def test_a_null_usage_in_every_event_is_no_usage() -> None:
    data = chunk("a", usage=None)
    reader = reading()
    assert reader.read(data) == chunk("a")  # the client did not ask for it
    assert (reader.events, reader.usage) == (1, None)


@pytest.mark.parametrize(("answer", "expected"), [
    ({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}, Usage(3, 4, 0)),
    ({"usage": {"input_tokens": 3, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 2}}}, Usage(3, 4, 2)),
    ({"usage": {"prompt_tokens": -3, "completion_tokens": "4", "prompt_tokens_details": []}}, Usage(None, None, 0)),
    # Anthropic's input_tokens are those that were neither read from the cache nor written into it
    ({"usage": {"input_tokens": 3, "output_tokens": 4, "cache_read_input_tokens": 90,
                "cache_creation_input_tokens": 7}}, Usage(100, 4, 90)),
    ({"usage": {"input_tokens": 3, "output_tokens": 4, "cache_read_input_tokens": None}}, Usage(3, 4, 0)),
    ({"usage": {"prompt_tokens": 0, "completion_tokens": 0}}, Usage(None, 0, 0)),
    ({"usage": {"type": "duration", "seconds": 61}}, Usage(1525, None, 0)),
    ({"usage": {"type": "duration", "seconds": -1}}, Usage(None, None, 0)),
    ({"usage": {"type": "duration", "seconds": 1e300}}, Usage(None, None, 0)),
    ({"usage": None}, None), ({"usage": []}, None), ({}, None), ([], None), (None, None), ("x", None),
])  # fmt: skip
def test_usage_is_read_as_far_as_it_can_be_trusted(answer: Any, expected: Usage | None) -> None:
    assert usage_of(answer) == expected


def test_usage_of_other_apis_is_found_where_they_put_it() -> None:
    reader = reading(shape="messages")
    began = event({"type": "message_start", "message": {"usage": {"input_tokens": 9, "output_tokens": 1}}})
    ended = event({"type": "message_delta", "usage": {"output_tokens": 5}})
    assert reader.read(began + ended) == began + ended
    assert reader.usage == Usage(9, 5, 0)
    reader = reading(shape="responses")
    reader.read(event({"type": "response.completed", "response": {"usage": {"input_tokens": 3, "output_tokens": 4}}}))
    assert reader.usage == Usage(3, 4, 0)


def test_a_stream_is_ended_in_its_own_form() -> None:
    ended = json.loads(cut_event(chunk("a", model="tiny", created=1), "preempted")[6:])
    assert ended == {
        "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "tiny",
        "choices": [{"index": 0, "delta": {}, "finish_reason": "preempted"}],
    }  # fmt: skip
    assert cut_event(b"", "x") == cut_event(b"data: no json\n\n", "x") == cut_event(b"data: []\n\n", "x") == b""
    assert split(b"a\n\nb\r\n\r\nc") == [b"a\n\n", b"b\r\n\r\n", b"c"]


@pytest.mark.parametrize(("answer", "found"), [
    (b'{"count": 3}', {"count": 3}), (b"[1]", None), (b"", None), (b"{", None), (b"\xff", None),
    (b"[" * 200_000, None),
], ids=["object", "list", "nothing", "half", "no text", "deep"])  # fmt: skip
def test_an_answer_of_an_upstream_is_an_object_or_nothing(answer: bytes, found: object) -> None:
    assert json_object(answer) == found
