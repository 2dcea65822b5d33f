"""Speculative decoding as an acceptance rate: several tokens an iteration, at the price of drafting and verifying them.

Of k drafted tokens each is accepted with the probability a if all before it were, so an iteration gives a sequence one
token to k + 1, (1 - a^(k + 1)) / (1 - a) in the mean [1]_. Here every sequence of the batch gets that mean, as whole
tokens: after m iterations the whole part of m times it. So the batch stays in step, and a run of iterations has a
closed form as without speculation. Left out are chance (how many iterations a request really takes), and the KV slots
that drafts hold until they are rejected, at most one block a sequence.

References
----------
.. [1] Y. Leviathan, M. Kalman, Y. Matias, "Fast Inference from Transformers via Speculative Decoding", ICML 2023,
   eq. 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

from sim.engine.step_time import StepTime


@dataclass(frozen=True, kw_only=True)  # no slots: the mean is computed once and kept
class Speculation:
    """How tokens are drafted, and how many are accepted."""

    tokens: int = field(metadata={"ge": 1, "le": 64, "description": "give the tokens drafted at a time, e.g. 3"})
    acceptance: float = field(
        metadata={
            "ge": 0,
            "le": 1,
            "description": "give the probability that a draft is accepted where those before it were, e.g. 0.7",
        }
    )
    per_draft_token_s: float = field(
        metadata={"ge": 0, "description": "give the seconds to verify one drafted token, e.g. 2.0e-5"}
    )
    draft_s: float = field(
        default=0.0, metadata={"ge": 0, "description": "give the seconds to draft, for each iteration, e.g. 0.001"}
    )

    @cached_property
    def gain(self) -> Fraction:
        """Tokens that a sequence gets in an iteration, in the mean; a ratio, so that sums are exact."""
        a, k = self.acceptance, self.tokens
        mean = k + 1.0 if a == 1 else (1 - a ** (k + 1)) / (1 - a)
        return Fraction(mean).limit_denominator(1_000_000)

    def gained(self, iteration: int, iterations: int) -> int:
        """Return the tokens that a sequence gets in ``iterations`` from number ``iteration`` on."""
        p, q = self.gain.numerator, self.gain.denominator
        return (iteration + iterations) * p // q - iteration * p // q

    def pending(self, iteration: int) -> float:
        """Return the part of a token that a sequence has beyond its whole ones."""
        p, q = self.gain.numerator, self.gain.denominator
        return iteration * p % q / q

    def until(self, iteration: int, tokens: int) -> int:
        """Return the fewest iterations from number ``iteration`` on that give at least ``tokens``, of 1 or more."""
        p, q = self.gain.numerator, self.gain.denominator
        return -(-(iteration * p // q + tokens) * q // p) - iteration

    def within(self, iteration: int, tokens: int) -> int:
        """Return the most iterations that give no more than ``tokens``."""
        return self.until(iteration, tokens + 1) - 1

    def extra_s(self, sequences: int) -> float:
        """Return what drafting and verifying add to an iteration in which so many decode."""
        return self.draft_s + self.per_draft_token_s * self.tokens * sequences if sequences else 0.0


class SpeculativeStepTime:
    """A step time with drafting and verifying added; see `sim.engine.step_time.StepTime`."""

    def __init__(self, plain: StepTime, speculation: Speculation) -> None:
        self._plain = plain
        self._speculation = speculation
        self._gain = float(speculation.gain)
        self.skew: float = getattr(plain, "skew", 0.0)
        self.saturating_sequences: float = getattr(plain, "saturating_sequences", 0.0)
        self.unsplit_batch: int = getattr(plain, "unsplit_batch", 0)

    def iteration_s(
        self, prefill_tokens: int, prefill_pairs: float, decode_sequences: int, context_tokens: float
    ) -> float:
        """See `StepTime.iteration_s`."""
        plain_s = self._plain.iteration_s(prefill_tokens, prefill_pairs, decode_sequences, context_tokens)
        return plain_s + self._speculation.extra_s(decode_sequences)

    def decode_run_s(self, sequences: int, context_tokens: float, iterations: int, gain: float | None = None) -> float:
        """See `StepTime.decode_run_s`; ``gain`` is the speculation's unless another is given."""
        plain_s = self._plain.decode_run_s(sequences, context_tokens, iterations, gain or self._gain)
        return plain_s + iterations * self._speculation.extra_s(sequences)

    def iterations_until(self, sequences: int, context_tokens: float, elapsed_s: float) -> int:
        """See `StepTime.iterations_until`: by doubling, then by halving."""
        low, high = 0, 1
        while self.decode_run_s(sequences, context_tokens, high) <= elapsed_s:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            if self.decode_run_s(sequences, context_tokens, middle) <= elapsed_s:
                low = middle
            else:
                high = middle
        return high
