"""What answers look like: OpenAI's objects, with the details that vLLM adds."""

from __future__ import annotations

import json
from typing import Any

from sim.mock_server.request_body import Asked
from sim.mock_server.tokens import output_text

Json = dict[str, Any]
DONE = b"data: [DONE]\n\n"


def usage(prompt_tokens: int, output_tokens: int) -> Json:
    """Return a usage object."""
    return {
        "prompt_tokens": prompt_tokens, "completion_tokens": output_tokens,
        "total_tokens": prompt_tokens + output_tokens,
    }  # fmt: skip


class Answer:
    """Writes the answers to one request."""

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

    def whole(self) -> Json:
        """Return the answer in one piece."""
        asked = self._asked
        tokens = [n for n in asked.output_tokens for _ in range(asked.answers)]
        choices = []
        for index, count in enumerate(tokens):
            text = output_text(0, count)
            said = {"message": {"role": "assistant", "content": text}} if asked.chat else {"text": text}
            choices.append({"index": index, **said, "logprobs": None, "finish_reason": self.reason(index)})
        return self._head | {"choices": choices, "usage": usage(self._prompt_tokens, sum(tokens))}

    def reason(self, index: int) -> str:
        """Return why an answer ends."""
        return "stop" if self._asked.stops[index // self._asked.answers] else "length"

    def role(self, index: int) -> bytes:
        """Return the event that begins a chat's answer, which carries no token."""
        delta = {"delta": {"role": "assistant", "content": ""}}
        return self._event([{"index": index, **delta, "logprobs": None, "finish_reason": None}], 0)

    def piece(self, index: int, first: int, stop: int, all_tokens: int, *, last: bool) -> bytes:
        """Return the event of output tokens ``first`` to before ``stop``; ``all_tokens`` are those of every answer."""
        text = output_text(first, stop)
        said = {"delta": {"content": text}} if self._asked.chat else {"text": text}
        reason = self.reason(index) if last else None
        return self._event([{"index": index, **said, "logprobs": None, "finish_reason": reason}], all_tokens)

    def last_usage(self, all_tokens: int) -> bytes:
        """Return the event that tells the usage of the whole."""
        return _framed(self._head | {"choices": [], "usage": usage(self._prompt_tokens, all_tokens)})

    def _event(self, choices: list[Json], all_tokens: int) -> bytes:
        more = {"usage": usage(self._prompt_tokens, all_tokens)} if self._asked.each_usage else {}
        return _framed(self._head | {"choices": choices} | more)


def _framed(value: Json) -> bytes:
    return b"data: %b\n\n" % json.dumps(value, separators=(",", ":")).encode()


def error_body(message: str, status: int) -> Json:
    """Return an error as vLLM says it."""
    kind = {401: "Unauthorized", 404: "NotFoundError"}.get(status, "BadRequestError")
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}
