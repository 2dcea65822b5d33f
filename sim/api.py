"""The library behind the commands; `tokenpools` has its names.

from tokenpools import load_scenario, sweep

results = sweep(load_scenario("paper-exp1", overrides=["replications=5"]), "results/mine", jobs=2)
results.differences(["ttft_p99_s", "slo_attainment"])
"""

from __future__ import annotations

import html
import tempfile
import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

from sim.analysis.study import Study
from sim.scenario.load import Scenario, load_scenario, parse_scenario

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sim.analysis.compare import Comparison
    from sim.experiments.sweep import OnCell

__all__ = ["Findings", "Results", "compare", "load_scenario", "run", "sweep"]

_SHOWN = ("offered", "refused", "slo_attainment", "ttft_p50_s", "ttft_p99_s", "e2e_p99_s", "output_tokens_per_s")

AnyScenario = Scenario | str | Path | dict[str, Any]


class Findings(list[str]):
    """Sentences; Jupyter shows them as a list."""

    def _repr_html_(self) -> str:
        return f"<ul>{''.join(f'<li>{html.escape(text)}</li>' for text in self)}</ul>"


class Results(Study):
    """A result folder as tidy tables and figures; it shows itself in Jupyter.

    What `Study` has (``summary``, ``replications``, ``differences``, ``interval``, ``requests()``, ``timeline()``), and
    figures, sentences and the report.
    """

    @property
    def findings(self) -> Findings:
        """What the result says, in sentences with intervals."""
        from sim.analysis.findings import findings

        return Findings(findings(self))

    @property
    def cautions(self) -> Findings:
        """What to know before believing it."""
        from sim.analysis.cautions import cautions

        return Findings(cautions(self))

    @property
    def figures(self) -> list[str]:
        """The names that `figure` takes."""
        return list(self._drawers())

    def figure(self, name: str) -> Figure:
        """Return one of the figures that `tokenpools plot` writes.

        Raises
        ------
        ValueError : the result has no data for a figure of that name.
        """
        drawers = self._drawers()
        if name not in drawers:
            raise ValueError(f"no figure {name!r}; give one of: {', '.join(drawers)}")
        figure: Figure = drawers[name]()
        return figure

    def report(self, path: Path | str | None = None) -> Path:
        """Write the HTML report, to ``report.html`` in the result's folder if no path is given."""
        from sim.analysis.report import write_report

        return write_report(self, Path(path) if path is not None else self.folder / "report.html")

    def __repr__(self) -> str:
        runs = len(self.manifest["cells"])
        title = self.scenario.get("title") or self.folder.name
        return f"<Results of {title!r}: {runs} runs, {len(self.errors)} failed, in {self.folder}>"

    def _repr_html_(self) -> str:
        head = f"<p><b>{html.escape(str(self.scenario.get('title') or self.folder.name))}</b></p>"
        said = Findings(self.findings[:6])._repr_html_()
        if not len(self.summary):
            return head + said
        columns = ["policy", *self.varied, "tenant", *_SHOWN]
        table = self.summary[columns].head(30).to_html(index=False, float_format="{:.4g}".format, border=0)
        return head + said + table

    def _drawers(self) -> dict[str, Any]:
        from sim.analysis import plots_over_time, plots_summary
        from sim.records.result_folder import read_records

        tables = {name: partial(read_records, self.folder, self.manifest, name) for name in ("requests", "timeline")}
        phases = [(p["from_s"], p["until_s"], p["label"]) for p in self.scenario.get("phases", ())]
        rows: list[Any] = self.summary.to_dict("records")
        return {
            "latency-over-time": lambda: plots_over_time.latency_over_time(tables["requests"](), phases=phases),
            "queue-over-time": lambda: plots_over_time.queue_over_time(tables["timeline"](), phases=phases),
            "capacity-share": lambda: plots_over_time.capacity_share(tables["timeline"](), phases=phases),
            "tail-latency": lambda: plots_summary.tail_latency(rows),
            "refusals": lambda: plots_summary.refusals(rows),
        }


def run(scenario: AnyScenario, out: Path | str | None = None, *, jobs: int = 1) -> Results:
    """Run a scenario and return its results; without ``out`` they live as long as the object does.

    Parameters
    ----------
    scenario : what `load_scenario` returned, a path, the name of a shipped one, or the mapping that a file would hold.

    Raises
    ------
    TokenpoolsError : the scenario is not one, or ``out`` cannot be written.
    """
    from sim.experiments.run import run_scenario

    loaded, folder, ours = _loaded(scenario), *_folder(out)
    run_scenario(loaded, folder, jobs=jobs)
    return _results(folder, ours)


def sweep(
    scenario: AnyScenario,
    out: Path | str | None = None,
    *,
    jobs: int = 1,
    executor: str = "loky",
    address: str | None = None,
    until: Sequence[str] = (),
    max_replications: int = 200,
    on_cell: OnCell | None = None,
) -> Results:
    """Run every cell that ``out`` does not hold yet and return the results.

    Parameters
    ----------
    executor : "loky", "dask" or "ray".
    address : of a running Dask scheduler or Ray cluster.
    until : targets such as "ttft_p99_s:5%"; replications are added until each is met, or ``max_replications`` are done.
    on_cell : hears how far it is.

    Raises
    ------
    TokenpoolsError : the scenario is not one, ``out`` cannot be written, or there is no such executor.
    """
    from sim.experiments.executors import Executor
    from sim.experiments.sweep import sweep as run_sweep
    from sim.experiments.until import parse_target, sweep_until

    loaded, folder, ours = _loaded(scenario), *_folder(out)
    where = Executor(kind=executor, jobs=jobs, address=address)
    if until:
        targets = [parse_target(text) for text in until]
        sweep_until(loaded, folder, targets, most=max_replications, executor=where, on_cell=on_cell)
    else:
        run_sweep(loaded, folder, executor=where, on_cell=on_cell)
    return _results(folder, ours)


def compare(before: Study | Path | str, after: Study | Path | str, metrics: Sequence[str] | None = None) -> Comparison:
    """Return what two results differ in: results, or the folders that hold them.

    Parameters
    ----------
    metrics : columns of ``summary.csv``; left out, those that ``tokenpools compare`` shows.

    Raises
    ------
    TokenpoolsError : one of them is no result.
    """
    from sim.analysis.compare import COMPARED
    from sim.analysis.compare import compare as compared

    studies = [one if isinstance(one, Study) else Results(Path(one)) for one in (before, after)]
    return compared(studies[0], studies[1], COMPARED if metrics is None else metrics)


def _loaded(scenario: AnyScenario) -> Scenario:
    if isinstance(scenario, Scenario):
        return scenario
    return parse_scenario(scenario, "scenario") if isinstance(scenario, dict) else load_scenario(scenario)


def _folder(out: Path | str | None) -> tuple[Path, bool]:
    return (Path(out), False) if out is not None else (Path(tempfile.mkdtemp(prefix="tokenpools-")) / "result", True)


def _results(folder: Path, ours: bool) -> Results:
    results = Results(folder)
    if ours:
        weakref.finalize(results, rmtree, folder.parent, ignore_errors=True)
    return results
