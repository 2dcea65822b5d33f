"""The arithmetic of a linear step time, which `sim.engine.step_time.LinearStepTime` holds and an engine asks."""

from __future__ import annotations

import math


class LinearTimes:
    """See `sim.engine.step_time.StepTime`; seconds per iteration, prompt token, sequence, KV entry and pair."""

    __slots__ = ("_base_s", "_per_entry_s", "_per_pair_s", "_per_prefill_token_s", "_per_sequence_s")

    def __init__(
        self, base_s: float, per_prefill_token_s: float, per_sequence_s: float, per_entry_s: float, per_pair_s: float
    ) -> None:
        self._base_s = base_s
        self._per_prefill_token_s = per_prefill_token_s
        self._per_sequence_s = per_sequence_s
        self._per_entry_s = per_entry_s
        self._per_pair_s = per_pair_s

    def iteration_s(
        self, prefill_tokens: int, prefill_pairs: float, decode_sequences: int, context_tokens: float
    ) -> float:
        """See `sim.engine.step_time.StepTime.iteration_s`."""
        return (
            self._base_s
            + self._per_prefill_token_s * prefill_tokens
            + self._per_sequence_s * decode_sequences
            + self._per_entry_s * context_tokens
            + self._per_pair_s * prefill_pairs
        )

    def decode_run_s(self, sequences: int, context_tokens: float, iterations: int, gain: float = 1.0) -> float:
        """See `sim.engine.step_time.StepTime.decode_run_s`: an arithmetic series."""
        first_s = self._base_s + self._per_sequence_s * sequences + self._per_entry_s * context_tokens
        growth_s = self._per_entry_s * sequences * gain
        return iterations * (first_s + growth_s * (iterations - 1) / 2)

    def iterations_until(self, sequences: int, context_tokens: float, elapsed_s: float) -> int:
        """See `sim.engine.step_time.StepTime.iterations_until`: the root of a quadratic, then made exact."""
        first_s = self._base_s + self._per_sequence_s * sequences + self._per_entry_s * context_tokens
        growth_s = self._per_entry_s * sequences
        half_growth_s = growth_s / 2
        linear_s = first_s - half_growth_s
        # The form of the root that does not cancel when growth is tiny.
        root = 2 * elapsed_s / (linear_s + math.sqrt(linear_s * linear_s + 4 * half_growth_s * elapsed_s))
        k = max(1, int(root) + 1)
        # The sums of `decode_run_s`, so that rounding tells the two nothing different.
        while k > 1 and (k - 1) * (first_s + growth_s * (k - 2) / 2) > elapsed_s:
            k -= 1
        while k * (first_s + growth_s * (k - 1) / 2) <= elapsed_s:
            k += 1
        return k
