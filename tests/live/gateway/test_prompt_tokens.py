from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.errors import InputError
from sim.live.gateway.prompt_tokens import EstimatingCounter, counter
from sim.live.gateway.settings import Estimate, Tokenize, Tokenizer


async def nobody(path: str, body: dict[str, Any], timeout_s: float) -> Any:
    return None


def shape_of(fields: dict[str, Any]) -> str:
    return "chat" if "messages" in fields else "completion"


def count(kind: Any, fields: dict[str, Any], post: Any = nobody) -> int:
    return asyncio.run(counter(kind, post).count(shape_of(fields), fields)).tokens


@pytest.mark.parametrize(("fields", "tokens"), [
    ({"prompt": "abcdefgh"}, 2),
    ({"prompt": "abcdefghi"}, 3),
    ({"prompt": "\u00e9\u00e9"}, 1),
    ({"prompt": ""}, 1),
    ({"prompt": [1, 2, 3]}, 3),
    ({"prompt": [[1, 2], [3]]}, 3),
    ({"prompt": ["abcd", "abcd"]}, 2),
    ({"messages": [{"role": "user", "content": "abcd"}]}, 4 + 1),
    ({"messages": [{"content": [{"type": "text", "text": "abcd"}, {"type": "image_url"}]}]}, 4 + 1 + 1024),
    ({"messages": [{"role": "user", "content": None}]}, 4),
    ({"prompt": "abcd", "tools": [{"type": "function"}]}, 1 + 6),
    ({"input": [{"role": "user", "content": "abcd"}]}, 1),
    ({}, 1),
    ({"messages": "no list", "prompt": 5, "tools": 3}, 1),
], ids=str)
def test_an_estimate_by_length(fields: dict[str, Any], tokens: int) -> None:
    assert count(Estimate(), fields) == tokens


NAMES = st.sampled_from(["text", "content", "type", "input"])


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner), max_leaves=10,
))
def test_whatever_a_prompt_holds_it_has_at_least_one_token(value: Any) -> None:
    estimating = EstimatingCounter(Estimate())
    for name in ("prompt", "messages", "input", "documents"):
        assert estimating.count_now("completion", {name: value}).tokens >= 1


def test_a_replica_that_does_not_answer_leaves_an_estimate() -> None:
    asked: list[dict[str, Any]] = []

    async def post(path: str, body: dict[str, Any], timeout_s: float) -> Any:
        asked.append(body)
        return {"count": 42} if body.get("prompt") != "odd" else {"error": "no"}

    assert count(Tokenize(), {"model": "m", "prompt": "abcd", "max_tokens": 5}, post) == 42
    assert asked == [{"model": "m", "prompt": "abcd"}]
    assert count(Tokenize(), {"prompt": ["a", "b", "odd"]}, post) == 42 + 42 + 1
    assert count(Tokenize(), {"prompt": [1, 2, 3]}, post) == 3
    assert count(Tokenize(), {"prompt": "abcdefgh"}) == 2


def test_a_tokenizer_on_this_machine_counts_exactly(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the extra tokenizer is not installed")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    kind = Tokenizer(file=str(tmp_path / "tokenizer.json"))
    assert count(kind, {"prompt": "a b a something"}) == 4
    assert count(kind, {"prompt": "a \ud800"}) >= 1
    assert count(kind, {"messages": [{"role": "user", "content": "a b"}]}) == 4 + 2


def test_a_tokenizer_that_is_none_is_refused_at_the_start(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="the extra tokenizer is not installed")
    (tmp_path / "t.json").write_text(json.dumps({"no": "tokenizer"}))
    with pytest.raises(InputError, match="no tokenizer"):
        counter(Tokenizer(file=str(tmp_path / "t.json")), nobody)
