"""Run what docs/which-policy.md reports of predictive pools, and bring its tables and figure up to date.

From the repository: ``python docs/regenerate_which_policy.py``; about a minute on one core.
"""

from __future__ import annotations

from regenerate import save, write

from sim.studies.predictive_pool import ablation, experiments, experiments_figure, experiments_table


def main() -> None:
    """Bring the document up to date."""
    found = experiments()
    save(experiments_figure(found), "predictive-pool-experiments.png")
    write("which-policy.md", {"experiments": experiments_table(found), "ablation": ablation()})


if __name__ == "__main__":
    main()
