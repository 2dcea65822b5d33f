"""Commands that judge a result: metrics, shadow verdicts, and why a request was let in or turned away."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sim.errors import InputError

_RESULT = click.Path(path_type=Path)


@click.command()
@click.argument("result", type=_RESULT)
@click.option("--alone", is_flag=True, help="Also run each tenant alone, for the isolation index.")
@click.option("--refusals", type=click.IntRange(min=1), metavar="N",
              help="Judge up to N refusals of each run, by letting each in.")  # fmt: skip
@click.option("--window", "window_s", type=click.FloatRange(min=0, min_open=True), default=30.0, show_default=True,
              help="Seconds of a window of the windowed metrics.")  # fmt: skip
@click.option("--convergence", is_flag=True, help="Print how service came to its fair share after each change.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes for further runs.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
def metrics(
    result: Path, alone: bool, refusals: int | None, window_s: float, convergence: bool, jobs: int, as_csv: bool
) -> None:
    """Write RESULT/metrics.csv: fairness, service, isolation, refusals, waste and cost; docs/metrics.md defines each.

    Prints a table of everybody by policy and one by tenant. The metrics read the records alone; --alone and --refusals
    simulate again, on the same draws.
    """
    from sim.judging.judge import judge

    found = judge(
        result, alone=alone, refusals=refusals, window_s=window_s, convergence=convergence, jobs=jobs
    )
    click.echo(found.csv() if as_csv else found.text(), nl=not as_csv)
    if convergence and not found.changes:
        click.echo("--convergence: nothing changed; no event, and no workload or entitlement that begins or ends",
                   err=True)  # fmt: skip
    click.echo(f"wrote {found.path}", err=True)


@click.command()
@click.argument("result", type=_RESULT)
@click.argument("request_id")
@click.option("--policy", help="Under this policy; without it, the first that turned the request away.")
@click.option("--replication", type=click.IntRange(min=0), help="Of this replication.")
@click.option("--attempt", type=click.IntRange(min=1), help="This attempt; without it, the last that was turned away.")
def explain(result: Path, request_id: str, policy: str | None, replication: int | None, attempt: int | None) -> None:
    """Say why REQUEST_ID of RESULT was let in, held or turned away, and what would have let it in.

    The run is repeated up to that instant, and the gateway's books are read there. RESULT may also be the file of
    events that a live gateway recorded.
    """
    from sim.judging.explain import explain as run_again
    from sim.judging.explain import explain_recording
    from sim.judging.explain_text import in_words

    if result.is_file():
        click.echo(in_words(explain_recording(result, request_id, attempt=attempt)))
        return
    click.echo(in_words(run_again(result, request_id, policy=policy, replication=replication, attempt=attempt)))


@click.command()
@click.argument("result", type=_RESULT)
@click.option("--csv", "as_csv", is_flag=True, help="Print the table by tenant as CSV.")
def shadow(result: Path, as_csv: bool) -> None:
    """Say how the policies that watched RESULT would have decided: agreement, and would-be refusals by tenant."""
    from sim.analysis.shadows import agreement, by_tenant, in_words
    from sim.records.result_folder import read_manifest, read_records, rows_csv

    manifest = read_manifest(result)
    if not manifest["scenario"].get("shadow"):
        raise InputError(str(result), "was watched by no policy", "run it again with shadow: [POLICY, ...] in it")
    table = read_records(result, manifest, "shadows")
    click.echo(rows_csv(by_tenant(table)) if as_csv else in_words(agreement(table), by_tenant(table)), nl=not as_csv)


@click.command("hardware-check")
@click.option("--data", type=_RESULT, help="Folder that holds lmsys-arena-vtc; without it, TOKENPOOLS_DATA's.")
@click.option("--fit", is_flag=True, help="Fit the replica to the measured FCFS run anew; without it, as shipped.")
@click.option("--tenants", is_flag=True, help="Also print every tenant.")
def hardware_check(data: Path | None, fit: bool, tenants: bool) -> None:
    """Replay the 27-tenant Arena trace under FCFS, VTC and request limits, beside what a real GPU did.

    Prints refusals and times to first token, measured and simulated, by policy.
    """
    from sim.studies.hardware_check import check, table, tenant_table

    found = check(data, fit=fit)
    click.echo(table(found))
    if tenants:
        click.echo("\n" + tenant_table(found))
    click.echo(f"{found.profile.name}: {found.profile.error}", err=True)


def run_tournament(
    overrides: tuple[str, ...], seed: int | None, replications: int | None, out: Path | None, policies: tuple[str, ...],
    jobs: int, progress: bool | None,
) -> None:  # fmt: skip
    """Do what `tokenpools run tournament` asks for."""
    from sim.experiments.executors import Executor
    from sim.experiments.sweep import Count
    from sim.studies.tournament import REPLICATIONS, tournament
    from sim.studies.tournament_policies import check_names

    if overrides or seed is not None:
        raise InputError("tournament", "takes no --set and no --seed", "run one of its scenarios by name instead")
    check_names(policies)
    shown = sys.stderr.isatty() if progress is None else progress

    def hear(name: str, count: Count) -> None:
        if shown and (count.finished + count.failed) % 10 == 0:
            click.echo(f"{name}: {count.finished + count.failed} of {count.total} runs", err=True)

    folder = out if out is not None else Path("results/tournament")
    found = tournament(
        folder, policies=policies, replications=replications or REPLICATIONS, executor=Executor(jobs=jobs),
        on_scenario=hear,
    )  # fmt: skip
    click.echo(found.standing() + "\n\n" + found.grid())
    click.echo(f"wrote {folder}: tournament.md, tournament.csv, heat-map.png and a sweep for each scenario", err=True)


def register(app: click.Group) -> None:
    """Add the commands to the application."""
    for command in (metrics, explain, shadow, hardware_check):
        app.add_command(command)
