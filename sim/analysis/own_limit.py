"""What a promise costs whoever has it: refusals at a guaranteed entitlement's own limit while the pool had room.

By the paper's rules a guaranteed entitlement is never let in beyond its baseline, however idle the pool is. Nothing is
wrong then, but whoever set the baseline may not have meant it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from sim.analysis import frames
from sim.analysis.frames import TIMELINE_COLUMNS

OWN_LIMITS = ("concurrency", "tokens", "kv_cache")
"""The reasons by which a request is refused for its entitlement's limit, not for the pool's state."""

TOLD = 0.01
"""The share lost from which somebody is told."""

_REQUESTS = ("final", "entitlement", "outcome", "reason", "first_arrival_s", "arrival_s")

PROTECTED = ("guaranteed", "dedicated")


@dataclass(frozen=True, slots=True)
class OwnLimitLoss:
    """Requests of one entitlement that its own limit refused while slots were free.

    Attributes
    ----------
    refused : requests, by their last attempt.
    offered : requests of the entitlement.
    idle : mean share of the pool's slots that were free when they were refused.
    """

    entitlement: str
    refused: int
    offered: int
    idle: float

    @property
    def share(self) -> float:
        """Refused of offered."""
        return self.refused / self.offered if self.offered else 0.0

    def __str__(self) -> str:
        """Return it as a sentence, with the remedy."""
        return (
            f"{self.entitlement} lost {self.share:.1%} of its requests ({self.refused} of {self.offered}) to its own "
            f"limit while {self.idle:.0%} of the slots were free: a guaranteed entitlement never exceeds its baseline. "
            "Raise the baseline, or make it elastic (docs/which-class.md)."
        )


def own_limit_losses(
    requests: pd.DataFrame, timeline: pd.DataFrame, pool: Mapping[str, Any], *, warmup_s: float = 0.0
) -> list[OwnLimitLoss]:
    """Return the losses of one run, the greatest first; none where nobody lost so.

    Parameters
    ----------
    requests, timeline : of one run.
    pool : ``scenario.pool`` of its manifest.
    """
    protected = [one["name"] for one in pool["entitlements"] if one["service_class"] in PROTECTED]
    series = frames.pool_series(timeline) if len(timeline) else pd.DataFrame()
    if not protected or not {"in_flight", "capacity_slots"} <= set(series):
        return []
    slots = series["capacity_slots"].to_numpy()
    free = np.where(slots > 0, 1.0 - series["in_flight"].to_numpy() / np.where(slots > 0, slots, 1.0), 0.0)
    last = requests[requests["final"] & (requests["first_arrival_s"] >= warmup_s)]
    found = []
    for name in protected:
        mine = last[last["entitlement"] == name]
        refused = mine[(mine["outcome"] == "refused") & mine["reason"].isin(OWN_LIMITS)]
        at = np.searchsorted(series.index.to_numpy(), refused["arrival_s"].to_numpy(), side="right") - 1
        idle = free[np.maximum(at, 0)]
        idle = idle[idle > 0]
        if len(idle):
            found.append(OwnLimitLoss(name, len(idle), len(mine), float(idle.mean())))
    return sorted(found, key=lambda loss: -loss.share)


def worst_losses(requests: pa.Table, timeline: pa.Table, pool: Mapping[str, Any]) -> list[OwnLimitLoss]:
    """Return the greatest loss of each entitlement over the runs of a result's tables, where more than `TOLD`."""
    attempts, samples = dict(frames.cut(requests, _REQUESTS).cases), dict(frames.cut(timeline, TIMELINE_COLUMNS).cases)
    worst: dict[str, OwnLimitLoss] = {}
    for label in attempts.keys() & samples.keys():
        for loss in own_limit_losses(attempts[label], samples[label], pool):
            if loss.share > max(TOLD, worst[loss.entitlement].share if loss.entitlement in worst else 0.0):
                worst[loss.entitlement] = loss
    return sorted(worst.values(), key=lambda loss: -loss.share)
