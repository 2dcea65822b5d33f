"""What a request asks for, checked as vLLM checks it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sim.mock_server.tokens import chat_tokens, text_tokens

_MOST_SEQUENCES = 1024
_DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's and vLLM's, for /v1/completions
_SURE_BIAS = 100  # of a token's logit: it is chosen


class BadRequestError(Exception):
    """A request that is refused: what is wrong, with its HTTP status."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request for text.

    Attributes
    ----------
    prompts : token ids of each prompt.
    answers : sequences to make for each.
    limit_tokens : the most of one answer.
    named_limit : what the client named, 0 where it named none.
    output_tokens : of each prompt's answers.
    stops : whether an answer ends before its limit.
    stream, usage, each_usage : whether to stream, to end with a usage, and to send one with each event.
    """

    chat: bool
    model: str
    prompts: list[list[int]]
    answers: int
    named_limit: int
    output_tokens: list[int]
    stops: list[bool]
    stream: bool
    usage: bool
    each_usage: bool
    priority: int


def parsed(body: bytes) -> dict[str, Any]:
    """Return a body's fields.

    Raises
    ------
    BadRequestError : it is no JSON object.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequestError("the body is not JSON") from None
    if not isinstance(fields, dict):
        raise BadRequestError("the body is no JSON object")
    return fields


def asked_of(
    fields: dict[str, Any], *, chat: bool, model: str, max_model_tokens: int, draw_tokens: Callable[[list[int]], int]
) -> Asked:
    """Return what is asked.

    Parameters
    ----------
    draw_tokens : the length of the answer to a prompt that its request leaves to the model.

    Raises
    ------
    BadRequestError : it makes no sense, or does not fit the context.
    """
    if fields.get("model", model) != model:
        raise BadRequestError(f"The model `{fields['model']}` does not exist.", 404)
    prompts = [chat_prompt(fields)] if chat else prompts_of(fields.get("prompt"))
    answers = _count(fields, "n", 1)
    if len(prompts) * answers > _MOST_SEQUENCES:
        raise BadRequestError(f"{len(prompts) * answers} sequences; the most are {_MOST_SEQUENCES}")
    named = _count(fields, "max_completion_tokens", 0) or _count(fields, "max_tokens", 0)
    if not named and not chat and not fields.keys() & {"max_tokens", "max_completion_tokens"}:  # null is no limit
        named = _DEFAULT_COMPLETION_TOKENS
    lengths, stops = [], []
    for prompt in prompts:
        room = max_model_tokens - len(prompt)
        if room < max(1, named):
            raise BadRequestError(
                f"This model's maximum context length is {max_model_tokens} tokens. However, you requested "
                f"{named or 1} output tokens and your prompt contains {len(prompt)} input tokens."
            )
        length, stop = _length(fields, named or room, lambda prompt=prompt: draw_tokens(prompt))  # type: ignore[misc]
        lengths.append(length)
        stops.append(stop)
    options = fields.get("stream_options") or {}
    if not isinstance(options, dict):
        raise BadRequestError("stream_options is no object")
    priority = fields.get("priority", 0)
    return Asked(
        chat=chat, model=model, prompts=prompts, answers=answers, named_limit=named, output_tokens=lengths,
        stops=stops, stream=fields.get("stream") is True, usage=bool(options.get("include_usage")),
        each_usage=bool(options.get("continuous_usage_stats")), priority=priority if type(priority) is int else 0,
    )  # fmt: skip


def _length(fields: dict[str, Any], limit: int, draw: Callable[[], int]) -> tuple[int, bool]:
    """Return how long an answer gets and whether it stops by itself, by what a client says to fix it, else drawn."""
    least = _count(fields, "min_tokens", 0)
    if least > limit:
        raise BadRequestError(f"min_tokens must be less than or equal to max_tokens={limit}, got {least}.")
    bias, stops = fields.get("logit_bias") or {}, fields.get("stop_token_ids") or []
    if isinstance(bias, dict) and isinstance(stops, list) and any(_bias(bias, stop) >= _SURE_BIAS for stop in stops):
        length = min(least + 1, limit)  # the stop token is sure to be chosen as soon as it may be
    elif fields.get("ignore_eos") is True:
        return limit, False
    else:
        length = min(max(draw(), least, 1), limit)
    return length, length < limit


def _bias(bias: dict[str, Any], token: Any) -> float:
    found = bias.get(str(token), 0)
    return float(found) if isinstance(found, int | float) else 0.0


def _count(fields: dict[str, Any], name: str, otherwise: int) -> int:
    value = fields.get(name)
    if value is None:
        return otherwise
    if type(value) is not int or value < (0 if name == "min_tokens" else 1):
        raise BadRequestError(f"{name} must be a whole number of at least 1, got {json.dumps(value)[:40]}")
    return value


def chat_prompt(fields: dict[str, Any]) -> list[int]:
    """Return a conversation's token ids.

    Raises
    ------
    BadRequestError : there is none.
    """
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("messages is missing or empty")
    return chat_tokens(messages, fields.get("tools"))


def prompts_of(value: Any) -> list[list[int]]:
    """Return the prompts of a completion: a text, token ids, or a list of either.

    Raises
    ------
    BadRequestError : it is none of these.
    """
    if isinstance(value, str):
        prompts = [text_tokens(value)]
    elif isinstance(value, list) and value and all(type(one) is int for one in value):
        prompts = [value]
    elif isinstance(value, list) and value and all(isinstance(one, str | list) for one in value):
        prompts = [prompt for one in value for prompt in prompts_of(one)]
    else:
        raise BadRequestError("prompt must be a text, a list of token ids, or a list of these")
    if not all(prompts):
        raise BadRequestError("a prompt is empty")
    return prompts
