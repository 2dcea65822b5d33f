"""Batches sized by deadlines: the tokens that decode come on time, and prefill fills what time is left.

After FairBatching (arXiv 2510.14392). A request's output token number j, counted from 0, is due at its arrival + TTFT
objective + j * ``tpot_slo_s``. An iteration may take until the most pressed decoding request's next token is due, and
never less than ``tpot_slo_s``, which loses no time to any deadline; prompts get what fits into that. So a batch that
runs ahead of its deadlines takes large chunks, and one that is behind takes small ones, where a fixed chunk size has to
be set for one of the two.
"""

from __future__ import annotations

from sim.cluster.discipline import Pressed
from sim.engine.step_time import StepTime


class FairBatcher:
    """See `sim.cluster.discipline.Batcher`."""

    def __init__(self, step_time: StepTime, tpot_slo_s: float) -> None:
        self._step = step_time
        self._tpot_slo_s = tpot_slo_s

    def prefill_tokens(
        self, batch: Pressed, budget_tokens: int, decoding: int, context_tokens: float, now_s: float
    ) -> int:
        """See `sim.cluster.discipline.Batcher.prefill_tokens`."""
        if not decoding:
            return budget_tokens
        allowed_s = max(self._tpot_slo_s, batch.token_due_s(self._tpot_slo_s) - now_s) / batch.slowdown
        before = batch.prompt_under_way_tokens

        def fits(tokens: int) -> bool:
            pairs = tokens * (before + (tokens + 1) / 2)
            return self._step.iteration_s(tokens, pairs, decoding, context_tokens) <= allowed_s

        if fits(budget_tokens):
            return budget_tokens
        most, too_many = 0, budget_tokens  # by halves: 11 questions for 2,048 tokens
        while too_many - most > 1:
            middle = (most + too_many) // 2
            if fits(middle):
                most = middle
            else:
                too_many = middle
        return most
