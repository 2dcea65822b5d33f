"""Whether advice holds: its scenario on fresh draws, against the share of draws that it stated.

    python -m sim.studies.advise.recheck FOLDER... [--draws 50] [--seed 12345]

FOLDER is what `tokenpools advise --out` wrote. Prints a table; exit code 1 if fewer draws hold than was stated, 2 if a
folder holds no advice.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.analysis.markdown_tables import markdown
from sim.errors import InputError, TokenpoolsError
from sim.experiments.executors import Executor
from sim.experiments.plan import FRESH
from sim.scenario.load import load_scenario, parse_scenario, resolved
from sim.studies.advise.demand import at_factor
from sim.studies.advise.model import STRESS, Setting, counted
from sim.studies.advise.trial import Bench

_FIX = "name the folder that `tokenpools advise --out` wrote"


@dataclass(frozen=True, slots=True)
class Rechecked:
    """How many of so many fresh draws held at a factor, the share that was stated, and who was worst off."""

    factor: float
    draws: int
    held: int
    stated: float
    worst_tenant: str
    worst_attained: float

    @property
    def good(self) -> bool:
        """Whether as many held as was stated."""
        return self.held >= self.stated * self.draws


def advice(folder: Path) -> dict[str, Any]:
    """Return what `tokenpools advise` found, with a best among it.

    Raises
    ------
    InputError : the folder holds none.
    """
    place = folder / "advice.json"
    try:
        said = json.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(str(place), f"cannot be read ({error.strerror})", _FIX) from None
    except ValueError as error:
        raise InputError(str(place), f"is no JSON ({error})", _FIX) from None
    if not isinstance(said, dict) or not {"best", "terms"} <= said.keys():
        raise InputError(str(place), "holds no advice", _FIX)
    if not said["best"]:
        raise InputError(str(place), "found nothing that holds", "give advice with a best; advice.md says why")
    return said


def recheck(
    folder: Path, runs: Path, *, draws: int, seed: int, factor: float = 1.0, jobs: int = 1
) -> Rechecked:
    """Run the scenario of some advice on draws that nothing was chosen by, at a factor of its demand.

    Raises
    ------
    InputError : the folder holds no advice.
    """
    said = advice(folder)
    tree = resolved(load_scenario(folder / "scenario.yaml")) | {"seed": seed, "replications": draws}
    bench = Bench(tree, {}, runs, Executor(jobs=jobs))
    found = bench.run(parse_scenario(at_factor(tree, factor), "recheck"))
    tenant, attained = found.worst()
    stated = next(
        (check["at_least"] for check in said["best"]["checks"] if check["factor"] == factor and check["good"]), 0.0
    )
    return Rechecked(factor, found.draws, found.held(said["terms"]["target"]), stated, tenant, attained)


def recheck_both(folder: Path, *, draws: int, seed: int, jobs: int = 1) -> list[Rechecked]:
    """Recheck some advice at the demand as it is and at `STRESS`, each on draws of its own."""
    with tempfile.TemporaryDirectory() as runs:
        return [
            recheck(folder, Path(runs) / str(n), draws=draws, seed=seed + n * FRESH, factor=factor, jobs=jobs)
            for n, factor in enumerate((1.0, STRESS))
        ]


def table(found: Sequence[tuple[str, Path, Sequence[Rechecked]]]) -> str:
    """Return a row for each advice, by name and folder: what it advised, what it stated, what fresh draws held."""
    rows = []
    for name, folder, checks in found:
        said = advice(folder)["best"]
        setting = Setting(**said["setting"])
        row = [name, f"`{said['policy']}`, {counted(setting.replicas, 'replica')}"]
        for one in checks:
            row.append(f"{one.stated:.0%}" if one.stated else "does not hold")
            row.append(f"{one.held} of {one.draws}{'' if one.good else ' **fewer**'}; {one.worst_attained:.1%}")
        rows.append(row)
    heads = ["demand", "advised"]
    for one in found[0][2]:
        heads += [f"stated at {one.factor:g}x", f"held; worst-off tenant in time, {one.factor:g}x"]
    return markdown(heads, rows)


def main() -> None:
    """Say what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--seed", type=int, default=12345)
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    try:
        for folder in asked.folders:
            advice(folder)
        found = [
            (folder.name, folder, recheck_both(folder, draws=asked.draws, seed=asked.seed, jobs=asked.jobs))
            for folder in asked.folders
        ]
    except TokenpoolsError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    sys.stdout.write(table(found) + "\n")
    sys.exit(0 if all(one.good for _, _, checks in found for one in checks) else 1)


if __name__ == "__main__":
    main()
