"""Bring the coverage tables of docs/statistics.md up to date.

``python docs/regenerate_statistics.py [coverage] [until]``; about three minutes on one core for both.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sim.analysis.markdown_tables import with_block
from sim.studies.interval_coverage import as_markdown, coverage
from sim.studies.interval_coverage_until import as_markdown as until_as_markdown
from sim.studies.interval_coverage_until import coverage_until

EXPERIMENTS = 500
TABLES = {
    "coverage": lambda: as_markdown(coverage(experiments=EXPERIMENTS)),
    "until": lambda: until_as_markdown(coverage_until(experiments=EXPERIMENTS)),
}


def main() -> None:
    """Measure and write the tables that are named, or all."""
    path = Path(__file__).parent / "statistics.md"
    note = f"{EXPERIMENTS} experiments a row: a share of 95 % has a standard error of one point."
    for name in sys.argv[1:] or TABLES:
        table = TABLES[name]()
        text = with_block(path.read_text(encoding="utf-8"), name, f"\n{table}\n\n{note}")
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
