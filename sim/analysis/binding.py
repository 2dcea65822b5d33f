"""Which resource of a pool binds, and what is promised of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

BUSY = 0.95
"""The quantile over time of a resource's use by which resources are compared: what binds is busy in the busy hours."""



@dataclass(frozen=True, slots=True)
class Binding:
    """Which resource of a pool was used most, and how much of it.

    Attributes
    ----------
    resource : "slots", "tokens_per_s" or "kv".
    used : by resource, the share in use at the `BUSY` quantile over time; more than 1 where work waited for it.
    """

    resource: str
    used: Mapping[str, float]

    def __str__(self) -> str:
        """Return it in words."""
        return f"{WORDS[self.resource]} bind: {self.used[self.resource]:.0%} in use at P{BUSY * 100:.0f}"


_SMOOTH = 10  # samples

WORDS = {"slots": "slots", "tokens_per_s": "tokens/s", "kv": "KV blocks"}


def binding(pool: pd.DataFrame, *, tokens_per_s: float | None = None) -> Binding:
    """Return what of a pool binds.

    Parameters
    ----------
    pool : the pool's series (`frames.pool_series`).
    tokens_per_s : the declared capacity, prompt and output together; None: nothing is said of it.
    """
    used = {name: float(use_over_time(pool, name, tokens_per_s).quantile(BUSY)) for name in WORDS}
    used = {name: share for name, share in used.items() if math.isfinite(share)} or {"slots": 0.0}
    return Binding(max(used, key=lambda name: (used[name], name)), used)


def use_over_time(pool: pd.DataFrame, resource: str, tokens_per_s: float | None = None) -> pd.Series[float]:
    """Return the share of a resource in use at each sample, NaN where no record says it."""
    found = pd.Series(math.nan, index=pool.index)
    if resource == "slots" and {"in_flight", "capacity_slots"} <= set(pool):
        found = pool["in_flight"] / pool["capacity_slots"].where(pool["capacity_slots"] > 0)
    elif resource == "kv" and "kv_used_fraction" in pool:
        found = pool["kv_used_fraction"]
    elif resource == "tokens_per_s" and tokens_per_s and "tokens_per_s" in pool:
        # Tokens are counted when they come, in bursts as long as a prefill; capacity is declared as a mean.
        found = pool["tokens_per_s"].rolling(_SMOOTH, min_periods=1).mean() / tokens_per_s
    return found.rename(resource)


def promised_shares(pool: Mapping[str, Any], resource: str) -> dict[str, float]:
    """Return each entitlement's part of all baselines of a resource; empty where nothing of it is promised."""
    baselines = {one["name"]: (one.get("baseline") or {}).get(resource) or 0.0 for one in pool["entitlements"]}
    together = sum(baselines.values())
    return {name: float(value) / together for name, value in baselines.items()} if together else {}


def declared_tokens_per_s(pool: Mapping[str, Any]) -> float | None:
    """Return the declared capacity of a pool in tokens per second, if its profiles declare one."""
    total = 0.0
    for kind in (pool, *(pool.get("also") or ())):
        profile = kind.get("profile")
        each = profile.get("tokens_per_s") if isinstance(profile, Mapping) else None
        if not each:
            return None
        total += float(each) * int(kind["replicas"])
    return total
