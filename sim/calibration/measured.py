"""Runs that were measured: requests, and when each got its first and its last token.

`sim.calibration.run_files` reads the files. Requests that did not finish (no ``finish_s``) stay as load: they are
simulated, and compared with nothing.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.calibration.checked_tables import IDLE_S, MOST_TOKENS, check_token_time, need_columns, numbers, row_of
from sim.calibration.run_files import file_of, read_table
from sim.calibration.single_replica import Floats, Latencies, Requests
from sim.calibration.unfinished import past_the_gateway, with_guessed_outputs
from sim.errors import InputError
from sim.scenario.profile import Profile
from workloads.formats.rows import Blocks
from workloads.prefixes import BlockPrefixes, name_space

COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens", "first_token_s", "finish_s")
_TIMES = ("arrival_s", "first_token_s", "finish_s")
_EPOCH_S = 3e8  # more seconds than any machine has been up: clocks that differ by it do not begin at one time
_LAST_S = 1e10  # of the year 2286: later stamps are milliseconds and less
_FEW = 30
_NAMELESS = ("requests.jsonl", "requests.parquet", "profile_export.jsonl")  # called by their folders
_HASHED_TOKENS = 512  # of a named block of a prompt, as Mooncake's traces have them
METRICS = ("ttft", "tpot", "e2e")
STATISTICS = ("mean", "p50", "p90", "p99")
_RESAMPLES = 400
_OTHER_UNIT = 100.0  # times the median; milliseconds among seconds are a thousand [choice]


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredRun:
    """A run: what was asked, and when it was answered; NaN where it was not, or not to the end.

    ``ttft_from`` says where times to first token count from ("arrival": at the server or at the client; "queue":
    at the engine's queue), ``notes`` what a reader of the file must know, and ``replicas`` how many served it, where
    the file says so.
    """

    name: str
    requests: Requests
    latencies: Latencies
    ttft_from: str = "arrival"
    notes: tuple[str, ...] = ()
    replicas: int = 1

    @property
    def ended(self) -> NDArray[np.bool_]:
        """Which requests ended: what is compared."""
        return np.isfinite(self.latencies.finish_s) & np.isfinite(self.latencies.first_token_s)


def read_run(file: Path, *, ttft_from: str = "arrival", behind_gateway: bool = False) -> MeasuredRun:
    """Read a measured run.

    Parameters
    ----------
    file : of a load generator or an engine, or a result folder of ``tokenpools replay``.
    ttft_from : "arrival", or "queue" to count from the engine's queue, where the file says when a request got there:
        what servers and load generators take before it is then no part of any latency.
    behind_gateway : a scenario's gateway will decide who reaches a replica, and when; else what the records say of that
        is taken.

    Raises
    ------
    InputError : unreadable, columns missing, no request that finished, clocks that do not fit, or prefixes that
        contradict the lengths.
    """
    file = file_of(file)
    table = read_table(file)
    notes = [f"read as {table.attrs.get('format', '')}; times to first token count from the {ttft_from}"]
    notes += table.attrs.get("notes", ())
    if "forwarded_s" in table and not behind_gateway:
        table, words = past_the_gateway(file, table)
        notes += words
    if ttft_from == "queue":
        table = _from_the_queue(file, table)
    rows = _checked(file, table)
    given = rows.dropna(subset=["arrival_s", "prompt_tokens"])
    if len(given) < len(rows):
        notes.append(f"{len(rows) - len(given)} of {len(rows)} rows have no arrival or no prompt: they are left out")
    given = given.sort_values("arrival_s", kind="stable").reset_index(drop=True)
    ended = given.finish_s.notna() & given.first_token_s.notna() & given.output_tokens.notna()
    if not ended.any():
        if given.finish_s.notna().any():
            problem = "holds no time to first token, so answers were not streamed"
            raise InputError(str(file), problem, "measure with streaming (aiperf: --streaming)")
        why = f" ({notes[1]})" if len(notes) > 1 else ""
        raise InputError(str(file), f"holds no request that finished{why}", "give at least some dozens")
    _check_clocks(file, given, given[ended])
    further = given.output_tokens.where(given.output_tokens > 1) - 1
    token_s = (given.finish_s - given.first_token_s) / further
    check_token_time(file, token_s[ended].to_numpy(float))
    notes += _check_rows(file, given.assign(token_s=token_s)[ended])
    if ended.sum() < _FEW:
        notes.append(f"{int(ended.sum())} requests ended: too few to know a P99, or what of an error is chance")
    repeats = int(given.duplicated(list(COLUMNS)).sum())
    if repeats:
        notes.append(f"{repeats} rows repeat another in every column: if a file was joined twice, drop them")
    if begun_anew := _begun_anew(rows.arrival_s):
        problem = f"row {int(rows.row.iloc[begun_anew])}: arrivals begin anew, as of another run"
        raise InputError(str(file), problem, "give one run a file; if it is one, sort the rows by arrival")
    if not ended.all():
        given, note = with_guessed_outputs(file, given, ended.to_numpy(bool))
        notes.append(note)
    start_s = float(given.arrival_s.iloc[0])
    requests = Requests(
        given.arrival_s.to_numpy(float) - start_s,
        given.prompt_tokens.to_numpy(np.int64),
        np.maximum(1, given.output_tokens.to_numpy(np.int64)),
        _cached(file, given),
        _prefixes(file, given),
    )
    first_s, finish_s = (given[name].where(ended).to_numpy(float) - start_s for name in ("first_token_s", "finish_s"))
    return MeasuredRun(
        name=file.parent.name if file.name in _NAMELESS else file.stem,
        requests=requests,
        latencies=Latencies(first_s, finish_s),
        ttft_from=ttft_from,
        notes=tuple(notes),
        replicas=int(given.replica.nunique()) if "replica" in given and "forwarded_s" in given else 1,
    )


def _checked(file: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a file with numbers in the columns of a run, and in ``row`` what to call each."""
    need_columns(file, table, COLUMNS)
    if table.empty:
        raise InputError(str(file), "holds no request", "give a row for each")
    found = {name: numbers(file, table, name, gaps=True, fix="give times in seconds") for name in _TIMES}
    for name, least in (("prompt_tokens", 1), ("output_tokens", 0)):
        found[name] = numbers(file, table, name, least=least, most=MOST_TOKENS, whole=True, gaps=True)
    return table.assign(**found, row=[row_of(file, at) for at in range(len(table))])


def _from_the_queue(file: Path, table: pd.DataFrame) -> pd.DataFrame:
    if "queued_s" in table:
        return table.assign(arrival_s=table.queued_s)
    raise InputError(str(file), "does not say when requests came to the queue", "leave --ttft-from at arrival")


def _check_clocks(file: Path, asked: pd.DataFrame, rows: pd.DataFrame) -> None:
    """Refuse times that cannot be of one clock; ``asked`` are all rows, ``rows`` those that ended."""
    fix = "give all times on one clock"
    if asked.arrival_s.abs().median() > _LAST_S:
        problem = f"has arrivals at {asked.arrival_s.median():.3g} in the median, which are no seconds since 1970"
        raise InputError(str(file), problem, "give all times in seconds")
    for here, there, words in (
        (rows.first_token_s, rows.arrival_s, "first tokens and arrivals are"),
        (rows.finish_s, rows.first_token_s, "first and last tokens are"),
        (asked.arrival_s, asked.arrival_s.median(), "arrivals are"),
    ):
        apart_s = (here - there).abs()
        if apart_s.max() > _EPOCH_S:
            at = int(apart_s.index[int(apart_s.to_numpy().argmax())])
            problem = f"mixes clocks: {words} {apart_s.max():.3g} s apart (row {int(asked.row.iloc[at])})"
            raise InputError(str(file), problem, fix)
    for here, there, words in (
        (rows.first_token_s, rows.arrival_s, "was answered before it came"),
        (rows.finish_s, rows.first_token_s, "ended before its first token"),
    ):
        early = here < there
        if early.any():
            at = int(np.flatnonzero(early)[0])
            stamps = f"{here.iloc[at]:g} s against {there.iloc[at]:g} s"
            problem = f"row {int(rows.row.iloc[at])}: a request {words} ({stamps})"
            raise InputError(str(file), problem, f"{fix}, as points in time and not as durations")


def _check_rows(file: Path, rows: pd.DataFrame) -> list[str]:
    """Refuse a row whose times are all a hundred times what they are in the median: it has another unit.

    Returns what is odd but may be: that no first token came as soon as if its prompt were read a token at a time.
    """
    first_s = rows.first_token_s - rows.arrival_s
    slow = (rows.token_s > _OTHER_UNIT * rows.token_s.median()) & (first_s > _OTHER_UNIT * first_s.median())
    if slow.any():
        at = int(np.flatnonzero(slow)[0])
        found = f"{first_s.iloc[at]:.3g} s to the first token and {rows.token_s.iloc[at]:.3g} s between two"
        usual = f"{first_s.median():.3g} and {rows.token_s.median():.3g} s are usual"
        problem = f"row {int(rows.row.iloc[at])}: {found}, where {usual}"
        raise InputError(str(file), problem, "give all times in seconds")
    at = int(first_s.to_numpy().argmin())
    quickest_s, prompt = float(first_s.iloc[at]), int(rows.prompt_tokens.iloc[at])
    if quickest_s > IDLE_S + prompt * rows.token_s.median():
        return [f"the quickest first token took {quickest_s:.3g} s, of {prompt} prompt tokens: in milliseconds?"]
    return []


def _begun_anew(arrival_s: pd.Series[float]) -> int:
    """Return where arrivals, in order before and after, go back to the beginning; 0 where they do not."""
    known = arrival_s.dropna()
    steps_s = np.diff(known.to_numpy(float))
    back = np.flatnonzero(steps_s < 0)
    joined = 0 < len(back) <= len(known) // (2 * _FEW) and (steps_s[back] < -(known.max() - known.min()) / 2).all()
    return int(known.index[int(back[0]) + 1]) if joined else 0


def _cached(file: Path, rows: pd.DataFrame) -> NDArray[np.int64] | None:
    """Return the prompt tokens that each request found in the cache, where a column says so."""
    names = [n for n in ("cached_tokens", "prefix_hit_tokens") if n in rows]
    name = next(iter(names), None)
    if len(names) > 1 and not rows[names[0]].equals(rows[names[1]]):
        raise InputError(str(file), f"has columns {' and '.join(names)} that differ", "leave one of them out")
    if name is None or rows[name].isna().all():
        return None
    fix = f"correct {name}, or drop the column"
    cached = np.nan_to_num(
        numbers(file, rows, name, least=0, whole=True, gaps=True, fix=fix, rows=rows.row.tolist())
    ).astype(np.int64)
    wrong = np.flatnonzero(cached > rows.prompt_tokens.to_numpy(np.int64))
    if len(wrong):
        at = int(wrong[0])
        prompt = int(rows.prompt_tokens[at])
        problem = f"row {int(rows.row[at])} found {cached[at]} cached tokens of a prompt of {prompt}"
        raise InputError(str(file), problem, fix)
    if "hash_ids" in rows and not rows.hash_ids.isna().all():
        problem = f"says in {name} what prompts found in the cache, and in hash_ids what they could find"
        raise InputError(str(file), problem, "leave one of them out")
    return np.asarray(cached) if cached.any() else None


def _prefixes(file: Path, rows: pd.DataFrame) -> BlockPrefixes | None:
    """Return what prompts have in common, where a column ``hash_ids`` names the blocks of each."""
    if "hash_ids" not in rows or rows.hash_ids.isna().all():
        return None
    fix = "correct hash_ids, or drop the column"
    ids = [_names(file, int(at), each, fix) for at, each in zip(rows.row.tolist(), rows.hash_ids, strict=True)]
    lengths = rows.prompt_tokens.to_numpy(np.int64)
    counts = np.array([len(each) for each in ids])
    block_tokens = _HASHED_TOKENS
    if "block_tokens" in rows:
        sizes = numbers(file, rows, "block_tokens", least=1, most=MOST_TOKENS, whole=True, rows=rows.row.tolist())
        if sizes.min() < sizes.max():
            problem = f"names blocks of {sizes.min():.0f} and of {sizes.max():.0f} tokens"
            raise InputError(str(file), problem, "give one size in block_tokens")
        block_tokens = int(sizes[0])
    wrong = np.flatnonzero((counts > 0) & (counts != -(-lengths // block_tokens)))
    if len(wrong):
        at = int(wrong[0])
        problem = (
            f"row {int(rows.row[at])} has {counts[at]} hash_ids of {block_tokens} tokens for a prompt of {lengths[at]}"
        )
        raise InputError(str(file), problem, "correct hash_ids, or give their size in a column block_tokens")
    flat = np.array([name for each in ids for name in each], np.int64)
    blocks = Blocks(flat, np.cumsum(counts), block_tokens)
    return BlockPrefixes(name_space(str(file)), blocks, np.zeros(len(ids), np.int64), lengths)


def _names(file: Path, row: int, written: Any, fix: str) -> list[int]:
    """Return the names of a prompt's blocks: a list, or in a CSV file the text of one."""
    if isinstance(written, str):
        try:
            written = json.loads(written)
        except ValueError:
            written = None
    if isinstance(written, float) and np.isnan(written):
        return []
    names: list[Any] = list(written) if isinstance(written, list | tuple | np.ndarray) else [None]
    if all(isinstance(name, int | np.integer) and abs(int(name)) < 2**63 for name in names):
        return [int(name) for name in names]
    raise InputError(str(file), f"row {row}: hash_ids are no list of whole numbers", fix)


def check_fits(profile: Profile, run: MeasuredRun) -> None:
    """Refuse an engine that could not have served a request of the run: it holds less, or takes no such length.

    Raises
    ------
    InputError : with the longest request and what the profile allows, or several replicas served the run.
    """
    if run.replicas > 1:
        problem = f"was served by {run.replicas} replicas, and one is simulated"
        raise InputError(run.name, problem, "give the --scenario that has them")
    tokens = run.requests.prompt_tokens + run.requests.output_tokens
    longest, held = int(tokens.max()), profile.kv_blocks * profile.block_tokens
    prompt = int(run.requests.prompt_tokens[int(tokens.argmax())])
    request = f"a request of {prompt} + {longest - prompt} tokens"
    if longest > held:
        problem = f"holds {request}, and the KV cache of the profile {held} tokens"
        raise InputError(run.name, problem, "give the engine's kv_blocks (--kv-blocks, --set kv_blocks=)")
    if profile.max_model_tokens is not None and longest > profile.max_model_tokens:
        problem = f"holds {request}, and the profile takes {profile.max_model_tokens} at most"
        raise InputError(run.name, problem, "give the engine's max_model_tokens (--set max_model_tokens=)")


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
    part : which requests to compare; all where it is left out. Those that did not end are never compared.
    """
    found, made = per_request(requests, measured), per_request(requests, simulated)
    ended = np.isfinite(measured.finish_s) & np.isfinite(measured.first_token_s)
    part = ended if part is None else part & ended
    rows = []
    for metric in METRICS:
        for statistic in STATISTICS:
            of_measured = _statistic(found[metric][part], statistic)
            of_simulated = _statistic(made[metric][part], statistic)
            rows.append((metric, statistic, of_measured, of_simulated, of_simulated / of_measured - 1))
    return pd.DataFrame(rows, columns=["metric", "statistic", "measured_s", "simulated_s", "error"])


def sampling(requests: Requests, latencies: Latencies, part: NDArray[np.bool_] | None = None) -> list[float]:
    """Return what each statistic of `errors` would differ by over other requests of the same kind, relative.

    Half the width of a 95 % interval by bootstrap over the measured requests, row for row: a 99th percentile of 150
    requests is the second or third worst of them, and no better known than that.
    """
    found = per_request(requests, latencies)
    ended = np.isfinite(latencies.finish_s) & np.isfinite(latencies.first_token_s)
    part = ended if part is None else part & ended
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, part.sum(), (_RESAMPLES, int(part.sum())))
    half = []
    for metric in METRICS:
        values = found[metric][part]
        for statistic in STATISTICS:
            again = np.array([_statistic(values[row], statistic) for row in drawn])
            low, high = (_statistic(again, name) for name in ("p2.5", "p97.5"))
            half.append((high - low) / 2 / _statistic(values, statistic))
    return half


def _statistic(values: Floats, name: str) -> float:
    known = values[~np.isnan(values)]
    if not len(known):  # requests of one token have no further ones
        return math.nan
    return float(known.mean() if name == "mean" else np.quantile(known, float(name[1:]) / 100))
