"""Run what docs/token-pools.md reports, and bring its tables and pictures up to date.

From the repository: ``python docs/regenerate_token_pools.py``; about six minutes on one core. The prose is written by
hand: read it again when a number has moved.
"""

from __future__ import annotations

from regenerate import IMAGES, save, write

from sim.studies import token_pools as study
from sim.studies import token_pools_closing as closing
from sim.studies import token_pools_figures as figures
from sim.studies import token_pools_robust as robust


def main() -> None:
    """Bring the document up to date."""
    IMAGES.mkdir(exist_ok=True)
    bursts = {name: study.play(name, "timeline_interval_s=null") for name in study.BURSTS}
    save(figures.bursts_figure(bursts), "token-pools-bursts.png")
    day = study.play("day-with-a-peak")
    save(figures.day_figure(day), "token-pools-day.png")
    classes = study.play("five-classes")
    save(figures.classes_figure(classes), "token-pools-classes.png")
    failures = {
        (on_failure, notice_s): study.play(
            "half-the-pool-lost", f"pool.on_failure={on_failure}", f"pool.notice_s={notice_s}"
        )
        for on_failure in ("fail", "retry")
        for notice_s in (0.05, 1.0, 5.0)
    }
    save(figures.failures_figure(failures["fail", 0.05]), "token-pools-failures.png")
    gateways = study.gateways()
    save(figures.gateways_figure(gateways), "token-pools-gateways.png")
    save(figures.convergence_figure(), "token-pools-convergence.png")
    write("token-pools.md", {
        "closing": closing.closing(
            bursts, classes, day, failures["fail", 0.05], gateways, closing.unfairness()
        ),
        "fields": robust.by_field(),
        "bursts": study.bursts(bursts),
        "tighter": study.tighter(),
        "day": study.day(day),
        "surge": study.surge(),
        "classes": study.classes(classes),
        "failures": study.failures(failures),
        "gateways": study.gateways_table(gateways),
        "convergence": study.convergence_table(study.convergence()),
        "equalised": robust.equalised(),
    })  # fmt: skip


if __name__ == "__main__":
    main()
