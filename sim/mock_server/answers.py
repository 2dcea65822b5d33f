"""What answers look like: OpenAI's objects, with the details that vLLM adds."""

from __future__ import annotations

import json
from typing import Any

from sim.mock_server.request_body import Asked
from sim.mock_server.tokens import output_text

Json = dict[str, Any]
DONE = b"data: [DONE]\n\n"


def usage(prompt_tokens: int, output_tokens: int, cached_tokens: int | None = None) -> Json:
    """Return a usage object, with what was found of the prompts where that is known."""
    details = {} if cached_tokens is None else {"prompt_tokens_details": {"cached_tokens": cached_tokens}}
    return {
        "prompt_tokens": prompt_tokens, "completion_tokens": output_tokens,
        "total_tokens": prompt_tokens + output_tokens, **details,
    }  # fmt: skip


class Answer:
    """Writes the answers to one request.

    Attributes
    ----------
    cached_tokens : what was found of its prompts, once that is known; None where nothing is kept.
    """

    def __init__(self, asked: Asked, number: int, created_s: int) -> None:
        self._asked = asked
        self._prompt_tokens = sum(map(len, asked.prompts))
        kind = "chat.completion" if asked.chat else "text_completion"
        self._head: Json = {
            "id": f"{'chatcmpl' if asked.chat else 'cmpl'}-mock-{number}",
            "object": f"{kind}.chunk" if asked.chat and asked.stream else kind,
            "created": created_s,
            "model": asked.model,
        }
        self._frames: dict[int, tuple[bytes, bytes, bytes]] = {}
        self.cached_tokens: int | None = None

    def whole(self) -> Json:
        """Return the answer in one piece."""
        asked = self._asked
        tokens = [n for n in asked.output_tokens for _ in range(asked.answers)]
        choices = []
        for index, count in enumerate(tokens):
            text = output_text(0, count)
            said = {"message": {"role": "assistant", "content": text}} if asked.chat else {"text": text}
            choices.append({"index": index, **said, "logprobs": None, "finish_reason": self.reason(index)})
        return self._head | {"choices": choices, "usage": self._usage(sum(tokens))}

    def reason(self, index: int) -> str:
        """Return why an answer ends."""
        return "stop" if self._asked.stops[index // self._asked.answers] else "length"

    def role(self, index: int) -> bytes:
        """Return the event that begins a chat's answer, which carries no token."""
        delta = {"delta": {"role": "assistant", "content": ""}}
        return self._event([{"index": index, **delta, "logprobs": None, "finish_reason": None}], 0)

    def piece(self, index: int, first: int, stop: int, all_tokens: int, *, last: bool) -> bytes:
        """Return the event of output tokens ``first`` to before ``stop``; ``all_tokens`` are those of every answer."""
        if index not in self._frames:
            self._frames[index] = self._frame(index)
        begin, middle, end = self._frames[index]
        text = output_text(first, stop).encode()
        reason = b'"%b"' % self.reason(index).encode() if last else b"null"
        counts = _dumped(usage(self._prompt_tokens, all_tokens)) if self._asked.each_usage else b""
        return b"".join((begin, text, middle, reason, end, counts, b"}\n\n"))

    def _frame(self, index: int) -> tuple[bytes, bytes, bytes]:
        """Return what stands before the text of an answer's events, before its reason, and before the usage.

        Writing the same fields anew for every token would take half of a large batch's iteration. The words of answers
        need no escapes in JSON.
        """
        text, reason = "\0text", "\0reason"
        said = {"delta": {"content": text}} if self._asked.chat else {"text": text}
        choice = {"index": index, **said, "logprobs": None, "finish_reason": reason}
        whole = _dumped(self._head | {"choices": [choice]})[:-1]
        begin, rest = whole.rsplit(_dumped(text)[1:-1], 1)
        middle, end = rest.split(_dumped(reason))
        return b"data: " + begin, middle, end + (b',"usage":' if self._asked.each_usage else b"")

    def last_usage(self, all_tokens: int) -> bytes:
        """Return the event that tells the usage of the whole."""
        return _framed(self._head | {"choices": [], "usage": self._usage(all_tokens)})

    def _usage(self, all_tokens: int) -> Json:
        return usage(self._prompt_tokens, all_tokens, self.cached_tokens)

    def _event(self, choices: list[Json], all_tokens: int) -> bytes:
        more = {"usage": usage(self._prompt_tokens, all_tokens)} if self._asked.each_usage else {}
        return _framed(self._head | {"choices": choices} | more)


def _framed(value: Json) -> bytes:
    return b"data: %b\n\n" % _dumped(value)


def _dumped(value: Json | str) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def error_body(message: str, status: int) -> Json:
    """Return an error as vLLM says it."""
    kind = {401: "Unauthorized", 404: "NotFoundError"}.get(status, "BadRequestError")
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}
