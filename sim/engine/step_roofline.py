"""A step time from first principles: what an iteration must compute and read, and how much the GPU can of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sim.engine.linear_decode import LinearDecode
from sim.engine.links import Links
from sim.engine.work import Hardware, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflineStepTime(LinearDecode):
    """Duration = overhead + the dense layers' and attention's time, each limited by operations or by bytes.

    The efficiencies say how much of the peak rates is reached: at most 1, so no iteration beats the hardware.
    """

    kind: Literal["roofline"] = "roofline"
    work: Work = field(metadata={"description": "give what the model asks, e.g. {parameters: 7.5e9, ...}"})
    hardware: Hardware = field(metadata={"description": "give what the GPUs can do, e.g. {flops_per_s: 9.89e14, ...}"})
    compute_efficiency: float = field(
        default=0.7, metadata={"gt": 0, "le": 1, "description": "give the share of peak operations reached, e.g. 0.7"}
    )
    memory_efficiency: float = field(
        default=0.8, metadata={"gt": 0, "le": 1, "description": "give the share of peak bandwidth reached, e.g. 0.8"}
    )
    base_s: float = field(default=0.0, metadata={"ge": 0, "description": "give seconds per iteration, e.g. 0.001"})
    per_decode_sequence_s: float = field(
        default=0.0, metadata={"ge": 0, "description": "give seconds per decoding sequence, e.g. 1.0e-5"}
    )
    links: Links | None = field(
        default=None, metadata={"description": "give the collectives of several GPUs, e.g. {ranks: 2, ...}"}
    )

    def iteration_s(
        self, prefill_tokens: int, prefill_pairs: float, decode_sequences: int, context_tokens: float
    ) -> float:
        """See `StepTime.iteration_s`."""
        work, tokens = self.work, prefill_tokens + decode_sequences
        flops_per_s = self.compute_efficiency * self.hardware.flops_per_s
        bytes_per_s = self.memory_efficiency * self.hardware.bytes_per_s
        dense_s = max(work.weight_bytes(tokens) / bytes_per_s, work.flops_per_token() * tokens / flops_per_s)
        links_s = self.links.iteration_s(tokens) if self.links is not None else 0.0
        return (
            self.base_s
            + links_s
            + dense_s
            + self.per_decode_sequence_s * decode_sequences
            + self.per_context_token_s * context_tokens
            + work.flops_per_pair * prefill_pairs / flops_per_s
        )

    @property
    def per_context_token_s(self) -> float:  # type: ignore[override]
        """Seconds per KV entry that decodes read: its bytes, or the operations on it if those take longer."""
        return max(
            self.work.kv_bytes_per_token / (self.memory_efficiency * self.hardware.bytes_per_s),
            self.work.flops_per_pair / (self.compute_efficiency * self.hardware.flops_per_s),
        )
