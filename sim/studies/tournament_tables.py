"""Tables of a tournament about one policy: where it loses and to whom, how full its GPUs were, what room there was."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sim.analysis.markdown_tables import markdown
from sim.analysis.standings import Cell, Table
from sim.studies.tournament_bounds import Bounds

_LEVEL = 0.005


def losses(cells: Sequence[Cell], policy: str, load: float = 1.0) -> str:
    """Return by how much a policy's attainment is below the best at one load, the widest gap first, as Markdown."""
    table = Table(cells)
    mine = table.policies.index(policy)
    rows = []
    for place, (scenario, at) in enumerate(table.places):
        if at != load:
            continue
        means = table.values["attainment"][place].mean(axis=1)
        better = [name for i, name in enumerate(table.policies) if means[i] > means[mine] + _LEVEL]
        best = int(means.argmax())
        rows.append((means[best] - means[mine], scenario, means[mine], table.policies[best], means[best], len(better)))
    rows.sort(key=lambda row: (-row[0], row[1]))
    heads = ("scenario", "in time %", "best policy", "its %", "behind by", "policies that are better")
    return markdown(heads, [
        (scenario, f"{100 * own:.0f}", best, f"{100 * most:.0f}", f"{100 * gap:.0f}", str(count))
        for gap, scenario, own, best, most, count in rows if gap > _LEVEL
    ])  # fmt: skip


def room(bounds: Sequence[Bounds], cells: Sequence[Cell], baseline: str) -> str:
    """Return, scenario by scenario, how full a policy's GPUs were and its goodput beside a baseline and the ceiling.

    Parameters
    ----------
    bounds : of one policy; means of the replications at each load are shown, the least of them for the GPUs.
    baseline : the policy whose goodput is 1.
    """
    loads = sorted({one.load for one in bounds})
    rows = []
    for scenario in dict.fromkeys(one.scenario for one in bounds):
        running, full, now, most, base = [], [], [], [], []
        for load in loads:
            own = [one for one in bounds if (one.scenario, one.load) == (scenario, load)]
            looked_at = {one.replication for one in own}
            wanted = [one for one in own if one.wanted_s > 0]
            if wanted:
                total = math.fsum(one.wanted_s for one in wanted)
                running.append(math.fsum(one.running * one.wanted_s for one in wanted) / total)
                full.append(math.fsum(one.full * one.wanted_s for one in wanted) / total)
            now.append(_mean([one.goodput for one in own]))
            most.append(_mean([one.ceiling for one in own]))
            base.append(_mean([
                one.goodput for one in cells
                if (one.scenario, one.load, one.policy) == (scenario, load, baseline) and one.replication in looked_at
            ]))  # fmt: skip
        rows.append((
            scenario, _least(running), _least(full),
            *(f"{a / c:.2f} of {b / c:.2f}" for a, b, c in zip(now, most, base, strict=True)),
            f"{sum(now) / sum(base):.2f} of {sum(most) / sum(base):.2f}",
        ))  # fmt: skip
    heads = ("scenario", "GPUs running %", "full %", *(f"goodput @{load:g}" for load in loads), "over loads")
    return markdown(heads, rows)


def _least(shares: Sequence[float]) -> str:
    return f"{100 * min(shares):.1f}" if shares else "-"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
