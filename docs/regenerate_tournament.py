"""Run what docs/tournament.md reports, and bring its tables and figures up to date.

From the repository: ``python docs/regenerate_tournament.py [FOLDER] [--replications N] [--tune N]``, and data in
TOKENPOOLS_DATA for the comparison with hardware. FOLDER keeps the runs, so that a second time costs nothing. The prose
is written by hand: read it again when a number has moved.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from regenerate import DOCS, IMAGES, shrink, write

from sim.experiments.executors import Executor
from sim.studies import tournament_tuning as tuning
from sim.studies.hardware_check import check, table, tenant_table
from sim.studies.tournament import CELLS, REPLICATIONS, Tournament, scenarios_of, tournament
from sim.studies.tournament_bounds import Bounds, bounds
from sim.studies.tournament_loads import at_load
from sim.studies.tournament_tables import losses, room

SHOWN = "predictive-pool"
BASELINE = "token-pool"
TRIALS = 8


def room_of(found: Tournament) -> list[Bounds]:
    """Return how full the GPUs were under the policy that is shown, and what room its offered load left."""
    every = []
    for name, scenario in scenarios_of().items():
        for load in found.loads:
            goodput = {
                (one.policy, one.replication): one.goodput
                for one in found.cells if (one.scenario, one.load) == (name, load)
            }  # fmt: skip
            place = found.folder / f"{name}@{load:g}"
            every += bounds(place, name, at_load(scenario, load), load, (SHOWN,), goodput)
    return every


def main(folder: Path, replications: int, trials: int) -> None:
    """Bring the document up to date."""
    executor = Executor(jobs=2)
    found = tournament(folder, executor=executor, replications=replications)
    known = {one.policy: one for one in tuning.read(folder / tuning.RESULT)}
    tuned = tuning.tune(trials, executor=executor, known=known)
    judged = tuning.judged(tuned, replications=1, executor=executor)
    tuning.write(folder, tuned, judged)
    shrink(folder / "mean-ranks.png", IMAGES / "tournament-ranks.png")
    for name in (CELLS, tuning.RESULT, tuning.CELLS):
        (DOCS / name).write_text((folder / name).read_text(encoding="utf-8"), encoding="utf-8")
    hardware = check()
    write(
        "tournament.md",
        {
            "standing": found.standing(),
            "moves": found.moves(),
            "best": found.best(),
            "room": room(room_of(found), found.cells, BASELINE),
            "tuning": tuning.table(tuned, judged),
            "losses": losses(found.cells, BASELINE),
            **{f"grid-{load:g}": found.grid(load) for load in found.loads},
            "hardware": table(hardware),
            "tenants": tenant_table(hardware),
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--replications", type=int, default=REPLICATIONS)
    parser.add_argument("--tune", type=int, default=TRIALS, help="trials for each policy")
    given = parser.parse_args()
    if given.folder is not None:
        main(given.folder, given.replications, given.tune)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch) / "tournament", given.replications, given.tune)
