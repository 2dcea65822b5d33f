"""How many simulated requests a CPU-second carries, whole process: start-up, demand, run, records.

    python benchmarks/throughput.py [--requests 100000] [--repeats 3] [--cases one-replica,sixteen-replicas,...]
    python benchmarks/throughput.py --compiled build/compiled/venv/bin/python --cases start,one-replica,day
    python benchmarks/throughput.py --peers build/dynamo/bin/python [--peer 'BLIS=blis run ... {requests}']

Each case runs `tokenpools run` in a process of its own and charges it all its CPU time, user and system. The load is
Poisson at 80 % of what the pool delivers when it is never idle, which is measured first. Other programs on the machine
disturb CPU times too (shared caches, sibling threads), so every case runs several times, the best and the median are
both shown, and before and after each run the machine does bare SimPy events for a moment: requests per event is the
figure to compare between machines and days. With peers, theirs and ours take turns (`benchmarks/peers.py`), with an
equal number of requests and replicas, equal rates and the same mean lengths; what an iteration costs is each one's own.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from peers import Load, bare_events_per_cpu_s, commands, spent

PROFILE = {
    "step_time": {
        "kind": "linear",
        "base_s": 0.006,
        "per_prefill_token_s": 2.0e-5,
        "per_decode_sequence_s": 1.0e-4,
        "per_context_token_s": 2.0e-8,
    },
    "max_num_seqs": 256,
    "max_num_batched_tokens": 2048,
    "kv_blocks": 30000,
    "block_tokens": 16,
    "kv_bytes_per_token": 131072,
}
PROMPT_TOKENS, OUTPUT_TOKENS = 512, 256
MOONCAKE = {"policy": "none", "replicas": 8, "trace": "mooncake-fast25/conversation"}
CASES: dict[str, dict[str, Any]] = {
    "one-replica": {"policy": "none"},
    "sixteen-replicas": {"policy": "none", "replicas": 16},
    "256-replicas": {"policy": "none", "replicas": 256},
    "token-pool": {"policy": {"kind": "token-pool", "mode": "paper"}},
    "100-entitlements": {"policy": {"kind": "token-pool"}, "replicas": 16, "entitlements": 100},
    "1000-entitlements": {"policy": {"kind": "token-pool"}, "replicas": 16, "entitlements": 1000},
    "output-16": {"policy": "none", "output_tokens": 16},
    "output-64": {"policy": "none", "output_tokens": 64},
    "output-256": {"policy": "none", "output_tokens": 256},
    "output-1024": {"policy": "none", "output_tokens": 1024},
    "start": {"policy": "none", "requests": 100},
    "day": {
        "policy": {"kind": "token-pool"}, "replicas": 16, "entitlements": 100, "requests": 537_600,
        "rate_per_s": 537_600 / 86_400, "profile": "rtx-pro-6000-llama-3.1-8b", "timeline_interval_s": 60,
    },
    "mooncake": MOONCAKE,
    "mooncake-prefixes": MOONCAKE | {"profile": PROFILE | {"prefix_caching": True}},
}  # fmt: skip
"""Those from ``start`` on have a number of requests of their own; the last two want TOKENPOOLS_DATA."""
USUAL = [name for name in CASES if name != "day" and "trace" not in CASES[name]]


def scenario(case: dict[str, Any], requests: int, rate_per_s: float) -> dict[str, Any]:
    """Return the scenario of a case at a rate."""
    replicas, count = case.get("replicas", 1), case.get("entitlements", 1)
    requests = case.get("requests", requests)
    names = ["a"] if count == 1 else [f"e{i}" for i in range(count)]
    promise = {"slots": 100 * replicas / count, "tokens_per_s": 5000 * replicas / count}
    traced = [{"entitlement": "a", "arrivals": {"kind": "trace", "file": case["trace"]}}] if "trace" in case else []
    return {
        "version": 1,
        "seed": 7,
        "pool": {
            "profile": case.get("profile", PROFILE),
            "replicas": replicas,
            "entitlements": [
                {"name": name, "service_class": "elastic", "ttft_slo_s": 1.0, "baseline": promise} for name in names
            ],
        },
        "timeline_interval_s": case.get("timeline_interval_s", 1.0),
        "workload": traced or [
            {
                "entitlement": name,
                "arrivals": {"kind": "poisson", "rate_per_s": rate_per_s / count},
                "requests": max(1, requests // count),
                "prompt_tokens": {"kind": "lognormal", "mean": PROMPT_TOKENS, "cv": 0.8},
                "output_tokens": {
                    "kind": "lognormal", "mean": case.get("output_tokens", OUTPUT_TOKENS), "cv": 0.9
                },
            }
            for name in names
        ],
        "policies": [case["policy"]],
    }  # fmt: skip


def measure(description: dict[str, Any], python: str = sys.executable) -> dict[str, float]:
    """Run a scenario in its own process, with the tokenpools of a Python; returns its costs."""
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "scenario.yaml", Path(folder) / "out"
        path.write_text(yaml.safe_dump(description))
        command = [python, "-m", "sim", "run", str(path), "--out", str(out), "--no-progress"]
        before = bare_events_per_cpu_s()
        cpu_s, rss_gb = spent(command)
        bare_per_s = (before + bare_events_per_cpu_s()) / 2
        cell = json.loads((out / "manifest.json").read_text())["cells"][0]
    return {
        "cpu_s": cpu_s,
        "bare_per_cpu_s": bare_per_s,
        "requests_per_event": cell["attempts"] / cpu_s / bare_per_s,
        "run_requests_per_event": cell["attempts"] / max(cell["cpu_s"], 1e-3) / bare_per_s,
        "requests_per_cpu_s": cell["attempts"] / cpu_s,
        "events_per_request": cell["simulated_events"] / cell["attempts"],
        "iterations_per_request": cell["iterations"] / cell["attempts"],
        "run_cpu_s": cell["cpu_s"],
        "simulated_s": cell["end_s"],
        "rss_gb": rss_gb,
    }


def saturated_rate_per_s(case: dict[str, Any]) -> float:
    """Return the requests per second that the pool finishes when it always has work: its capacity."""
    if "trace" in case:
        return 0.0
    if "rate_per_s" in case:
        return float(case["rate_per_s"]) / 0.8
    requests = 4_000 * min(16, case.get("replicas", 1))
    alone = case | {"policy": "none", "entitlements": 1, "requests": requests}
    flood = measure(scenario(alone, requests, 1e4 * case.get("replicas", 1)))
    return requests / flood["simulated_s"]


def where_the_time_goes(description: dict[str, Any]) -> list[tuple[str, float]]:
    """Return the share of the run's own time by module, from cProfile (which taxes small functions most)."""
    from sim.experiments.run import run_cell
    from sim.scenario.load import expand, parse_scenario

    profiler = cProfile.Profile()
    cell = expand(parse_scenario(description, "benchmark"))[0]
    profiler.runcall(run_cell, cell)
    time_s: Counter[str] = Counter()
    for (file, _, name), (_, _, own_s, _, _) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        parts = Path(file).parts
        here = [
            i for i, part in enumerate(parts) if part in ("sim", "policies", "workloads", "simpy", "numpy", "pyarrow")
        ]
        time_s["/".join(parts[here[-1] :]) if here else f"built in: {name}" if file == "~" else "other"] += own_s
    total_s = sum(time_s.values())
    return [(name, own_s / total_s) for name, own_s in time_s.most_common(12)]


def beside_peers(options: argparse.Namespace) -> None:
    """Run ours and the peers in turn on one and on sixteen replicas, and print how much more they take."""
    print(f"\n{options.requests:,} requests, best of {options.repeats}, ours and each peer in turn")
    forms = {"ours": sys.executable} | ({"ours, compiled": options.compiled} if options.compiled else {})
    for name in ("one-replica", "sixteen-replicas"):
        case = CASES[name]
        replicas = case.get("replicas", 1)
        rate_per_s = 0.8 * saturated_rate_per_s(case)
        load = Load(options.requests, rate_per_s, replicas, PROMPT_TOKENS, OUTPUT_TOKENS)
        theirs: dict[str, list[tuple[float, float]]] = {}
        ours: dict[str, list[tuple[float, float]]] = {form: [] for form in forms}
        for _ in range(options.repeats):
            for form, python in forms.items():
                run = measure(scenario(case, options.requests, rate_per_s), python)
                ours[form].append((run["cpu_s"], run["rss_gb"]))
            for peer, command in commands(options.peers, options.peer, load).items():
                theirs.setdefault(peer, []).append(spent(command))
        own_s = {form: min(runs)[0] for form, runs in ours.items()}
        print(name + ": " + "; ".join(f"{form} {cpu_s:.2f} CPU-s" for form, cpu_s in own_s.items()))
        for peer, runs in theirs.items():
            cpu_s, rss_gb = min(runs)
            beside = ", ".join(f"{cpu_s / own:.1f} times {form}" for form, own in own_s.items())
            print(f"  {peer}: {cpu_s:.2f} CPU-s, {beside}; {rss_gb:.2f} GB", flush=True)


def row(name: str, rate_per_s: float, runs: list[dict[str, float]]) -> str:
    """Return the line of a case: its best run, and the median of all."""
    best = max(runs, key=lambda run: run["requests_per_event"])
    cells = (
        name,
        f"{rate_per_s:.1f}",
        f"{best['requests_per_cpu_s']:,.0f}",
        f"{statistics.median(run['requests_per_cpu_s'] for run in runs):,.0f}",
        f"{best['requests_per_event']:.4f}",
        f"{best['run_requests_per_event']:.4f}",
        f"{best['cpu_s']:.2f}",
        f"{best['events_per_request']:.2f}",
        f"{best['iterations_per_request']:.1f}",
        f"{best['rss_gb']:.3f}",
    )
    return "".join(f"{cell:>21}" if cell is name else f"{cell:>17}" for cell in cells)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", default=",".join(USUAL), help="; ".join(CASES))
    parser.add_argument(
        "--compiled", metavar="PYTHON", help="one that has the compiled form (make compiled): both, in turn"
    )
    parser.add_argument("--no-profile", action="store_true")
    parser.add_argument("--peers", metavar="PYTHON", help="a Python that has ai-dynamo-runtime (make peers)")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    options = parser.parse_args()
    cases = [one for one in options.cases.split(",") if one]
    if unknown := [one for one in cases if one not in CASES]:
        parser.error(f"--cases: unknown {', '.join(unknown)}; give some of {', '.join(CASES)}")
    print(f"{options.requests:,} requests, best and median of {options.repeats}, CPU seconds of the whole process")
    head = ("case", "load/s", "best req/CPU-s", "median", "req/SimPy event", "run alone", "CPU s", "events/req",
            "iterations/req", "RSS GB")  # fmt: skip
    print("".join(f"{cell:>{17 if place else 21}}" for place, cell in enumerate(head)))
    for name in cases:
        case = CASES[name]
        rate_per_s = 0.8 * saturated_rate_per_s(case)
        description = scenario(case, options.requests, rate_per_s)
        forms = {name: sys.executable} | ({f"{name} (c)": options.compiled} if options.compiled else {})
        found: dict[str, list[dict[str, float]]] = {form: [] for form in forms}
        for _ in range(options.repeats):
            for form, python in forms.items():
                found[form].append(measure(description, python))
        for form, runs in found.items():
            print(row(form, rate_per_s, runs), flush=True)
    if options.peers or options.peer:
        beside_peers(options)
    if not options.no_profile:
        case = CASES["one-replica"]
        print("\nwhere the time of a run goes (one replica, by module, cProfile):")
        description = scenario(case, min(options.requests, 30_000), 0.8 * saturated_rate_per_s(case))
        for name, share in where_the_time_goes(description):
            print(f"{share:7.1%}  {name}")


if __name__ == "__main__":
    main()
