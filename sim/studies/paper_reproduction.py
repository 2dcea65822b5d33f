"""The experiments of arXiv 2603.00356 against its figures: run both, judge them, draw what the paper draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sim.analysis import style
from sim.errors import RunError
from sim.experiments.run import ScenarioResult, run_scenario
from sim.records.result_folder import check_output_folder
from sim.records.whole_files import whole_folder
from sim.scenario.load import Scenario, load_scenario
from sim.studies import paper_acceptance as acceptance
from sim.studies import paper_measures as measures

OnProgress = Callable[[float, int], None]
EXPERIMENTS = ("paper-exp1", "paper-exp2")


@dataclass(frozen=True, slots=True)
class Reproduction:
    """The acceptance table, and whether no row of it failed."""

    table: str
    passed: bool


def reproduce(
    out: Path, jobs: int = 1, *, replications: int | None = None, on_progress: OnProgress | None = None
) -> Reproduction:
    """Run both experiments as shipped, and write results, table and figures to ``out``, whole or not at all.

    ``out`` then holds ``paper-exp1`` and ``paper-exp2`` (result folders), ``acceptance.md``, ``acceptance.csv`` and
    ``figures``.

    Parameters
    ----------
    replications : fewer or more than the scenarios say, for a quick look.
    on_progress : hears simulated seconds and requests as they are done.

    Raises
    ------
    InputError : ``out`` is in use or cannot be written.
    RunError : writing broke off.
    """
    check_output_folder(out)
    scenarios = [shipped(name, replications) for name in EXPERIMENTS]
    with _result_folder(out) as partial:
        first, second = (
            run_scenario(scenario, partial / name, jobs=jobs, on_progress=on_progress)
            for name, scenario in zip(EXPERIMENTS, scenarios, strict=True)
        )
        rows = judged(first, second, scenarios)
        table = acceptance.as_table(rows)
        (partial / "acceptance.md").write_text(table + "\n", encoding="utf-8")
        (partial / "acceptance.csv").write_text(acceptance.as_records(rows), encoding="utf-8")
        draw(first, second, scenarios, partial / "figures")
    return Reproduction(table, all(row.verdict != acceptance.FAIL for row in rows))


def shipped(name: str, replications: int | None = None, *overrides: str) -> Scenario:
    """Return a shipped scenario with some of it overridden."""
    extra = [] if replications is None else [f"replications={replications}"]
    return load_scenario(name, overrides=[*extra, *overrides])


def judged(first: ScenarioResult, second: ScenarioResult, scenarios: Sequence[Scenario]) -> list[acceptance.Row]:
    """Return the acceptance table's rows for results of the two experiments."""
    scenario1, scenario2 = scenarios
    one = measures.each_replication(first.requests, first.timeline, measures.experiment1(scenario1))
    two = measures.each_replication(second.requests, second.timeline, measures.experiment2(scenario2))
    return acceptance.rows(one, two, scenario2)


def draw(first: ScenarioResult, second: ScenarioResult, scenarios: Sequence[Scenario], folder: Path) -> list[Path]:
    """Write the paper's figures: three of experiment 1, the six panels of experiment 2."""
    from sim.analysis import paper_plots

    phases1, phases2 = ([(p.from_s, p.until_s, p.label) for p in scenario.phases] for scenario in scenarios)
    figures = paper_plots.experiment1(first.requests, first.timeline, phases=phases1)
    figures["exp2"] = paper_plots.experiment2(second.requests, second.timeline, phases=phases2)
    return [path for name, figure in figures.items() for path in style.save(figure, folder, name)]


@contextmanager
def _result_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder that takes the place of ``folder`` at the end."""
    try:
        with whole_folder(folder) as partial:
            yield partial
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror or error})") from error
