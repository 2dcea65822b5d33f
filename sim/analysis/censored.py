"""What a P99 over those that finished says while others still wait: how many those are, and the bound that follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from sim.analysis import frames
from sim.analysis.warm_up import warmup_of
from sim.records.schema import variant_columns

TOLD = 0.01
"""Share by which the bound must pass the P99 to be worth a line: in any run some are under way at its end."""
_COLUMNS = ("final", "first_arrival_s", "first_token_s", "outcome", "replication", "policy")


@dataclass(frozen=True, slots=True)
class Censored:
    """One case's unfinished requests and what they mean for its TTFT P99, means over its replications.

    Attributes
    ----------
    offered, unfinished : requests of all replications.
    shown_s : the P99 of those that finished, as the summary has it.
    least_s : its least true value, see `censored_p99_s`.
    """

    case: str
    offered: int
    unfinished: int
    shown_s: float
    least_s: float

    def __str__(self) -> str:
        """Return it as a sentence."""
        return (
            f"{self.unfinished:,} of {self.offered:,} requests under {self.case} had not finished at the horizon; the "
            f"TTFT P99 of {self.shown_s:.2f} s is that of the others: with those counted at what they had waited by "
            f"then, it is at least {self.least_s:.2f} s"
        )


def censored_p99_s(requests: pd.DataFrame, horizon_s: float, warmup_s: float) -> tuple[int, float, float] | None:
    """Return how many of one run's requests had not finished, the TTFT P99 of the finished, and its least true value.

    Over finished and unfinished requests together: a first token that had come counts as it was, and one that had not
    counts at what its request had waited by the horizon, which it can only exceed. None where nothing finished, or
    all did.
    """
    last = requests[requests["final"] & (requests["first_arrival_s"] >= warmup_s)]
    done = last["outcome"] == "finished"
    open_still = last["outcome"].isin(["running", "waiting"])
    if not done.any() or not open_still.any():
        return None
    waited_s = last["first_token_s"].fillna(horizon_s) - last["first_arrival_s"]
    levels = (float(waited_s[rows].quantile(0.99)) for rows in (done, done | open_still))
    return int(open_still.sum()), *levels  # type: ignore[return-value]


def censored_cases(
    requests: pa.Table, manifest: Mapping[str, Any], summary: Sequence[Mapping[str, Any]]
) -> list[Censored]:
    """Return the cases of a result of which it has to be said, in the table's order.

    Parameters
    ----------
    summary : rows of ``summary.csv``; records are read only where these show unfinished requests.
    """
    if not any(float(row["unfinished"]) > 0 for row in summary):
        return []
    varied = variant_columns(requests)
    table = requests.select([*_COLUMNS, *varied]).filter(requests.column("final")).to_pandas()
    cells = {
        (cell["policy"], *map(str, cell["variant"].values()), cell["replication"]): cell
        for cell in manifest["cells"] if not cell.get("error")
    }  # fmt: skip
    found = []
    for key, rows in table.groupby(["policy", *varied], sort=False, observed=True):
        offered = unfinished = 0
        shown_s: list[float] = []
        least_s: list[float] = []
        for replication, run in rows.groupby("replication", observed=True):
            cell = cells[*map(str, key), replication]
            warmup_s = warmup_of(manifest, cell)
            offered += int((run["first_arrival_s"] >= warmup_s).sum())
            bound = censored_p99_s(run, float(cell["end_s"]), warmup_s)
            if bound is not None:
                unfinished += bound[0]
                shown_s.append(bound[1])
                least_s.append(bound[2])
        if not shown_s:
            continue
        labels = dict(zip(["policy", *varied], map(str, key), strict=True))
        case = frames.case_label(labels).replace("\n", ", ")
        one = Censored(case, offered, unfinished, float(np.mean(shown_s)), float(np.mean(least_s)))
        if one.least_s > (1 + TOLD) * one.shown_s:
            found.append(one)
    return found
