"""Run what docs/which-policy.md reports of predictive pools, and bring its tables and figure up to date.

From the repository: ``python docs/regenerate_which_policy.py``; about a minute on one core. The Azure trace's table
stays as it is where TOKENPOOLS_DATA does not say where the trace lies.
"""

from __future__ import annotations

from regenerate import save, write

from sim.studies.predictive_pool import ablation, experiments, experiments_figure, experiments_table, two_services
from sim.traces.sources import data_folder


def main() -> None:
    """Bring the document up to date."""
    found = experiments()
    save(experiments_figure(found), "predictive-pool-experiments.png")
    blocks = {"experiments": experiments_table(found), "ablation": ablation()}
    if data_folder() is not None:
        blocks["services"] = two_services()
    write("which-policy.md", blocks)


if __name__ == "__main__":
    main()
