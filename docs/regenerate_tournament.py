"""Run what docs/tournament.md reports, and bring its tables and figures up to date.

From the repository: ``python docs/regenerate_tournament.py [FOLDER] [--replications N]``, and data in TOKENPOOLS_DATA
for the comparison with hardware. FOLDER keeps the runs, so that a second time costs nothing. The prose is written by
hand: read it again when a number has moved.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from regenerate import DOCS, IMAGES, shrink, write

from sim.experiments.executors import Executor
from sim.studies.hardware_check import check, table, tenant_table
from sim.studies.tournament import CELLS, REPLICATIONS, tournament


def main(folder: Path, replications: int) -> None:
    """Bring the document up to date."""
    found = tournament(folder, executor=Executor(jobs=2), replications=replications)
    shrink(folder / "mean-ranks.png", IMAGES / "tournament-ranks.png")
    (DOCS / CELLS).write_text((folder / CELLS).read_text(encoding="utf-8"), encoding="utf-8")
    hardware = check()
    write(
        "tournament.md",
        {
            "standing": found.standing(),
            "moves": found.moves(),
            "best": found.best(),
            **{f"grid-{load:g}": found.grid(load) for load in found.loads},
            "hardware": table(hardware),
            "tenants": tenant_table(hardware),
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--replications", type=int, default=REPLICATIONS)
    given = parser.parse_args()
    if given.folder is not None:
        main(given.folder, given.replications)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch) / "tournament", given.replications)
