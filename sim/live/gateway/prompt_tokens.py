"""How many tokens a prompt has, before any engine has seen it.

What is counted is everything that an engine could put before its model: every text of the fields that carry a prompt,
whatever a server calls it. Which of it becomes the prompt, only the engine knows, so that a count is exact for token
ids, for what a replica's /tokenize says, and for a plain text that a tokenizer on this machine counts. Nothing else is
ever a reason to refuse a request for good.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import math
from collections.abc import Awaitable, Callable
from itertools import zip_longest
from typing import Any, NamedTuple, Protocol

from sim.errors import InputError
from sim.extras import needs
from sim.live.gateway.json_text import Json
from sim.live.gateway.media import embedding_tokens, media_tokens
from sim.live.gateway.request_body import listed, pairs
from sim.live.gateway.settings import Estimate, Tokenize, Tokenizer

Post = Callable[[str, Json, float], Awaitable[Any]]
"""Asks some ready replica: path, body, timeout in seconds; the JSON answer, None where there is none."""

_SHARED_TEXT = ("suffix", "system", "instructions", "documents", "chat_template", "instruction", "task")
"""Fields besides the prompt itself whose text an engine may put before each prompt."""
_AS_JSON = ("tools", "functions", "chat_template_kwargs")
COUNTED_FIELDS = frozenset((
    "model", "messages", "prompt", "input", "data", "prompt_embeds", "truncate_prompt_tokens", "add_generation_prompt",
    "continue_final_message", "query", "queries", "text_1", "data_1", "text_2", "data_2", "items", "tokens",
    "truncation", *_SHARED_TEXT, *_AS_JSON,
))  # fmt: skip
"""All that counters look at."""
_NO_TEXT = frozenset(("type", "role", "id", "tool_call_id", "call_id", "status", "cache_control", "detail", "format"))
_LONGEST_LABEL = 64
"""Characters of a field that is no text, as roles and ids have them; templates put longer ones into the prompt too."""
_KNOWN_NAMES = _NO_TEXT | {
    "content", "text", "name", "function", "arguments", "tool_calls", "input", "output", "refusal", "thinking",
    "signature", "reasoning", "reasoning_content", "summary", "source", "data", "media_type", "annotations",
    "parameters", "description", "title", "is_error", "encrypted_content",
}  # fmt: skip
"""Fields whose names are the API's; what else a client calls something is text, as in the arguments of a tool."""


class PromptCount(NamedTuple):
    """What a request's prompts cost.

    Attributes
    ----------
    tokens : of all prompts; an estimate unless all are exact.
    least_tokens : what the largest single prompt has at least, from exact counts alone; 1 where there are none.
    """

    tokens: int
    least_tokens: int = 1


class PromptCounter(Protocol):
    """Counts the tokens of a request's prompt."""

    async def count(self, shape: str, fields: Json) -> PromptCount:
        """Return how many there are, or how many there may be; ``shape`` is the endpoint's."""
        ...

    def estimate(self, shape: str, fields: Json) -> PromptCount:
        """Return how many there may be, at little cost and without asking anybody."""
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
        return EstimatingCounter(kind, by_text=_local(kind.file))
    return EstimatingCounter(kind)


class EstimatingCounter:
    """Counts the text of the fields that carry a prompt; token ids are exact. ``by_text`` counts one text exactly."""

    def __init__(self, rule: Estimate | Tokenizer, by_text: Callable[[str], int] | None = None) -> None:
        self._rule = rule
        self._exact_text = by_text is not None
        self._by_text = self._by_length if by_text is None else by_text
        self._cheap = self if by_text is None else EstimatingCounter(
            Estimate(message_tokens=rule.message_tokens, media_tokens=rule.media_tokens)
        )

    def _by_length(self, text: str) -> int:
        length = len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
        return math.ceil(length / (self._rule.bytes_per_token if isinstance(self._rule, Estimate) else 4.0))

    async def count(self, shape: str, fields: Json) -> PromptCount:
        """See `PromptCounter`."""
        if self._exact_text:  # a tokenizer takes its time; it lets go of the interpreter meanwhile
            return await asyncio.get_running_loop().run_in_executor(None, self.count_now, shape, fields)
        return self.count_now(shape, fields)

    def estimate(self, shape: str, fields: Json) -> PromptCount:
        """See `PromptCounter`."""
        return self._cheap.count_now(shape, fields)

    def count_now(self, shape: str, fields: Json) -> PromptCount:
        """Return how many tokens there may be; at least one."""
        if shape == "pairs":
            return self._of_pairs(fields)
        shared = self._shared(fields)
        tokens, least = 0, 1
        # The items of a response are one prompt; of other shapes each has what is shared before it.
        prompts = [fields["input"]] if shape == "responses" and "input" in fields else _prompts(fields)
        for prompt in prompts:
            count = shared + self._value(prompt)
            if type(prompt) is list and prompt and type(prompt[0]) is int:
                exact = len(prompt)
            else:
                exact = count - shared if self._exact_text and type(prompt) is str else 0
            count, exact = _truncated(fields, count), _truncated(fields, exact)
            tokens += count
            least = max(least, exact)
        embeds = fields.get("prompt_embeds")
        for one in embeds if isinstance(embeds, list) else [embeds]:
            if type(one) is str:
                tokens += embedding_tokens(one, self._rule)
        if shape == "text":  # /detokenize
            tokens += self._value(fields.get("tokens"))
        if "messages" in fields:
            tokens += _truncated(fields, self._messages(fields["messages"]) + (0 if prompts else shared))
        return PromptCount(max(1, tokens or shared), least)

    def _of_pairs(self, fields: Json) -> PromptCount:
        lefts, rights = ([self._value(one) for one in side] for side in pairs(fields))
        count = max(len(lefts), len(rights), 1)
        shared = self._shared(fields) - self._value(fields.get("documents"))
        lefts, rights = (one * count if len(one) == 1 else one for one in (lefts, rights))
        each = zip_longest(lefts, rights, fillvalue=0)
        return PromptCount(max(1, sum(_truncated(fields, shared + left + right) for left, right in each)))

    def _shared(self, fields: Json) -> int:
        tokens = sum(self._value(fields[name]) for name in _SHARED_TEXT if name in fields)
        return tokens + sum(self._by_text(json.dumps(fields[name])) for name in _AS_JSON if fields.get(name))

    def _messages(self, messages: Any) -> int:
        listed = messages if isinstance(messages, list) else ()
        return sum(self._rule.message_tokens + self._value(message) for message in listed)

    def _value(self, value: Any) -> int:
        """Count every text that a value holds, and what is no text by what it costs; token ids are what they are."""
        if type(value) is str:
            return self._by_text(value)
        if type(value) is list:
            if value and type(value[0]) is int:
                return len(value)
            return sum(self._inner(one) for one in value)
        if type(value) is dict:
            cost = media_tokens(value, self._rule)
            if cost is not None:
                return cost + self._value(value.get("text"))
            return sum(self._field(name, one) for name, one in value.items())
        return 0

    def _inner(self, value: Any) -> int:
        """Count what an object or a list holds: numbers too, as in the arguments of a tool."""
        return self._by_text(repr(value)) if type(value) in (int, float) else self._value(value)

    def _field(self, name: str, value: Any) -> int:
        """Count a field of an object."""
        if name in _NO_TEXT:
            return self._by_text(value) if type(value) is str and len(value) > _LONGEST_LABEL else 0
        return self._inner(value) + (0 if name in _KNOWN_NAMES else self._by_text(name))


class AskingCounter:
    """Asks a replica's /tokenize; estimates where it does not answer, and for prompts that it does not take."""

    def __init__(self, kind: Tokenize, otherwise: EstimatingCounter, post: Post) -> None:
        self._kind = kind
        self._otherwise = otherwise
        self._post = post
        self.failures = 0

    def estimate(self, shape: str, fields: Json) -> PromptCount:
        """See `PromptCounter`."""
        return self._otherwise.count_now(shape, fields)

    async def count(self, shape: str, fields: Json) -> PromptCount:
        """See `PromptCounter`."""
        prompt = fields.get("prompt")
        if shape == "chat":
            keep = (
                "model", "messages", "tools", "chat_template", "chat_template_kwargs", "add_generation_prompt",
                "continue_final_message", "documents",
            )  # fmt: skip
            found = await self._ask(shape, {name: fields[name] for name in keep if name in fields}, fields)
            return PromptCount(_truncated(fields, found.tokens), _truncated(fields, found.least_tokens))
        texts = listed(prompt) if shape == "completion" and "prompt_embeds" not in fields else []
        if not texts or any(type(one) is not str for one in texts):
            return self._otherwise.count_now(shape, fields)
        asked = [
            self._ask(shape, {"model": fields.get("model"), "prompt": one}, {"prompt": one}) for one in texts
        ]
        counts = await asyncio.gather(*asked)
        return PromptCount(
            sum(_truncated(fields, one.tokens) for one in counts),
            max(_truncated(fields, one.least_tokens) for one in counts),
        )

    async def _ask(self, shape: str, body: Json, fields: Json) -> PromptCount:
        answer = await self._post("/tokenize", body, self._kind.timeout_s)
        count = answer.get("count") if isinstance(answer, dict) else None
        if type(count) is int and 0 <= count < 2**31:
            return PromptCount(max(1, count), max(1, count))
        self.failures += 1
        return self._otherwise.count_now(shape, fields)


def _prompts(fields: Json) -> list[Any]:
    """Return the prompts of a request one by one."""
    return [prompt for name in ("prompt", "input", "data") if name in fields for prompt in listed(fields[name])]


def _truncated(fields: Json, count: int) -> int:
    """Return what is left of a prompt of so many tokens; -1 asks for what fits, which never is too much."""
    most = fields.get("truncate_prompt_tokens")
    if type(most) is not int:
        return count
    return min(count, most) if most >= 0 else count


def only_ids(shape: str, fields: Json) -> bool:
    """Return whether prompts are token ids and nothing else, so that their count is exact whoever counts."""
    prompts = _prompts(fields)
    others = {"messages", "prompt_embeds", *_SHARED_TEXT, *_AS_JSON} & fields.keys()
    return shape == "completion" and not others and bool(prompts) and all(
        type(one) is list and bool(one) and type(one[0]) is int for one in prompts
    )


def never_too_long(fields: Json) -> bool:
    """Return whether the engine is told to cut a prompt to its context."""
    most = fields.get("truncate_prompt_tokens")
    return (type(most) is int and most < 0) or fields.get("truncation") == "auto"


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
