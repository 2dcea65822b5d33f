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
from dataclasses import fields
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

from sim.analysis.study import Study
from sim.errors import InputError
from sim.scenario.load import Scenario, load_scenario, parse_scenario, resolved

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sim.analysis.compare import Comparison
    from sim.experiments.sweep import OnCell

__all__ = ["Findings", "Results", "compare", "load_scenario", "register", "run", "sweep", "with_kinds"]

_SHOWN = ("offered", "refused", "slo_attainment", "ttft_p50_s", "ttft_p99_s", "e2e_p99_s", "output_tokens_per_s")

Kind = Any
"""A class or object of a policy, arrival law, client or router."""

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
        from sim.analysis.plots import drawers_of
        from sim.records.result_folder import read_result

        phases = [(p["from_s"], p["until_s"], p["label"]) for p in self.scenario.get("phases", ())]
        return dict(drawers_of(read_result(self.folder), phases=phases))


def register(*classes: type, name: str | None = None) -> None:
    """Give policies, arrival laws, clients or routers of your own a name for scenarios, in this process.

    Parameters
    ----------
    classes : frozen dataclasses whose first field is ``kind``; docs/extending.md shows one of each.
    name : what scenarios call a single one; left out, its own ``kind``.

    Raises
    ------
    TokenpoolsError : one of them lacks something, or its name is taken.
    """
    from sim.scenario import plugins

    if name is not None and len(classes) != 1:
        raise InputError("register", f"one name for {len(classes)} classes", "give each a call of its own")
    for one in classes:
        if not isinstance(one, type):
            raise InputError(f"register: {one!r}", "is no class", "give the class, not an object of it")
        plugins.register(plugins.group_of(one), one, kind=name)


def with_kinds(
    scenario: AnyScenario, *, policies: Sequence[Kind] | None = None, router: Kind | None = None
) -> Scenario:
    """Return a scenario with policies, or a router, given as names, mappings, classes or objects.

    Raises
    ------
    TokenpoolsError : one of them is none, or does not fit the scenario.
    """
    if policies is None and router is None:
        return _loaded(scenario)
    tree = resolved(_loaded(scenario))
    if policies is not None:
        tree["policies"] = [_described("policies", one) for one in policies]
    if router is not None:
        tree["pool"] = tree["pool"] | {"router": _described("routers", router)}
    return parse_scenario(tree, "scenario")


def _described(group: str, given: Kind) -> Any:
    """Return what a scenario file would say."""
    from sim.scenario import plugins

    if isinstance(given, str | dict):
        return given
    if isinstance(given, type):
        try:
            given = given()
        except TypeError as error:
            problem = f"cannot be made without arguments ({error})"
            raise InputError(f"{given.__module__}:{given.__qualname__}", problem, "give an object of it") from None
    found: Any = plugins.named_object(group, given)
    return {field.name: to_jsonable_python(getattr(found, field.name)) for field in fields(found)}


def run(
    scenario: AnyScenario, out: Path | str | None = None, *, jobs: int = 1, policies: Sequence[Kind] | None = None,
    router: Kind | None = None,
) -> Results:
    """Run a scenario and return its results; without ``out`` they live as long as the object does.

    Parameters
    ----------
    scenario : what `load_scenario` returned, a path, the name of a shipped one, or the mapping that a file would hold.
    policies, router : in the place of the scenario's: names, mappings, or classes and objects of your own.

    Raises
    ------
    TokenpoolsError : the scenario is not one, or ``out`` cannot be written.
    """
    from sim.experiments.run import run_scenario

    loaded, folder, ours = with_kinds(scenario, policies=policies, router=router), *_folder(out)
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
    policies: Sequence[Kind] | None = None,
    router: Kind | None = None,
) -> Results:
    """Run every cell that ``out`` does not hold yet and return the results.

    Parameters
    ----------
    executor : "loky", "dask" or "ray".
    address : of a running Dask scheduler or Ray cluster.
    until : targets such as "ttft_p99_s:5%"; replications are added until each is met, or ``max_replications`` are done.
    on_cell : hears how far it is.
    policies, router : as for `run`.

    Raises
    ------
    TokenpoolsError : the scenario is not one, ``out`` cannot be written, or there is no such executor.
    """
    from sim.experiments.executors import Executor
    from sim.experiments.sweep import sweep as run_sweep
    from sim.experiments.until import parse_target, sweep_until

    loaded, folder, ours = with_kinds(scenario, policies=policies, router=router), *_folder(out)
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
    if not isinstance(scenario, dict):
        return load_scenario(scenario)
    workload = scenario.get("workload")
    if isinstance(workload, list):
        scenario = scenario | {"workload": [_with_laws(one) for one in workload]}
    return parse_scenario(scenario, "scenario")


def _with_laws(workload: Any) -> Any:
    """Return a workload of a mapping with the arrival law and the client that it holds as objects described."""
    if not isinstance(workload, dict):
        return workload
    groups = {"arrivals": "arrivals", "client": "clients"}
    return {key: _described(groups[key], one) if key in groups else one for key, one in workload.items()}


def _folder(out: Path | str | None) -> tuple[Path, bool]:
    return (Path(out), False) if out is not None else (Path(tempfile.mkdtemp(prefix="tokenpools-")) / "result", True)


def _results(folder: Path, ours: bool) -> Results:
    results = Results(folder)
    if ours:
        weakref.finalize(results, rmtree, folder.parent, ignore_errors=True)
    return results
