"""How many tokens a prompt has, before any engine has seen it."""

from __future__ import annotations

import asyncio
import importlib
import json
import math
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from sim.errors import InputError
from sim.extras import needs
from sim.live.gateway.request_body import Json
from sim.live.gateway.settings import Estimate, Tokenize, Tokenizer

_MEDIA = ("image", "audio", "video", "file")

Post = Callable[[str, Json, float], Awaitable[Any]]
"""Asks some ready replica: path, body, timeout in seconds; the JSON answer, None where there is none."""


class PromptCounter(Protocol):
    """Counts the tokens of a request's prompt."""

    async def count(self, fields: Json) -> int:
        """Return how many there are, or how many there may be."""
        ...


def counter(kind: Estimate | Tokenize | Tokenizer, post: Post) -> EstimatingCounter | AskingCounter:
    """Return what counts as the configuration says.

    Raises
    ------
    InputError : the tokenizer cannot be loaded.
    """
    if isinstance(kind, Tokenize):
        return AskingCounter(kind, EstimatingCounter(Estimate()), post)
    if isinstance(kind, Tokenizer):
        by_text = _local(kind.file)
        return EstimatingCounter(
            Estimate(message_tokens=kind.message_tokens, media_tokens=kind.media_tokens), by_text=by_text
        )
    return EstimatingCounter(kind)


class EstimatingCounter:
    """Counts the text of the fields that carry a prompt; token lists are exact. ``by_text`` counts one text."""

    def __init__(self, rule: Estimate, by_text: Callable[[str], int] | None = None) -> None:
        self._rule = rule
        self._by_text = self._by_length if by_text is None else by_text

    def _by_length(self, text: str) -> int:
        length = len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
        return math.ceil(length / self._rule.bytes_per_token)

    async def count(self, fields: Json) -> int:
        """See `PromptCounter`."""
        return self.count_now(fields)

    def count_now(self, fields: Json) -> int:
        """Return how many tokens there may be; at least one."""
        tokens = 0
        if "messages" in fields:
            messages = fields["messages"]
            for message in messages if isinstance(messages, list) else ():
                tokens += self._rule.message_tokens
                if isinstance(message, dict):
                    tokens += self._value(message.get("content"))
                    if "tool_calls" in message:
                        tokens += self._by_text(json.dumps(message["tool_calls"]))
        for name in ("prompt", "input", "suffix", "system", "instructions", "text_1", "text_2", "query", "documents"):
            if name in fields:
                tokens += self._value(fields[name])
        for name in ("tools", "functions"):
            if fields.get(name):
                tokens += self._by_text(json.dumps(fields[name]))
        return max(1, tokens)

    def _value(self, value: Any) -> int:
        """Count text, parts of a message, lists of texts, and token ids, which are what they are."""
        if type(value) is str:
            return self._by_text(value)
        if type(value) is list:
            if value and type(value[0]) is int:
                return len(value)
            return sum(self._value(one) for one in value)
        if type(value) is dict:
            kind = value.get("type")
            if type(kind) is str and any(word in kind for word in _MEDIA):
                return self._rule.media_tokens
            return sum(self._value(value[name]) for name in ("text", "content", "input") if name in value)
        return 0


class AskingCounter:
    """Asks a replica's /tokenize; estimates where it does not answer, and for prompts that are token lists."""

    def __init__(self, kind: Tokenize, otherwise: EstimatingCounter, post: Post) -> None:
        self._kind = kind
        self._otherwise = otherwise
        self._post = post
        self.failures = 0

    async def count(self, fields: Json) -> int:
        """See `PromptCounter`."""
        prompt = fields.get("prompt")
        if "messages" in fields:
            keep = ("model", "messages", "tools", "chat_template_kwargs", "add_generation_prompt")
            return await self._ask({name: fields[name] for name in keep if name in fields}, fields)
        if type(prompt) is str:
            return await self._ask({"model": fields.get("model"), "prompt": prompt}, fields)
        if type(prompt) is list and prompt and type(prompt[0]) is str:
            asked = [self._ask({"model": fields.get("model"), "prompt": one}, {"prompt": one}) for one in prompt]
            return sum(await asyncio.gather(*asked))
        return self._otherwise.count_now(fields)

    async def _ask(self, body: Json, fields: Json) -> int:
        answer = await self._post("/tokenize", body, self._kind.timeout_s)
        count = answer.get("count") if isinstance(answer, dict) else None
        if type(count) is int and count >= 0:
            return max(1, count)
        self.failures += 1
        return self._otherwise.count_now(fields)


def _local(file: str) -> Callable[[str], int]:
    try:
        library = importlib.import_module("tokenizers")
    except ImportError:
        problem, fix = needs("tokenizer", "tokenizers")
        raise InputError("prompt_tokens", problem, f"{fix}, or use {{kind: tokenize}}") from None
    try:
        tokenizer = library.Tokenizer.from_file(file)
    except Exception as error:  # the library raises bare exceptions
        raise InputError(f"prompt_tokens.file: {file}", f"no tokenizer: {error}", "give a tokenizer.json") from None


    def count(text: str) -> int:
        """Count text; half a character, which JSON may hold, is none that a tokenizer takes."""
        return len(tokenizer.encode(text.encode(errors="replace").decode(), add_special_tokens=False).ids)

    return count
