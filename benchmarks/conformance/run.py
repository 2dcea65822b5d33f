"""Our replica beside vLLM's own scheduler, iteration by iteration, over random loads.

    python benchmarks/conformance/run.py --python .venv-conformance/0.32.0/bin/python [--loads 10000] [--page PAGE.md]

Each ``--python`` is an environment with a version of vLLM; ``make conformance`` makes two and runs this. A load differs
if at any iteration the requests scheduled, their tokens, the KV blocks in use or the preemptions do. Exit code 1 where
a load differs that has none of the features known to differ (`known.KNOWN`).

    python benchmarks/conformance/run.py --python ... --loads 60 --sample FILE.json

records vLLM's traces of the first loads that are explained, for ``tests/cluster/test_conformance.py``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean, median
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from known import page, reason_for  # noqa: E402 - a script's neighbours
from loads import FEATURES, load  # noqa: E402

from sim.studies.conformance import first_difference, replay  # noqa: E402

CHUNK = 500
SAMPLE_BYTES = 170_000


def traces(python: str, first: int, loads: int, jobs: int) -> Iterator[dict[str, Any]]:
    """Yield what vLLM's scheduler in an environment does with the loads of a range of seeds; its version first."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:

        def run(start: int) -> list[dict[str, Any]]:
            out = Path(folder) / f"{start}.jsonl"
            count = min(CHUNK, first + loads - start)
            command = [python, str(HERE / "vllm_trace.py"), str(start), str(count), str(out)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"error: {python}: vLLM's scheduler does not run: {done.stderr.strip()[-400:]}")
            found = [json.loads(line) for line in out.read_text().splitlines()]
            out.unlink()
            return found

        told = False
        for found in pool.map(run, range(first, first + loads, CHUNK)):
            yield from found[told:]
            told = True


def difference(case: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Return where our replica and vLLM part on a load, in words; empty where they do not."""
    if "error" in theirs:
        return f"vLLM: {theirs['error']}"
    return first_difference(theirs["steps"], replay(case).steps)


def compare(python: str, first: int, loads: int, jobs: int) -> dict[str, Any]:
    """Return counts over the loads of one version."""
    runs: Counter[str] = Counter()
    differ: Counter[str] = Counter()
    unknown: list[str] = []
    found = traces(python, first, loads, jobs)
    version = next(found)["vllm"]
    iterations = preemptions = 0
    alone: dict[str, list[tuple[float, float]]] = {}
    alone_runs: Counter[str] = Counter()
    for theirs in found:
        case = load(theirs["seed"])
        said = difference(case, theirs)
        iterations += len(theirs.get("steps", ()))
        preemptions += sum(theirs.get("preemptions", {}).values())
        known = [name for name in case["features"] if reason_for(name, version)]
        if len(known) == 1:
            alone_runs[known[0]] += 1
            if said and "error" not in theirs:
                alone.setdefault(known[0], []).append(sizes(case, theirs))
        for name in [*case["features"], "all", "none known to differ" if not known else "known to differ"]:
            runs[name] += 1
            differ[name] += bool(said)
        if said and not known:
            unknown.append(f"seed {theirs['seed']} ({', '.join(case['features'])}): {said}")
    return {
        "vllm": version, "loads": loads, "iterations": iterations, "preemptions": preemptions,
        "runs": dict(runs), "differ": {name: differ[name] for name in runs}, "unknown": unknown,
        "alone": {
            name: (count, len(alone.get(name, ())), *medians(alone.get(name, ()))) for name, count in alone_runs.items()
        },
    }  # fmt: skip


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


def medians(found: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the medians of both sizes; 0 where nothing differs."""
    return (median(a for a, _ in found), median(b for _, b in found)) if found else (0.0, 0.0)


def record(python: str, first: int, loads: int, jobs: int, file: Path) -> None:
    """Write a sample of vLLM's traces, as many loads as ``SAMPLE_BYTES`` hold, those of few iterations first."""
    found = traces(python, first, loads, jobs)
    version = next(found)["vllm"]
    kept = [
        {"seed": t["seed"], "steps": [[round(s[0], 6), *s[1:]] for s in t["steps"]]}
        for t in found
        if "error" not in t and not any(reason_for(name, version) for name in load(t["seed"])["features"])
    ]
    lines: list[str] = []
    for trace in sorted(kept, key=lambda t: len(t["steps"]) / (1 + len(load(t["seed"])["features"]))):
        line = json.dumps(trace, separators=(",", ":"))
        if sum(map(len, lines)) + len(line) > SAMPLE_BYTES:
            break
        lines.append(line)
    file.write_text('{"vllm":"' + version + '","traces":[\n' + ",\n".join(lines) + "\n]}\n")


def shown(result: dict[str, Any]) -> str:
    """Return the counts of one version as lines."""
    lines = [
        f"vLLM {result['vllm']}: {result['loads']} loads, {result['iterations']} iterations, "
        f"{result['preemptions']} preemptions"
    ]
    lines += [
        f"  {name:24} {result['runs'][name]:6} loads, {result['differ'][name]:5} differ"
        for name in ("all", "none known to differ", "known to differ", *FEATURES)
        if name in result["runs"]
    ]
    return "\n".join([*lines, *(f"  unexplained: {said[:300]}" for said in result["unknown"][:5])])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the loads in each environment, and print and write what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", required=True, help="the Python of an environment with vLLM")
    parser.add_argument("--loads", type=int, default=10_000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a folder for conformance.json")
    parser.add_argument("--page", type=Path, help="write the page of known divergences here")
    parser.add_argument("--sample", type=Path, help="record traces of the first environment's vLLM here, and end")
    options = parser.parse_args(arguments)
    if options.sample is not None:
        record(options.python[0], options.first_seed, options.loads, options.jobs, options.sample)
        return 0
    results = []
    for python in options.python:
        results.append(compare(python, options.first_seed, options.loads, options.jobs))
        print(shown(results[-1]), flush=True)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "conformance.json").write_text(json.dumps(results, indent=1) + "\n")
    if options.page is not None:
        options.page.write_text(page(results))
    return 1 if any(result["unknown"] for result in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
