"""The log of `tokenpools serve` (``logs: {style: json}``): a line for each attempt when it has ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from workloads.formats.log_lines import Fields, Logged, Torn, is_torn, numbered_lines, object_of

LOGGER = "tokenpools.requests"
_ANSWERED = "finished"
_CUT = "cancelled"
_NO_WORK = ("/models", "/tokenize", "/detokenize", "/count_tokens")
"""Ends of paths that ask an engine for no tokens."""
_NEVER_SERVED = frozenset((400, 401, 403, 404, 405, 411, 413, 415, 422))
"""Answers to what no limit and no more replicas would have let in."""


def read(path: Path) -> Iterator[Logged | Torn | None]:
    """Yield the first attempt of every request: see `workloads.formats.logs`.

    A client's further attempts at the same thing are no more demand. What was turned away for good (no key, not JSON,
    too large) is left out.
    """
    for number, line in numbered_lines(path):
        said = object_of(line)
        if said is None and is_torn(line):
            yield Torn(number)
        if said is None or said.get("logger") != LOGGER or "verdict" not in said:
            continue
        fields = Fields(str(path), number, said)
        attempt = fields.tokens("attempt") or 1
        status = fields.tokens("http_status") or 0
        if fields.text("endpoint").endswith(_NO_WORK):
            continue
        if attempt > 1 or status in _NEVER_SERVED or not fields.text("entitlement", "tenant"):
            yield None
            continue
        verdict, output = fields.text("verdict"), fields.tokens("output_tokens")
        answered = verdict == _ANSWERED or (verdict == _CUT and bool(output))
        prompt = fields.tokens("counted_prompt_tokens")
        yield Logged(
            fields.time_ns("time") - round((fields.seconds("duration_s") or 0.0) * 1e9),
            fields.tokens("prompt_tokens") if prompt is None else prompt,
            output if answered else None,
            fields.tokens("max_output_tokens") or 0,
            fields.text("entitlement", "tenant"),
            fields.text("model"),
        )
