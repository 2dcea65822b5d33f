"""GPUs by name: peak rates, memory, and what vLLM takes by default on each.

Peak rates are from the makers' data sheets: dense (not sparse) tensor-core operations, 32-bit sums. Memory is what
drivers report, which is more than the sheets' decimal GB say (an H200 of "141 GB" has 141 GiB): aiconfigurator-core
0.12.0's ``systems/*.yaml`` (NVIDIA, Apache-2.0), and for the RTX 4090 its sheet's 24 as GiB; A10G as its sheet says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sim.engine.work import Hardware
from sim.errors import InputError
from sim.scenario.validation_errors import suggestion

_GIB = 2.0**30


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes
    ----------
    flops_per_s : dense operations by bits of a weight; a missing precision runs at the next wider one's rate.
    bytes_per_s : memory bandwidth.
    memory_bytes : memory, as the driver reports it.
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
    "A100-80GB": Gpu({16: 3.12e14}, 2.039e12, 80 * _GIB, 108),
    "H100-SXM": Gpu({16: 9.89e14, 8: 1.979e15}, 3.35e12, 80 * _GIB, 132),
    "H200-SXM": Gpu({16: 9.89e14, 8: 1.979e15}, 4.8e12, 141 * _GIB, 132),
    "B200-SXM": Gpu({16: 2.25e15, 8: 4.5e15, 4: 9.0e15}, 8.0e12, 180 * _GIB, 148),
    "RTX-4090": Gpu({16: 1.652e14, 8: 3.303e14}, 1.008e12, 24 * _GIB, 128),
    "RTX-PRO-6000": Gpu({16: 5.04e14, 8: 1.008e15, 4: 2.015e15}, 1.597e12, 97_887 * 2**20, 188),
})
"""GPUs that a roofline profile may name."""

_OTHER_MEMORY_BYTES: Mapping[str, float] = MappingProxyType({
    "B300-SXM": 275_040 * 2.0**20, "GB200": 189_471 * 2.0**20, "GB300": 284_208 * 2.0**20, "H100-PCIE": 80 * _GIB,
    "L4": 24 * _GIB, "L40S": 46_068 * 2.0**20,
})  # fmt: skip


def memory_bytes(gpu: str) -> float:
    """Return a GPU's memory, as the driver reports it; also of GPUs that no roofline is known of.

    Raises
    ------
    InputError : no GPU of that name is known.
    """
    names = [*GPUS, *_OTHER_MEMORY_BYTES]
    if gpu not in names:
        raise InputError("--gpu", f"unknown GPU {gpu}", suggestion(gpu, names))
    return GPUS[gpu].memory_bytes if gpu in GPUS else _OTHER_MEMORY_BYTES[gpu]


@dataclass(frozen=True, slots=True)
class BatchDefaults:
    """What vLLM takes where nobody says: sequences at once, and tokens of an iteration; ``words`` say why."""

    max_num_seqs: int
    max_num_batched_tokens: int
    words: str


def batch_defaults(gpu: str | None) -> BatchDefaults:
    """Return what ``vllm serve`` takes on a GPU: vLLM 0.32.0's `EngineArgs.get_batch_defaults`, by the GPU's memory.

    From 160 GiB on 1,024 sequences and 16,384 tokens; from 70 GiB on, but for an A100, 1,024 and 8,192; else 256 and
    2,048, which are taken for an unknown GPU too. Offline (the ``LLM`` class) vLLM takes more tokens.

    Raises
    ------
    InputError : no GPU of that name is known.
    """
    if gpu is None:
        return BatchDefaults(256, 2048, "vLLM's defaults on GPUs of less than 70 GiB, no --gpu being named")
    has_bytes = memory_bytes(gpu)
    words = f"vLLM's defaults on {gpu}"
    if has_bytes >= 160 * _GIB:
        return BatchDefaults(1024, 16_384, words)
    if has_bytes >= 70 * _GIB and not gpu.startswith("A100"):
        return BatchDefaults(1024, 8192, words)
    return BatchDefaults(256, 2048, words)
