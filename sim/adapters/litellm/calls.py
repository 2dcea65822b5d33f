"""What a call of LiteLLM's asks of the pool, by its type and by the fields that its client sent.

Calls of engines' APIs are read as our own gateway reads them. Every other call that may reach a model is priced by the
size of its texts and files and by the pool's default output, so that no path is a way around a budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from policies.core import GatewayCore
from sim.adapters.admission.asked import asked_of
from sim.live.gateway.endpoints import Endpoints
from sim.live.gateway.media import sound_tokens
from sim.live.gateway.prompt_tokens import EstimatingCounter
from sim.live.gateway.request_body import Endpoint, parse_body
from sim.live.gateway.settings import Estimate

_PATHS = {
    "/v1/chat/completions": ("completion", "acompletion"),
    "/v1/completions": ("text_completion", "atext_completion"),
    "/v1/responses": ("responses", "aresponses", "compact_responses", "acompact_responses"),
    "/v1/messages": ("anthropic_messages", "aanthropic_messages"),
    "/v1/embeddings": ("embedding", "embeddings", "aembedding"),
    "/v1/moderations": ("moderation", "amoderation"),
    "/v1/rerank": ("rerank", "arerank"),
}
_SOUND = frozenset({"transcription", "atranscription"})
_WITHOUT_A_MODEL = (
    "retrieve", "list", "delete", "cancel", "file", "container", "get_", "vector_store", "assistant", "thread", "skill",
    "mcp", "sandbox", "batch", "fine_tuning", "add_message", "client_secret",
)  # fmt: skip
"""Words in the types of calls that keep files, lists and settings: they generate nothing in a pool's replicas."""
_LITELLMS = frozenset({
    "metadata", "litellm_metadata", "proxy_server_request", "litellm_logging_obj", "litellm_call_id", "secret_fields",
    "user_api_key_dict", "extra_body", "extra_headers", "extra_query", "litellm_params", "provider_specific_header",
})  # fmt: skip
_DEEPEST = 12
_BYTES_PER_TOKEN = 4
_MOST_ANSWERS, _MOST_PROMPTS = 128, 2048


def _by_type() -> dict[str, Endpoint]:
    endpoints = Endpoints()
    found: dict[str, Endpoint] = {}
    for path, types in _PATHS.items():
        endpoint = endpoints.find(path)
        assert endpoint is not None
        found |= dict.fromkeys(types, endpoint)
    return found


_ENDPOINTS = _by_type()


def is_free(call_type: str) -> bool:
    """Return whether calls of a type generate nothing in a pool's replicas; what is not known does."""
    return call_type not in _ENDPOINTS and any(word in call_type for word in _WITHOUT_A_MODEL)


def is_measured(call_type: str) -> bool:
    """Return whether a call of this type says what it used, or streams what can be counted."""
    return call_type in _ENDPOINTS


class Calls:
    """Reads calls for one pool.

    Parameters
    ----------
    most_sequences : that a replica runs at once; a call takes no more slots.
    """

    def __init__(self, most_sequences: int) -> None:
        self._most_sequences = most_sequences
        self._rule = Estimate()
        self._counter = EstimatingCounter(self._rule)

    def asked(self, data: Mapping[str, Any], call_type: str, core: GatewayCore) -> dict[str, Any]:
        """Return the arguments of an admission.

        Raises
        ------
        ApiError : 400, a field has the wrong type or an impossible value.
        """
        fields = _fields(data)
        endpoint = _ENDPOINTS.get(call_type)
        if endpoint is not None:
            model = data.get("model")  # whether there is such a one LiteLLM says
            fields["model"] = model if isinstance(model, str) and model else "none"
            parsed = parse_body(endpoint, fields, _MOST_ANSWERS, _MOST_PROMPTS)
            return asked_of(endpoint, parsed, self._counter, core, self._most_sequences)
        tokens = -(-_size(fields) // _BYTES_PER_TOKEN)
        if call_type in _SOUND:
            tokens = sound_tokens(_size(data.get("file")), self._rule)
        return {"prompt_tokens": max(1, tokens), "max_tokens": None, "context_tokens": 1, "priority": 0, "sequences": 1}


def _fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the client sent, as the model server will get it: ``extra_body`` is merged over the rest."""
    request = data.get("proxy_server_request")
    sent = request.get("body") if isinstance(request, Mapping) else None
    names = sent.keys() if isinstance(sent, Mapping) and sent else data.keys()
    fields = {name: data[name] for name in names if name in data and name not in _LITELLMS}
    extra = data.get("extra_body")
    return fields | extra if isinstance(extra, dict) else fields


def _size(value: object, depth: int = 0) -> int:
    """Return the bytes of all text and files in a value; what is too deep counts as nothing."""
    if isinstance(value, str):
        return len(value.encode(errors="replace"))
    if isinstance(value, bytes | bytearray | memoryview):
        return len(value)
    if depth > _DEEPEST:
        return 0
    if isinstance(value, Mapping):
        return sum(_size(one, depth + 1) for one in value.values())
    if isinstance(value, list | tuple):
        return sum(_BYTES_PER_TOKEN if type(one) is int else _size(one, depth + 1) for one in value)
    buffer = getattr(value, "getbuffer", None)  # a file in memory
    if callable(buffer):
        return len(buffer())
    size = getattr(value, "size", None)
    return size if type(size) is int and size > 0 else 0
