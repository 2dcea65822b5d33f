"""Runs of decode iterations, where the duration of one is linear in the KV entries it reads."""

from __future__ import annotations

from abc import ABC, abstractmethod

from sim.engine.decode_curve import iterations_for


class LinearDecode(ABC):
    """The part of a step time that follows from one iteration and its slope in context, ``per_context_token_s``."""

    __slots__ = ()

    per_context_token_s: float

    @abstractmethod
    def iteration_s(
        self, prefill_tokens: int, prefill_pairs: float, decode_sequences: int, context_tokens: float
    ) -> float:
        """See `StepTime.iteration_s`."""

    def decode_run_s(self, sequences: int, context_tokens: float, iterations: int, gain: float = 1.0) -> float:
        """See `StepTime.decode_run_s`: an arithmetic series."""
        first_s = self.iteration_s(0, 0.0, sequences, context_tokens)
        return iterations * (first_s + self.per_context_token_s * sequences * gain * (iterations - 1) / 2)

    def iterations_until(self, sequences: int, context_tokens: float, elapsed_s: float) -> int:
        """See `StepTime.iterations_until`: the root of a quadratic, then made exact."""
        first_s = self.iteration_s(0, 0.0, sequences, context_tokens)
        half_growth_s = self.per_context_token_s * sequences / 2
        k = iterations_for(first_s, 2 * half_growth_s, elapsed_s)
        while k > 1 and (k - 1) * (first_s + half_growth_s * (k - 2)) > elapsed_s:
            k -= 1
        while k * (first_s + half_growth_s * (k - 1)) <= elapsed_s:
            k += 1
        return k
