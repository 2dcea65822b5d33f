"""Run what docs/tournament.md reports, and bring its tables and figures up to date.

From the repository: ``make tournament``, or ``python docs/regenerate_tournament.py [FOLDER] [--replications N]
[--tune N] [--judge N] [--jobs N]``, and data in TOKENPOOLS_DATA for the comparison with hardware. FOLDER keeps what was
run, so that a killed command goes on with the same one. The prose is written by hand: read it again when a number has
moved.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from regenerate import DOCS, IMAGES, shrink, write

from sim.analysis.standings import Cell
from sim.experiments.cells import code_hash
from sim.experiments.executors import Executor
from sim.scenario.load import Scenario
from sim.studies import tournament_tuning as tuning
from sim.studies.hardware_check import check, table, tenant_table
from sim.studies.tournament import CELLS, Tournament, scenarios_of, tournament
from sim.studies.tournament_bounds import Bounds, bounds
from sim.studies.tournament_loads import at_load
from sim.studies.tournament_tables import losses, room
from sim.studies.tournament_verify import published

SHOWN = "predictive-pool"
BASELINE = "token-pool"
REPLICATIONS = 10
TRIALS = 8
JUDGED = 2


@dataclass(frozen=True, slots=True)
class _Place:
    """What one linear program is made of."""

    folder: Path
    name: str
    scenario: Scenario
    load: float
    goodput: Mapping[tuple[str, int], float]


def _bounds(place: _Place) -> list[Bounds]:
    return bounds(place.folder, place.name, place.scenario, place.load, (SHOWN,), place.goodput)


def room_of(found: Tournament, executor: Executor) -> list[Bounds]:
    """Return how full the GPUs were under the policy that is shown, and what room its offered load left."""
    places = []
    for name, scenario in scenarios_of().items():
        for load in found.loads:
            goodput = {
                (one.policy, one.replication): one.goodput
                for one in found.cells if (one.scenario, one.load) == (name, load)
            }  # fmt: skip
            places.append(_Place(found.folder / f"{name}@{load:g}", name, at_load(scenario, load), load, goodput))
    answers = dict(executor.map(_bounds, places))
    return [one for position in range(len(places)) for one in answers[position]]  # type: ignore[union-attr]


def tuned_and_judged(
    found: Tournament, trials: int, judged: int, executor: Executor
) -> tuple[list[tuning.Tuned], list[Cell]]:
    """Tune every policy and judge it, on from what was done by the same code with as many trials."""
    kept = found.folder / f"tuning-{code_hash()}-{trials}"
    kept.mkdir(parents=True, exist_ok=True)
    known = {one.policy: one for one in tuning.read(kept / tuning.RESULT)}

    def keep(one: tuning.Tuned) -> None:
        known[one.policy] = one
        tuning.write_settings(kept, list(known.values()))

    tuned = tuning.tune(trials, executor=executor, known=dict(known), on_found=keep, on_policy=_say)
    before = published(kept / tuning.CELLS) if (kept / tuning.CELLS).exists() else []
    cells = tuning.judged(
        tuned, replications=judged, executor=executor, known=(*found.cells, *before), on_place=_say,
        on_cells=lambda cells: tuning.write_cells(kept, cells),
    )  # fmt: skip
    tuning.write(found.folder, tuned, cells)
    return tuned, cells


_BEGAN_S = time.monotonic()


def _say(what: str) -> None:
    sys.stderr.write(f"{(time.monotonic() - _BEGAN_S) / 60:5.1f} min  {what}\n")


def main(folder: Path, replications: int, trials: int, judged: int, jobs: int) -> None:
    """Bring the document up to date."""
    executor = Executor(jobs=jobs)
    _say(f"{replications} seeds")
    found = tournament(
        folder, executor=executor, replications=replications,
        on_scenario=lambda label, count: _say(label) if count.finished == count.total else None,
    )  # fmt: skip
    _say(f"tuning, {trials} trials each")
    tuned, cells = tuned_and_judged(found, trials, judged, executor)
    _say("room")
    bounded = room_of(found, executor)
    _say("hardware")
    hardware = check()
    shrink(folder / "mean-ranks.png", IMAGES / "tournament-ranks.png")
    for name in (CELLS, tuning.RESULT, tuning.CELLS):
        (DOCS / name).write_text((folder / name).read_text(encoding="utf-8"), encoding="utf-8")
    write(
        "tournament.md",
        {
            "standing": found.standing(),
            "moves": found.moves(),
            "best": found.best(),
            "room": room(bounded, found.cells, BASELINE),
            "tuning": tuning.table(tuned, cells),
            "losses": losses(found.cells, BASELINE),
            **{f"grid-{load:g}": found.grid(load) for load in found.loads},
            "hardware": table(hardware),
            "tenants": tenant_table(hardware),
        },
    )
    _say("done")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--replications", type=int, default=REPLICATIONS)
    parser.add_argument("--tune", type=int, default=TRIALS, help="trials for each policy")
    parser.add_argument("--judge", type=int, default=JUDGED, help="seeds by which what was tuned is judged")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    if given.folder is not None:
        main(given.folder, given.replications, given.tune, given.judge, given.jobs)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch) / "tournament", given.replications, given.tune, given.judge, given.jobs)
