"""Whether advice holds: its scenario on fresh draws, against the share of draws that it stated.

    python -m sim.studies.advise.recheck FOLDER [--draws 50] [--seed 12345]

FOLDER is what `tokenpools advise --out` wrote. Exit code 1 if fewer draws hold.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sim.experiments.executors import Executor
from sim.scenario.load import load_scenario, parse_scenario, resolved
from sim.studies.advise.trial import Bench


@dataclass(frozen=True, slots=True)
class Rechecked:
    """How many of so many fresh draws held, the share that was stated, and who was worst off."""

    draws: int
    held: int
    stated: float
    worst_tenant: str
    worst_attained: float


def recheck(folder: Path, runs: Path, *, draws: int, seed: int, jobs: int = 1) -> Rechecked:
    """Run the scenario of some advice on draws that nothing was chosen by."""
    said = json.loads((folder / "advice.json").read_text(encoding="utf-8"))
    tree = resolved(load_scenario(folder / "scenario.yaml")) | {"seed": seed, "replications": draws}
    bench = Bench(tree, {}, runs, Executor(jobs=jobs))
    found = bench.run(parse_scenario(tree, "recheck"))
    tenant, attained = found.worst()
    stated = min((check["at_least"] for check in said["best"]["checks"] if check["good"]), default=0.0)
    return Rechecked(found.draws, found.held(said["terms"]["target"]), stated, tenant, attained)


def main() -> None:
    """Say what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--seed", type=int, default=12345)
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as runs:
        found = recheck(asked.folder, Path(runs) / "runs", draws=asked.draws, seed=asked.seed, jobs=asked.jobs)
    sys.stdout.write(
        f"{found.held} of {found.draws} fresh draws hold ({found.held / found.draws:.0%}); stated: at least "
        f"{found.stated:.0%}; {found.worst_tenant} came off worst, with {found.worst_attained:.1%} of its "
        "requests in time on average\n"
    )
    sys.exit(0 if found.held >= found.stated * found.draws else 1)


if __name__ == "__main__":
    main()
