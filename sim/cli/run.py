"""Run a scenario or a tournament, draw a result, reproduce the paper."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sim.cli import tables
from sim.cli.app import (
    EVIDENCE,
    FAILED,
    SCENARIOS,
    Jobs,
    Overrides,
    Overwrite,
    Policies,
    Progress,
    Replications,
    ResultFolder,
    RunOut,
    ScenarioRef,
    Seed,
    Wide,
    command,
    load,
)
from sim.errors import InputError

if TYPE_CHECKING:
    from sim.experiments.run import ScenarioResult
    from sim.records.result_folder import Result

TOURNAMENT = "tournament"
FigureWidth = Literal["screen", "column", "page"]


@command(panel=SCENARIOS)
def run(
    scenario: ScenarioRef,
    overrides: Overrides = None,
    seed: Seed = None,
    replications: Replications = None,
    out: RunOut = None,
    policies: Policies = None,
    jobs: Jobs = 1,
    progress: Progress = None,
    overwrite: Overwrite = False,
    wide: Wide = False,
    check_invariants: Annotated[
        bool, typer.Option("--check-invariants", help="Check the gateway's books at every event; exit 1 if broken.")
    ] = False,
) -> None:
    """Run SCENARIO (a path, or the name of a shipped one) and write its records.

    The summary goes to stdout. `tokenpools plot RESULT` draws the result.
    """
    from sim.analysis.warm_up import in_words
    from sim.cli.progress import shown
    from sim.experiments.run import run_scenario
    from sim.experiments.select import default_folder, with_policies
    from sim.records.result_folder import read_result, replacing

    gc.freeze()
    gc.enable()
    if scenario == TOURNAMENT:
        _tournament(overrides, seed, replications, out, policies, jobs, progress)
        return
    loaded = with_policies(load(scenario, overrides, seed, replications), policies or ())
    folder = out if out is not None else default_folder(scenario, loaded)
    if out is None and not overwrite and (folder / "manifest.json").exists():
        kept = read_result(folder)
        tables.show_summary(kept.summary, wide=wide)
        _warn_of_unfinished(kept)
        typer.echo(f"{folder} holds this very run already; --overwrite runs it again", err=True)
        return
    with replacing(folder, overwrite) as place, shown(loaded, progress) as on_progress:
        result = run_scenario(
            loaded, place, jobs=jobs, on_progress=on_progress, check_invariants=check_invariants
        )
    tables.show_summary(result.summary, wide=wide)
    if "warm_up" in result.manifest:
        typer.echo(f"left out as warm-up: {in_words(result.manifest)}", err=True)
    for name, found in result.manifest["cells"][0].get("recorded", {}).items():
        typer.echo(
            f"workload {name}: {found['failed']:,} requests that failed in its trace are left out, "
            f"{found['raised']:,} counts of 0 tokens count as 1" + unanswered(found.get("unanswered", 0)), err=True,
        )  # fmt: skip
    for caveat in result.manifest.get("caveats", ()):
        typer.echo(f"warning: {caveat}", err=True)
    _warn_of_unfinished(result)
    for warning in _own_limit(result):
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"wrote {folder}; draw it with: tokenpools plot {folder}", err=True)


def _warn_of_unfinished(result: ScenarioResult | Result) -> None:
    """Say of which policies the P99 leaves out requests that still waited, and how much it is at least."""
    if any(float(row["unfinished"]) > 0 for row in result.summary):
        from sim.analysis.censored import censored_cases

        for one in censored_cases(result.requests, result.manifest, result.summary):
            typer.echo(f"warning: {one}", err=True)


def unanswered(count: int) -> str:
    """Return what is said of requests whose lengths were filled in."""
    return f", {count:,} that nobody answered have lengths of others of their tenant" if count else ""


def _own_limit(result: ScenarioResult) -> list[str]:
    """Return what guaranteed entitlements lost to their own limits, looked for where the summary shows refusals."""
    pool = result.manifest["scenario"]["pool"]
    names = {one["tenant"] or one["name"] for one in pool["entitlements"] if one["service_class"] == "guaranteed"}
    rows = [row for row in result.summary if row["tenant"] in names]
    if not any(float(row["refused"]) > 0.01 * float(row["offered"]) for row in rows):
        return []
    from sim.analysis.own_limit import worst_losses

    return [str(loss) for loss in worst_losses(result.requests, result.timeline, pool)]


@command(panel=EVIDENCE)
def tournament(
    out: Annotated[Path | None, typer.Option("--out", help="Result folder; without it results/tournament.")] = None,
    policies: Policies = None,
    replications: Replications = None,
    loads: Annotated[
        list[float] | None, typer.Option("--load", help="Times each scenario's demand; without it 0.8, 1.0 and 1.3.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option("--verify", help="Run the cells of a published tournament-cells.csv again.")
    ] = None,
    count: Annotated[
        int | None, typer.Option("--cells", min=1, help="How many of its cells, drawn by a fixed seed; without it all.")
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option("--tune", min=2, help="Tune each policy by so many trials on some scenarios; judge it on others."),
    ] = None,
    jobs: Jobs = 1,
    progress: Progress = None,
) -> None:
    """Run every policy over every scenario that tells them apart, on common random numbers, and rank them.

    A killed tournament goes on with the same command. `tokenpools run tournament` does the same.
    """
    gc.freeze()
    gc.enable()
    if trials is not None:
        if check is not None or loads:
            raise InputError("--tune", "given beside --verify or --load", "leave those out: it has loads of its own")
        _tune(trials, out, policies, replications, jobs, progress)
    elif check is not None:
        _verify_tournament(check, count, jobs, progress)
    elif count is not None:
        raise InputError("--cells", "given without --verify", "give the file to verify, or leave it out")
    else:
        _tournament(None, None, replications, out, policies, jobs, progress, loads)


def _tune(
    trials: int, out: Path | None, policies: list[str] | None, replications: int | None, jobs: int,
    progress: bool | None,
) -> None:  # fmt: skip
    from sim.experiments.executors import Executor
    from sim.studies import tournament_tuning as tuning
    from sim.studies.tournament_policies import check_names

    check_names(policies or ())
    shown = sys.stderr.isatty() if progress is None else progress
    folder = out if out is not None else Path("results/tournament")
    folder.mkdir(parents=True, exist_ok=True)
    kept = {one.policy: one for one in tuning.read(folder / tuning.RESULT) if one.trials in (1, trials)}

    def hear(what: str) -> None:
        if shown:
            typer.echo(what, err=True)

    def keep(one: tuning.Tuned) -> None:
        kept[one.policy] = one
        tuning.write_settings(folder, list(kept.values()))

    executor = Executor(jobs=jobs)
    tuned = tuning.tune(
        trials, policies=tuple(policies or ()), executor=executor, on_policy=hear, known=dict(kept), on_found=keep
    )
    cells = tuning.judged(tuned, replications=replications or 3, executor=executor, on_place=hear)
    tuning.write(folder, tuned, cells)
    tables.show_markdown(tuning.table(tuned, cells))
    typer.echo(f"wrote {folder}: {tuning.RESULT}, {tuning.CELLS} and tournament-tuning.md", err=True)


def _verify_tournament(file: Path, count: int | None, jobs: int, progress: bool | None) -> None:
    from sim.experiments.executors import Executor
    from sim.studies.tournament_verify import chosen, published, verify

    every = published(file)
    cells = chosen(every, count)
    shown = sys.stderr.isatty() if progress is None else progress

    def hear(done: int, total: int) -> None:
        if shown and done % 10 == 0:
            typer.echo(f"{done} of {total} cells", err=True)

    found = verify(cells, executor=Executor(jobs=jobs), on_cell=hear)
    for one in found:
        cell, again = one.published, one.again
        typer.echo(
            f"{cell.scenario} at {cell.load:g}, {cell.policy}, replication {cell.replication}: attainment "
            f"{cell.attainment!r} is {again.attainment!r}, goodput {cell.goodput!r} is {again.goodput!r}, violation "
            f"{cell.violation!r} is {again.violation!r}"
        )
    typer.echo(f"{len(cells) - len(found)} of {len(cells)} cells are the same to the bit ({len(every)} published)")
    if found:
        raise typer.Exit(1)


def _tournament(
    overrides: list[str] | None, seed: int | None, replications: int | None, out: Path | None,
    policies: list[str] | None, jobs: int, progress: bool | None, loads: list[float] | None = None,
) -> None:  # fmt: skip
    from sim.experiments.executors import Executor
    from sim.experiments.sweep import Count
    from sim.studies.tournament import REPLICATIONS
    from sim.studies.tournament import tournament as run_tournament
    from sim.studies.tournament_policies import check_names

    if overrides or seed is not None:
        raise InputError(TOURNAMENT, "takes no --set and no --seed", "run one of its scenarios by name instead")
    check_names(policies or ())
    shown = sys.stderr.isatty() if progress is None else progress

    def hear(name: str, count: Count) -> None:
        if shown and (count.finished + count.failed) % 10 == 0:
            typer.echo(f"{name}: {count.finished + count.failed} of {count.total} runs", err=True)

    folder = out if out is not None else Path("results/tournament")
    found = run_tournament(
        folder, policies=tuple(policies or ()), loads=_loads(loads), replications=replications or REPLICATIONS,
        executor=Executor(jobs=jobs), on_scenario=hear,
    )  # fmt: skip
    tables.show_markdown(found.standing() + "\n\n" + found.best())
    typer.echo(
        f"wrote {folder}: tournament.md, tournament.csv, tournament-cells.csv, heat-map.png, mean-ranks.png and a "
        "sweep for each scenario and load", err=True,
    )  # fmt: skip


def _loads(given: list[float] | None) -> tuple[float, ...]:
    """Return the loads that were asked for.

    Raises
    ------
    InputError : one is not above 0.
    """
    from sim.studies.tournament_loads import LOADS

    for each in given or ():
        if not each > 0:
            raise InputError(f"--load {each:g}", "not above 0", "give times the scenario's demand, e.g. 1.3")
    return tuple(dict.fromkeys(given)) if given else LOADS


@command(panel=SCENARIOS)
def plot(
    result: ResultFolder,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the figures; without it RESULT/plots.")] = None,
    width: Annotated[
        FigureWidth, typer.Option("--width", help="column or page: as wide as a paper's column or page, with PDFs.")
    ] = "screen",
) -> None:
    """Draw the figures of RESULT as PNG and SVG, and print their paths."""
    from sim.analysis.plots import plot_result
    from sim.analysis.style import drawn_for
    from sim.records.result_folder import read_result

    folder = out if out is not None else result / "plots"
    loaded = read_result(result)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            str(folder), f"cannot be written ({error.strerror})", "name another folder with --out"
        ) from None
    with drawn_for(width):
        for path in plot_result(loaded, folder):
            typer.echo(path)


@command(panel=EVIDENCE)
def reproduce(
    out: Annotated[Path, typer.Option("--out", help="Folder for results, table and figures.")] = Path(
        "results/reproduction"
    ),
    jobs: Jobs = 1,
    progress: Progress = None,
    overwrite: Overwrite = False,
) -> None:
    """Run the paper's experiments and compare them with its figures; exit code 1 if a row is out of its range."""
    from sim.cli.progress import total_of
    from sim.records.result_folder import replacing
    from sim.studies.paper_reproduction import EXPERIMENTS, shipped
    from sim.studies.paper_reproduction import reproduce as run_reproduction

    with replacing(out, overwrite) as place, total_of([shipped(name) for name in EXPERIMENTS], progress) as hear:
        reproduction = run_reproduction(place, jobs=jobs, on_progress=hear)
    tables.show_markdown(reproduction.table)
    typer.echo(f"wrote {out}", err=True)
    if not reproduction.passed:
        sys.exit(FAILED)
