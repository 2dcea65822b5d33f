"""Result files of load generators, a row a request: ``vllm bench serve --save-detailed``, GuideLLM and aiperf.

What a server turned away was never load, and is left out; what was given up half-way is, for as long as it lasted
(``stopped_s``). Both are said in ``attrs["notes"]``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sim.calibration.checked_tables import marked
from sim.errors import InputError

Json = dict[str, Any]
_NAN = float("nan")
_COLUMNS = (
    "arrival_s", "prompt_tokens", "output_tokens", "first_token_s", "finish_s", "cached_tokens", "stopped_s", "refused",
)  # fmt: skip
_TURNED_AWAY = re.compile(
    r"\b(?:4(?!08|99)\d\d|503)\b|Bad Request|Unauthorized|Forbidden|Not Found|Too Many Requests|Unprocessable"
    r"|Too Large|Service Unavailable|Cannot connect|[Cc]onnection refused"
)
"""What an error says that ended a request before an engine saw it; 408 and 499 are of clients that gave up."""


def one_run(file: Path, documents: Sequence[Json]) -> Json:
    """Return the one result that a file holds: each has a clock of its own, so two do not make a longer run.

    Raises
    ------
    InputError : it holds several.
    """
    if len(documents) > 1:
        problem = f"holds {len(documents)} results, each a run of its own"
        raise InputError(str(file), problem, "give a file with one (vllm bench: without --append-result)")
    return documents[0]


def vllm_bench(file: Path, documents: Sequence[Json]) -> pd.DataFrame:
    """Read what ``vllm bench serve --save-result --save-detailed`` writes."""
    found = one_run(file, documents)
    absent = [name for name in ("input_lens", "output_lens", "ttfts", "itls") if not found.get(name)]
    if absent:
        raise InputError(str(file), f"has no {absent[0]}", "run vllm bench serve with --save-detailed")
    starts = found.get("start_times")
    count = len(found["ttfts"])
    if not starts:
        if found.get("request_rate") not in ("inf", float("inf")) or found.get("max_concurrency"):
            problem = "has no start_times, so nobody knows when requests were sent"
            raise InputError(str(file), problem, "use a vllm bench that saves them, or --request-rate inf")
        starts = [0.0] * count
    errors = [str(error or "") for error in (found.get("errors") or [""] * count)]
    ttft_s, start_s = np.array(found["ttfts"], float), np.array(starts, float)
    gaps_s = np.array([float(sum(each)) for each in found["itls"]])
    ended = (ttft_s > 0) & np.array([not error for error in errors])
    made = np.array(found["output_lens"], float)
    table = pd.DataFrame({
        "arrival_s": start_s, "prompt_tokens": found["input_lens"], "output_tokens": np.where(made > 0, made, np.nan),
        "first_token_s": np.where(ended, start_s + ttft_s, np.nan),
        "finish_s": np.where(ended, start_s + ttft_s + gaps_s, np.nan),
        "refused": [_refused(error) and not first for error, first in zip(errors, ttft_s > 0, strict=True)],
    })  # fmt: skip
    return _finished(table, "vllm bench serve", errors)


def guidellm(file: Path, documents: Sequence[Json]) -> pd.DataFrame:
    """Read GuideLLM's ``benchmarks.json``, or the same as YAML."""
    benchmarks = one_run(file, documents)["benchmarks"]
    if len(benchmarks) != 1:
        problem = f"holds {len(benchmarks)} benchmarks, each a run of its own"
        raise InputError(str(file), problem, "run GuideLLM with one rate or one number of streams, not a sweep")
    requests = benchmarks[0]["requests"]
    of_status = {status: requests.get(status) or [] for status in ("successful", "incomplete", "errored")}
    _check_whole(file, benchmarks[0], sum(map(len, of_status.values())))
    rows, errors = [], []
    for status, found in of_status.items():
        for each in found:
            info = each.get("info") or {}
            stamps = {**each, **(info.get("timings") or {})}
            start_s = _first(each, "request_start_time", "start_time", default=None if status == "successful" else _NAN)
            if np.isnan(start_s):
                continue  # given up before it was sent
            first_s = _first(stamps, "first_token_iteration", "first_token_time", default=_NAN)
            if np.isnan(first_s):
                first_s = start_s + _first(each, "time_to_first_token_ms", default=_NAN) / 1e3
            ends = ("last_token_iteration", "last_token_time", "request_end_time", "end_time")
            end_s = _first(stamps, *ends, default=_NAN)  # the connection closes later
            error = str(info.get("error") or each.get("error") or "")
            errors.append(error)
            done, made = status == "successful", _first(each, "output_tokens", default=_NAN)
            prompt = _first(each, "prompt_tokens", default=None if done else _NAN)
            rows.append((
                start_s, prompt, made if done or made > 0 else _NAN, first_s if done else _NAN,
                end_s if done else _NAN, _first(each, "cached_tokens", default=_NAN),
                _NAN if done else _first(stamps, "request_end", "request_end_time", "end_time", default=_NAN),
                status == "errored" and np.isnan(first_s) and _refused(error),
            ))  # fmt: skip
    return _finished(pd.DataFrame(rows, columns=list(_COLUMNS)), "GuideLLM", errors)


def _check_whole(file: Path, benchmark: Json, count: int) -> None:
    """Refuse a file that keeps a sample of its requests: those left out were load, too."""
    totals = (benchmark.get("metrics") or {}).get("request_totals") or {}
    total = totals.get("total") if isinstance(totals, dict) else None
    if isinstance(total, int) and total > count:
        problem = f"holds {count} of {total} requests, and all of them were load"
        raise InputError(str(file), problem, "run GuideLLM without sample_size in --metrics")


def aiperf(file: Path, documents: Sequence[Json]) -> pd.DataFrame:
    """Read aiperf's ``profile_export.jsonl``."""
    if not any(each.get("metrics") for each in documents):
        problem = "holds no metrics of requests (aiperf's raw export)"
        raise InputError(str(file), problem, "give profile_export.jsonl, which lies beside it")
    rows, errors, warm = [], [], 0
    for each in documents:
        about, metrics = each["metadata"], each.get("metrics") or {}
        if about.get("benchmark_phase", "profiling") != "profiling":
            warm += 1
            continue
        start_s = about["request_start_ns"] / 1e9
        ttft_s, e2e_s = (_metric_s(metrics, name) for name in ("time_to_first_token", "request_latency"))
        # What the server counted, if it said: the client's tokenizer need not be the model's, and knows no template.
        own = _metric(metrics, "input_sequence_length", "error_isl")
        output = _metric(metrics, "usage_completion_tokens", "output_sequence_length")
        fault = each.get("error") or {}
        ended = not fault and not about.get("was_cancelled")
        stopped_ns = None if ended else about.get("cancellation_time_ns") or about.get("request_end_ns")
        code = fault.get("code") if isinstance(fault, dict) else None
        errors.append(f"{code} {fault.get('message', '')}" if isinstance(fault, dict) and fault else str(fault))
        rows.append((
            start_s, _metric(metrics, "usage_prompt_tokens"), output,
            *(start_s + s if ended else _NAN for s in (ttft_s, e2e_s)),
            _metric(metrics, "usage_prompt_cache_read_tokens"), stopped_ns / 1e9 if stopped_ns else _NAN,
            not ended and not about.get("was_cancelled") and np.isnan(ttft_s) and _refused(str(code)), own,
        ))  # fmt: skip
    table = pd.DataFrame(rows, columns=[*_COLUMNS, "own"])
    both = table[table.prompt_tokens.notna() & table.own.notna()]
    if len(both):  # a request that was given up has the client's count alone: told in the server's tokens
        table["own"] = (table.own * (both.prompt_tokens.sum() / both.own.sum())).round().clip(lower=1)
    table["prompt_tokens"] = table.prompt_tokens.fillna(table.own)
    notes = [f"{warm} requests of the warm-up are left out"] if warm else []
    return _finished(table.drop(columns="own"), "aiperf", errors, notes)


def _finished(table: pd.DataFrame, form: str, errors: Sequence[str], notes: Sequence[str] = ()) -> pd.DataFrame:
    """Return the rows that were load, with what to say of the others."""
    turned = table.pop("refused").to_numpy(bool)
    said = list(notes)
    if turned.any():
        why = " ".join(errors[int(np.flatnonzero(turned)[0])].split())[:60]
        said.append(f"{int(turned.sum())} of {len(table)} requests were turned away ({why}): no load, left out")
    table = table[~turned].reset_index(drop=True)
    if "cached_tokens" in table and not (table.cached_tokens > 0).any():
        table = table.drop(columns="cached_tokens")  # also where nobody measured it
    if "cached_tokens" in table:
        table["cached_tokens"] = table.cached_tokens.fillna(0)
    return marked(table, form, said)


def _refused(error: str) -> bool:
    last = error.strip().splitlines()[-1:]  # of a traceback, what was raised
    return bool(last and _TURNED_AWAY.search(last[0]))


def _metric(metrics: Json, *names: str) -> float:
    """Return the first of some metrics that is there, NaN for none."""
    return next((float(metrics[name]["value"]) for name in names if metrics.get(name)), _NAN)


def _metric_s(metrics: Json, name: str) -> float:
    found = metrics.get(name)
    if not found:
        return _NAN
    return float(found["value"]) * {"s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}[found.get("unit", "ms")]


def _first(mapping: Json, *names: str, default: float | None = None) -> float:
    for name in names:
        if mapping.get(name) is not None:
            return float(mapping[name])
    if default is None:
        raise KeyError(names[0])
    return default
