"""A profile for any decoder model and GPU, from the model's ``config.json`` and the GPU's peak rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sim.engine.step_roofline import RooflineStepTime
from sim.engine.work import Work
from sim.errors import InputError, shortened
from sim.profiles.gpus import GPUS
from sim.scenario.profile import Physics, Profile
from sim.scenario.validation_errors import suggestion

BLOCK_TOKENS = 16
_MOST = 1e9
_RESERVED_BYTES = 1.8e9  # of one GPU; 1.7e9 and 1.9e9 in two engines of 2,048 batched tokens, 3.1e9 in one of 8,192


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A model: its work in an iteration, the bytes of its weights, the longest context it takes, attention's heads."""

    work: Work
    weight_bytes: float
    max_tokens: int | None
    heads: int
    kv_heads: int


def read_shape(config: Mapping[str, Any], *, weight_bits: int = 16, kv_bits: int = 16) -> ModelShape:
    """Return the shape of a Llama-like model (grouped queries, gated feed-forward, optionally experts).

    Parameters
    ----------
    config : the ``config.json`` of its repository.
    weight_bits, kv_bits : of a weight and of a KV value; 4-bit weights count half a bit more for their scales.

    Raises
    ------
    InputError : a number that is needed is missing.
    """
    config = config.get("text_config") or config
    if not isinstance(config, Mapping):
        raise InputError("config.json", "text_config is not a mapping", "give the config.json of a decoder model")

    def number(*names: str, default: int | None = None, least: int = 1) -> int:
        for name in names:
            value = config.get(name)
            if value is None:
                continue
            if type(value) not in (int, float) or not least <= value <= _MOST or value != int(value):
                problem = f"{name} is {shortened(str(value), 40)}, and no whole number from {least} to {_MOST:g}"
                raise InputError("config.json", problem, "give the config.json of a decoder model")
            return int(value)
        if default is None:
            raise InputError("config.json", f"{names[0]} is missing", "give the config.json of a decoder model")
        return default

    layers, hidden = number("num_hidden_layers"), number("hidden_size")
    heads = number("num_attention_heads")
    kv_heads = number("num_key_value_heads", default=heads)
    if hidden < heads and config.get("head_dim") is None:
        raise InputError("config.json", f"{heads} heads share a hidden_size of {hidden}", "correct one of them")
    head_dim = number("head_dim", default=hidden // heads)
    vocabulary = number("vocab_size")
    experts = number("num_local_experts", "num_experts", "n_routed_experts", default=0, least=0)
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    if experts:
        expert = 3 * hidden * number("moe_intermediate_size", "intermediate_size")
        dense_part, expert_part = attention + hidden * experts, experts * expert
    else:
        dense_part, expert_part = attention + 3 * hidden * number("intermediate_size"), 0
    bytes_per_parameter = (weight_bits + (0.5 if weight_bits == 4 else 0)) / 8
    work = Work(
        parameters=float(layers * dense_part + hidden * vocabulary),
        expert_parameters=float(layers * expert_part),
        experts=experts,
        experts_per_token=number("num_experts_per_tok") if experts else 0,
        bytes_per_parameter=bytes_per_parameter,
        kv_bytes_per_token=2 * layers * kv_heads * head_dim * kv_bits / 8,
        flops_per_pair=4.0 * layers * heads * head_dim,
    )
    tied = bool(config.get("tie_word_embeddings", False))
    embedding_bytes = 0 if tied else 2 * hidden * vocabulary
    weights = work.parameters + work.expert_parameters
    longest = number("max_position_embeddings", default=0, least=0)
    return ModelShape(
        work=work, weight_bytes=weights * bytes_per_parameter + embedding_bytes, max_tokens=longest or None,
        heads=heads, kv_heads=kv_heads,
    )  # fmt: skip


def room_for_kv_bytes(gpu: str, weight_bytes: float, gpus: int = 1, gpu_memory_utilization: float = 0.9) -> float:
    """Return what vLLM's share of the GPUs' memory leaves for their KV cache after weights and activations."""
    return gpus * (gpu_memory_utilization * GPUS[gpu].memory_bytes - _RESERVED_BYTES) - weight_bytes


def on_gpus(shape: ModelShape, gpus: int) -> ModelShape:
    """Return a model as several GPUs hold it: more of them than KV heads hold copies, and each reads its own."""
    copies = max(1, gpus // shape.kv_heads)
    return replace(shape, work=replace(shape.work, kv_bytes_per_token=copies * shape.work.kv_bytes_per_token))


def blocks_in(room_bytes: float, shape: ModelShape) -> int:
    """Return how many KV blocks of `BLOCK_TOKENS` fit."""
    return int(room_bytes / (shape.work.kv_bytes_per_token * BLOCK_TOKENS))


def roofline_profile(
    config: Mapping[str, Any],
    gpu: str,
    *,
    gpus: int = 1,
    weight_bits: int = 16,
    kv_bits: int = 16,
    kv_blocks: int | None = None,
    gpu_memory_utilization: float = 0.9,
    max_num_seqs: int = 256,
    max_num_batched_tokens: int = 2048,
    name: str = "roofline",
) -> Profile:
    """Return a profile that needs no measurement: peak rates, times the default efficiencies of `RooflineStepTime`.

    Without ``kv_blocks`` the KV cache is reckoned: what the share of memory leaves after weights and reserve.

    Raises
    ------
    InputError : an unknown GPU, or a model that does not fit.
    """
    if gpu not in GPUS:
        raise InputError("gpu", f"unknown GPU {gpu}", suggestion(gpu, list(GPUS)))
    shape = read_shape(config, weight_bits=weight_bits, kv_bits=kv_bits)
    if shape.heads % gpus:
        problem = f"{gpus} GPUs do not divide the model's {shape.heads} attention heads, which vLLM refuses"
        raise InputError("gpus", problem, "give a divisor")
    shape = on_gpus(shape, gpus)
    hardware = GPUS[gpu].hardware(gpus, weight_bits)
    room_bytes = room_for_kv_bytes(gpu, shape.weight_bytes, gpus, gpu_memory_utilization)
    reckoned = kv_blocks is None
    kv_blocks = kv_blocks or blocks_in(room_bytes, shape)
    if reckoned and kv_blocks < 1:
        raise InputError(
            "gpu",
            f"{gpus} x {gpu} leave {room_bytes / 1e9:.1f} GB for the KV cache after {shape.weight_bytes / 1e9:.1f} GB "
            "of weights",
            "give more GPUs or fewer bits",
        )
    longest = shape.max_tokens
    return Profile(
        name=name,
        source=f"roofline of {gpus} x {gpu}: peak rates of the data sheet, efficiencies assumed",
        error="not measured; on two measured runs such a roofline was off by 5 to 18 % (docs/fidelity.md)"
        + (f"; KV cache reckoned, {kv_blocks * BLOCK_TOKENS} tokens: give what vLLM prints" if reckoned else ""),
        step_time=RooflineStepTime(work=shape.work, hardware=hardware),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        kv_blocks=kv_blocks,
        block_tokens=BLOCK_TOKENS,
        kv_bytes_per_token=shape.work.kv_bytes_per_token,
        max_model_tokens=None if longest is None else min(longest, kv_blocks * BLOCK_TOKENS),
        async_scheduling=True,
        prefix_caching=True,
        physics=Physics(work=shape.work, hardware=hardware),
    )
