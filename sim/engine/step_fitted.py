"""A step time of few coefficients: linear, and the terms beyond it that measurements can pin down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from sim.engine.linear_decode import LinearDecode
from sim.engine.links import Links
from sim.engine.work import touched_share


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedStepTime(LinearDecode):
    """Duration = base + the greater of reading weights and computing tokens + sequences + attention + what prompts add.

    Reading the weights takes the same time for 1 token and for 100; computing takes the longer the more tokens there
    are: the greater of the two rules, which is the bend that a straight line misses. Attention of decodes is slower
    in an iteration that also computes prompts, because the engine then uses another kernel: by context, and by sequence
    where that kernel computes a whole tile for each (FlashAttention 2, which then packs no grouped queries).

    A mixture of experts reads those that some token chose: of n tokens that choose evenly and independently, each a
    share s of the experts, 1 - (1 - s)^n of ``experts_s``. Of several ranks that share the experts, a rank's n tokens
    come with as many of each other, so s is 1 - (1 - s)^ranks there.

    An iteration cannot be shorter than its launch by the host. Decodes are one captured graph, and so is a prompt of
    which one token is left to compute. Other prompts are launched in pieces, which takes ``lone_prefill_s`` where
    the engine has nothing else to do meanwhile; iterations of more tokens than the largest captured graph holds are
    launched kernel by kernel, and take at least ``uncaptured_s``.

    With ``prompt_launch_s``, which is what a launch of prompts beside decodes takes, the engine follows its launches:
    it plans and launches an iteration while the one before it runs, looks at that one's tokens only then, and the next
    launch begins after it (`launching`). So prompts that come later hold up the first tokens of those before.
    """

    kind: Literal["fitted"] = "fitted"
    base_s: float = field(default=0.0, metadata={"ge": 0, "description": "give seconds per iteration, e.g. 0.001"})
    weights_s: float = field(
        default=0.0, metadata={"ge": 0, "description": "give the seconds that reading all weights takes, e.g. 0.010"}
    )
    experts_s: float = field(
        default=0.0,
        metadata={"ge": 0, "description": "give the seconds that reading all experts takes besides, e.g. 0.006"},
    )
    expert_share: float = field(
        default=0.0,
        metadata={"ge": 0, "le": 1, "description": "give the share of experts that a token uses, e.g. 0.0625"},
    )
    per_token_s: float = field(
        default=0.0, metadata={"ge": 0, "description": "give seconds of computing per token, e.g. 4.0e-5"}
    )
    per_decode_sequence_s: float = field(
        default=0.0, metadata={"ge": 0, "description": "give seconds per decoding sequence, e.g. 1.0e-5"}
    )
    per_context_token_s: float = field(
        default=0.0, metadata={"ge": 0, "description": "give seconds per KV entry read by decodes, e.g. 2.0e-8"}
    )
    per_context_token_beside_prompts_s: float = field(
        default=0.0,
        metadata={"ge": 0, "description": "give what to add to per_context_token_s beside prompts, e.g. 1.0e-8"},
    )
    per_decode_sequence_beside_prompts_s: float = field(
        default=0.0,
        metadata={"ge": 0, "description": "give what to add to per_decode_sequence_s beside prompts, e.g. 5.0e-5"},
    )
    per_prefill_pair_s: float = field(
        default=0.0, metadata={"ge": 0, "description": "give seconds per query-key pair of a prompt, e.g. 1.0e-10"}
    )
    per_prefill_iteration_s: float = field(
        default=0.0, metadata={"ge": 0, "description": "give seconds to add where prompts are computed, e.g. 0.004"}
    )
    lone_prefill_s: float = field(
        default=0.0,
        metadata={"ge": 0, "description": "give the seconds that prompts alone take at least, e.g. 0.016"},
    )
    captured_tokens: int = field(
        default=0, metadata={"ge": 0, "description": "give the tokens of the largest captured graph, e.g. 512"}
    )
    uncaptured_s: float = field(
        default=0.0,
        metadata={"ge": 0, "description": "give the seconds that prompts beyond captured graphs take at least"},
    )
    prompt_launch_s: float = field(
        default=0.0,
        metadata={"ge": 0, "description": "give the seconds of launching prompts beside decodes, e.g. 0.009"},
    )
    links: Links | None = field(
        default=None, metadata={"description": "give the collectives of several GPUs, e.g. {ranks: 2, ...}"}
    )

    def __post_init__(self) -> None:
        if not self.base_s + self.weights_s + self.per_token_s + self.per_decode_sequence_s > 0:
            raise ValueError(
                "a decode iteration would take no time (base_s, weights_s, per_token_s and per_decode_sequence_s are "
                "0); give one of them, e.g. weights_s: 0.010"
            )
        if self.experts_s and not self.expert_share:
            raise ValueError(
                "experts_s is given and expert_share is 0; give the share of experts that a token uses, e.g. 0.0625"
            )

    def iteration_s(
        self, prefill_tokens: int, prefill_pairs: float, decode_sequences: int, context_tokens: float
    ) -> float:
        """See `StepTime.iteration_s`."""
        compute_s = self.per_token_s * (prefill_tokens + decode_sequences)
        read_s = self.weights_s
        if self.experts_s:
            read_s += self.experts_s * touched_share(self.expert_share, prefill_tokens + decode_sequences)
        duration_s = (
            self.base_s
            + (read_s if read_s > compute_s else compute_s)
            + self.per_decode_sequence_s * decode_sequences
            + self.per_context_token_s * context_tokens
        )
        if self.links is not None:
            duration_s += self.links.iteration_s(prefill_tokens + decode_sequences)
        if prefill_tokens:
            duration_s += (
                self.per_prefill_iteration_s
                + self.per_prefill_pair_s * prefill_pairs
                + self.per_context_token_beside_prompts_s * context_tokens
                + self.per_decode_sequence_beside_prompts_s * decode_sequences
            )
            if prefill_tokens > 1 and not self.prompt_launch_s:
                duration_s = max(duration_s, self._launch_s(prefill_tokens + decode_sequences, decode_sequences))
        return duration_s

    @property
    def launching(self) -> Callable[[int, int, int], float] | None:
        """What an engine asks for the time of a launch, where it follows them: of prompt tokens, prompts, decodes."""
        return self._launching_s if self.prompt_launch_s else None

    def _launching_s(self, prefill_tokens: int, prompts: int, decode_sequences: int) -> float:
        if prefill_tokens == prompts:  # a token each, as decodes have it: one captured graph
            return 0.0
        if self.captured_tokens and prefill_tokens + decode_sequences > self.captured_tokens:
            return self.uncaptured_s
        return self.prompt_launch_s if decode_sequences else self.lone_prefill_s

    def _launch_s(self, tokens: int, decode_sequences: int) -> float:
        """Return how long the host takes to launch an iteration that computes prompts."""
        if self.captured_tokens and tokens > self.captured_tokens:
            return self.uncaptured_s
        return 0.0 if decode_sequences else self.lone_prefill_s
