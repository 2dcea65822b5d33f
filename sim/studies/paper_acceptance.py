"""The acceptance table: what arXiv 2603.00356 reports, what was measured, and whether that is near enough.

The ranges are ours, fixed before the runs (docs/design.md); where the paper gives no figure, or one that cannot be
derived from what it publishes, a row is reported without a verdict. A row is judged by its mean over replications.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from policies.api import ServiceClass
from policies.token_pool.params import TokenPool
from policies.token_pool.priority import CLASS_WEIGHT, weight
from sim.analysis.markdown_tables import as_csv, markdown
from sim.scenario.load import Scenario
from sim.studies.paper_measures import TENANTS, Floats

PASS, FAIL, REPORTED = "pass", "FAIL", "reported"
_PAPER_PEAK_DEBTS = {"copilot": 0.607, "synth": 0.775}
_HEADS = ("check", "paper", "measured", "accepted", "verdict")


@dataclass(frozen=True, slots=True)
class Accepted:
    """A range in words, and the test of a mean."""

    words: str
    test: Callable[[float], bool]


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One line of the table; ``values`` has one element a replication, ``accepted`` is None where none is judged."""

    check: str
    paper: str
    values: Floats
    accepted: Accepted | None = None
    digits: int = 1
    unit: str = ""

    @property
    def mean(self) -> float:
        """The mean over replications, by which the row is judged."""
        return float(np.mean(self.values))

    @property
    def verdict(self) -> str:
        """Pass, FAIL or reported."""
        if self.accepted is None:
            return REPORTED
        return PASS if self.accepted.test(self.mean) else FAIL

    @property
    def measured(self) -> str:
        """The mean, and the least and the most of any replication where they differ."""
        mean, least, most = (_number(v, self.digits) for v in (self.mean, self.values.min(), self.values.max()))
        unit = f" {self.unit}" if self.unit and math.isfinite(self.mean) else ""
        return f"{mean}{unit}" if least == most else f"{mean}{unit} ({least} to {most})"


def between(low: float, high: float, words: str = "") -> Accepted:
    """Accept a mean from ``low`` to ``high``."""
    return Accepted(words or f"{low:g} to {high:g}", lambda mean: low <= mean <= high)


def below(high: float, words: str = "") -> Accepted:
    """Accept a mean below ``high``."""
    return Accepted(words or f"< {high:g}", lambda mean: mean < high)


def above(low: float, words: str = "") -> Accepted:
    """Accept a mean above ``low``."""
    return Accepted(words or f"> {low:g}", lambda mean: mean > low)


def near(value: float, share: float) -> Accepted:
    """Accept a mean within a share of a value."""
    low, high = round(value * (1 - share), 6), round(value * (1 + share), 6)
    return Accepted(f"{low:g} to {high:g}", lambda mean: low <= mean <= high)


def rounds_to(value: float, digits: int) -> Accepted:
    """Accept a mean that is ``value`` when rounded."""
    return Accepted(f"{value:.{digits}f}", lambda mean: round(mean, digits) == value)


def rows(first: pd.DataFrame | None, second: pd.DataFrame | None, scenario2: Scenario) -> list[Row]:
    """Return the table's rows.

    Parameters
    ----------
    first, second : measures of the two experiments (`sim.studies.paper_measures`), one row a policy and replication.
        Rows of policies that did not run, and of an experiment that is None, are left out.
    scenario2 : experiment 2, for the rules under which its weights are formed.
    """
    groups = () if first is None else first.groupby("policy", observed=True)
    by_policy = {str(policy): own for policy, own in groups}
    of_policies = (("none", _no_control), ("token-pool", _protection), ("rate-limit", _rate_limit))
    return [
        *(() if second is None else _weights(second, scenario2)),
        *(row for policy, found in of_policies if policy in by_policy for row in found(by_policy[policy])),
        *(() if second is None else _fair_share(second)),
    ]


def as_table(table: Sequence[Row]) -> str:
    """Return the table for documents and terminals."""
    lines = [
        (row.check, row.paper, row.measured, row.accepted.words if row.accepted else "-", row.verdict) for row in table
    ]
    n = max(len(row.values) for row in table)
    note = f"Measured: mean over {n} replications (least to most). reported: not pinned down by the paper, no verdict."
    return f"{markdown(_HEADS, lines)}\n\n{note}"


def as_records(table: Sequence[Row]) -> str:
    """Return the table as CSV, with the plain numbers beside the words."""
    heads = (*_HEADS, "mean", "least", "most", "replications")
    return as_csv(heads, [
        (
            row.check, row.paper, row.measured, row.accepted.words if row.accepted else "", row.verdict,
            row.mean, float(row.values.min()), float(row.values.max()), len(row.values),
        )
        for row in table
    ])  # fmt: skip


def _weights(second: pd.DataFrame, scenario: Scenario) -> Iterator[Row]:
    for tenant, paper, value in zip(TENANTS, ("93.8", "20.3", "about 60"), (93.85, 20.27, 60.40), strict=True):
        name = f"weight of {tenant} without debt or burst"
        yield Row(name, paper, _of(second, f"{tenant}_weight"), rounds_to(value, 2), 2)
    gap = np.asarray([paper_peak_gap(scenario)])
    yield Row("copilot to synth at the paper's peak debts", "3.9x", gap, rounds_to(3.87, 2), 2)


def paper_peak_gap(scenario: Scenario) -> float:
    """Return the ratio of the weights of copilot and synth at the peak debts that the paper reports."""
    params = next(policy.params for policy in scenario.policies if isinstance(policy.params, TokenPool))
    rules = params.resolved()
    slo_s = {one.name: one.ttft_slo_s or rules.mean_slo_s for one in scenario.pool.entitlements}
    copilot, synth = (
        weight(
            class_weight=CLASS_WEIGHT[ServiceClass.ELASTIC], slo_s=slo_s[name], mean_slo_s=rules.mean_slo_s,
            burst=0.0, debt=debt, alpha_slo=rules.alpha_slo, alpha_burst=rules.alpha_burst,
            alpha_debt=rules.alpha_debt, debt_factor_floor=rules.debt_factor_floor,
        )
        for name, debt in _PAPER_PEAK_DEBTS.items()
    )  # fmt: skip
    return copilot / synth


def _no_control(none: pd.DataFrame) -> Iterator[Row]:
    name = "exp. 1, no control: "
    yield Row(name + "peak queue", "34", _of(none, "peak_waiting"), between(28, 42))
    yield Row(name + "queue when the phase ends", "34", _of(none, "waiting_at_end"))
    yield Row(
        name + "guaranteed P99 TTFT, phase", "over 19 s at its end", _of(none, "phase_p99_s"),
        between(15, 24, "15 to 24 s"), 1, "s",
    )  # fmt: skip


def _protection(pools: pd.DataFrame) -> Iterator[Row]:
    name = "exp. 1, token pools: "
    tail_s = _of(pools, "guaranteed_p99_s")
    yield Row(name + "guaranteed P99 TTFT, worst tenant and phase", "< 1.2 s", tail_s, below(1.2, "< 1.2 s"), 2, "s")
    met = 100.0 * (tail_s < 1.2).mean(keepdims=True)
    yield Row(name + "replications in which that is below 1.2 s", "-", met, None, 0, "%")
    yield Row(name + "guaranteed refused for low priority", "0", _of(pools, "low_priority"), between(0, 0, "0"), 0)
    yield Row(name + "guaranteed refused at their own limit", "-", 100 * _of(pools, "own_limit"), None, 1, "%")
    spot = 100 * _of(pools, "spot_phase")
    yield Row(name + "spot refused in the phase", "47 %", spot, between(40, 60, "40 to 60 %"), 1, "%")
    yield Row(name + "spot refused before it", "-", 100 * _of(pools, "spot_before"), None, 1, "%")
    yield Row(name + "spot refused after it", "recovers at once", 100 * _of(pools, "spot_after"), None, 1, "%")
    yield Row(name + "peak queue", "0", _of(pools, "peak_waiting"))
    yield Row(name + "peak running", "16", _of(pools, "peak_running"), None, 0)


def _rate_limit(limit: pd.DataFrame) -> Iterator[Row]:
    name = "exp. 1, rate limit: "
    yield Row(name + "guaranteed P99 TTFT, worst tenant and phase", "-", _of(limit, "guaranteed_p99_s"), None, 2, "s")
    yield Row(name + "spot refused before the phase", "-", 100 * _of(limit, "spot_before"), None, 1, "%")
    yield Row(name + "spot refused in the phase", "-", 100 * _of(limit, "spot_phase"), None, 1, "%")


def _fair_share(second: pd.DataFrame) -> Iterator[Row]:
    name = "exp. 2: "
    for tenant, paper, share in zip(TENANTS, (700, 381, 60), (0.10, 0.10, 0.20), strict=True):
        yield Row(f"{name}successes of {tenant}", f"{paper}", _of(second, f"{tenant}_successes"), near(paper, share))
    refusals = (("0", between(0, 2, "at most 2")), ("317", near(317, 0.10)), ("22", None))
    for tenant, (paper_words, accepted) in zip(TENANTS, refusals, strict=True):
        refused = _of(second, f"{tenant}_low_priority")
        yield Row(f"{name}{tenant} refused for low priority", paper_words, refused, accepted)
    for tenant, paper_words in zip(TENANTS, ("0.607", "0.775", "0.414"), strict=True):
        yield Row(f"{name}peak debt of {tenant}", paper_words, _of(second, f"{tenant}_peak_debt"), None, 3)
    ahead = _of(second, "synth_peak_debt") - _of(second, "copilot_peak_debt")
    yield Row(name + "peak debt of synth less copilot's", "0.168", ahead, above(0, "> 0"), 3)
    yield Row(
        name + "debts below 0.05 again, after the recovery", "near 0 at about 50 s", _of(second, "settled_s"),
        between(0, 60, "within 60 s"), 1, "s",
    )  # fmt: skip
    yield Row(name + "least debt of synth", "-", _of(second, "synth_least_debt"), None, 3)
    yield Row(name + "least copilot to synth gap in the outage", "3.9x", _of(second, "least_gap"), None, 2)
    for tenant, paper_words in (("copilot", "5 to 7"), ("synth", "2 to 3")):
        held = _of(second, f"{tenant}_outage_in_flight")
        yield Row(f"{name}mean in flight in the outage, {tenant}", paper_words, held)


def _of(measures: pd.DataFrame, name: str) -> Floats:
    return measures[name].to_numpy(dtype=np.float64)


def _number(value: float, digits: int) -> str:
    if math.isinf(value):
        return "never"
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text
