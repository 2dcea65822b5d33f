"""A live run beside the simulation of the same requests: what each measured, and how far the simulation is off."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

from sim.analysis.markdown_tables import markdown
from sim.records import metrics

_HEADS = ("policy", "tenant", "quantity", "live", "simulated", "error")
_SHOWN = {"%": 1, "s": 2, "": 2, "requests": 1}


@dataclass(frozen=True, slots=True)
class Compared:
    """One quantity of both; ``unit`` is s, %, requests or empty. Shares are in per cent of their whole."""

    policy: str
    tenant: str
    quantity: str
    live: float
    simulated: float
    unit: str = ""

    @property
    def error(self) -> float:
        """How far the simulation is off: relative for times, in points for shares, absolute for the rest."""
        if self.unit == "s":
            return self.simulated / self.live - 1 if self.live else math.nan
        return self.simulated - self.live

    @property
    def error_words(self) -> str:
        """The error with its unit."""
        if math.isnan(self.error):
            return "-"
        if self.unit == "s":
            return f"{100 * self.error:+.1f} %"
        return f"{self.error:+.1f} points" if self.unit == "%" else f"{self.error:+.2f}"


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """The tables of one result."""

    requests: pa.Table
    timeline: pa.Table


def compare_runs(live: Tables, simulated: Tables) -> list[Compared]:
    """Return, for each policy and draw that both have, tenants' latencies, refusals, slots, debts and the queue.

    Requests count by their last attempt. Slots are those in flight, as a share of the capacity at that moment, over the
    time that both timelines cover.
    """
    mine, theirs = (_Read.of(tables) for tables in (live, simulated))
    found: list[Compared] = []
    for policy in mine.policies:
        if policy in theirs.policies:
            found += _requests(policy, mine.requests[policy], theirs.requests[policy])
            found += _timeline(policy, mine.timeline[policy], theirs.timeline[policy])
    return found


def as_table(rows: Sequence[Compared]) -> str:
    """Return the comparison for documents and terminals."""

    def shown(row: Compared, value: float) -> str:
        unit = f" {row.unit}" if row.unit in ("s", "%") else ""
        return "-" if math.isnan(value) else f"{value:.{_SHOWN[row.unit]}f}{unit}"

    lines = [
        (row.policy, row.tenant, row.quantity, shown(row, row.live), shown(row, row.simulated), row.error_words)
        for row in rows
    ]
    return markdown(_HEADS, lines)


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """Tables as frames by policy."""

    requests: dict[str, pd.DataFrame]
    timeline: dict[str, pd.DataFrame]

    @property
    def policies(self) -> list[str]:
        return list(self.requests)

    @classmethod
    def of(cls, tables: Tables) -> _Read:
        requests = tables.requests.to_pandas()
        requests = requests[requests["final"]]
        requests["ttft_s"] = metrics.ttft_s(requests["first_token_s"], requests["first_arrival_s"])
        timeline = tables.timeline.to_pandas()
        return cls(_by_policy(requests), _by_policy(timeline))


def _by_policy(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    groups = frame.groupby(["policy", "replication"], observed=True, sort=False)
    return {f"{policy}, draw {draw}" if draw else str(policy): own for (policy, draw), own in groups}


def _requests(policy: str, live: pd.DataFrame, simulated: pd.DataFrame) -> Iterator[Compared]:
    for tenant in map(str, live["tenant"].unique()):
        a, b = live[live["tenant"] == tenant], simulated[simulated["tenant"] == tenant]
        yield Compared(policy, tenant, "offered", len(a), len(b), "requests")
        yield Compared(policy, tenant, "refused", _refused_percent(a), _refused_percent(b), "%")
        for level in (0.5, 0.99):
            p, q = (float(rows["ttft_s"].quantile(level)) for rows in (a, b))
            yield Compared(policy, tenant, f"TTFT P{100 * level:g}", p, q, "s")


def _refused_percent(rows: pd.DataFrame) -> float:
    return 100 * float((rows["outcome"] == "refused").mean())


def _timeline(policy: str, live: pd.DataFrame, simulated: pd.DataFrame) -> Iterator[Compared]:
    one, other = (_wide(rows[rows["scope"] == "pool"], "metric") for rows in (live, simulated))
    end_s = min(one.index.max(), other.index.max())
    one, other = one[one.index <= end_s], other[other.index <= end_s]
    a, b = one["waiting"], other["waiting"]
    yield Compared(policy, "all", "queue at the replica, most", float(a.max()), float(b.max()), "requests")
    yield Compared(policy, "all", "queue at the replica, mean", float(a.mean()), float(b.mean()), "requests")
    held, theirs = (_wide(_of(rows, "in_flight"), "name") for rows in (live, simulated))
    for tenant in held.columns:
        p, q = _share(held[tenant], one["capacity_slots"]), _share(theirs[tenant], other["capacity_slots"])
        yield Compared(policy, tenant, "in flight of the slots, mean", 100 * p, 100 * q, "%")
    debt, theirs = (_wide(_of(rows, "debt"), "name") for rows in (live, simulated))
    for tenant in debt.columns:
        x, y = debt[tenant], theirs[tenant]
        if x.abs().max() > 0 or y.abs().max() > 0:  # only elastic tenants have some
            yield Compared(policy, tenant, "debt, peak", float(x.max()), float(y.max()))
            yield Compared(policy, tenant, "debt, least", float(x.min()), float(y.min()))


def _of(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    return rows[(rows["scope"] == "entitlement") & (rows["metric"] == metric)]


def _wide(rows: pd.DataFrame, columns: str) -> pd.DataFrame:
    wide = rows.pivot_table(index="t_s", columns=columns, values="value", observed=True)
    wide.columns = pd.Index([str(name) for name in wide.columns])
    return wide


def _share(held: pd.Series[float], capacity: pd.Series[float]) -> float:
    both = held.index.intersection(capacity.index)
    return float((held.loc[both] / capacity.loc[both].where(capacity.loc[both] > 0)).mean())
