"""Adapters of one base model at a replica: how many are in GPU memory, and what loading and using them costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """LoRA adapters, by the model that a workload asks for; any other model is the base model.

    ``max_loras`` and ``max_cpu_loras`` are vLLM's: adapters in GPU memory and in the host's; the least recently used
    goes. Iterations with adapters take ``1 + rank_cost`` times the largest rank in use as long, since kernels are
    padded to it.
    """

    adapters: Mapping[str, int] = field(
        metadata={"min_length": 1, "description": "give ranks by adapter, e.g. {acme: 16, beta: 64}"}
    )
    max_loras: int = field(default=8, metadata={"gt": 0, "description": "give the adapters in GPU memory, e.g. 8"})
    max_cpu_loras: int | None = field(
        default=None, metadata={"gt": 0, "description": "give the adapters in the host's memory, 64; left out, all"}
    )
    load_s: float = field(
        default=1.0, metadata={"ge": 0, "description": "give the seconds to load a cold adapter, e.g. 1.0"}
    )
    swap_s: float = field(
        default=0.02, metadata={"ge": 0, "description": "give the seconds for one in the host's memory, e.g. 0.02"}
    )
    rank_cost: float = field(
        default=0.002, metadata={"ge": 0, "description": "give the share that a rank adds to an iteration, e.g. 0.002"}
    )
