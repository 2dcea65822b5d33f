"""Whose a request to LiteLLM is, and what it asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sim.adapters.admission.tenants import Tenants

GENERATING = frozenset({
    "completion", "acompletion", "text_completion", "atext_completion", "responses", "aresponses", "anthropic_messages",
})  # fmt: skip
"""Types of calls that are admitted with the output that they may generate."""
EMBEDDING = frozenset({"embedding", "embeddings", "aembedding"})
"""Types of calls that are admitted by their prompt alone. All others pass."""

_BYTES_PER_TOKEN = 4
_DEEPEST = 12


def names_of(auth: Any) -> Iterator[str]:
    """Return what a key of LiteLLM may be called in the configuration, the most particular first.

    ``key:`` alias or hash, ``team:`` id, ``org:`` id. The prefix keeps them apart: an alias is chosen by whoever makes
    the key, and must not be another team's name.
    """
    for prefix, attributes in (
        ("key", ("key_alias", "token", "api_key")), ("team", ("team_id",)), ("org", ("org_id", "organization_id")),
    ):  # fmt: skip
        for attribute in attributes:
            value = getattr(auth, attribute, None)
            if isinstance(value, str) and value:
                yield f"{prefix}:{value}"


def tenant_of(auth: Any, tenants: Tenants) -> str:
    """Return the name under which a key is served: the first that is known."""
    names = list(names_of(auth))
    for name in names:
        if name in tenants:
            return name
    return next((name for name in reversed(names) if not name.startswith("key:")), "without a team")


def asked_for(data: Mapping[str, Any], call_type: str) -> dict[str, Any]:
    """Return the arguments of an admission: prompt tokens by the length of the text, the limit, and the answers."""
    prompt = [data.get(name) for name in ("messages", "prompt", "input", "instructions", "system", "tools")]
    prompt_tokens = -(-_size(prompt) // _BYTES_PER_TOKEN)
    if call_type in EMBEDDING:
        return {"prompt_tokens": prompt_tokens, "max_tokens": 0, "sequences": 1}
    most = None
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        if (most := _count(data.get(name), None)) is not None:
            break
    answers = _count(data.get("n"), 1) or 1
    return {
        "prompt_tokens": prompt_tokens, "max_tokens": None if most is None else most * answers, "sequences": answers,
    }  # fmt: skip


def _count(value: object, otherwise: int | None) -> int | None:
    return value if type(value) is int and 0 <= value < 2**40 else otherwise


def _size(value: object, depth: int = 0) -> int:
    """Return the bytes of all text in a value; what is too deep counts as nothing."""
    if isinstance(value, str):
        return len(value.encode(errors="replace"))
    if depth > _DEEPEST:
        return 0
    if isinstance(value, Mapping):
        return sum(_size(one, depth + 1) for one in value.values())
    if isinstance(value, list | tuple):
        return sum(_BYTES_PER_TOKEN if type(one) is int else _size(one, depth + 1) for one in value)
    return 0
