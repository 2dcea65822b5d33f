"""Peak rates of GPUs, from their makers' data sheets: dense (not sparse) tensor-core operations, 32-bit sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sim.engine.step_roofline import Hardware


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes
    ----------
    flops_per_s : dense operations by bits of a weight; a missing precision runs at the next wider one's rate.
    bytes_per_s : memory bandwidth.
    memory_bytes : memory, as the maker names it.
    multiprocessors : that kernels' blocks run on.
    """

    flops_per_s: Mapping[int, float]
    bytes_per_s: float
    memory_bytes: float
    multiprocessors: int

    def hardware(self, count: int, bits: int) -> Hardware:
        """Return what ``count`` of them can do at most with weights of ``bits``."""
        wide = min(b for b in self.flops_per_s if b >= bits) if bits <= max(self.flops_per_s) else 16
        return Hardware(flops_per_s=count * self.flops_per_s[wide], bytes_per_s=count * self.bytes_per_s)


GPUS: Mapping[str, Gpu] = MappingProxyType({
    "A10G": Gpu({16: 7.0e13}, 6.0e11, 24e9, 80),
    "A100-80GB": Gpu({16: 3.12e14}, 2.039e12, 80e9, 108),
    "H100-SXM": Gpu({16: 9.89e14, 8: 1.979e15}, 3.35e12, 80e9, 132),
    "H200-SXM": Gpu({16: 9.89e14, 8: 1.979e15}, 4.8e12, 141e9, 132),
    "B200-SXM": Gpu({16: 2.25e15, 8: 4.5e15, 4: 9.0e15}, 8.0e12, 180e9, 148),
    "RTX-4090": Gpu({16: 1.652e14, 8: 3.303e14}, 1.008e12, 24e9, 128),
    "RTX-PRO-6000": Gpu({16: 5.04e14, 8: 1.008e15, 4: 2.015e15}, 1.597e12, 96e9, 188),
})
"""GPUs that a roofline profile may name."""
