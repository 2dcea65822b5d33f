"""Commands for evidence: sweeps, comparisons, reports, plans. As in `sim.cli.app`, bodies load, call and print."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sim.cli.app import FAILED, INTERRUPTED, app, load, scenario_options

if TYPE_CHECKING:
    from sim.experiments.executors import Executor
    from sim.experiments.plan import Answer, Trial
    from sim.experiments.sweep import Count, Estimate, SweepResult


_MOST_VARIANTS = 50  # lines of a dry run


def _executor_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Worker processes."),
        click.option(
            "--executor", "kind", type=click.Choice(["loky", "dask", "ray"]), default="loky", show_default=True,
            help="What spreads the cells; dask and ray are extras.",
        ),
        click.option(
            "--address", "--scheduler", "address", metavar="ADDRESS", help="A running Dask scheduler or Ray cluster."
        ),
    ):  # fmt: skip
        command = option(command)
    return command


@app.command()
@scenario_options
@_executor_options
@click.option("--out", type=click.Path(path_type=Path), help="Result folder; without it results/<scenario>-<hash>.")
@click.option("--policy", "policies", multiple=True, metavar="NAME", help="Run these policies only.")
@click.option("--until", multiple=True, metavar="METRIC:WIDTH", help='Add replications, e.g. "ttft_p99_s:5%".')
@click.option("--max-replications", type=click.IntRange(min=2), default=200, show_default=True, help="With --until.")
@click.option("--dry-run", is_flag=True, help="Say what would run and what it would cost.")
@click.option("--progress/--no-progress", default=None, help="Progress on stderr; without it, if that is a terminal.")
def sweep(
    scenario: str,
    overrides: tuple[str, ...],
    seed: int | None,
    replications: int | None,
    jobs: int,
    kind: str,
    address: str | None,
    out: Path | None,
    policies: tuple[str, ...],
    until: tuple[str, ...],
    max_replications: int,
    dry_run: bool,
    progress: bool | None,
) -> None:
    """Run every cell of SCENARIO that the result folder does not hold yet.

    A cell is one policy, one replication and one combination of what the scenario varies. Each is kept when it is
    finished: after a kill the same command goes on. Prints the summary, means over replications. Exit code 1 if a
    cell failed or --until was not reached.
    """
    from sim.analysis.summary import format_table
    from sim.experiments.executors import Executor
    from sim.experiments.select import default_folder, with_policies
    from sim.experiments.sweep import estimate
    from sim.experiments.sweep import sweep as run_sweep
    from sim.experiments.until import parse_target, sweep_until

    targets = [parse_target(text) for text in until]
    loaded = with_policies(load(scenario, overrides, seed, replications), policies)
    folder = out if out is not None else default_folder(scenario, loaded)
    executor = Executor(kind=kind, jobs=jobs, address=address)
    if dry_run:
        click.echo(_estimated(estimate(loaded, folder), executor))
        return
    met = True
    try:
        with _bar(progress) as on_cell:
            if targets:
                reached = sweep_until(
                    loaded, folder, targets, most=max_replications, executor=executor, on_cell=on_cell
                )
                result, met = reached.result, reached.met
            else:
                result = run_sweep(loaded, folder, executor=executor, on_cell=on_cell)
    except KeyboardInterrupt:
        click.echo(f"interrupted; finished cells are in {folder}, the same command goes on from there", err=True)
        sys.exit(INTERRUPTED)
    click.echo(format_table(result.summary))
    _tell(result)
    if targets:
        ratio = "met" if met else f"not met: the widest interval is {reached.widest:.2f} times what was asked"
        click.echo(f"{reached.replications} replications; {', '.join(until)} {ratio}", err=True)
    if result.errors or not met:
        sys.exit(FAILED)


def _tell(result: SweepResult) -> None:
    from sim.analysis.warm_up import in_words
    from sim.records.result_folder import read_manifest

    manifest = read_manifest(result.folder)
    if "warm_up" in manifest:
        click.echo(f"left out as warm-up: {in_words(manifest)}", err=True)
    count = result.count
    kept = f", {count.kept} of them before" if count.kept else ""
    click.echo(f"{count.finished} of {count.total} cells finished{kept}; wrote {result.folder}", err=True)
    for error in result.errors[:5]:
        click.echo(f"failed: {error}", err=True)
    if len(result.errors) > 5:
        click.echo(f"and {len(result.errors) - 5} more; see {result.folder / 'cells.csv'}", err=True)


def _estimated(found: Estimate, executor: Executor) -> str:
    speed = f"{found.requests_per_cpu_s:,.0f} requests per CPU-second"
    basis = "as the finished cells took" if found.measured else "assumed; no cell is finished yet"
    lines = [
        f"cells      {found.cells:,}",
        f"finished   {found.finished:,}",
        f"to run     {found.cells - found.finished:,}",
        f"requests   {found.requests:,} (first attempts)",
        f"CPU        {found.cpu_s:,.1f} s at {speed} ({basis})",
    ]
    if executor.address is None:
        jobs = f"{executor.jobs} jobs" if executor.jobs > 1 else "1 job"
        lines.append(f"wall       {found.cpu_s / executor.jobs:,.1f} s with {jobs}, if each has a core of its own")
    heads = ("runs", "to run", "requests each", "variant")
    body = [
        (f"{runs:,}", f"{todo:,}", f"{requests:,}", label or "as written")
        for label, runs, todo, requests in found.variants[:_MOST_VARIANTS]
    ]
    widths = [max(len(row[i]) for row in (heads, *body)) for i in range(3)]
    lines += ["", *("  ".join([*map(str.rjust, row[:3], widths), row[3]]) for row in (heads, *body))]
    if len(found.variants) > _MOST_VARIANTS:
        lines.append(f"and {len(found.variants) - _MOST_VARIANTS:,} variants more")
    return "\n".join(lines)


@contextlib.contextmanager
def _bar(wanted: bool | None) -> Iterator[Callable[[Count], None] | None]:
    """Give a function that shows cells done, failed and the time left; None where nobody looks."""
    if wanted is False or (wanted is None and not sys.stderr.isatty()):
        yield None
        return
    from tqdm import tqdm

    with tqdm(unit="cell", file=sys.stderr, leave=False, mininterval=0.2) as bar:

        def hear(count: Count) -> None:
            if bar.total != count.total:
                bar.total, bar.initial = count.total, count.kept
            if count.failed:
                bar.set_postfix_str(f"{count.failed} failed", refresh=False)
            bar.update(count.finished + count.failed - bar.n)

        yield hear


@app.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Compare these; without it, the usual ones.")
@click.option("--fail-if", "limits", multiple=True, metavar="LIMIT", help='Exit with 1, e.g. "ttft_p99_s:+10%".')
@click.option("--csv", "as_csv", is_flag=True, help="Print the table as CSV.")
def compare(before: Path, after: Path, metrics: tuple[str, ...], limits: tuple[str, ...], as_csv: bool) -> None:
    """Say what changed from the result BEFORE to the result AFTER, in scenario and outcome.

    A limit is [POLICY/][TENANT/]METRIC:BOUND. It is broken by a change beyond the bound whose 95 % interval excludes
    no change; single runs have no interval, and of them the change alone decides.
    """
    from sim.analysis.compare import COMPARED, in_words, parse_limit
    from sim.analysis.compare import compare as compare_studies
    from sim.analysis.study import METRICS, Study
    from sim.errors import InputError
    from sim.scenario.validation_errors import suggestion

    asked = [parse_limit(text) for text in limits]
    for name in metrics:
        if name not in METRICS:
            raise InputError(f"--metric {name}", "unknown metric", suggestion(name, METRICS))
    found = compare_studies(Study(before), Study(after), metrics or COMPARED)
    click.echo(found.table.to_csv(index=False), nl=False) if as_csv else click.echo(in_words(found))
    broken = found.broken(asked)
    for line in broken:
        click.echo(f"failed: {line}", err=True)
    if broken:
        sys.exit(FAILED)


@app.command()
@click.argument("result", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The file; without it RESULT/report.html.")
@click.option("--baseline", metavar="POLICY", help="What others are compared with; without it none, or the first.")
def report(result: Path, out: Path | None, baseline: str | None) -> None:
    """Write one self-contained HTML file about RESULT: findings, plots, tables, provenance.

    Prints its path. A metrics.csv that `tokenpools metrics` left in RESULT is shown too.
    """
    from sim.analysis.report import write_report
    from sim.analysis.study import Study
    from sim.errors import InputError

    study = Study(result)
    try:
        study.baseline(baseline)
    except ValueError as error:
        problem, _, fix = str(error).partition("; ")
        raise InputError("--baseline", problem, fix) from None
    click.echo(write_report(study, out or result / "report.html", baseline=baseline))


@app.command()
@scenario_options
@_executor_options
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the plan and its runs.")
@click.option("--over", "knobs", multiple=True, metavar="PATH=LOW..HIGH", help="What may be set; more than once.")
@click.option("--least", metavar="PATH", help="Have little of this; without it replicas, else the first --over.")
@click.option("--most", metavar="PATH", help="Have much of this, e.g. a limit that spares another tenant.")
@click.option("--target", type=click.FloatRange(0, 1), default=0.95, show_default=True, help="SLO attainment.")
@click.option("--confidence", type=click.FloatRange(0.5, 0.999), default=0.95, show_default=True)
@click.option(
    "--tenant", "tenants", multiple=True, metavar="NAME", help="Tenants that count; without it, all with an SLO."
)
@click.option("--budget", type=click.IntRange(min=3), default=40, show_default=True, help="Settings to try per policy.")
def plan(
    scenario: str,
    overrides: tuple[str, ...],
    seed: int | None,
    replications: int | None,
    jobs: int,
    kind: str,
    address: str | None,
    out: Path,
    knobs: tuple[str, ...],
    least: str | None,
    most: str | None,
    target: float,
    confidence: float,
    tenants: tuple[str, ...],
    budget: int,
) -> None:
    """Find the fewest replicas (or entitlements, or the highest limits) with which SCENARIO meets its objectives.

    Each policy has an answer of its own. --over names what may be set, --least or --most what to save or to grant.
    The answer is checked again on fresh seeds with twice the replications. Exit code 1 if no setting of some policy
    meets the goal, or an answer does not hold.
    """
    from sim.analysis import style
    from sim.analysis.plots_plan import frontier
    from sim.errors import InputError
    from sim.experiments.executors import Executor
    from sim.experiments.plan import Cost, Goal, default_cost, parse_knob
    from sim.experiments.plan import plan as search

    asked = [parse_knob(text) for text in knobs or ("pool.replicas=1..16",)]
    loaded = load(scenario, overrides, seed, replications)
    goal = Goal(attainment=target, confidence=confidence, tenants=tenants)
    if least and most:
        raise InputError("--most", "given beside --least", "keep one of the two")
    cost = Cost(least or most or "", bool(most)) if least or most else default_cost(asked)
    executor = Executor(kind=kind, jobs=jobs, address=address)

    def hear(one: Trial) -> None:
        click.echo(f"{one.policy}, {one}", err=True)

    answers = search(loaded, out, asked, goal, cost=cost, budget=budget, executor=executor, on_trial=hear)
    points, edges = (
        {one.policy: [(cost.of(t.cost), t.attainment, t.at_least) for t in trials] for one, trials in each}
        for each in ([(one, one.trials) for one in answers], [(one, one.frontier) for one in answers])
    )
    figure = frontier(
        points, edges, target=target, confidence=confidence, cost=cost.path.removeprefix("pool."), most=cost.most
    )
    style.save(figure, out, "frontier")
    for answer in answers:
        click.echo(f"{answer.policy}: {_answered(answer)}")
    click.echo(f"wrote {out}; `tokenpools report {out}` shows every setting tried", err=True)
    if not all(answer.holds for answer in answers):
        sys.exit(FAILED)


def _answered(answer: Answer) -> str:
    if answer.best is None or answer.checked is None:
        top = max(answer.trials, key=lambda trial: trial.at_least)
        return f"no setting meets the goal; the best tried is {top}"
    fresh = answer.checked
    verdict = "holds" if answer.holds else "does NOT hold"
    return (
        f"{answer.best}; on fresh seeds {fresh.attainment:.1%}, at least {max(0.0, fresh.at_least):.1%} "
        f"({fresh.tenant}): {verdict}"
    )


@app.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the pages.")
def reference(out: Path) -> None:
    """Write the reference as Markdown, generated from the code: scenario, policies, workloads, metrics, commands."""
    from sim.records.result_folder import replace_file
    from sim.reference.reference import pages

    for name, text in pages(app).items():
        replace_file(out / name, text)
        click.echo(out / name)
