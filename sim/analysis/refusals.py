"""What refusals, retries and broken-off requests cost: from one run's attempts. docs/metrics.md has the definitions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sim.analysis.service import Attempts
from sim.records.schema import CUT_OFF, Outcome

Flags = NDArray[np.bool_]


def retry_amplification(found: Attempts, rows: Flags) -> float:
    """Return attempts per request."""
    requests = int((rows & (found.attempt == 1)).sum())
    return int(rows.sum()) / requests if requests else math.nan


def late_rejects(found: Attempts, rows: Flags) -> int:
    """Return how many attempts were evicted or failed after their first token: turned away when it cost most."""
    broken = np.isin(found.outcome, (Outcome.EVICTED, Outcome.FAILED))
    return int((rows & broken & ~np.isnan(found.first_token_s)).sum())


def wasted_tokens(found: Attempts, rows: Flags) -> int:
    """Return prompt and output tokens computed for attempts that were evicted, failed or cancelled.

    A prompt counts where its first token had come; what the engine recomputed after a preemption is in no record.
    """
    broken = rows & np.isin(found.outcome, CUT_OFF)
    prefilled = broken & ~np.isnan(found.first_token_s)
    return int(found.prompt_tokens[prefilled].sum() + found.output_tokens[broken].sum())


def lost_tokens(found: Attempts, rows: Flags) -> int:
    """Return output tokens of attempts that were evicted or failed; a client that went away had what it wanted."""
    broken = rows & np.isin(found.outcome, (Outcome.EVICTED, Outcome.FAILED))
    return int(found.output_tokens[broken].sum())


def retry_after(found: Attempts, rows: Flags) -> tuple[float, float, int]:
    """Return how good Retry-After was: share of those who came when told and got in, mean error in seconds, and n.

    The share and n are over attempts that came no earlier than the Retry-After of the attempt before said. The error
    is, over requests that got in after at least one refusal with a Retry-After, the time from the first refusal until
    the attempt that got in, less what the first refusal said: above zero it was too hopeful.
    """
    order = np.lexsort((found.attempt, found.request_id))
    order = order[rows[order]]
    if len(order) < 2:
        return math.nan, math.nan, 0
    before, after = order[:-1], order[1:]
    same = found.request_id[before] == found.request_id[after]
    before, after = before[same], after[same]
    told = found.retry_after_s[before]
    admitted = ~np.isnan(found.forwarded_s)
    refused_s = found.finish_s[before]
    obeyed = ~np.isnan(told) & (found.arrival_s[after] - refused_s >= told - 1e-9)
    kept = float(admitted[after[obeyed]].mean()) if obeyed.any() else math.nan
    first = (found.attempt[before] == 1) & ~np.isnan(told) & (found.outcome[before] == Outcome.REFUSED)
    got_in = after[admitted[after]][::-1]  # backwards, so that the first time counts where it got in twice
    in_s = dict(zip(found.request_id[got_in].tolist(), found.arrival_s[got_in].tolist(), strict=True))
    errors = [
        in_s[one] - ended - said
        for one, ended, said in zip(
            found.request_id[before[first]].tolist(), refused_s[first].tolist(), told[first].tolist(), strict=True
        )
        if one in in_s
    ]
    return kept, float(np.mean(errors)) if errors else math.nan, int(obeyed.sum())


def completion_share(found: Attempts, rows: Flags) -> float:
    """Return finished requests over finished and refused ones."""
    last = rows & found.final
    finished = int((last & (found.outcome == Outcome.FINISHED)).sum())
    refused = int((last & (found.outcome == Outcome.REFUSED)).sum())
    return finished / (finished + refused) if finished + refused else math.nan
