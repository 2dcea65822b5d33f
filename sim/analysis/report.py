"""One HTML file that says what a result found: findings first, then plots, tables, provenance. It needs no network.

Plots are Plotly's; its code travels compressed in the page and is unpacked by the browser (`DecompressionStream`, in
every browser since 2023). Without script the findings and the tables still stand.
"""

from __future__ import annotations

import base64
import gzip
import html
import io
import json
import math
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pandas.api.types import is_numeric_dtype

from sim.analysis.cautions import cautions
from sim.analysis.findings import findings
from sim.analysis.report_data import SHOWN, plot_data
from sim.analysis.study import Study, short_paths
from sim.analysis.summary import ALL
from sim.analysis.warm_up import in_words
from sim.errors import RunError
from sim.extras import require
from sim.records.result_folder import is_sweep, read_result

COMPARED = ("ttft_p99_s", "ttft_p50_s", "tpot_mean_s", "e2e_p99_s", "slo_attainment", "goodput_per_s", "refused_share")
_SUMMARY = ("offered", "admitted", "finished", "refused", "unfinished", "slo_attainment", "violation",
            "ttft_p50_s", "ttft_p99_s", "tpot_mean_s", "e2e_p99_s", "goodput_per_s", "output_tokens_per_s")  # fmt: skip
_HEADS = {
    "slo_attainment": "SLO met", "ttft_p50_s": "TTFT P50 (s)", "ttft_p99_s": "TTFT P99 (s)",
    "tpot_mean_s": "TPOT mean (s)", "e2e_p99_s": "E2E P99 (s)", "goodput_per_s": "goodput (/s)",
    "output_tokens_per_s": "output tokens/s", "refused_share": "refused share", "baseline_mean": "baseline",
    "difference_ci_low": "from", "difference_ci_high": "to", "relative_ci_low": "from", "relative_ci_high": "to",
    "effect_size": "effect size", "p_value": "p", "refused_share_of_both": "refused (baseline, this)",
    "violation": "violated",
}  # fmt: skip
_PICTURE_DPI = 110
_PRINTED = 100  # rows of a table that go to paper; report.css has the same number
_LONG = 16  # characters, beyond which a text may break in print
_SHARES = {"slo_attainment", "violation", "refused_share", "relative", "relative_ci_low", "relative_ci_high"}


def write_report(study: Study, path: Path, *, baseline: str | None = None) -> Path:
    """Write the report of a result to ``path``.

    Raises
    ------
    RunError : it cannot be written.
    ValueError : the result has no policy called ``baseline``.
    """
    text = report_html(study, baseline=baseline)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error
    return path


def report_html(study: Study, *, baseline: str | None = None) -> str:
    """Return the page.

    Raises
    ------
    InputError : plotly or scipy is not installed.
    """
    require("plotly", "a report")
    require("scipy", "a report")
    scenario = study.scenario
    title = scenario.get("title") or study.folder.name
    data = json.dumps(plot_data(study), separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    parts = {
        "title": html.escape(str(title)),
        "question": _question(study),
        "facts": _facts(study),
        "findings": _bullets(findings(study, baseline)),
        "cautions": _cautions(cautions(study)),
        "shares": _shares(study),
        "differences": _differences(study, baseline),
        "summary": _summary(study),
        "metrics": _metrics(study),
        "errors": _errors(study),
        "provenance": _provenance(study),
        "reproduce": _reproduce(study),
        "style": _asset("report.css"),
        "script": _asset("report.js"),
        "data": data,
        "plotly": _plotly(),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _asset("report.html"))


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(str(get_plotlyjs()).encode(), 9, mtime=0)).decode()


def _asset(name: str) -> str:
    return (files("sim.analysis") / "report_assets" / name).read_text(encoding="utf-8")


def _question(study: Study) -> str:
    text = study.scenario.get("description")
    return f"<p class=lead>{html.escape(str(text)).replace(chr(10) * 2, '</p><p>')}</p>" if text else ""


def _facts(study: Study) -> str:
    scenario, cells = study.scenario, study.manifest["cells"]
    horizon = scenario.get("horizon_s")
    lasted = "measured" if study.manifest.get("kind") == "live" else "simulated"
    facts = {
        "policies": ", ".join(study.policies) or "none finished",
        "replications": str(len(study.replications["replication"].unique()) if len(study.replications) else 0),
        "runs": str(len(cells)),
        "varied": ", ".join(study.varied) or "nothing",
        lasted: "to the last request" if horizon is None else f"{horizon:g} s",
        "warm-up cut": in_words(study.manifest),
        "seed": str(study.manifest.get("seed")),
    }
    return "".join(f"<div><dt>{key}</dt><dd>{html.escape(value)}</dd></div>" for key, value in facts.items())


def _bullets(texts: Sequence[str]) -> str:
    return "".join(f"<li>{html.escape(text)}</li>" for text in texts)


def _cautions(texts: Sequence[str]) -> str:
    if not texts:
        return ""
    return f"<aside aria-label='Cautions'><h2>Read with care</h2><ul>{_bullets(texts)}</ul></aside>"


_SHARES_SAY = {
    "fair-share-totals": "Share of the resource that binds, against the promise, in all",
    "fair-share": "Share of the resource that binds, against the promise, over time",
    "debt": "Debt by entitlement over time: above 0 somebody is owed service",
    "weight": "Weight by entitlement over time: who is let in first",
}


def _shares(study: Study) -> str:
    """Return pictures of shares, debts and weights of a run; a sweep has too many."""
    if is_sweep(study.manifest) or not study.policies:
        return ""
    from sim.analysis.plots import share_figures

    result = read_result(study.folder)
    phases = [(one["from_s"], one["until_s"], one["label"]) for one in study.scenario.get("phases") or ()]
    figures = share_figures(result, phases=phases) if result.timeline.num_rows else {}
    pictures = []
    for name, figure in figures.items():
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=_PICTURE_DPI, metadata={"Software": None})
        told = html.escape(_SHARES_SAY[name])
        data = base64.b64encode(drawn.getvalue()).decode()
        pictures.append(
            f'<figure><img alt="{told}" src="data:image/png;base64,{data}"><figcaption>{told}</figcaption></figure>'
        )
    return f"<section><h2>Shares and priorities</h2>{''.join(pictures)}</section>" if pictures else ""


def _differences(study: Study, baseline: str | None) -> str:
    frame = study.differences(COMPARED, baseline) if len(study.policies) > 1 else pd.DataFrame()
    if not len(frame):
        return "<p>One policy: nothing to compare.</p>"
    frame = frame[frame["mean"].notna() & frame["baseline_mean"].notna()]
    frame["metric"] = frame["metric"].map(lambda name: SHOWN.get(name, name))
    frame["refused_share_of_both"] = [
        f"{a:.1%}, {b:.1%}" for a, b in zip(frame["baseline_refused_share"], frame["refused_share"], strict=True)
    ]
    columns = ["policy", *study.varied, "tenant", "metric", "baseline_mean", "mean", "difference", "difference_ci_low",
               "difference_ci_high", "relative", "effect_size", "p_value", "n", "refused_share_of_both"]  # fmt: skip
    base = html.escape(study.baseline(baseline))
    note = (
        f"Each policy against <b>{base}</b>, replication by replication on the same arrivals. The interval is 95 %, "
        "Student's t on paired differences; the effect size is Cohen's d of those differences; p is not corrected for "
        "the number of rows. <span class=screen>Click or press Enter on a heading to sort.</span>"
    )
    return f"<p>{note}</p>" + table(frame[columns], "differences")


def _summary(study: Study) -> str:
    frame = study.summary
    if not len(frame):
        return "<p>No run finished.</p>"
    columns = [*frame.columns[: list(frame.columns).index("tenant") + 1], *_SUMMARY]
    shown = [name for name in columns if name in frame and not (name == "violation" and frame[name].isna().all())]
    return table(frame[shown], "summary")


_FAIRNESS = ("jain", "gini", "min_max_ratio", "service_difference_avg", "utilisation", "work_conservation",
             "wasted_tokens", "retry_amplification", "gpu_s_per_good_1000_tokens")  # fmt: skip
_BY_TENANT = ("offered", "refused", "slo_attainment", "service_of_fair", "violation", "isolation_ttft_mean",
              "isolation_e2e_mean", "isolation_n", "false_reject_share", "free_reject_share", "refusals_judged",
              "late_rejects", "gpu_s_by_work", "gpu_s_by_promise")  # fmt: skip


def _metrics(study: Study) -> str:
    """Return the tables of ``metrics.csv``, if the result has one."""
    path = study.folder / "metrics.csv"
    if not path.exists():
        return ""
    frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    labels = list(frame.columns[: list(frame.columns).index("tenant") + 1])
    frame[labels] = frame[labels].astype(str)
    every = frame["tenant"] == ALL
    parts = []
    for name, rows, columns in (("fairness", frame[every], _FAIRNESS), ("by tenant", frame[~every], _BY_TENANT)):
        kept = [column for column in columns if column in rows and rows[column].notna().any()]
        if len(rows) and kept:
            parts.append(table(rows[[*labels, *kept]], f"metrics {name}"))
    note = "As <code>tokenpools metrics</code> left them in metrics.csv; docs/metrics.md defines each."
    return f"<section><h2>Fairness, refusals, cost</h2><p>{note}</p>{''.join(parts)}</section>"


def _errors(study: Study) -> str:
    if not study.errors:
        return ""
    return f"<section><h2>Failed runs</h2><ul>{_bullets(study.errors[:100])}</ul></section>"


def table(frame: pd.DataFrame, name: str) -> str:
    """Return a table whose headings sort it."""
    heads = ""
    names = short_paths([str(column) for column in frame.columns])
    for column in frame.columns:
        head = html.escape(_HEADS.get(column, names[column].replace("_", " ")))
        side = " class=n" * is_numeric_dtype(frame[column])
        heads += f"<th scope=col{side} aria-sort=none data-head='{head}'><button type=button>{head}</button></th>"
    rows = []
    for row in frame.itertuples(index=False, name=None):
        cells = "".join(_cell(column, value) for column, value in zip(frame.columns, row, strict=True))
        rows.append(f"<tr>{cells}</tr>")
    many = len(rows) > _PRINTED
    note = f"<p class='note paper'>The first {_PRINTED} of {len(rows)} rows, as sorted on the screen.</p>" * many
    return (
        f"{note}<div class=scroll tabindex=0 role=region aria-label='{name}'>"
        f"<table id='table-{name}' class='sortable{' many' * many}'>"
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(column: str, value: Any) -> str:
    if isinstance(value, str):
        return f"<td{' class=long' * (len(value) > _LONG)}>{html.escape(value)}</td>"
    number = float(value)
    if math.isnan(number):
        return "<td class=n data-v=''>–</td>"
    if column in _SHARES:
        text = f"{number:+.1%}" if column.startswith("relative") else f"{number:.1%}"
    elif column == "p_value":
        text = "< 0.001" if number < 0.001 else f"{number:.3f}"
    elif math.isinf(number):
        text = "∞" if number > 0 else "−∞"
    else:
        text = f"{number:,.0f}" if number == int(number) or abs(number) >= 1000 else f"{number:.4g}"
    return f"<td class=n data-v='{number:.8g}'>{text}</td>"


def _provenance(study: Study) -> str:
    manifest = study.manifest
    facts = {
        "result": study.folder.name,
        "scenario hash": manifest.get("scenario_hash"),
        "commit": manifest.get("commit") or "not from a checkout",
        "versions": ", ".join(f"{name} {value}" for name, value in manifest.get("versions", {}).items()),
        "started": manifest.get("started"),
        "cost": f"{manifest.get('wall_s', 0):,} s wall, {manifest.get('cpu_s', 0):,} s CPU",
        "machine": ", ".join(
            str(manifest.get("host", {}).get(key, "")) for key in ("system", "machine")
        ) + f", {manifest.get('host', {}).get('cpus', '?')} CPUs",
    }  # fmt: skip
    return "".join(
        f"<tr><th scope=row>{key}</th><td>{html.escape(str(value))}</td></tr>" for key, value in facts.items()
    )


def _reproduce(study: Study) -> str:
    text = yaml.safe_dump(study.scenario, sort_keys=False, allow_unicode=True, width=100)
    kind = study.manifest.get("kind")
    verb = kind if kind == "sweep" else "replay" if kind == "live" else "run"
    server = " --base-url URL" if kind == "live" else ""
    name = f"{study.folder.name}.yaml"
    packed = base64.b64encode(text.encode()).decode()
    return (
        f"<p>Save the scenario below as <code>{html.escape(name)}</code> "
        f"(<a download='{html.escape(name)}' href='data:application/yaml;base64,{packed}'>download</a>), install the "
        f"commit above, and run:</p><pre>tokenpools {verb} {html.escape(name)}{server} --out again\n"
        f"tokenpools compare {html.escape(study.folder.name)} again</pre>"
        f"<details><summary>The resolved scenario</summary><pre>{html.escape(text)}</pre></details>"
    )
