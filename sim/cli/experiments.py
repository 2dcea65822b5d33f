"""Commands for evidence: sweeps, comparisons, reports, plans. As in `sim.cli.app`, bodies load, call and print."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli import completion, progress, tables
from sim.cli.app import (
    ABOUT,
    EVIDENCE,
    FAILED,
    INTERRUPTED,
    Address,
    AsCsv,
    ExecutorKind,
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
    tree,
)

if TYPE_CHECKING:
    from sim.experiments.executors import Executor
    from sim.experiments.plan import Cost, Goal, PlanResult
    from sim.experiments.sweep import Estimate, SweepResult


_MOST_VARIANTS = 50  # lines of a dry run


@command(panel=EVIDENCE)
def sweep(
    scenario: ScenarioRef,
    overrides: Overrides = None,
    seed: Seed = None,
    replications: Replications = None,
    jobs: Jobs = 1,
    kind: ExecutorKind = "loky",
    address: Address = None,
    out: RunOut = None,
    policies: Policies = None,
    until: Annotated[
        list[str] | None,
        typer.Option("--until", metavar="METRIC:WIDTH", help='Add replications, e.g. "ttft_p99_s:5%".'),
    ] = None,
    max_replications: Annotated[int, typer.Option("--max-replications", min=2, help="With --until.")] = 200,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run and what it would cost.")] = False,
    shown: Progress = None,
    overwrite: Overwrite = False,
    wide: Wide = False,
) -> None:
    """Run every cell of SCENARIO that the result folder does not hold yet.

    A cell is one policy, one replication and one combination of what the scenario varies. Each is kept when it is
    finished: after a kill the same command goes on. Prints the summary, means over replications. Exit code 1 if a
    cell failed or --until was not reached.
    """
    from sim.experiments.executors import Executor
    from sim.experiments.select import default_folder, with_policies
    from sim.experiments.sweep import estimate
    from sim.experiments.sweep import sweep as run_sweep
    from sim.experiments.until import parse_target, sweep_until
    from sim.records.result_folder import replacing

    targets = [parse_target(text) for text in until or ()]
    loaded = with_policies(load(scenario, overrides, seed, replications), policies or ())
    folder = out if out is not None else default_folder(scenario, loaded)
    executor = Executor(kind=kind, jobs=jobs, address=address)
    if dry_run:
        typer.echo(_estimated(estimate(loaded, folder), executor))
        return
    met = True
    try:
        with replacing(folder, overwrite) as place, progress.cells(shown) as on_cell:
            if targets:
                reached = sweep_until(loaded, place, targets, most=max_replications, executor=executor, on_cell=on_cell)
                result, met = reached.result, reached.met
            else:
                result = run_sweep(loaded, place, executor=executor, on_cell=on_cell)
    except KeyboardInterrupt:
        kept = f"{folder} is as it was" if overwrite else f"finished cells are in {folder}"
        typer.echo(f"interrupted; {kept}, the same command goes on from there", err=True)
        sys.exit(INTERRUPTED)
    tables.show_summary(result.summary, wide=wide)
    _tell(result, folder)
    if targets:
        wide_by = f"the widest interval is {reached.widest:.2f} times what was asked"
        unmeasured = "nothing was measured, or nothing that a share of its mean can be taken of"
        ratio = "met" if met else f"not met: {wide_by if math.isfinite(reached.widest) else unmeasured}"
        typer.echo(f"{reached.replications} replications; {', '.join(until or ())} {ratio}", err=True)
    if result.errors or not met:
        sys.exit(FAILED)


def _tell(result: SweepResult, folder: Path) -> None:
    from sim.analysis.warm_up import in_words
    from sim.records.result_folder import read_manifest

    manifest = read_manifest(folder)
    if "warm_up" in manifest:
        typer.echo(f"left out as warm-up: {in_words(manifest)}", err=True)
    count = result.count
    kept = f", {count.kept} of them before" if count.kept else ""
    typer.echo(f"{count.finished} of {count.total} cells finished{kept}; wrote {folder}", err=True)
    for error in result.errors[:5]:
        typer.echo(f"failed: {error}", err=True)
    if len(result.errors) > 5:
        typer.echo(f"and {len(result.errors) - 5} more; see {folder / 'cells.csv'}", err=True)


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


@command(panel=EVIDENCE)
def compare(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="A result folder.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="Another.")],
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME", help="Compare these; without it, the usual ones."),
    ] = None,
    limits: Annotated[
        list[str] | None, typer.Option("--fail-if", metavar="LIMIT", help='Exit with 1, e.g. "ttft_p99_s:+10%".')
    ] = None,
    as_csv: AsCsv = False,
    wide: Wide = False,
) -> None:
    """Say what changed from the result BEFORE to the result AFTER, in scenario and outcome.

    A limit is [POLICY/][TENANT/]METRIC:BOUND. It is broken by a change beyond the bound whose 95 % interval excludes
    no change; single runs have no interval, and of them the change alone decides.
    """
    from sim.analysis.compare import COMPARED, care, head, parse_limit, table
    from sim.analysis.compare import compare as compare_studies
    from sim.analysis.study import METRICS, Study
    from sim.errors import InputError
    from sim.scenario.validation_errors import suggestion

    asked = [parse_limit(text) for text in limits or ()]
    for name in metrics or ():
        if name not in METRICS:
            raise InputError(f"--metric {name}", "unknown metric", suggestion(name, METRICS))
    found = compare_studies(Study(before), Study(after), metrics or COMPARED)
    if as_csv:
        typer.echo(found.table.to_csv(index=False), nl=False)
    else:
        typer.echo(head(found))
        tables.show(table(found), wide=wide)
        for line in care(found):
            typer.echo(line)
    broken = found.broken(asked)
    for line in broken:
        typer.echo(f"failed: {line}", err=True)
    if broken:
        sys.exit(FAILED)


@command(panel=EVIDENCE)
def report(
    result: ResultFolder,
    out: Annotated[Path | None, typer.Option("--out", help="The file; without it RESULT/report.html.")] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline", metavar="POLICY", help="What others are compared with; without it none, or the first."
        ),
    ] = None,
) -> None:
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
    typer.echo(write_report(study, out or result / "report.html", baseline=baseline))


@command(panel=EVIDENCE)
def plan(
    scenario: ScenarioRef,
    out: Annotated[Path, typer.Option("--out", help="Folder for the plan and its runs.")],
    overrides: Overrides = None,
    seed: Seed = None,
    replications: Replications = None,
    jobs: Jobs = 1,
    kind: ExecutorKind = "loky",
    address: Address = None,
    knobs: Annotated[
        list[str] | None,
        typer.Option(
            "--over", metavar="PATH=LOW..HIGH", help="What may be set; more than once.",
            autocompletion=completion.range_paths,
        ),
    ] = None,
    least: Annotated[
        str | None,
        typer.Option("--least", metavar="PATH", help="Have little of this; without it replicas, or the first --over."),
    ] = None,
    most: Annotated[
        str | None,
        typer.Option("--most", metavar="PATH", help="Have much of this, e.g. a limit that spares another tenant."),
    ] = None,
    target: Annotated[float, typer.Option("--target", min=0, max=1, help="SLO attainment.")] = 0.95,
    confidence: Annotated[float, typer.Option("--confidence", min=0.5, max=0.999)] = 0.95,
    tenants: Annotated[
        list[str] | None,
        typer.Option("--tenant", metavar="NAME", help="Tenants that count; without it, all with an SLO."),
    ] = None,
    budget: Annotated[int, typer.Option("--budget", min=3, help="Settings to try per policy.")] = 40,
    shown: Progress = None,
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Find the fewest replicas (or entitlements, or the highest limits) with which SCENARIO meets its objectives.

    Each policy has an answer of its own. --over names what may be set, --least or --most what to save or to grant.
    The answer is checked again on fresh seeds with twice the replications. Exit code 1 if no setting of some policy
    meets the goal, or an answer does not hold.
    """
    from sim.errors import InputError
    from sim.experiments.executors import Executor
    from sim.experiments.plan import Cost, Goal, default_cost, parse_knob
    from sim.experiments.plan import plan as search
    from sim.records.result_folder import replacing

    asked = [parse_knob(text) for text in knobs or ("pool.replicas=1..16",)]
    loaded = load(scenario, overrides, seed, replications)
    goal = Goal(attainment=target, confidence=confidence, tenants=tuple(tenants or ()))
    if least and most:
        raise InputError("--most", "given beside --least", "keep one of the two")
    cost = Cost(least or most or "", bool(most)) if least or most else default_cost(asked)
    executor = Executor(kind=kind, jobs=jobs, address=address)
    most_trials = budget * len(loaded.policies)
    with replacing(out, overwrite) as place:
        with progress.trials(most_trials, shown) as hear:
            answers = search(loaded, place, asked, goal, cost=cost, budget=budget, executor=executor, on_trial=hear)
        _draw(answers, goal, cost, place)
    for answer in answers:
        typer.echo(f"{answer.policy}: {_answered(answer)}")
    typer.echo(f"wrote {out}; `tokenpools report {out}` shows every setting tried", err=True)
    if not all(answer.holds for answer in answers):
        sys.exit(FAILED)


def _draw(answers: Sequence[PlanResult], goal: Goal, cost: Cost, folder: Path) -> None:
    from sim.analysis import style
    from sim.analysis.plots_plan import frontier

    points, edges = (
        {one.policy: [(cost.of(t.cost), t.attainment, t.at_least) for t in trials] for one, trials in each}
        for each in ([(one, one.trials) for one in answers], [(one, one.frontier) for one in answers])
    )
    figure = frontier(
        points,
        edges,
        target=goal.attainment,
        confidence=goal.confidence,
        cost=cost.path.removeprefix("pool."),
        most=cost.most,
        chosen={
            one.policy: (cost.of(one.best.cost), one.best.attainment, one.best.at_least) for one in answers if one.best
        },
    )
    style.save(figure, folder, "frontier")


def _answered(answer: PlanResult) -> str:
    if answer.best is None or answer.checked is None:
        top = max(answer.trials, key=lambda trial: trial.at_least)
        return f"no setting meets the goal; the best tried is {top}"
    fresh = answer.checked
    verdict = "holds" if answer.holds else "does NOT hold"
    return (
        f"{answer.best}; on fresh seeds {fresh.attainment:.1%}, at least {max(0.0, fresh.at_least):.1%} "
        f"({fresh.tenant}): {verdict}"
    )


@command(panel=ABOUT)
def reference(out: Annotated[Path, typer.Option("--out", help="Folder for the pages.")]) -> None:
    """Write the reference as Markdown, generated from the code: scenario, policies, workloads, metrics, commands."""
    from sim.records.result_folder import replace_file
    from sim.reference.reference import pages

    for name, text in pages(tree()).items():
        replace_file(out / name, text)
        typer.echo(out / name)
