"""What attention loses where the contexts of a decoding batch differ, in KV entries that it might as well have read.

Two laws, both of a step time's own numbers (see `sim.engine.step_table.TableStepTime`):

- ``saturating_sequences``, m: where a kernel does not split contexts, each is read at its own pace, and
  it takes m of them to keep the memory busy. While fewer are left, the others' part of the memory is idle, so the m
  longest contexts take as long as if each were the longest. Kernels split contexts in batches below ``unsplit_batch``.
- ``skew``: all contexts as if somewhat nearer to the longest ones, which lie two standard deviations above the mean.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from typing import Final

from sim.engine.step_time import StepTime

LONG_DEVIATIONS: Final = 2.0
"""How many standard deviations the longest contexts of a batch lie above its mean: the longest sixteenth of a normal
law does so by 1.97. A sixteenth is the least share of long contexts for which the profiler of LLMServingSim measures
what they cost."""


class UnevenContexts:
    """The contexts of those that decode, as how far a clock that all share is ahead of each.

    All contexts grow together, so what one is behind the longest changes only where somebody comes or goes.
    """

    __slots__ = ("_ahead", "_saturating", "_skew", "_squares", "_unsplit_batch", "_waiting_tokens")

    def __init__(self, skew: float, saturating_sequences: float, unsplit_batch: int) -> None:
        self._skew = skew
        self._saturating = saturating_sequences
        self._unsplit_batch = unsplit_batch
        self.clear()

    def clear(self) -> None:
        """Take everyone out."""
        self._ahead: list[int] = []  # ascending: the longest contexts first
        self._squares = 0
        self._waiting_tokens = 0.0

    def add(self, ahead: int) -> None:
        """Enter one whose context is the clock less ``ahead``."""
        insort(self._ahead, ahead)
        self._squares += ahead * ahead
        self._waiting_tokens = self._behind_the_longest()

    def remove(self, ahead: int) -> None:
        """Take one out again."""
        del self._ahead[bisect_left(self._ahead, ahead)]
        self._squares -= ahead * ahead
        self._waiting_tokens = self._behind_the_longest()

    def more_tokens(self, clock: int, context_tokens: int) -> float:
        """Return the KV entries beyond ``context_tokens``, their sum, that the batch might as well have read."""
        more = self._waiting_tokens
        if self._skew:
            count = len(self._ahead)
            ahead = count * clock - context_tokens
            spread = math.sqrt(max(0, count * self._squares - ahead * ahead))  # sequences times the deviation
            more += self._skew * LONG_DEVIATIONS * spread
        return more

    def _behind_the_longest(self) -> float:
        """Return what the m longest contexts lack to the longest; of a fraction of one, that fraction."""
        ahead = self._ahead
        if self._saturating <= 1 or not ahead or len(ahead) < self._unsplit_batch:
            return 0.0
        whole = int(self._saturating)
        longest = ahead[0]
        more = float(sum(ahead[:whole]) - longest * min(whole, len(ahead)))
        if whole < len(ahead):
            more += (self._saturating - whole) * (ahead[whole] - longest)
        return more


def uneven_contexts(step_time: StepTime) -> UnevenContexts | None:
    """Return empty books for a step time that asks for them; None where contexts' sum is all it wants."""
    skew: float = getattr(step_time, "skew", 0.0)
    saturating: float = getattr(step_time, "saturating_sequences", 0.0)
    unsplit_batch: int = getattr(step_time, "unsplit_batch", 0)
    return UnevenContexts(skew, saturating, unsplit_batch) if skew or saturating else None
