"""Runs worlds with faults, seed after seed, and goes on where it was stopped.

    python tests/faults/run.py {pools,live} FIRST LAST [--progress FILE] [--events N]
    python tests/faults/run.py {pools,live} SEED

A seed and the commit are all that is needed to see a failure again: with one seed the failure itself is shown. With
``--progress`` a file keeps how far it came and what failed, so that a long run can be stopped and begun again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

_CHUNK = {"pools": 2000, "live": 10}
_MOST_SHOWN = 20


def worlds() -> dict[str, Callable[[int], int]]:
    """Return what runs one seed, by name; it returns the events that were checked."""
    from faults.live_world import run_live
    from faults.pools import run_pool

    return {"pools": run_pool, "live": run_live}


def commit() -> str:
    """Return the commit that is checked out, with a mark where files differ from it."""
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def begun(progress: Path | None, what: str, first: int, last: int) -> dict[str, Any]:
    """Return how far an earlier run of the same seeds came."""
    fresh = {
        "what": what, "first": first, "last": last, "next": first, "events": 0, "cpu_s": 0.0, "commits": [],
        "failures": {},
    }  # fmt: skip
    if progress is None or not progress.exists():
        return fresh
    found: dict[str, Any] = json.loads(progress.read_text())
    if any(found[name] != fresh[name] for name in ("what", "first", "last")):
        sys.exit(f"error: {progress} is of other seeds; name another file, or remove it")
    return found


def main() -> None:
    """Run them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pools", "live"))
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int, nargs="?", help="the first seed that is not run")
    parser.add_argument("--progress", type=Path)
    asked = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of names are in another order in every process
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})
    run = worlds()[asked.what]
    if asked.last is None:
        print(f"seed {asked.first}: {run(asked.first)} events checked, nothing broken")
        return
    state = begun(asked.progress, asked.what, asked.first, asked.last)
    if commit() not in state["commits"]:
        state["commits"].append(commit())
    while state["next"] < asked.last:
        cpu_s = time.process_time()
        until = min(asked.last, state["next"] + _CHUNK[asked.what])
        for seed in range(state["next"], until):
            try:
                state["events"] += run(seed)
            except Exception as error:
                state["failures"][str(seed)] = f"{type(error).__name__}: {error}"[:300]
        state["next"] = until
        state["cpu_s"] = round(state["cpu_s"] + time.process_time() - cpu_s, 3)
        if asked.progress is not None:
            asked.progress.write_text(json.dumps(state, indent=1))
    done = asked.last - asked.first
    print(f"{asked.what}: {done} seeds from {asked.first}, {state['events']} events checked, {state['cpu_s']:.0f} CPU "
          f"seconds, commit {', '.join(state['commits'])}, {len(state['failures'])} failed")  # fmt: skip
    for seed, why in list(state["failures"].items())[:_MOST_SHOWN]:
        print(f"  seed {seed}: {why}")
    if state["failures"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
