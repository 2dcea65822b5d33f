"""Files of measured runs, as load generators and engines write them, turned into one table.

Read are, by what is in the file: LLMServingSim's ``requests.jsonl``; ``vllm bench serve --save-detailed``; GuideLLM's
``benchmarks.json``; aiperf's ``profile_export.jsonl``; vLLM's OTLP traces as JSON; plain columns as JSONL, CSV and
parquet. The table has the columns ``arrival_s, prompt_tokens, output_tokens, first_token_s, finish_s`` and,
where the file says it, ``cached_tokens`` and ``hash_ids``. Its attribute ``ttft_from`` says where first tokens
count from: the arrival at the server or at the client, or the engine's queue.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sim.calibration.checked_tables import read_csv
from sim.errors import InputError

Json = dict[str, Any]
_SERVINGSIM = ("input_toks", "output_toks", "arrival_time", "queued_ts", "first_token_ts", "last_token_ts")
_DRIFT = 0.2  # seconds in a second: no load makes the way to the queue longer at that rate for a whole run


def read_table(file: Path) -> pd.DataFrame:
    """Return a run's rows; ``attrs`` hold ``format`` and ``ttft_from``.

    Raises
    ------
    InputError : unreadable, or of no known form.
    """
    try:
        if file.suffix == ".parquet":
            return _marked(pd.read_parquet(file), "parquet")
        if file.suffix not in (".json", ".jsonl"):
            return _marked(read_csv(file, (), "give a table with a row a request"), "CSV")
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(str(file), f"cannot be read ({error.strerror})", "name a readable file") from None
    except (ValueError, UnicodeDecodeError) as error:
        problem = f"cannot be read ({str(error).splitlines()[0]})"
        raise InputError(str(file), problem, "give a table with a row a request") from None
    try:
        return _from_json(file, list(_documents(text)))
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        word = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise InputError(str(file), f"cannot be read ({word})", "give the file as its program wrote it") from None


def _documents(text: str) -> Iterator[Any]:
    """Yield a JSON document, or each line's."""
    try:
        yield json.loads(text)
    except json.JSONDecodeError:
        for line in text.splitlines():
            if line.strip():
                yield json.loads(line)


def _from_json(file: Path, documents: list[Any]) -> pd.DataFrame:
    first = documents[0] if documents else None
    if not all(isinstance(each, dict) for each in documents) or not isinstance(first, dict):
        raise InputError(str(file), "holds no JSON mapping", "give a row a request, a JSON mapping each")
    for fits, reader in _READERS:
        if fits(first):
            return reader(file, documents)
    return _marked(pd.DataFrame(documents), "JSONL")


def _marked(table: pd.DataFrame, form: str, ttft_from: str = "arrival") -> pd.DataFrame:
    table.attrs = {"format": form, "ttft_from": ttft_from}
    return table


def _servingsim(file: Path, rows: list[Json]) -> pd.DataFrame:
    """Arrivals are on another clock than the engine's: aligned where a request was handed over fastest."""
    raw = pd.DataFrame(rows)
    missing = [name for name in _SERVINGSIM if name not in raw]
    if missing:
        raise InputError(str(file), f"has no {missing[0]}", f"give {', '.join(_SERVINGSIM)}")
    handed_over_s = raw.queued_ts - raw.arrival_time
    least_s = float(handed_over_s.min())
    since_s = raw.arrival_time - raw.arrival_time.min()
    drift_s = abs(float(np.polyfit(since_s, handed_over_s, 1)[0])) if len(raw) > 9 else 0.0
    if drift_s > _DRIFT:
        problem = f"has clocks that drift apart by {drift_s:.2f} s a second"
        raise InputError(str(file), problem, "give arrival_time and the engine's stamps from one machine")
    return _marked(
        pd.DataFrame(
            {
                "arrival_s": raw.arrival_time + least_s,
                "prompt_tokens": raw.input_toks,
                "output_tokens": raw.output_toks,
                "first_token_s": raw.first_token_ts,
                "finish_s": raw.last_token_ts,
                "queued_s": raw.queued_ts,
            }
        ),
        "LLMServingSim's requests.jsonl",
    )


def _vllm_bench(file: Path, documents: list[Json]) -> pd.DataFrame:
    found = documents[0]
    lengths = {name: found.get(name) for name in ("input_lens", "output_lens", "ttfts", "itls")}
    absent = [name for name, values in lengths.items() if not values]
    if absent:
        raise InputError(str(file), f"has no {absent[0]}", "run vllm bench serve with --save-detailed")
    starts = found.get("start_times")
    count = len(lengths["ttfts"])  # type: ignore[arg-type]
    if not starts:
        if found.get("request_rate") not in ("inf", float("inf")) or found.get("max_concurrency"):
            problem = "has no start_times, so nobody knows when requests were sent"
            raise InputError(str(file), problem, "use a vllm bench that saves them, or --request-rate inf")
        starts = [0.0] * count
    ttft_s = np.array(lengths["ttfts"], float)
    e2e_s = ttft_s + np.array([sum(each) for each in lengths["itls"]])  # type: ignore[union-attr]
    start_s = np.array(starts, float)
    failed = np.array([bool(error) for error in (found.get("errors") or [""] * count)])
    table = pd.DataFrame(
        {
            "arrival_s": start_s,
            "prompt_tokens": lengths["input_lens"],
            "output_tokens": lengths["output_lens"],
            "first_token_s": np.where(failed | (ttft_s <= 0), np.nan, start_s + ttft_s),
            "finish_s": np.where(failed | (ttft_s <= 0), np.nan, start_s + e2e_s),
        }
    )
    return _marked(table, "vllm bench serve")


def _guidellm(file: Path, documents: list[Json]) -> pd.DataFrame:
    benchmarks = documents[0]["benchmarks"]
    if len(benchmarks) != 1:
        problem = f"holds {len(benchmarks)} benchmarks, each a run of its own"
        raise InputError(str(file), problem, "give a file with one, e.g. of --rate-type constant")
    requests = benchmarks[0]["requests"]
    rows = []
    for status in ("successful", "incomplete", "errored"):
        for each in requests.get(status) or []:
            start_s = _first(each, "request_start_time", "start_time")
            stamps = (each.get("info") or {}).get("timings") or {}
            first_s = _first({**each, **stamps}, "first_token_iteration", "first_token_time", default=np.nan)
            if np.isnan(first_s):
                first_s = start_s + _first(each, "time_to_first_token_ms", default=np.nan) / 1e3
            ends = ("last_token_iteration", "last_token_time", "request_end_time", "end_time")
            end_s = _first({**each, **stamps}, *ends, default=np.nan)  # the connection closes later
            done = status == "successful"
            rows.append((
                start_s, _first(each, "prompt_tokens"), _first(each, "output_tokens", default=np.nan),
                first_s if done else np.nan, end_s if done else np.nan,
            ))  # fmt: skip
    return _marked(_rows(rows), "GuideLLM")


def _aiperf(file: Path, documents: list[Json]) -> pd.DataFrame:  # noqa: ARG001
    rows = []
    for each in documents:
        about, metrics = each["metadata"], each.get("metrics") or {}
        if about.get("benchmark_phase", "profiling") != "profiling":
            continue
        start_s = about["request_start_ns"] / 1e9
        ttft_s, e2e_s = (_metric_s(metrics, name) for name in ("time_to_first_token", "request_latency"))
        # What the server counted, if it said: the client's tokenizer need not be the model's, and knows no template.
        prompt = _metric(metrics, "usage_prompt_tokens", "input_sequence_length")
        output = _metric(metrics, "usage_completion_tokens", "output_sequence_length")
        ended = not each.get("error") and not about.get("was_cancelled")
        rows.append(
            (start_s, prompt, output, *(start_s + s if ended else np.nan for s in (ttft_s, e2e_s)))
        )  # fmt: skip
    return _marked(_rows(rows), "aiperf")


def _metric(metrics: Json, *names: str) -> float:
    """Return the first of some metrics that is there, NaN for none."""
    return next((float(metrics[name]["value"]) for name in names if metrics.get(name)), float("nan"))


def _metric_s(metrics: Json, name: str) -> float:
    found = metrics.get(name)
    if not found:
        return float("nan")
    return float(found["value"]) * {"s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}[found.get("unit", "ms")]


def _otlp(file: Path, documents: list[Json]) -> pd.DataFrame:
    rows = []
    for document in documents:
        for resource in document["resourceSpans"]:
            for scope in resource.get("scopeSpans") or []:
                rows += [row for span in scope["spans"] if (row := _span(file, span)) is not None]
    if not rows:
        fix = "give the spans of vLLM's --otlp-traces-endpoint, as JSON"
        raise InputError(str(file), "holds no span of a request (gen_ai.latency.e2e)", fix)
    table = pd.DataFrame(rows)
    return _marked(table, "OTLP")


def _span(file: Path, span: Json) -> Json | None:
    """Return the row of a vLLM request's span; its start is the arrival at the server."""
    at = {each["key"]: next(iter(each["value"].values())) for each in span.get("attributes") or []}
    if "gen_ai.latency.e2e" not in at:
        return None
    start_s = int(span["startTimeUnixNano"]) / 1e9
    e2e_s, ttft_s = float(at["gen_ai.latency.e2e"]), float(at.get("gen_ai.latency.time_to_first_token", "nan"))
    lasted_s = int(span["endTimeUnixNano"]) / 1e9 - start_s
    if lasted_s < 0 or (lasted_s and abs(lasted_s - e2e_s) > max(1.0, e2e_s)):
        problem = f"has clock skew: a span of {lasted_s:.3f} s reports a request of {e2e_s:.3f} s"
        raise InputError(str(file), problem, "collect the traces of one machine, or of machines whose clocks agree")
    row: Json = {
        "arrival_s": start_s,
        "prompt_tokens": int(at["gen_ai.usage.prompt_tokens"]),
        "output_tokens": int(at["gen_ai.usage.completion_tokens"]),
        "first_token_s": start_s + ttft_s,
        "finish_s": start_s + e2e_s,
    }
    if "gen_ai.latency.time_in_queue" in at:
        row["time_in_queue_s"] = float(at["gen_ai.latency.time_in_queue"])
    return row


def _rows(rows: Sequence[tuple[float, ...]]) -> pd.DataFrame:
    names = ["arrival_s", "prompt_tokens", "output_tokens", "first_token_s", "finish_s"]
    return pd.DataFrame(rows, columns=names)


def _first(mapping: Json, *names: str, default: float | None = None) -> float:
    for name in names:
        if mapping.get(name) is not None:
            return float(mapping[name])
    if default is None:
        raise KeyError(names[0])
    return default


_READERS: tuple[tuple[Callable[[Json], bool], Callable[[Path, list[Json]], pd.DataFrame]], ...] = (
    (lambda first: "input_toks" in first or "queued_ts" in first, _servingsim),
    (lambda first: "ttfts" in first or "input_lens" in first or "request_throughput" in first, _vllm_bench),
    (lambda first: isinstance(first.get("benchmarks"), list), _guidellm),
    (lambda first: "request_start_ns" in (first.get("metadata") or {}), _aiperf),
    (lambda first: "resourceSpans" in first, _otlp),
)
