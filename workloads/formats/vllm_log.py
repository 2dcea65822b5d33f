"""What vLLM prints with ``--enable-log-requests`` and, better, ``--enable-log-outputs`` and VLLM_LOGGING_LEVEL=DEBUG.

As in vLLM 0.32 and 0.33 (``entrypoints/serve/utils/request_logger.py``, ``vllm/logger.py``) and before: at INFO a line
says when a request came and its parameters, ``max_tokens`` among them; at DEBUG also the prompt's token ids; with
outputs the answer, as a text or (DEBUG) token ids. Texts count four bytes a token. Times are whole seconds, without a
year and in the server's own zone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workloads.formats.log_lines import BYTES_PER_TOKEN, Logged, numbered_lines, object_of

STAMP = re.compile(
    r"(?:^|[\s\]m)])(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) (\d\d)-(\d\d) (\d\d):(\d\d):(\d\d) \[", re.ASCII
)
"""What lines of vLLM's log begin with; before it may stand a prefix and the process."""

_RECEIVED = re.compile(r"Received request (\S+?):? (?:prompt|params): ")
_DETAILS = re.compile(r"Request (\S+) details: prompt: ")
_BODY = re.compile(r"Request (\S+) JSON body: ")
_OUTPUT = re.compile(r"Generated response (\S+?)( \(streaming (?:delta|complete)\))?( details)?:? ")
_MAX_TOKENS = re.compile(r"\bmax_tokens=(\d{1,9})\b")
_LORA = re.compile(r"lora_name='([^']{1,200})'")
_IDS = re.compile(r"(prompt|output)_token_ids: \[([\d, ]*)\]")
_TEXT = re.compile(r"(?:prompt|output): ('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")")

_DAYS_BEFORE = (0, 31, 60, 91, 121, 152, 182, 213, 244, 274, 305, 335)  # of a leap year, which has every day
_HALF_A_YEAR_S = 183 * 86_400


@dataclass(slots=True)
class _Request:
    time_ns: int
    limit: int = 0
    prompt: int | None = None
    output: int | None = None
    adapter: str = ""

    def logged(self) -> Logged:
        return Logged(self.time_ns, self.prompt, self.output, self.limit, self.adapter)


def read(path: Path) -> Iterator[Logged | None]:
    """Yield the requests of a log: see `workloads.formats.logs`. The tenant is the LoRA adapter, where there is one."""
    waiting: dict[str, _Request] = {}
    before: dict[str, int | None] = {}  # prompts of requests whose own line comes next
    years_s, last_s = 0, 0
    for _, line in numbered_lines(path):
        stamp = STAMP.search(line)
        if stamp is None:
            continue
        at_s = _since_new_year_s(*map(int, stamp.groups()))
        if at_s is None:
            continue
        if at_s + years_s < last_s - _HALF_A_YEAR_S:  # a clock that is set back goes back by less than a new year
            years_s += 366 * 86_400
        last_s = at_s + years_s
        said = line[stamp.end() :]
        if (match := _RECEIVED.search(said)) is not None:
            name = match[1].rstrip(":")
            details, begun = before.pop(name, None), _begun(last_s, said)
            begun.prompt = begun.prompt if details is None else details
            if name in waiting:
                yield waiting.pop(name).logged()
            waiting[name] = begun
        elif (match := _DETAILS.search(said)) is not None:
            before[match[1]] = _counted("prompt", said, match.end() - len("prompt: "))
        elif (match := _BODY.search(said)) is not None and (name := _among(waiting, match[1])) is not None:
            _from_body(waiting[name], said[match.end() :])
        elif (match := _OUTPUT.search(said)) is not None and (name := _among(waiting, match[1])) is not None:
            if match[2] == " (streaming delta)":
                continue
            request = waiting[name]
            counted = _counted("output", said, match.end() - 1)
            request.output = counted if request.output is None else request.output
            if match[3] is None:
                yield waiting.pop(name).logged()
    for request in waiting.values():
        yield request.logged()


def _begun(at_s: int, said: str) -> _Request:
    limit, adapter = _MAX_TOKENS.search(said), _LORA.search(said)
    return _Request(
        at_s * 10**9, int(limit[1]) if limit is not None else 0, _counted("prompt", said, 0), None,
        adapter[1] if adapter is not None else "",
    )  # fmt: skip


def _since_new_year_s(month: int, day: int, hour: int, minute: int, second: int) -> int | None:
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 61):
        return None
    return (((_DAYS_BEFORE[month - 1] + day - 1) * 24 + hour) * 60 + minute) * 60 + second


def _among(waiting: dict[str, _Request], found: str) -> str | None:
    """Return the name under which a request waits: a completion's prompts are numbered, its answer is not."""
    name = found.rstrip(":")
    return name if name in waiting else f"{name}-0" if f"{name}-0" in waiting else None


def _counted(what: str, said: str, start: int) -> int | None:
    """Return the tokens of a prompt or an output: its ids, else its text's bytes over four; None where neither is."""
    for match in _IDS.finditer(said, start):
        if match[1] == what:
            return match[2].count(",") + 1 if match[2].strip() else 0
    text = _TEXT.match(said, said.find(f"{what}: ", start)) if f"{what}: " in said[start:] else None
    return None if text is None else -(-len(text[1][1:-1].encode()) // BYTES_PER_TOKEN)


def _from_body(request: _Request, text: str) -> None:
    body = object_of(text)
    if body is None:
        return
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if type(value) is int and 0 < value < 2**31:
            request.limit = value
    prompt = body.get("prompt", body.get("messages"))
    if isinstance(prompt, list) and prompt and all(type(one) is int for one in prompt):
        request.prompt = len(prompt)
    elif prompt is not None and request.prompt is None:
        request.prompt = -(-_text_bytes(prompt) // BYTES_PER_TOKEN)


def _text_bytes(value: object) -> int:
    if isinstance(value, str):
        return len(value.encode(errors="replace"))
    if isinstance(value, list):
        return sum(map(_text_bytes, value))
    if isinstance(value, dict):
        return sum(_text_bytes(one) for name, one in value.items() if name not in ("role", "type"))
    return 0
