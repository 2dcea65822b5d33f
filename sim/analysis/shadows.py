"""What policies that watched a run would have done: of ``shadows.parquet``, see `policies.shadow` for what it means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from sim.analysis.summary import Row

IN = ("forward", "demote")
VERDICTS = ("forward", "demote", "hold", "refuse", "evict")


def agreement(table: pa.Table) -> list[Row]:
    """Return a row for each acting policy, shadow and pair of verdicts: how many attempts had that pair.

    Counts are sums over replications and variants.
    """
    counts = _counts(table, ["policy", "shadow", "acting_verdict", "verdict"])
    return [
        {"policy": policy, "shadow": shadow, "acting_verdict": acting, "verdict": verdict, "attempts": n}
        for (policy, shadow, acting, verdict), n in counts.items()
    ]


def by_tenant(table: pa.Table) -> list[Row]:
    """Return, for each acting policy, shadow and tenant, how many attempts each let in and how often they agreed."""
    counts = _counts(table, ["policy", "shadow", "tenant", "acting_verdict", "verdict"])
    rows: dict[tuple[str, ...], Row] = {}
    for (policy, shadow, tenant, acting, verdict), n in counts.items():
        row = rows.setdefault(
            (policy, shadow, tenant),
            {"policy": policy, "shadow": shadow, "tenant": tenant, "attempts": 0, "agreed": 0, "acting_refused": 0,
             "shadow_refused": 0, "only_shadow_refused": 0, "only_acting_refused": 0, "shadow_held": 0},
        )  # fmt: skip
        acts_in, says_in = acting in IN, verdict in IN
        for name, counted in (
            ("attempts", True), ("agreed", acts_in == says_in), ("acting_refused", acting == "refuse"),
            ("shadow_refused", verdict == "refuse"), ("only_shadow_refused", verdict == "refuse" and acts_in),
            ("only_acting_refused", acting == "refuse" and says_in), ("shadow_held", verdict == "hold"),
        ):  # fmt: skip
            row[name] = int(row[name]) + n * counted
    return list(rows.values())


def by_reason(table: pa.Table) -> list[str]:
    """Return a line for each shadow and tenant with the reasons of what it would have refused."""
    found: dict[tuple[str, str, str], Counter[str]] = {}
    for (policy, shadow, tenant, verdict, reason), n in _counts(
        table, ["policy", "shadow", "tenant", "verdict", "reason"]
    ).items():
        if verdict == "refuse":
            found.setdefault((policy, shadow, tenant), Counter())[reason] += n
    return [
        f"  {shadow} would refuse {tenant} for " + ", ".join(f"{reason} {n:,}" for reason, n in reasons.most_common())
        for (_, shadow, tenant), reasons in sorted(found.items())
    ]


def in_words(pairs: Sequence[Row], tenants: Sequence[Row]) -> str:
    """Return the agreement matrix of each acting policy and shadow, and what each shadow would have refused."""
    parts = []
    for policy, shadow in dict.fromkeys((str(row["policy"]), str(row["shadow"])) for row in pairs):
        cells = {
            (str(row["acting_verdict"]), str(row["verdict"])): int(row["attempts"])
            for row in pairs if row["policy"] == policy and row["shadow"] == shadow
        }  # fmt: skip
        total = sum(cells.values())
        agreed = sum(n for (acting, verdict), n in cells.items() if (acting in IN) == (verdict in IN))
        heads = [verdict for verdict in VERDICTS if any(pair[1] == verdict for pair in cells)]
        lines = [f"{policy} acted, {shadow} watched: {total:,} attempts, both in or both out {agreed / total:.1%}"]
        lines.append(f"  {'acting':<10}" + "".join(f"{'would ' + head:>15}" for head in heads))
        lines += [
            f"  {acting:<10}" + "".join(f"{cells.get((acting, head), 0):>15,}" for head in heads)
            for acting in VERDICTS if any(pair[0] == acting for pair in cells)
        ]
        lines += [
            f"  {row['tenant']}: would refuse {int(row['shadow_refused']):,} of {int(row['attempts']):,}, "
            f"{int(row['only_shadow_refused']):,} of them let in by {policy}; would let in "
            f"{int(row['only_acting_refused']):,} that {policy} refused"
            for row in tenants if row["policy"] == policy and row["shadow"] == shadow
        ]  # fmt: skip
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def of_gateway(policy: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what policies that watch a running gateway would have turned away, by tenant and reason.

    Parameters
    ----------
    rows : as the gateway's state has them (`sim.live.observability.shadows`).
    """
    lines = []
    for shadow in dict.fromkeys(str(row["shadow"]) for row in rows):
        mine = [row for row in rows if row["shadow"] == shadow]
        attempts, away = (sum(int(row[name]) for row in mine) for name in ("attempts", "would_refuse"))
        now = f"{shadow} watched before it acted" if shadow == policy else f"{policy} acts, {shadow} watches"
        lines.append(f"{now}: {attempts:,} attempts, {away:,} would be turned away")
        others = [row for row in mine if not row["would_refuse"] and not row["would_let_in"]]
        for row in mine if len(others) < 2 else [row for row in mine if row not in others]:
            reasons = Counter(row["reasons"]).most_common()
            why = " (" + ", ".join(f"{reason} {number:,}" for reason, number in reasons) + ")" if reasons else ""
            lines.append(
                f"  {row['tenant']}: {int(row['would_refuse']):,} of {int(row['attempts']):,}{why}, "
                f"{int(row['of_these_served']):,} of them served; would let in {int(row['would_let_in']):,} refused"
            )
        if len(others) > 1:
            lines.append(f"  {len(others)} others: none of {sum(int(row['attempts']) for row in others):,}")
    return "\n".join(lines)


def _counts(table: pa.Table, columns: Sequence[str]) -> Counter[tuple[str, ...]]:
    plain = pa.table({name: table.column(name).cast(pa.string()) for name in columns})
    grouped = plain.group_by(list(columns), use_threads=False).aggregate([([], "count_all")])
    found: Counter[tuple[str, ...]] = Counter()
    for row in grouped.to_pylist():
        found[tuple(row[name] or "" for name in columns)] = int(row["count_all"])
    return found
