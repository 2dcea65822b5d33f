"""Statistics of a trace as a table to read and as a mapping for programs."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from sim.traces.statistics import QUANTILES, Lengths, TraceStatistics
from workloads.formats.times import told

_TENANTS_SHOWN = 10


def as_mapping(found: TraceStatistics, source: str, format_: str, note: str = "") -> dict[str, Any]:
    """Return the figures with units in their names; None where there are too few requests to say."""
    return {
        "source": source,
        "format": format_,
        "note": note,
        "requests": found.count,
        "first": _start(found),
        "span_s": found.span_s,
        "rate_per_s": _known(found.rate_per_s),
        "gap_cv": _known(found.gaps_s.cv),
        "dispersion": {f"{width:g}s": _known(one.dispersion) for width, one in found.windows.items()},
        "peak_to_mean": {f"{width:g}s": _known(one.peak_to_mean) for width, one in found.windows.items()},
        "prompt_tokens": _lengths(found.prompt),
        "output_tokens": _lengths(found.output),
        "log_correlation": _known(found.log_correlation),
        "tenants": {name: {"requests": n, "tokens": found.tenant_tokens[name]} for name, n in _most(found.tenants)},
        "services": dict(_most(found.services)),
        "sessions": len(found.sessions),
        "prefix_reuse": None
        if found.reuse is None
        else {
            "share_of_prompt_tokens": found.reuse.reused_tokens / max(1, found.reuse.prompt_tokens),
            "distinct_blocks": len(found.reuse.distinct),
        },
        "clipped": found.clipped,
        "dropped": found.dropped,
        "unanswered": found.unanswered,
        "unread": found.unread,
    }


def as_table(found: TraceStatistics, source: str, format_: str, note: str = "") -> str:
    """Return the figures as text for people."""
    rows = [
        ("trace", source),
        ("format", format_ + (f"; {note}" if note else "")),
        ("requests", f"{found.count:,}"),
        ("begins", _start(found) or "at its own zero"),
        ("lasts", f"{found.span_s:,.1f} s ({_span(found.span_s)})"),
        ("rate", f"{_figure(found.rate_per_s)} requests/s"),
        ("gaps", f"CV {_figure(found.gaps_s.cv)} (Poisson 1)"),
    ]
    for width, one in found.windows.items():
        text = f"index of dispersion {_figure(one.dispersion)}, peak to mean {_figure(one.peak_to_mean)}"
        rows.append((f"in {width:g} s", f"{text} ({one.counts.n:,} windows)"))
    for name, lengths in (("prompt", found.prompt), ("output", found.output)):
        quantiles = "  ".join(f"p{q * 100:g} {lengths.quantile(q):,}" for q in QUANTILES)
        rows.append((name, f"mean {lengths.moments.mean:,.0f}  {quantiles}  max {lengths.most:,} tokens"))
    rows.append(("prompt ~ output", f"correlation of logarithms {_figure(found.log_correlation)}"))
    if found.reuse is not None:
        share = found.reuse.reused_tokens / max(1, found.reuse.prompt_tokens)
        text = f"{share:.1%} of prompt tokens begin as an earlier prompt did"
        rows.append(("prefix reuse", f"{text} ({len(found.reuse.distinct):,} distinct blocks)"))
    if len(found.sessions):
        rows.append(("sessions", f"{len(found.sessions):,}, {found.count / len(found.sessions):.2f} requests each"))
    for what, counter in (("tenants", found.tenants), ("services", found.services)):
        named = [(told(name) or "(none)", n) for name, n in counter.most_common()]
        if named and (len(named) > 1 or named[0][0] != "(none)"):
            shown = ", ".join(f"{name} {n / found.count:.1%}" for name, n in named[:_TENANTS_SHOWN])
            more = f", and {len(named) - _TENANTS_SHOWN} more" if len(named) > _TENANTS_SHOWN else ""
            rows.append((what, f"{len(named)}: {shown}{more}"))
    if found.clipped:
        rows.append(("raised", f"{found.clipped:,} counts of 0 tokens count as 1"))
    if found.dropped:
        rows.append(("left out", f"{found.dropped:,} requests that failed"))
    if found.unanswered:
        share = found.unanswered / found.count
        rows.append(("unanswered", f"{found.unanswered:,} ({share:.1%}): lengths as of others of their tenant, drawn"))
    if found.unread:
        rows.append(("torn", f"{found.unread:,} lines are no whole entry, the first is line {found.first_unread:,}"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _most(counter: Any) -> list[tuple[str, int]]:
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))


def _lengths(lengths: Lengths) -> dict[str, float]:
    quantiles = {f"p{q * 100:g}": lengths.quantile(q) for q in QUANTILES}
    return {"mean": lengths.moments.mean, **quantiles, "max": lengths.most}


def _start(found: TraceStatistics) -> str | None:
    if not found.dated:
        return None
    whole = datetime.fromtimestamp(found.first_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{whole}.{found.first_ns % 10**9 // 10**6:03d} UTC"


def _span(span_s: float) -> str:
    for unit, seconds in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if span_s >= seconds:
            return f"{span_s / seconds:.1f} {unit}"
    return f"{span_s:.1f} s"


def _figure(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
