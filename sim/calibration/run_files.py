"""Files of measured runs, as load generators and engines write them, turned into one table.

Read are, by what is in the file: result folders of ``tokenpools``; LLMServingSim's ``requests.jsonl``; ``vllm bench
serve --save-detailed``, GuideLLM's ``benchmarks.json``, aiperf's ``profile_export.jsonl``
(`sim.calibration.load_generators`); vLLM's OTLP traces as JSON (`sim.calibration.otlp_traces`); plain columns as JSONL,
CSV and parquet. The table has the columns ``arrival_s, prompt_tokens, output_tokens, first_token_s, finish_s`` and,
where the file says it, ``cached_tokens``, ``hash_ids``, ``queued_s`` (at the engine's queue) and ``stopped_s`` (when an
unfinished request was given up). Its attributes: ``format``; ``ttft_from``, where first tokens count from: the arrival
at the server or at the client, or the engine's queue; ``notes``, what a reader must know.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from sim.calibration.checked_tables import bytes_of, marked, numbers, read_csv, text_of
from sim.calibration.load_generators import aiperf, guidellm, vllm_bench
from sim.calibration.otlp_traces import otlp
from sim.errors import InputError
from sim.scenario.yaml_file import one_line

Json = dict[str, Any]
_SERVINGSIM = ("input_toks", "output_toks", "arrival_time", "queued_ts", "first_token_ts", "last_token_ts")
_DRIFT = 0.2  # seconds in a second: no load makes the way to the queue longer at that rate for a whole run
_NEARLY = 0.7  # how alike two names are that may mean the same, by difflib [choice]
_OVERTAKEN_S = 10.0  # a server's threads may let a request overtake another; runs that were joined are a run apart
_IN_FOLDERS = ("requests.parquet", "requests.jsonl", "profile_export.jsonl")
_ROWS = "give a table with a row a request"


def file_of(place: Path) -> Path:
    """Return the file of a run: itself, or of a result folder (tokenpools', LLMServingSim's, aiperf's) its requests.

    Raises
    ------
    InputError : a folder without any.
    """
    if not place.is_dir():
        return place
    found = next((place / name for name in _IN_FOLDERS if (place / name).is_file()), None)
    if found is None:
        problem = f"cannot be read (a folder, without {', '.join(_IN_FOLDERS[:-1])} or {_IN_FOLDERS[-1]})"
        raise InputError(str(place), problem, "name the file of the run")
    return found


def read_table(file: Path) -> pd.DataFrame:
    """Return a run's rows; ``attrs`` hold ``format``, ``ttft_from`` and ``notes``.

    Raises
    ------
    InputError : unreadable, or of no known form.
    """
    data = bytes_of(file, _ROWS)
    if data[:4] == b"PAR1":
        return _parquet(file, data)
    text = text_of(file, data)
    begins = text.lstrip()[:1]
    if begins not in ("{", "[") and ".json" not in file.name and file.suffix not in (".yaml", ".yml", ".jsonl"):
        return _own_records(file, marked(read_csv(file, (), _ROWS, text=text), "CSV"))
    try:
        return _from_json(file, _documents(file, text))
    except RecursionError:
        raise InputError(str(file), "cannot be read (nested too deeply)", _ROWS) from None
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError) as error:
        word = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise InputError(str(file), f"cannot be read ({word})", "give the file as its program wrote it") from None


def _parquet(file: Path, data: bytes) -> pd.DataFrame:
    try:
        table = pd.read_parquet(io.BytesIO(data))
    except (OSError, ValueError) as error:
        raise InputError(str(file), f"cannot be read ({str(error).splitlines()[0]})", _ROWS) from None
    return _own_records(file, marked(table, "parquet"))


def _documents(file: Path, text: str) -> list[Json]:
    """Return a JSON document or a YAML one, else each line's; the rows of a list are documents."""
    if file.suffix in (".yaml", ".yml") and text.lstrip()[:1] not in ("{", "["):
        try:
            found = [yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))]
        except yaml.YAMLError as error:
            raise ValueError(f"no YAML: {str(error).splitlines()[0]}") from None
    else:
        try:
            found = [_json(text)]
        except json.JSONDecodeError as whole:
            found = list(_lines(file, text, whole))
    rows = found[0] if len(found) == 1 and isinstance(found[0], list) else found
    if not rows or not all(isinstance(each, dict) for each in rows):
        raise InputError(str(file), "holds no JSON mapping", "give a row a request, a JSON mapping each")
    return rows


def _lines(file: Path, text: str, whole: json.JSONDecodeError) -> Iterator[Any]:
    """Yield what the lines hold."""
    lines = text.splitlines()
    for at, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield _json(line)
        except json.JSONDecodeError as error:
            cut, found = at == len(lines) > 1, (at, error)
            if at == 1 and len(lines) > 1 and not line.rstrip().endswith("}"):  # one document over many lines
                cut, found = False, (whole.lineno, whole)
            problem = f"cannot be read (line {found[0]} is no JSON: {found[1].msg})"
            fix = "leave the line out: the run was cut off" if cut else "give the file as its program wrote it"
            raise InputError(str(file), problem, fix) from None


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_mapping)


def _mapping(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)[:40]!r} appears twice")
    return found


def _from_json(file: Path, documents: list[Json]) -> pd.DataFrame:
    first = documents[0]
    for fits, what, fix in _OTHERS:
        if fits(first):
            raise InputError(str(file), what, fix)
    for fits, reader in _READERS:
        if fits(first):
            return reader(file, documents)
    return _own_records(file, marked(pd.DataFrame(documents), "JSONL"))


_OPTIONAL = ("cached_tokens", "prefix_hit_tokens", "hash_ids", "block_tokens", "queued_s", "stopped_s")


def _with_unread(table: pd.DataFrame) -> pd.DataFrame:
    """Return a plain table with a note for each column that is nearly one that would be read."""
    notes = []
    for name in map(str, table.columns):
        near = get_close_matches(name.lower(), _OPTIONAL, 1, _NEARLY)
        if name not in _OPTIONAL and near and near[0] not in table:
            notes.append(f"column {one_line(name[:40])} is not read; did you mean {near[0]}?")
    table.attrs["notes"] = (*table.attrs["notes"], *notes)
    return table


_OWN = ("policy", "replication", "replica", "forwarded_s", "outcome")
"""Columns by which a result's records are known; `sim.records.schema` says what they hold."""


def _own_records(file: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of one run of ours, or any other table as it is.

    What ended otherwise than finished is load until then; `sim.calibration.measured` leaves out what never reached a
    replica, where no scenario's gateway is to decide that anew.
    """
    if not all(name in table for name in _OWN):
        return _with_unread(table)
    runs = table[["policy", "replication"]].drop_duplicates()
    if len(runs) > 1:
        policies, count = ", ".join(map(str, runs.policy.unique())), runs.replication.nunique()
        problem = f"holds {len(runs)} runs (policies {policies}; {count} replications), each on a clock of its own"
        raise InputError(str(file), problem, "give a result of one policy and one replication")
    ended = table.outcome.astype(str) == "finished"
    found = table.assign(
        first_token_s=table.first_token_s.where(ended), finish_s=table.finish_s.where(ended),
        output_tokens=table.output_tokens.where(ended | (table.output_tokens > 0)),
        stopped_s=table.finish_s.where(~ended),
    )  # fmt: skip
    return marked(found, f"tokenpools' records ({table.attrs['format']})")


def _servingsim(file: Path, rows: list[Json]) -> pd.DataFrame:
    """Arrivals are on another clock than the engine's: aligned where a request was handed over fastest."""
    raw = pd.DataFrame(rows)
    missing = [name for name in _SERVINGSIM if name not in raw]
    if missing:
        raise InputError(str(file), f"has no {missing[0]}", f"give {', '.join(_SERVINGSIM)}")
    times = [name for name in _SERVINGSIM if not name.endswith("toks")]
    raw = raw.assign(**{name: numbers(file, raw, name, gaps=True, fix="give times in seconds") for name in times})
    handed_over_s = raw.queued_ts - raw.arrival_time
    known = handed_over_s.notna()
    if not known.any():
        raise InputError(str(file), "has no row with arrival_time and queued_ts", "give the file as it was written")
    least_s = float(handed_over_s.min())
    since_s = raw.arrival_time - raw.arrival_time.min()
    drift_s = abs(float(np.polyfit(since_s[known], handed_over_s[known], 1)[0])) if known.sum() > 9 else 0.0
    if drift_s > _DRIFT:
        problem = f"has clocks that drift apart by {drift_s:.2f} s a second"
        raise InputError(str(file), problem, "give arrival_time and the engine's stamps from one machine")
    queued_s = raw[known].sort_values("arrival_time", kind="stable").queued_ts
    overtaken_s = float((queued_s.cummax() - queued_s).max())
    if overtaken_s > _OVERTAKEN_S:
        problem = f"has requests that came to the queue {overtaken_s:.0f} s before one that had arrived earlier"
        raise InputError(str(file), problem, "give one run a file, each has its own clock of arrivals")
    return marked(
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


_READERS: tuple[tuple[Callable[[Json], bool], Callable[[Path, list[Json]], pd.DataFrame]], ...] = (
    (lambda first: "input_toks" in first or "queued_ts" in first, _servingsim),
    (lambda first: "ttfts" in first or "input_lens" in first or "request_throughput" in first, vllm_bench),
    (lambda first: isinstance(first.get("benchmarks"), list), guidellm),
    (lambda first: isinstance(first.get("metadata"), dict) and "request_start_ns" in first["metadata"], aiperf),
    (lambda first: "resourceSpans" in first, otlp),
)
_OTHERS: tuple[tuple[Callable[[Json], bool], str, str], ...] = (
    (lambda first: "aiperf_version" in first, "is aiperf's summary, which holds means",
     "give profile_export.jsonl, which lies beside it"),
)  # fmt: skip
"""What is known, and is no run."""
