"""What the gateway serves, as an OpenAPI 3.1 description: the endpoints that it reads, and its answers.

Fields that it does not read are the upstream's, so objects are open. Every answer of the gateway's own is described; a
test sends requests made from this description and holds the answers against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from policies.api import ServiceClass
from sim.live.gateway.prompt_text import SESSION_HEADERS

_TOKENS = {"type": ["integer", "null"], "minimum": 0, "maximum": 2**31 - 1}
_CHOICES = {"type": ["integer", "null"], "minimum": 1, "maximum": 2**31 - 1}
_COMMON: dict[str, Any] = {
    "model": {"type": "string", "minLength": 1},
    "max_tokens": {**_TOKENS, "description": "Output tokens of one answer; left out, the model server's own."},
    "n": _CHOICES,
    "best_of": _CHOICES,
    "stream": {"type": ["boolean", "null"]},
    "stream_options": {"type": ["object", "null"], "properties": {"include_usage": {"type": "boolean"}}},
    "priority": {
        "type": ["integer", "null"], "minimum": 0, "maximum": 2**31 - 1,
        "description": "The engine's priority, lower first; a client may only lower its own.",
    },
}  # fmt: skip
_TOKEN_LIST = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
_COMPLETION = {
    "type": "object",
    "required": ["model", "prompt"],
    "properties": {
        **_COMMON,
        "prompt": {
            "anyOf": [
                {"type": "string"}, _TOKEN_LIST,
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}, "minItems": 1},
            ]
        },
    },
}  # fmt: skip
_MESSAGE = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"type": "string"},
        "content": {
            "anyOf": [
                {"type": "null"}, {"type": "string"},
                {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "object"}]}},
            ]
        },
    },
}  # fmt: skip
_CHAT = {
    "type": "object",
    "required": ["model", "messages"],
    "properties": {
        **_COMMON,
        "max_completion_tokens": _TOKENS,
        "messages": {"type": "array", "items": _MESSAGE, "minItems": 1},
    },
}
_EMBEDDINGS = {
    "type": "object",
    "required": ["input"],
    "properties": {
        "model": {"type": "string", "minLength": 1},
        "input": {
            "anyOf": [
                {"type": "string"}, _TOKEN_LIST, {"type": "array", "items": {"type": "string"}, "minItems": 1},
            ]
        },
    },
}  # fmt: skip
_RESPONSE = {
    "type": "object",
    "required": ["model", "input"],
    "properties": {
        "model": {"type": "string", "minLength": 1},
        "input": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]},
        "max_output_tokens": _TOKENS,
        "stream": {"type": ["boolean", "null"]},
    },
}  # fmt: skip
_MESSAGES = {
    "type": "object",
    "required": ["model", "messages", "max_tokens"],
    "properties": {
        "model": {"type": "string", "minLength": 1},
        "messages": {"type": "array", "items": _MESSAGE, "minItems": 1},
        "max_tokens": {"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
        "stream": {"type": ["boolean", "null"]},
    },
}  # fmt: skip
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code"],
            "properties": {
                "message": {"type": "string"}, "type": {"type": "string"}, "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
                "reason": {"type": "string", "description": "Why the request was refused, one word."},
                "needed": {"type": "number"}, "available": {"type": "number"},
            },
        }
    },
}  # fmt: skip
_RETRY: dict[str, Any] = {
    "Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds."},
    "retry-after-ms": {"schema": {"type": "integer", "minimum": 1}},
    "x-should-retry": {"schema": {"enum": ["false"]}, "description": "Where waiting does not help."},
}
_LEFT = {
    f"x-ratelimit-{what}-{unit}": {"schema": {"type": "string"}}
    for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")
}  # fmt: skip
_PROBLEMS = {
    "400": "The request is malformed, or can never fit the model's context.",
    "401": "No API key, or one that is not known.",
    "403": "The entitlement is not in force, or the class asked for is above the key's own.",
    "404": "The model is not served.",
    "408": "The body came too slowly.",
    "413": "The body is too large.",
    "429": "The entitlement's limit, or the pool's; Retry-After says when to come back.",
    "431": "The headers are too large.",
    "500": "An error of the model server.",
    "502": "An error of the model server.",
    "503": "No replica is ready, or it broke off before its first byte.",
    "504": "The model server did not answer in time.",
}


def _answers() -> dict[str, Any]:
    good = {
        "description": "As the model server gives it; a stream where one was asked for.",
        "headers": _LEFT,
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    }
    found: dict[str, Any] = {"200": good}
    for status, words in _PROBLEMS.items():
        headers = {**_RETRY, **_LEFT} if status in ("429", "503") else {}
        found[status] = {
            "description": words, "headers": headers, "content": {"application/json": {"schema": _ERROR}},
        }  # fmt: skip
    return found


def _post(name: str, body: dict[str, Any], class_header: str) -> dict[str, Any]:
    return {
        "post": {
            "operationId": name,
            "security": [{"key": []}],
            "parameters": [
                {
                    "name": class_header, "in": "header", "required": False,
                    "schema": {"enum": [str(one) for one in ServiceClass]},
                    "description": "Serve this request under the tenant's entitlement of a lower class.",
                },
                {
                    "name": SESSION_HEADERS[0].decode(), "in": "header", "required": False,
                    "schema": {"type": "string"},
                    "description": "The conversation or agent that it belongs to, for policies that go by sessions.",
                },
            ],
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
            "responses": _answers(),
        }
    }  # fmt: skip


def _get(name: str, words: str, kind: str, *, secure: bool = False, statuses: tuple[str, ...] = ()) -> dict[str, Any]:
    problems = _answers()
    return {
        "get": {
            "operationId": name,
            "security": [{"key": []}] if secure else [],
            "responses": {
                "200": {"description": words, "content": {kind: {}}},
                **{status: {**problems[status], "content": {"application/json": {}, "text/plain": {}}}
                   for status in statuses},
            },
        }
    }  # fmt: skip


def _with_models(body: dict[str, Any], models: Sequence[str]) -> dict[str, Any]:
    """Return a body's schema that names the models that are served, where they are known."""
    if not models:
        return body
    return {**body, "properties": {**body["properties"], "model": {"enum": list(models)}}}


def description(class_header: str, models: Sequence[str]) -> dict[str, Any]:
    """Return the description of a gateway's API."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "tokenpools gateway", "version": version("tokenpools")},
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "paths": {
            "/v1/completions": _post("completions", _with_models(_COMPLETION, models), class_header),
            "/v1/chat/completions": _post("chat", _with_models(_CHAT, models), class_header),
            "/v1/embeddings": _post("embeddings", _EMBEDDINGS, class_header),
            "/v1/responses": _post("responses", _with_models(_RESPONSE, models), class_header),
            "/v1/messages": _post("messages", _with_models(_MESSAGES, models), class_header),
            "/v1/models": _get(
                "models", "What the model servers serve.", "application/json", secure=True,
                statuses=("401", "403", "429", "503"),
            ),
            "/healthz": _get("healthz", "The process is there.", "text/plain"),
            "/readyz": _get("readyz", "A replica is ready, and the gateway stays.", "text/plain", statuses=("503",)),
            "/health": _get("health", "The same, as at vLLM.", "text/plain", statuses=("503",)),
        },
    }
