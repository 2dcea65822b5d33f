"""What a client asks for, read from the body of its request, and the body that goes to the upstream.

The body is passed on as it came, but for fields that the gateway must set (`sim.live.gateway.json_text.changed`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn

from sim.json_text import is_text
from sim.live.gateway.error_responses import ApiError
from sim.live.gateway.json_text import Json, Raw, Span, changed, describe, read_object, spans
from sim.live.gateway.prompt_text import Prefix, prefix_of, session_in
from sim.live.gateway.settings import Estimate

_MOST_TOKENS = 2**31
_NOT_FOR_CLIENTS = (
    "kv_transfer_params", "ec_transfer_params", "data_parallel_rank", "dp_rank", "bootstrap_host", "bootstrap_port",
    "bootstrap_room", "disagg_prefill_dp_rank", "request_id",
)  # fmt: skip
"""What a router tells an engine: whose cache to read, which rank to take, whose request this is."""
_CARRIERS = ("vllm_xargs", "extra_args", "extra_body")
_MOST_QUOTES = 400_000
"""Of a body, which so has half as many fields and texts at most: a million names hold the interpreter for a second.
[choice]"""
_SET_BY_GATEWAY = ("stream_options", "priority", "cache_salt")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How requests to one path are read and priced.

    Attributes
    ----------
    shape : what the body is, for whoever counts its prompts.
    limits : fields that bound the output; the largest counts, since servers differ in which they obey.
    prompts : checks the fields that the path needs, and returns how many prompts there are.
    methods : what may be done with the path.
    tells_usage : whether its streams tell the usage if ``stream_options`` says so.
    read : False for a body that is no JSON.
    generates : whether there is output to reserve tokens for.
    refuses_long : whether engines refuse a limit that does not fit the context, instead of lowering it.
    needs_model : whether the body must name a model.
    owned : whether the path names something that another request made.
    output_tokens : what to reserve for the output where nothing says how much; None for the pool's default.
    sequences : of a body that is not read.
    """

    shape: str
    limits: tuple[str, ...] = ()
    prompts: Callable[[Json], int] = lambda _: 1
    methods: tuple[str, ...] = ("POST",)
    tells_usage: bool = False
    read: bool = True
    generates: bool = True
    refuses_long: bool = False
    needs_model: bool = False
    owned: bool = False
    output_tokens: int | None = None
    sequences: int = 1


@dataclass(slots=True)
class ParsedBody:
    """A request, read.

    Attributes
    ----------
    max_output_tokens : of one answer; None where the client named none.
    prompts, samples : how many prompts there are, and how many answers to each are generated.
    wants_usage, wants_continuous : whether the client asked for the usage at the end of its stream, and in each event.
    background : whether the answer is made after the request has been answered.
    previous : the stored response that it goes on from.
    fields : the whole body; dropped once it is counted.
    stream_options : as the client wrote them; empty where there are none.
    where : where the fields stand that the gateway may set.
    counted : the tokens of its prompts and the least of the largest, where they were counted as the body was read.
    session : what it calls its conversation or agent; empty where it does not.
    prefix : what is known of its prompt's text, where that was asked for.
    """

    model: str
    stream: bool
    max_output_tokens: int | None
    prompts: int
    samples: int
    priority: int
    wants_usage: bool
    wants_continuous: bool
    background: bool
    previous: str | None
    fields: Json
    stream_options: str
    where: Mapping[str, Span]
    counted: tuple[int, int] | None = None
    session: str = ""
    prefix: Prefix = ()

    @property
    def sequences(self) -> int:
        """How many sequences an engine runs for it."""
        return self.prompts * self.samples

    def drop_fields(self) -> None:
        """Forget the parsed body, which may take many times the memory of its text."""
        self.fields = {}


def read_json(body: bytes) -> tuple[Json, str]:
    """Return the object that a body holds, and its text.

    Raises
    ------
    ApiError : 400, it holds none, or a field twice.
    """
    if body.count(b'"') - body.count(b'\\"') > _MOST_QUOTES:
        _refuse("too_many_fields", f"The body has more than {_MOST_QUOTES // 2} names and texts.")
    try:
        text = body.decode()
        return read_object(text), text
    except UnicodeDecodeError as error:
        _refuse("invalid_json", f"The body is not UTF-8 text (byte {error.start}).")
    except RecursionError:
        _refuse("invalid_json", "The body is nested too deeply.")
    except ValueError as error:
        _refuse("invalid_json", f"The body is not valid JSON: {error}.")


def read_body(
    endpoint: Endpoint, body: bytes, most_answers: int, most_prompts: int, *, salt: str | None = None,
    rule: Estimate | None = None,
) -> ParsedBody:
    """Return what a body asks for. It needs nothing but its arguments, so that it may run in another thread.

    Parameters
    ----------
    salt : whose cache its text would be found in; None where nobody wants to know of its text.
    rule : how many bytes a token has, and what media cost; None for what estimates take by default.

    Raises
    ------
    ApiError : 400, it is no JSON, or a field has the wrong type or an impossible value.
    """
    fields, text = read_json(body)
    parsed = parse_body(endpoint, fields, most_answers, most_prompts)
    if salt is not None and endpoint.generates:
        try:
            parsed.prefix = prefix_of(endpoint.shape, fields, salt, rule or Estimate())
        except RecursionError:
            _refuse("invalid_json", "The body is nested too deeply.")
    names = [name for name in _SET_BY_GATEWAY if name in fields]
    if parsed.max_output_tokens is None:  # a limit that the client named is never another's to set
        names += [name for name in endpoint.limits[:1] if name in fields]
    if names:
        parsed.where = where = spans(text, names)
        if isinstance(fields.get("stream_options"), dict):
            begin, end = where["stream_options"]
            parsed.stream_options = text[begin:end]
    return parsed


def parse_body(endpoint: Endpoint, fields: Json, most_answers: int, most_prompts: int = 2048) -> ParsedBody:
    """Return what a request asks for.

    Raises
    ------
    ApiError : 400, a field has the wrong type or an impossible value.
    """
    model = _model(endpoint, fields)
    _check_router_fields(fields)
    stream = fields.get("stream")
    if stream is not None and type(stream) is not bool:
        _wrong("stream", stream, "true or false")
    prompts = endpoint.prompts(fields)
    samples = 1
    if endpoint.generates:
        samples = max(_whole(fields, name, 1) for name in ("n", "best_of", "beam_width"))
        if prompts * samples > most_answers:
            said = f"{prompts * samples} answers are asked for, at most {most_answers} are given."
            _refuse("too_many_choices", said, "n")
    elif prompts > most_prompts:
        _refuse("too_many_prompts", f"{prompts} prompts are given, at most {most_prompts} are taken.", "input")
    limits = [_whole(fields, name, 0) for name in endpoint.limits if fields.get(name) is not None]
    priority = fields.get("priority")
    if priority is None:
        priority = 0
    elif type(priority) is not int or not 0 <= priority < _MOST_TOKENS:
        _wrong("priority", priority, "a whole number from 0: a client may only lower its priority")
    options = fields.get("stream_options")
    if options is not None and type(options) is not dict:
        _wrong("stream_options", options, "an object")
    options = options or {}
    background = fields.get("background") is True and endpoint.shape == "responses"
    if background and stream:
        _refuse("invalid_value", "A response in the background is not streamed here: poll it.", "background")
    previous = fields.get("previous_response_id") if endpoint.shape == "responses" else None
    if previous is not None and type(previous) is not str:
        _wrong("previous_response_id", previous, "the id of a response")
    return ParsedBody(
        model=model, stream=bool(stream), max_output_tokens=max(limits) if limits else None, prompts=prompts,
        samples=samples, priority=priority, wants_usage=options.get("include_usage") is True,
        wants_continuous=options.get("continuous_usage_stats") is True, background=background, previous=previous,
        fields=fields, stream_options="", where={}, session=session_in(endpoint.shape, fields),
    )  # fmt: skip


def upstream_body(
    body: bytes, endpoint: Endpoint, parsed: ParsedBody, *, default_output_tokens: int | None, priority: int,
    continuous: bool, cache_salt: str | None,
) -> bytes:
    """Return the body to send.

    Parameters
    ----------
    default_output_tokens : limit to write where the client named none; None to write nothing.
    continuous : whether each event of a stream shall tell the usage so far.
    cache_salt : what keeps the prefix cache of a tenant to itself; None to leave it to the client.
    """
    changes: Json = {}
    if parsed.max_output_tokens is None and default_output_tokens is not None and endpoint.limits:
        changes[endpoint.limits[0]] = default_output_tokens
    if parsed.stream and endpoint.tells_usage:
        wanted = [] if parsed.wants_usage else ["include_usage"]
        if continuous and not parsed.wants_continuous:
            wanted.append("continuous_usage_stats")
        if wanted:
            said, names = parsed.stream_options, tuple(wanted)
            changes["stream_options"] = _with_options(said, names) if said else _options_alone(names)
    if priority != parsed.priority:
        changes["priority"] = priority
    if cache_salt is not None:
        changes["cache_salt"] = cache_salt
    return changed(body, parsed.where, changes)


def _with_options(said: str, wanted: tuple[str, ...]) -> Raw:
    """Return ``stream_options`` as a client said them, with those that are wanted."""
    options = dict.fromkeys(wanted, True)
    return Raw(changed(said.encode(), spans(said, options), options).decode())


@cache
def _options_alone(wanted: tuple[str, ...]) -> Raw:
    """Return the same of a client that said none, as most do."""
    return _with_options("{}", wanted)


# --------------------------------------------------------------------------------------------------------------------
# Fields


def _model(endpoint: Endpoint, fields: Json) -> str:
    model = fields.get("model")
    if model is None and not endpoint.needs_model:
        return ""
    if type(model) is not str or not model:
        _wrong("model", model, "the name of a model")
    if not is_text(model):
        _refuse("invalid_value", "model holds half a character (a lone surrogate).", "model")
    return model


def _check_router_fields(fields: Json) -> None:
    """Refuse what only a router may tell an engine, wherever an engine would read it."""
    for name in _NOT_FOR_CLIENTS:
        if fields.get(name) is not None:
            _refuse("field_not_allowed", f"{name} is for routers; a client may not send it.", name)
    for carrier in _CARRIERS:
        inner = fields.get(carrier)
        if isinstance(inner, dict):
            for name in _NOT_FOR_CLIENTS:
                if inner.get(name) is not None:
                    where = f"{carrier}.{name}"
                    _refuse("field_not_allowed", f"{where} is for routers; a client may not send it.", where)


def _whole(fields: Mapping[str, Any], name: str, least: int) -> int:
    value = fields.get(name)
    if value is None:
        return least
    if type(value) is float and value.is_integer():  # as languages without whole numbers write them, and engines take
        value = int(value)
    if type(value) is not int or not least <= value < _MOST_TOKENS:
        _wrong(name, value, f"a whole number from {least}")
    return value


def completion_prompts(fields: Json) -> int:
    """Return how many prompts a completion has, embeddings included."""
    embeds = fields.get("prompt_embeds")
    count = 0
    if embeds is not None:
        if type(embeds) is str:
            count = 1
        elif type(embeds) is list and embeds and all(type(one) is str for one in embeds):
            count = len(embeds)
        else:
            _wrong("prompt_embeds", embeds, "text in base64, or a list of such texts")
    prompt = fields.get("prompt")
    if prompt is None and count:
        return count
    if type(prompt) is str:
        return count + 1
    if type(prompt) is list and prompt:
        if all(type(one) is int for one in prompt):
            return count + 1
        if all(type(one) is str for one in prompt):
            return count + len(prompt)
        if all(type(one) is list and all(type(token) is int for token in one) for one in prompt):
            return count + len(prompt)
    if not (prompt == [] and count):
        _wrong("prompt", prompt, "text, a list of texts, a list of tokens or a list of such lists")
    return count


def chat_prompts(fields: Json) -> int:
    """Check the messages of a chat, which are one prompt."""
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


def pooling_prompts(fields: Json) -> int:
    """Return how many prompts an embedding, a classification or the like has; engines run a sequence for each."""
    for name in ("input", "data", "prompt"):
        if name in fields:
            return len(listed(fields[name]))
    return 1


def paired_prompts(fields: Json) -> int:
    """Return how many pairs a score or a reranking has; engines run a sequence for each."""
    lefts, rights = pairs(fields)
    return max(1, len(lefts), len(rights))


def listed(prompts: Any) -> list[Any]:
    """Return prompts one by one: a text, a list of tokens and an object are one."""
    if type(prompts) is list and prompts and type(prompts[0]) is not int:
        return prompts
    return [prompts]


def pairs(fields: Json) -> tuple[list[Any], list[Any]]:
    """Return both sides of what is compared, as the several spellings of scores and rerankings have them."""

    def side(*names: str) -> list[Any]:
        value = next((fields[name] for name in names if name in fields), None)
        if type(value) is dict and type(value.get("content")) is list:  # parts, each compared by itself
            return value["content"] or [None]
        return [] if value is None else listed(value)

    return side("query", "queries", "text_1", "data_1"), side("documents", "text_2", "data_2", "items")


def _wrong(name: str, value: object, expected: str) -> NoReturn:
    _refuse("invalid_value", f"{name} is {describe(value)}, expected {expected}.", name)


def _refuse(code: str, message: str, param: str | None = None) -> NoReturn:
    raise ApiError(400, code, message, param=param)
