"""What an iteration must compute and read, and what no hardware can do faster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Tokens = TypeVar("Tokens", float, NDArray[np.float64])


def touched_share(share: float, tokens: Tokens) -> Tokens:
    """Return which share of the experts some tokens touch, each of which chooses a share evenly and independently."""
    missed: Tokens = (1 - share) ** tokens
    return 1 - missed


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What iterations of a model ask of the hardware, all GPUs of a replica together.

    Attributes
    ----------
    parameters : weights that are read in every iteration: those outside experts, the input embedding left out.
    expert_parameters : weights of all experts; 0 for a dense model.
    experts, experts_per_token : of each layer; tokens are taken to choose evenly and independently.
    bytes_per_parameter : 2 for bf16, 1 for fp8, about 0.56 for NVFP4 with its scales.
    kv_bytes_per_token : KV cache of one token, over all layers.
    flops_per_pair : operations of attention for one query-key pair: 4 * layers * heads * head_dim.
    """

    parameters: float = field(metadata={"gt": 0, "description": "give the weights read each time, e.g. 7.5e9"})
    expert_parameters: float = field(
        default=0.0, metadata={"ge": 0, "description": "give the weights of all experts, 0 for a dense model"}
    )
    experts: int = field(default=0, metadata={"ge": 0, "description": "give the experts of a layer, e.g. 128"})
    experts_per_token: int = field(default=0, metadata={"ge": 0, "description": "give how many a token uses, e.g. 8"})
    bytes_per_parameter: float = field(
        default=2.0, metadata={"gt": 0, "description": "give bytes of a weight, e.g. 2 for bf16"}
    )
    kv_bytes_per_token: float = field(metadata={"gt": 0, "description": "give KV bytes of a token, e.g. 131072"})
    flops_per_pair: float = field(
        metadata={"gt": 0, "description": "give 4 * layers * heads * head_dim, e.g. 524288"}
    )

    def __post_init__(self) -> None:
        if self.expert_parameters and not 0 < self.experts_per_token <= self.experts:
            raise ValueError(
                f"{self.experts_per_token} of {self.experts} experts per token cannot be; "
                "give experts and experts_per_token, e.g. 128 and 8"
            )

    def weight_bytes(self, tokens: int) -> float:
        """Return the bytes of weights that an iteration of ``tokens`` reads."""
        read = self.parameters
        if self.expert_parameters:
            read += self.expert_parameters * touched_share(self.experts_per_token / self.experts, tokens)
        return read * self.bytes_per_parameter

    def flops_per_token(self) -> float:
        """Return the operations of one token outside attention."""
        active = self.parameters
        if self.expert_parameters:
            active += self.expert_parameters * self.experts_per_token / self.experts
        return 2 * active


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a replica's GPUs can do at most, summed over them. Data sheets give dense rates or twice that, "sparse"."""

    flops_per_s: float = field(metadata={"gt": 0, "description": "give dense operations per second, e.g. 9.89e14"})
    bytes_per_s: float = field(metadata={"gt": 0, "description": "give memory bandwidth, e.g. 3.35e12"})


def least_iteration_s(
    work: Work,
    hardware: Hardware,
    prefill_tokens: int,
    prefill_pairs: float,
    decode_sequences: int,
    context_tokens: int,
) -> float:
    """Return the time below which physics lets no iteration fall: all operations, or all bytes, at peak rates."""
    tokens = prefill_tokens + decode_sequences
    flops = work.flops_per_token() * tokens + work.flops_per_pair * (prefill_pairs + context_tokens)
    moved = work.weight_bytes(tokens) + work.kv_bytes_per_token * context_tokens
    return max(flops / hardware.flops_per_s, moved / hardware.bytes_per_s)
