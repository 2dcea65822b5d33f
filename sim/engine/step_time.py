"""How long one iteration of the engine takes.

A step time answers for a single iteration of any make-up, and for a run of iterations in which a fixed batch only
decodes: there the context grows by one token a sequence and iteration, so the total has a closed form, which is what
lets `sim.cluster.replica` jump.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

from policies.lazy_mapping import LazyMapping, imported
from sim.engine.linear_times import LinearTimes


class StepTime(Protocol):
    """Durations of iterations, in seconds."""

    def iteration_s(
        self, prefill_tokens: int, prefill_pairs: float, decode_sequences: int, context_tokens: float
    ) -> float:
        """Return the duration of one iteration.

        Parameters
        ----------
        prefill_tokens : prompt tokens computed, over all chunks.
        prefill_pairs : query-key pairs of those chunks; a chunk of p tokens after c computed ones has p*(c + (p+1)/2).
        decode_sequences : sequences that get one output token each.
        context_tokens : KV entries that those decodes read, their new tokens included.
        """
        ...

    def decode_run_s(self, sequences: int, context_tokens: float, iterations: int, gain: float = 1.0) -> float:
        """Return the total of ``iterations`` decode iterations of a fixed batch; the first reads ``context_tokens``.

        ``gain`` is by how many tokens each context grows in an iteration.
        """
        ...

    def iterations_until(self, sequences: int, context_tokens: float, elapsed_s: float) -> int:
        """Return the least k >= 1 for which `decode_run_s` of k iterations exceeds ``elapsed_s``."""
        ...


@dataclass(frozen=True, kw_only=True)
class LinearStepTime:
    """Duration = base + a*prefill tokens + b*decode sequences + c*context tokens + d*prefill query-key pairs.

    The first four terms are those that calibrated LLM simulators agree on; the last is the quadratic part of a long
    prompt's attention. All coefficients are seconds per unit.
    """

    kind: Literal["linear"] = "linear"
    base_s: float = field(metadata={"ge": 0, "description": "give seconds per iteration, e.g. 0.006"})
    per_prefill_token_s: float = field(
        default=0.0, metadata={"ge": 0, "description": "give seconds per prompt token, e.g. 2.0e-5"}
    )
    per_decode_sequence_s: float = field(
        default=0.0, metadata={"ge": 0, "description": "give seconds per decoding sequence, e.g. 1.0e-4"}
    )
    per_context_token_s: float = field(
        default=0.0, metadata={"ge": 0, "description": "give seconds per KV entry read by decodes, e.g. 2.0e-8"}
    )
    per_prefill_pair_s: float = field(
        default=0.0, metadata={"ge": 0, "description": "give seconds per query-key pair of a prompt, e.g. 1.0e-10"}
    )

    def __post_init__(self) -> None:
        if not self.base_s + self.per_decode_sequence_s > 0:
            raise ValueError(
                "a decode iteration would take no time (base_s and per_decode_sequence_s are 0); "
                "give one of them, e.g. base_s: 0.006"
            )

    @cached_property
    def times(self) -> LinearTimes:
        """The same answers, from an object that mypyc may have compiled: it takes Python's integers, not numpy's."""
        return LinearTimes(
            self.base_s, self.per_prefill_token_s, self.per_decode_sequence_s, self.per_context_token_s,
            self.per_prefill_pair_s,
        )  # fmt: skip

    def iteration_s(
        self, prefill_tokens: int, prefill_pairs: float, decode_sequences: int, context_tokens: float
    ) -> float:
        """See `StepTime.iteration_s`."""
        return self.times.iteration_s(int(prefill_tokens), prefill_pairs, int(decode_sequences), context_tokens)

    def decode_run_s(self, sequences: int, context_tokens: float, iterations: int, gain: float = 1.0) -> float:
        """See `StepTime.decode_run_s`."""
        return self.times.decode_run_s(int(sequences), context_tokens, int(iterations), gain)

    def iterations_until(self, sequences: int, context_tokens: float, elapsed_s: float) -> int:
        """See `StepTime.iterations_until`."""
        return self.times.iterations_until(int(sequences), context_tokens, elapsed_s)


def answering(step_time: StepTime) -> LinearTimes | StepTime:
    """Return what an engine asks, many times: the arithmetic itself, where a step time has that apart."""
    return step_time.times if isinstance(step_time, LinearStepTime) else step_time


STEP_TIMES: Mapping[str, type[StepTime]] = LazyMapping({
    "linear": "step_time:LinearStepTime", "fitted": "step_fitted:FittedStepTime", "table": "step_table:TableStepTime",
    "roofline": "step_roofline:RooflineStepTime",
}, lambda place: imported(f"sim.engine.{place}"))  # fmt: skip
"""Kinds of step time that a profile may name."""
