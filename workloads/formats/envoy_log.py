"""Envoy's access log as JSON, an object a line, with the tokens that a filter left in its dynamic metadata.

What a line holds is the operator's ``json_format``; read are ``start_time`` and ``response_code``, as Envoy's example
names them, and the first there is of the names below. docs/traffic.md has a format that has them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from workloads.formats.log_lines import Fields, Logged, Torn, is_torn, numbered_lines, object_of

WANTED = frozenset(("start_time", "response_code"))
PROMPT = ("input_tokens", "prompt_tokens", "genai_tokens_input", "llm_input_token", "gen_ai.usage.input_tokens")
OUTPUT = ("output_tokens", "completion_tokens", "genai_tokens_output", "llm_output_token", "gen_ai.usage.output_tokens")
LIMIT = ("max_tokens", "max_completion_tokens", "gen_ai.request.max_tokens")
TENANT = ("tenant", "entitlement", "x-tenant-id", "user_id", "user")
SERVICE = ("model", "genai_model_name", "gen_ai.request.model", "model_name")
SESSION = ("session_id", "session.id")

_NEVER_SERVED = frozenset((400, 401, 403, 404, 405, 413, 415, 422))


def read(path: Path) -> Iterator[Logged | Torn | None]:
    """Yield every request: see `workloads.formats.logs`.

    What was refused for a while (429, 5xx) or broke off (0) is demand without an answer. Left out are answers without
    tokens, which are of other pages, and what was refused for good.
    """
    for number, line in numbered_lines(path):
        found = object_of(line)
        if found is None and is_torn(line):
            yield Torn(number)
        if found is None or not found.keys() >= WANTED:
            continue  # Envoy's own log may stand between
        values = {name: value for name, value in found.items() if value not in ("-", "")}  # as Envoy writes nothing
        yield _logged(Fields(str(path), number, values))


def _logged(fields: Fields) -> Logged | None:
    code = fields.tokens("response_code") or 0
    prompt, output = _first(fields, PROMPT), _first(fields, OUTPUT)
    answered = 200 <= code < 400
    if code in _NEVER_SERVED or (answered and not (prompt or output)):
        return None
    return Logged(
        fields.time_ns("start_time"), prompt or None, output if answered else None, _first(fields, LIMIT) or 0,
        fields.text(*TENANT), fields.text(*SERVICE), fields.text(*SESSION),
    )  # fmt: skip


def _first(fields: Fields, names: tuple[str, ...]) -> int | None:
    return next((found for name in names if (found := fields.tokens(name)) is not None), None)
