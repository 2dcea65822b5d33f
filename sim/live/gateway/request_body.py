"""What a client asks for, read from the body of its request, and the body that goes to the upstream.

The body is passed on as it came. Where the gateway must add a field (max_tokens, stream_options) it is written behind
the last one, so that everything the client wrote stays as it is; only a field that stands there already, with another
value, makes the body be written anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from sim.live.gateway.error_responses import ApiError

Json = dict[str, Any]

_MOST_TOKENS = 2**31


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How requests to one path are read.

    Attributes
    ----------
    limits : fields that bound the output; the largest counts, since servers differ in which they obey.
    prompts : checks the fields that the path needs, and returns how many prompts there are.
    tells_usage : whether its streams tell the usage if ``stream_options`` says so.
    read_by_gateway : False for a body that is passed on without a look.
    generates : whether there is output to reserve tokens for.
    """

    limits: tuple[str, ...]
    prompts: Callable[[Json], int]
    tells_usage: bool = False
    read_by_gateway: bool = True
    generates: bool = True


@dataclass(frozen=True, slots=True)
class ParsedBody:
    """A request, read.

    Attributes
    ----------
    max_output_tokens : of one answer; None where the client named none.
    choices : how many answers are generated.
    hide_usage : whether the usage in the stream is for the gateway alone.
    fields : the whole body.
    """

    model: str
    stream: bool
    max_output_tokens: int | None
    choices: int
    priority: int
    hide_usage: bool
    fields: Json


def read_json(body: bytes) -> Json:
    """Return the object that a body holds.

    Raises
    ------
    ApiError : 400, it holds none, or a field twice.
    """
    try:
        value = json.loads(body.decode(), object_pairs_hook=_object, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        _refuse("invalid_json", f"The body is not UTF-8 text (byte {error.start}).")
    except RecursionError:
        _refuse("invalid_json", "The body is nested too deeply.")
    except ValueError as error:
        _refuse("invalid_json", f"The body is not valid JSON: {error}.")
    if type(value) is not dict:
        _refuse("invalid_json", f"The body is {_describe(value)}, an object is expected.")
    return value


def parse_body(endpoint: Endpoint, fields: Json, most_choices: int) -> ParsedBody:
    """Return what a request asks for.

    Raises
    ------
    ApiError : 400, a field has the wrong type or an impossible value.
    """
    model = fields.get("model")
    if type(model) is not str or not model:
        _wrong("model", model, "the name of a model")
    stream = fields.get("stream")
    if stream is not None and type(stream) is not bool:
        _wrong("stream", stream, "true or false")
    prompts = endpoint.prompts(fields)
    samples = max(_whole(fields, "n", 1), _whole(fields, "best_of", 1))
    choices = prompts * samples
    if choices > most_choices:
        _refuse("too_many_choices", f"{choices} answers are asked for, at most {most_choices} are given.", "n")
    limits = [_whole(fields, name, 0) for name in endpoint.limits if fields.get(name) is not None]
    most: int | None = max(limits) if limits else None
    priority = fields.get("priority")
    if priority is None:
        priority = 0
    elif type(priority) is not int or not 0 <= priority < _MOST_TOKENS:
        _wrong("priority", priority, "a whole number from 0: a client may only lower its priority")
    options = fields.get("stream_options")
    if options is not None and type(options) is not dict:
        _wrong("stream_options", options, "an object")
    hide = bool(stream) and not (options is not None and options.get("include_usage") is True)
    return ParsedBody(model, bool(stream), most, choices, priority, hide, fields)


def upstream_body(
    body: bytes, endpoint: Endpoint, parsed: ParsedBody, default_output_tokens: int, priority: int
) -> bytes:
    """Return the body to send: with a limit on the output, the usage asked for in a stream, the priority it has."""
    changes: Json = {}
    if parsed.max_output_tokens is None:
        changes[endpoint.limits[0]] = default_output_tokens
    if parsed.hide_usage and endpoint.tells_usage:
        changes["stream_options"] = {**(parsed.fields.get("stream_options") or {}), "include_usage": True}
    if priority != parsed.priority:
        changes["priority"] = priority
    if not changes:
        return body
    if any(name in parsed.fields for name in changes):
        return json.dumps({**parsed.fields, **changes}, ensure_ascii=False).encode(errors="surrogatepass")
    head = body.rstrip()[:-1]
    return head + b"," + json.dumps(changes).encode()[1:-1] + b"}"


def _object(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) < len(pairs):  # servers differ in which of the two they take
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice[:100]!r} stands there twice")
    return found


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def _whole(fields: Mapping[str, Any], name: str, least: int) -> int:
    value = fields.get(name)
    if value is None:
        return least
    if type(value) is not int or not least <= value < _MOST_TOKENS:
        _wrong(name, value, f"a whole number from {least}")
    return value


def _completion(fields: Json) -> int:
    prompt = fields.get("prompt")
    if type(prompt) is str:
        return 1
    if type(prompt) is list and prompt:
        if all(type(one) is int for one in prompt):
            return 1
        if all(type(one) is str for one in prompt):
            return len(prompt)
        if all(type(one) is list and all(type(token) is int for token in one) for one in prompt):
            return len(prompt)
    if prompt is not None or "prompt_embeds" not in fields:
        _wrong("prompt", prompt, "text, a list of texts, a list of tokens or a list of such lists")
    return 1


def _chat(fields: Json) -> int:
    messages = fields.get("messages")
    if type(messages) is not list or not messages:
        _wrong("messages", messages, "a list of messages")
    for index, message in enumerate(messages):
        if type(message) is not dict:
            _wrong(f"messages[{index}]", message, "an object")
        if type(message.get("role")) is not str:
            _wrong(f"messages[{index}].role", message.get("role"), "a role, e.g. user")
        content = message.get("content")
        parts = content if type(content) is list else ()
        known = content is None or type(content) in (str, list)
        if not known or not all(type(part) in (dict, str) for part in parts):
            _wrong(f"messages[{index}].content", content, "text or a list of parts")
    return 1


def _anything(fields: Json) -> int:  # noqa: ARG001
    return 1


def _wrong(name: str, value: object, expected: str) -> NoReturn:
    _refuse("invalid_value", f"{name} is {_describe(value)}, expected {expected}.", name)


def _refuse(code: str, message: str, param: str | None = None) -> NoReturn:
    raise ApiError(400, code, message, param=param)


def _describe(value: object) -> str:
    """Return a phrase for a value, without what a client wrote: errors go to logs."""
    if value is None:
        return "missing"
    if isinstance(value, bool | int | float):
        text = repr(value)
        return text if len(text) < 40 else "a very long number"
    return "text" if isinstance(value, str) else "a list" if isinstance(value, list) else "an object"


COMPLETIONS = Endpoint(("max_tokens",), _completion, tells_usage=True)
CHAT = Endpoint(("max_tokens", "max_completion_tokens"), _chat, tells_usage=True)
_READ: Mapping[str, Endpoint] = {
    "/v1/completions": COMPLETIONS, "/v1/chat/completions": CHAT,
    "/v1/responses": Endpoint(("max_output_tokens",), _anything), "/v1/messages": Endpoint(("max_tokens",), _anything),
}  # fmt: skip
_OTHER = Endpoint((), _anything, read_by_gateway=False)
_WITHOUT_OUTPUT = Endpoint((), _anything, read_by_gateway=False, generates=False)
_ENDS_WITHOUT_OUTPUT = (
    "/embeddings", "/rerank", "/score", "/pooling", "/classify", "/moderations", "/tokenize", "/detokenize",
    "/transcriptions", "/translations", "/files", "/count_tokens", "/render",
)  # fmt: skip


def endpoint_of(path: str) -> Endpoint:
    """Return how requests to a path are read. Of one that is not known the output is taken to be the pool's default."""
    found = _READ.get(path)
    if found is not None:
        return found
    return _WITHOUT_OUTPUT if path.endswith(_ENDS_WITHOUT_OUTPUT) else _OTHER
