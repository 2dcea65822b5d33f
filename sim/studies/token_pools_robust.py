"""What docs/token-pools.md says of single rules of the robust mode: experiment 2 field by field, and equal shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from policies.token_pool.params import MODES
from sim.analysis.markdown_tables import markdown
from sim.analysis.statistics import mean_interval, paired_difference
from sim.experiments.run import run_scenario
from sim.scenario.load import load_scenario
from sim.studies.convergence import Balance, measure
from sim.studies.token_pools import CHANGED_S, UNTIL_S

STRETCHES_S = ((0, 30), (30, 120), (120, 210), (210, 300))
REPLICATIONS = 20
EQUALISED: tuple[dict[str, Any], ...] = (
    {"alpha_debt": 0, "equalise": 0}, {"alpha_debt": 4, "equalise": 0}, {"alpha_debt": 4, "equalise": 0.3},
    {"alpha_debt": 0, "equalise": 0.3},
)  # fmt: skip


def fields() -> list[tuple[str, str]]:
    """Return what is compared: both modes, and each with one field of the other; label and policy."""
    paper, robust = MODES["paper"], MODES["robust"]
    differing = [name for name in paper if paper[name] != robust[name]]
    found = [("`robust`", "mode: robust"), ("`paper`", "mode: paper")]
    for own, other in (("robust", paper), ("paper", robust)):
        for name in differing:
            value = str(other[name]).lower()
            found.append((f"`{own}`, but `{name}: {value}`", f"mode: {own}, {name}: {value}"))
    return found


def by_field(replications: int = REPLICATIONS) -> str:
    """Return experiment 2 under both modes and each field of either in the other, as a table."""
    heads = ("rules", "copilot refused in each stretch", "for", "synth refused", "reports refused", "queue, most")
    rows = []
    for label, policy in fields():
        changes = [f"replications={replications}", f"policies=[{{kind: token-pool, {policy}}}]"]
        result = run_scenario(load_scenario("paper-exp2", overrides=changes))
        table = result.requests.to_pandas()
        refused = table["outcome"] == "refused"
        shares = {}
        for tenant in ("copilot", "synth", "reports"):
            own = table["tenant"] == tenant
            shares[tenant] = " / ".join(
                f"{100 * float(refused[inside].mean()):.0f}"
                for from_s, until_s in STRETCHES_S
                if (inside := own & (table["arrival_s"] >= from_s) & (table["arrival_s"] < until_s)).any()
            )
        reasons = table[refused & (table["tenant"] == "copilot")]["reason"].astype(str).value_counts()
        why = ", ".join(f"{name} {n / replications:.0f}" for name, n in reasons.items() if n >= replications)
        series = result.timeline.to_pandas()
        waiting = series[(series["scope"] == "pool") & (series["metric"] == "waiting")]["value"]
        rows.append((
            label, f"{shares['copilot']} %", why, f"{shares['synth']} %", f"{shares['reports']} %",
            f"{float(waiting.max()):.0f}",
        ))  # fmt: skip
    return markdown(heads, rows)


def equalised(seeds: Sequence[int] = tuple(range(1, 11))) -> str:
    """Return what adding up differences brings and costs, as a table of means with their 95 % intervals."""
    heads = (
        "a_debt", "equalise", "unfairness", "against a_debt 4 alone (paired)", "settled", "wobble", "served / promised",
    )  # fmt: skip
    found = {
        tuple(setting.values()): [
            measure("convergence", {"gamma_debt": 0.7, "tick_s": 5, **setting}, CHANGED_S, UNTIL_S, seed=seed)
            for seed in seeds
        ]
        for setting in EQUALISED
    }
    before = [one.unfairness for one in found[4, 0]]
    rows = []
    for (alpha, equalise), runs in found.items():
        unfair = np.asarray([one.unfairness for one in runs])
        change = paired_difference(np.asarray(before), unfair).absolute
        same = (alpha, equalise) == (4, 0)
        rows.append((
            f"{alpha:g}", f"{equalise:g}", _interval(unfair),
            "" if same else f"{change.estimate:+.2f} [{change.low:+.2f}, {change.high:+.2f}]",
            _settled(runs), _interval(np.asarray([one.wobble for one in runs]), 3),
            _interval(np.asarray([_served(one) for one in runs])),
        ))  # fmt: skip
    return markdown(heads, rows)


def _served(balance: Balance) -> float:
    """Return what all got over what all were promised."""
    promised = {"heavy": 2000.0, "medium": 1300.0, "light": 600.0}
    return sum(share * promised[name] for name, share in balance.shares.items()) / sum(promised.values())


def _settled(runs: Sequence[Balance]) -> str:
    times_s = np.asarray([one.settled_s for one in runs])
    known = times_s[~np.isnan(times_s)]
    return f"{known.mean():.0f} s ({len(known)} of {len(runs)})" if len(known) else "not"


def _interval(values: np.ndarray[Any, np.dtype[np.float64]], digits: int = 2) -> str:
    one = mean_interval(values)
    return f"{one.estimate:.{digits}f} [{one.low:.{digits}f}, {one.high:.{digits}f}]"
