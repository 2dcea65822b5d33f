"""How far the reproduction depends on what the paper leaves open: arrivals, speed, throughput, clients, rules."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sim.analysis.markdown_tables import markdown
from sim.experiments.run import run_scenario
from sim.scenario.load import Scenario
from sim.studies.paper_acceptance import FAIL, Row
from sim.studies.paper_reproduction import EXPERIMENTS, judged, shipped

ARRIVALS = ("even", "gamma, cv 0.3", "Poisson")
BASES_S = (0.125, 0.130, 0.135)
RATES = (None, 240.0)
CLIENTS = ("drop", "retry-after", "retry after 1 s")
RULES = ("paper", "inclusive", "robust")
_LAWS = {"even": "even", "gamma, cv 0.3": "gamma", "Poisson": "poisson"}
_MORE = {"gamma, cv 0.3": ", cv: 0.3"}
_CLIENTS = {
    "drop": "drop",
    "retry-after": "{kind: retry, max_attempts: 3}",
    "retry after 1 s": "{kind: retry, max_attempts: 3, honour_retry_after: false, delay_s: 1}",
}
_RULES = {"paper": "threshold=strict", "inclusive": "threshold=inclusive", "robust": "mode=robust"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One way to fill in what the paper leaves open.

    Attributes
    ----------
    arrivals : the law, of the rates of the shipped scenarios.
    base_s : seconds that an iteration takes before what its tokens add.
    tokens_per_s : the throughput declared as the pool's (Lambda_p); None: not declared.
    client : what a refused client does.
    rules : the paper's, the same with a threshold that equality suffices for, or the robust mode.
    """

    arrivals: str = "even"
    base_s: float = 0.130
    tokens_per_s: float | None = None
    client: str = "drop"
    rules: str = "paper"

    def overrides(self, scenario: Scenario) -> list[str]:
        """Return what to set in a scenario, as ``path=value``."""
        rate = "null" if self.tokens_per_s is None else f"{self.tokens_per_s:g}"
        found = [
            f"policies.token-pool.{_RULES[self.rules]}",
            f"pool.profile.step_time.base_s={self.base_s:g}",
            f"pool.profile.tokens_per_s={rate}",
        ]
        for index, workload in enumerate(scenario.workload):
            rate_per_s = workload.arrivals.rate_per_s
            law = f"{{kind: {_LAWS[self.arrivals]}, rate_per_s: {rate_per_s!r}{_MORE.get(self.arrivals, '')}}}"
            found += [f"workload[{index}].arrivals={law}", f"workload[{index}].client={_CLIENTS[self.client]}"]
        return found


SETTINGS = (
    *(Setting(arrivals=a, base_s=b, tokens_per_s=r) for a, b, r in itertools.product(ARRIVALS, BASES_S, RATES)),
    *(Setting(client=client) for client in CLIENTS[1:]),
    *(Setting(rules=rules) for rules in RULES[1:]),
)

# Heading, check, digits.
_SHOWN = (
    ("spot refused %", "exp. 1, token pools: spot refused in the phase", 1),
    ("guaranteed P99 s", "exp. 1, token pools: guaranteed P99 TTFT, worst tenant and phase", 2),
    ("queue", "exp. 1, no control: peak queue", 1),
    ("P99 none s", "exp. 1, no control: guaranteed P99 TTFT, phase", 1),
    ("copilot", "exp. 2: successes of copilot", 0),
    ("synth", "exp. 2: successes of synth", 0),
    ("reports", "exp. 2: successes of reports", 0),
    ("synth refused", "exp. 2: synth refused for low priority", 0),
    ("copilot refused", "exp. 2: copilot refused for low priority", 1),
)


def sensitivity(settings: Sequence[Setting] = SETTINGS, *, jobs: int = 1, replications: int | None = None) -> str:
    """Return a table with a line for each setting: the judged means, ``*`` where one is out of its range."""
    heads = ("arrivals", "base s", "Lambda_p", "clients", "rules", *(head for head, _, _ in _SHOWN), "rows out")
    lines = []
    for setting in settings:
        rows = {row.check: row for row in measured(setting, jobs=jobs, replications=replications)}
        cells = [_cell(rows[check], digits) for _, check, digits in _SHOWN]
        rate = "-" if setting.tokens_per_s is None else f"{setting.tokens_per_s:g}"
        out = sum(row.verdict == FAIL for row in rows.values())
        lines.append((setting.arrivals, f"{setting.base_s:.3f}", rate, setting.client, setting.rules, *cells, str(out)))
    return markdown(heads, lines)


def measured(setting: Setting, *, jobs: int = 1, replications: int | None = None) -> list[Row]:
    """Return the acceptance table's rows for one setting, the same in both experiments."""
    scenarios = []
    for name in EXPERIMENTS:
        shipped_one = shipped(name, replications)
        scenarios.append(shipped(name, replications, *setting.overrides(shipped_one)))
    first, second = (run_scenario(scenario, jobs=jobs) for scenario in scenarios)
    return judged(first, second, scenarios)


def _cell(row: Row, digits: int) -> str:
    # A mean that prints as the bound it misses would read as a contradiction; the mark settles it.
    return f"{np.mean(row.values):.{digits}f}{'*' if row.verdict == FAIL else ''}"
