"""Bring the coverage table of docs/statistics.md up to date.

``python docs/regenerate_statistics.py``; about two minutes on one core.
"""

from __future__ import annotations

from pathlib import Path

from sim.experiments.coverage import as_markdown, coverage
from sim.experiments.tables import with_block

EXPERIMENTS = 500


def main() -> None:
    """Measure and write."""
    path = Path(__file__).parent / "statistics.md"
    rows = coverage(experiments=EXPERIMENTS)
    note = f"\n\n{EXPERIMENTS} experiments a row: a share of 95 % has a standard error of one point."
    path.write_text(
        with_block(path.read_text(encoding="utf-8"), "coverage", as_markdown(rows) + note), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
