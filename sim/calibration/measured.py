"""Runs that were measured: requests, and when each got its first and its last token.

Two forms are read. Tables (CSV, or parquet as tokenpools writes it) with the columns ``arrival_s, prompt_tokens,
output_tokens, first_token_s, finish_s`` on one clock; and the ``requests.jsonl`` of LLMServingSim's runs of real vLLM,
whose arrivals are on another clock than the engine's stamps: the two are aligned where a request was handed over
fastest, as its hand-over cannot have taken less than nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.calibration.single_replica import Floats, Latencies, Requests
from sim.errors import InputError

COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens", "first_token_s", "finish_s")
_JSONL = ("input_toks", "output_toks", "arrival_time", "queued_ts", "first_token_ts", "last_token_ts")
METRICS = ("ttft", "tpot", "e2e")


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredRun:
    """A run: what was asked, and when it was answered."""

    name: str
    requests: Requests
    latencies: Latencies


def read_run(file: Path) -> MeasuredRun:
    """Read a measured run.

    Raises
    ------
    InputError : unreadable, columns missing, no request that finished, or tokens before arrival.
    """
    try:
        if file.suffix == ".jsonl":
            table = _from_jsonl(file)
        elif file.suffix == ".parquet":
            table = pd.read_parquet(file)
        else:
            table = pd.read_csv(file)
    except OSError as error:
        raise InputError(str(file), f"cannot be read ({error.strerror})", "name a readable file") from None
    except (ValueError, KeyError) as error:
        raise InputError(str(file), f"cannot be read ({error})", f"give the columns {', '.join(COLUMNS)}") from None
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise InputError(str(file), f"has no column {', '.join(missing)}", f"give {', '.join(COLUMNS)}")
    table = table.dropna(subset=list(COLUMNS)).sort_values("arrival_s", kind="stable")
    if table.empty:
        raise InputError(str(file), "holds no request that finished", "give at least some dozens")
    if (table.first_token_s < table.arrival_s).any() or (table.finish_s < table.first_token_s).any():
        raise InputError(str(file), "holds a request that was answered before it came", "give all times on one clock")
    start_s = float(table.arrival_s.iloc[0])
    return MeasuredRun(
        name=file.parent.name if file.suffix == ".jsonl" else file.stem,
        requests=Requests(
            table.arrival_s.to_numpy(float) - start_s,
            table.prompt_tokens.to_numpy(np.int64),
            table.output_tokens.to_numpy(np.int64),
        ),
        latencies=Latencies(table.first_token_s.to_numpy(float) - start_s, table.finish_s.to_numpy(float) - start_s),
    )


def _from_jsonl(file: Path) -> pd.DataFrame:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    raw = pd.DataFrame(rows, columns=list(_JSONL))
    arrival_s = raw.arrival_time + (raw.queued_ts - raw.arrival_time).min()
    return pd.DataFrame(
        {
            "arrival_s": arrival_s,
            "prompt_tokens": raw.input_toks,
            "output_tokens": raw.output_toks,
            "first_token_s": raw.first_token_ts,
            "finish_s": raw.last_token_ts,
        }
    )


def per_request(requests: Requests, latencies: Latencies) -> dict[str, Floats]:
    """Return time to first token, time per further token and end-to-end time of every request, in seconds.

    Requests of a single token have no time per further token: NaN.
    """
    further = np.where(requests.output_tokens > 1, requests.output_tokens - 1, np.nan)
    return {
        "ttft": latencies.first_token_s - requests.arrival_s,
        "tpot": (latencies.finish_s - latencies.first_token_s) / further,
        "e2e": latencies.finish_s - requests.arrival_s,
    }


def errors(
    requests: Requests, measured: Latencies, simulated: Latencies, part: NDArray[np.bool_] | None = None
) -> pd.DataFrame:
    """Return a row for each metric and statistic: measured_s, simulated_s and error, relative.

    Parameters
    ----------
    part : which requests to compare; all where it is left out.
    """
    found, made = per_request(requests, measured), per_request(requests, simulated)
    part = np.ones(len(requests), bool) if part is None else part
    rows = []
    for metric in METRICS:
        for statistic in ("mean", "p50", "p90", "p99"):
            of_measured = _statistic(found[metric][part], statistic)
            of_simulated = _statistic(made[metric][part], statistic)
            rows.append((metric, statistic, of_measured, of_simulated, of_simulated / of_measured - 1))
    return pd.DataFrame(rows, columns=["metric", "statistic", "measured_s", "simulated_s", "error"])


def _statistic(values: Floats, name: str) -> float:
    return float(np.nanmean(values) if name == "mean" else np.nanquantile(values, float(name[1:]) / 100))
