from __future__ import annotations

import http.client
import json
import time

import pytest

from live.stand_in import StandIn, running


def post(stand_in: StandIn, path: str, body: object) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", stand_in.port, timeout=5)
    try:
        connection.request("POST", path, json.dumps(body))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_it_answers_in_one_piece_with_usage() -> None:
    with running() as stand_in:
        status, body = post(stand_in, "/v1/completions", {"model": "tiny", "prompt": "a b c", "max_tokens": 4})
    answer = json.loads(body)
    assert status == 200
    assert answer["choices"][0]["text"] == "w0 w1 w2 w3"
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_it_streams_events_and_usage_if_asked() -> None:
    asked = {"messages": [{"role": "user", "content": "a b"}], "max_tokens": 3, "stream": True}
    with running() as stand_in:
        _, bare = post(stand_in, "/v1/chat/completions", asked)
        _, full = post(stand_in, "/v1/chat/completions", asked | {"stream_options": {"include_usage": True}})
    assert (bare.count(b"data:"), full.count(b"data:")) == (4, 5)
    assert b'"completion_tokens": 3' in full
    assert full.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("wish", [{"die": "before"}, {"die": "2"}, {"half_line": 1}])
def test_it_dies_when_asked(wish: dict[str, object]) -> None:
    with running() as stand_in, pytest.raises((http.client.HTTPException, ConnectionError)):
        post(stand_in, "/v1/completions", {"prompt": "a", "max_tokens": 5, "stream": True, "stand_in": wish})


def test_it_notes_a_client_that_leaves() -> None:
    with running() as stand_in:
        connection = http.client.HTTPConnection("127.0.0.1", stand_in.port, timeout=5)
        connection.request("POST", "/v1/completions", json.dumps({"prompt": "a", "stand_in": {"ttft_s": 60}}))
        while not stand_in.running:
            time.sleep(0.005)
        connection.close()
        deadline_s = time.monotonic() + 5
        while stand_in.running and time.monotonic() < deadline_s:
            time.sleep(0.005)
        assert not stand_in.running
        assert len(stand_in.aborted_s) == 1
