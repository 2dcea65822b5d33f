"""Shapes of common models, as the ``config.json`` of each repository gives them, by the name one would type."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_NAMES = (
    "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
    "intermediate_size", "max_position_embeddings",
)  # fmt: skip
_EXPERTS = ("moe_intermediate_size", "num_experts", "num_experts_per_tok")


def _shape(*numbers: int, experts: tuple[int, int, int] | None = None) -> Mapping[str, Any]:
    given = dict(zip(_NAMES, numbers, strict=True))
    if experts is not None:
        given |= dict(zip(_EXPERTS, experts, strict=True))
    return MappingProxyType(given)


MODELS: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    "llama-2-7b": _shape(32, 4096, 32, 32, 128, 32000, 11008, 4096),
    "llama-2-70b": _shape(80, 8192, 64, 8, 128, 32000, 28672, 4096),
    "llama-3.1-8b": _shape(32, 4096, 32, 8, 128, 128256, 14336, 131072),
    "llama-3.1-70b": _shape(80, 8192, 64, 8, 128, 128256, 28672, 131072),
    "llama-3.1-405b": _shape(126, 16384, 128, 8, 128, 128256, 53248, 131072),
    "qwen3-8b": _shape(36, 4096, 32, 8, 128, 151936, 12288, 40960),
    "qwen3-32b": _shape(64, 5120, 64, 8, 128, 151936, 25600, 40960),
    "qwen3-30b-a3b": _shape(48, 2048, 32, 4, 128, 151936, 6144, 40960, experts=(768, 128, 8)),
    "qwen3-235b-a22b": _shape(94, 4096, 64, 4, 128, 151936, 12288, 40960, experts=(1536, 128, 8)),
    "mixtral-8x7b": _shape(32, 4096, 32, 8, 128, 32000, 14336, 32768, experts=(14336, 8, 2)),
})  # fmt: skip
"""Models that a profile may be made for by name; any other one by its ``config.json``."""


def model_named(text: str) -> tuple[str, Mapping[str, Any]] | None:
    """Return the known model that a repository's name means (``meta-llama/Meta-Llama-3.1-8B-Instruct``), or None.

    The longest name that the text begins with, its owner and a leading "Meta-" left out, is meant: "qwen3-30b-a3b" of
    "Qwen/Qwen3-30B-A3B-Instruct-2507".
    """
    bare = text.rsplit("/", 1)[-1].lower().removeprefix("meta-")
    fitting = [name for name in MODELS if bare == name or bare.startswith(f"{name}-")]
    return max(((name, MODELS[name]) for name in fitting), key=lambda found: len(found[0]), default=None)
