"""Run what docs/routing.md reports, and bring its table and figure up to date.

From the repository: ``python docs/regenerate_routing.py [FOLDER]``; about two minutes on one core. FOLDER keeps the
runs. The prose is written by hand: read it again when a number has moved.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from regenerate import save, write

from sim.studies.routing import figure, measure, table


def main(folder: Path) -> None:
    """Bring the document up to date."""
    found = measure(folder)
    save(figure(found), "routing.png")
    write("routing.md", {"routers": table(found)})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch) / "routing")
