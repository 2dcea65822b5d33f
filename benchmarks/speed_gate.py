"""A gate for slower code that holds on any machine: what a run executes is counted, not timed.

    python benchmarks/speed_gate.py              counts, and exit code 1 where one is above its limit
    python benchmarks/speed_gate.py --update     after a change that is worth its cost: writes speed_gate.json anew
    python benchmarks/speed_gate.py --planted    10 % more work planted in three places, and 20 unchanged runs

Counted are the bytecodes that functions of policies, workloads, sim and SimPy execute, and `C_CALL` for each call of a
built-in: the same number in each run of the same code, however busy the machine. What it cannot see is a built-in that
is handed more to do. Counts differ between versions of Python, so each has its own; one that has none is only printed.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import simpy

import policies
from policies.core import GatewayCore
from policies.token_pool.policy import TokenPoolPolicy
from sim.cluster.replica import Replica
from sim.experiments.run import run_cell
from sim.scenario.load import expand, parse_scenario

FILE = Path(__file__).with_name("speed_gate.json")
LIMIT = 1.05
"""How much more than what is written down is let through: small changes need no new counts."""
C_CALL = 3
UNCHANGED = 20
ROOTS = (str(Path(policies.__file__).parents[1]), str(Path(simpy.__file__).parent))
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
PROFILE = {
    "step_time": {
        "kind": "linear", "base_s": 0.006, "per_prefill_token_s": 2.0e-5, "per_decode_sequence_s": 1.0e-4,
        "per_context_token_s": 2.0e-8,
    },
    "max_num_seqs": 256, "max_num_batched_tokens": 2048, "kv_blocks": 30000, "block_tokens": 16,
    "kv_bytes_per_token": 131072,
}  # fmt: skip


def scenario(
    *, replicas: int = 1, entitlements: int = 1, policy: Any = "none", per_tenant: int = 300, **profile: Any
) -> dict[str, Any]:
    """Return a small run at four fifths of the load that the replicas carry."""
    names = [f"t{i}" for i in range(entitlements)]
    promise = {"slots": 100 * replicas / entitlements, "tokens_per_s": 5000 * replicas / entitlements}
    return {
        "version": 1, "seed": 7,
        "pool": {
            "profile": PROFILE | profile, "replicas": replicas,
            "entitlements": [
                {"name": name, "service_class": "elastic", "ttft_slo_s": 1.0, "baseline": promise} for name in names
            ],
        },
        "workload": [
            {
                "entitlement": name, "requests": per_tenant,
                "arrivals": {"kind": "poisson", "rate_per_s": 17.5 * replicas / entitlements},
                "prompt_tokens": {"kind": "lognormal", "mean": 512, "cv": 0.8},
                "output_tokens": {"kind": "lognormal", "mean": 256, "cv": 0.9},
            }
            for name in names
        ],
        "policies": [policy],
    }  # fmt: skip


CASES: dict[str, dict[str, Any]] = {
    "one replica": scenario(),
    "64 replicas": scenario(replicas=64, per_tenant=600),
    "token pools, 20 entitlements": scenario(
        replicas=4, entitlements=20, policy={"kind": "token-pool"}, per_tenant=20
    ),
    "little KV cache": scenario(kv_blocks=1200),
}


def cost(description: dict[str, Any], before: Callable[[], None] | None = None) -> int:
    """Return what one run of a scenario executes, what is cached between runs left out; ``before`` comes before it."""
    (cell,) = expand(parse_scenario(description, "gate"))
    run_cell(cell)
    if before is not None:
        before()
    counted = 0

    def count(frame: FrameType, event: str, argument: object) -> Any:  # noqa: ARG001
        nonlocal counted
        if event == "opcode":
            counted += 1
        return count

    def enter(frame: FrameType, event: str, argument: object) -> Any:  # noqa: ARG001
        if not frame.f_code.co_filename.startswith(ROOTS):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return count

    def called(frame: FrameType, event: str, argument: object) -> None:  # noqa: ARG001
        nonlocal counted
        if event == "c_call" and frame.f_code.co_filename.startswith(ROOTS):
            counted += C_CALL

    tools = sys.gettrace(), sys.getprofile()
    # Whatever ran before may have left generators, whose ends are code of ours too: they end now, and none meanwhile.
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    sys.settrace(enter)
    sys.setprofile(called)
    try:
        run_cell(cell)
    finally:
        sys.settrace(tools[0])
        sys.setprofile(tools[1])
        if collects:
            gc.enable()
    return counted


def written() -> dict[str, int]:
    """Return the counts that are written down for this version of Python."""
    found: dict[str, dict[str, int]] = json.loads(FILE.read_text())
    return found.get(VERSION, {})


def above(counts: dict[str, int], limits: dict[str, int]) -> list[str]:
    """Return the cases that cost more than is let through."""
    return [name for name, count in counts.items() if name in limits and count > LIMIT * limits[name]]


class _Waste:
    """A method that wastes some rounds at each call, so many in all."""

    def __init__(self, where: type, name: str) -> None:
        self.where, self.name, self.method = where, name, getattr(where, name)
        self.calls = self.rounds = self.more = 0

    def counted(self, case: str) -> int:
        """Return what a run of a case costs with it in place."""
        mine, method = self, self.method

        def slower(*arguments: Any) -> Any:
            mine.calls += 1
            for _ in range(mine.rounds + (mine.calls <= mine.more)):
                abs(mine.calls)
            return method(*arguments)

        self.calls = 0
        setattr(self.where, self.name, slower)
        try:
            return cost(CASES[case], lambda: setattr(mine, "calls", 0))
        finally:
            setattr(self.where, self.name, method)


def planted() -> int:
    """Plant a slowdown of a tenth of what a run executes in three places, one after the other; then run unchanged."""
    places: list[tuple[str, type, str]] = [
        ("one replica", Replica, "boundary"), ("64 replicas", GatewayCore, "handle"),
        ("token pools, 20 entitlements", TokenPoolPolicy, "decide"),
    ]  # fmt: skip
    missed = 0
    for case, where, name in places:
        plain, waste = cost(CASES[case]), _Waste(where, name)
        nothing = waste.counted(case)
        calls = waste.calls
        waste.rounds = 1
        per_round = (waste.counted(case) - nothing) / calls
        waste.rounds, waste.more = divmod(round((1.1 * plain - nothing) / per_round), calls)
        counted = waste.counted(case)
        found = above({case: counted}, written())
        missed += not found
        said = f"{counted / plain - 1:+.2%} of what it executes, {'found' if found else 'MISSED'}"
        print(f"{case}: wasted in {where.__name__}.{name}: {said}", flush=True)
    alarms = sum(bool(above({name: cost(each) for name, each in CASES.items()}, written())) for _ in range(UNCHANGED))
    print(f"{UNCHANGED} unchanged runs: {alarms} alarms")
    return int(missed or alarms)


def main() -> int:
    """Count, print, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--planted", action="store_true")
    asked = parser.parse_args()
    if asked.planted:
        return planted()
    counts = {name: cost(description) for name, description in CASES.items()}
    if asked.update:
        known = json.loads(FILE.read_text()) if FILE.exists() else {}
        FILE.write_text(json.dumps(known | {VERSION: counts}, indent=1, sort_keys=True) + "\n")
    limits = written()
    for name, count in counts.items():
        beside = f"{count / limits[name] - 1:+.1%} of {limits[name]:,}" if name in limits else "nothing written down"
        print(f"{name:30} {count:12,}  {beside}")
    over = above(counts, limits)
    if over:
        print(f"error: {', '.join(over)}: more than {LIMIT - 1:.0%} above; make it cheaper, or --update and say why")
    return int(bool(over))


if __name__ == "__main__":
    sys.exit(main())
