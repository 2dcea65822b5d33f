"""How a replica divides prefill and decode; `sim.cluster.disaggregated` runs it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Disaggregated:
    """How a replica is divided, and how fast KV caches cross."""

    prefill_engines: int = field(metadata={"gt": 0, "description": "give the engines that compute prompts, e.g. 1"})
    decode_engines: int = field(metadata={"gt": 0, "description": "give the engines that decode, e.g. 1"})
    kv_bytes_per_s: float = field(
        metadata={"gt": 0, "description": "give the bytes per second of a prefill engine's link, e.g. 50.0e9"}
    )
    latency_s: float = field(
        default=0.0, metadata={"ge": 0, "description": "give the seconds that a transfer takes besides, e.g. 0.002"}
    )
