"""Run what docs/tournament.md reports, and bring its tables and its heat map up to date.

From the repository: ``python docs/regenerate_tournament.py [FOLDER]``; a few minutes on two cores, and the data in
TOKENPOOLS_DATA for the comparison with hardware. FOLDER keeps the runs, so that a second time costs nothing. The prose
is written by hand: read it again when a number has moved.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from regenerate import IMAGES, shrink, write

from sim.experiments.executors import Executor
from sim.studies.hardware_check import check, table, tenant_table
from sim.studies.tournament import tournament


def main(folder: Path) -> None:
    """Bring the document up to date."""
    found = tournament(folder, executor=Executor(jobs=2))
    shrink(folder / "heat-map.png", IMAGES / "tournament.png")
    hardware = check()
    write(
        "tournament.md",
        {
            "standing": found.standing(),
            "grid": found.grid(),
            "table": found.table(),
            "hardware": table(hardware),
            "tenants": tenant_table(hardware),
        },
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch) / "tournament")
