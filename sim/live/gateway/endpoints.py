"""Which paths of the upstreams' API there are, what may be done with them and what that costs.

A path is taken as it stands in the request line, without any decoding: what is not spelled as in the table is not
there, so ``/v1/./x``, ``/v1/x;y`` and ``/v1/x%3Fy`` lead nowhere. Everything in the table is priced; further paths need
a price in the configuration (``paths``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from sim.live.gateway.request_body import (
    Endpoint,
    chat_prompts,
    completion_prompts,
    paired_prompts,
    pooling_prompts,
)
from sim.live.gateway.settings import PricedPath

COMPLETIONS = Endpoint(
    "completion", ("max_tokens",), completion_prompts, tells_usage=True, refuses_long=True, needs_model=True
)
CHAT = Endpoint(
    "chat", ("max_tokens", "max_completion_tokens"), chat_prompts, tells_usage=True, refuses_long=True, needs_model=True
)
_RESPONSES = Endpoint("responses", ("max_output_tokens",), needs_model=True)
_MESSAGES = Endpoint("messages", ("max_tokens",), refuses_long=True, needs_model=True)
_POOLING = Endpoint("pooling", prompts=pooling_prompts, generates=False)
_PAIRS = Endpoint("pairs", prompts=paired_prompts, generates=False)
_TEXT = Endpoint("text", generates=False)
_AUDIO = Endpoint("audio", read=False)
_LIST = Endpoint("none", methods=("GET", "HEAD"), read=False, generates=False)
_STORED = Endpoint("none", methods=("GET", "DELETE"), read=False, generates=False, owned=True)
_STOPPED = Endpoint("none", read=False, generates=False, owned=True)

_PATHS: Mapping[str, Endpoint] = {
    "/v1/completions": COMPLETIONS, "/v1/chat/completions": CHAT, "/v1/responses": _RESPONSES,
    "/v1/messages": _MESSAGES, "/v1/messages/count_tokens": _TEXT,
    "/v1/embeddings": _POOLING, "/v1/pooling": _POOLING, "/v1/classify": _POOLING, "/v1/moderations": _POOLING,
    "/v1/score": _PAIRS, "/v1/rerank": _PAIRS,
    "/v1/audio/transcriptions": _AUDIO, "/v1/audio/translations": _AUDIO,
    "/v1/models": _LIST, "/tokenize": _TEXT, "/detokenize": _TEXT,
}  # fmt: skip
_MODEL = re.compile(r"/v1/models/(?!\.)[A-Za-z0-9_.:-]+(/(?!\.)[A-Za-z0-9_.:-]+)*")
_RESPONSE = re.compile(r"/v1/responses/([A-Za-z0-9_-]{1,200})(/cancel|/input_items)?")


class Endpoints:
    """The paths of one gateway; ``priced`` are those that its configuration adds."""

    def __init__(self, priced: Iterable[PricedPath] = ()) -> None:
        self._paths = dict(_PATHS) | {
            one.path: Endpoint(
                "none", methods=one.methods, read=False, generates=one.output_tokens > 0,
                output_tokens=one.output_tokens, sequences=one.sequences,
            )
            for one in priced
        }  # fmt: skip

    def find(self, raw_path: str) -> Endpoint | None:
        """Return what a path is, spelled as in the request line without its query; None where there is nothing."""
        found = self._paths.get(raw_path)
        if found is not None:
            return found
        if _MODEL.fullmatch(raw_path):
            return _LIST
        stored = _RESPONSE.fullmatch(raw_path)
        if stored is not None:
            return _STOPPED if stored[2] == "/cancel" else _STORED
        return None


def path_of(endpoint: Endpoint) -> str:
    """Return a path whose bodies are read as this endpoint's are."""
    return next(path for path, one in _PATHS.items() if one is endpoint)


def read_at(path: str) -> Endpoint:
    """Return the endpoint of a path that `path_of` returned."""
    return _PATHS[path]


def stored_id(raw_path: str) -> str:
    """Return the id of the response that a path names."""
    found = _RESPONSE.fullmatch(raw_path)
    return "" if found is None else found[1]
