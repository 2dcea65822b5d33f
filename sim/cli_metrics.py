"""Commands that judge a result: metrics, shadow verdicts, and why a request was let in or turned away."""

from __future__ import annotations

from pathlib import Path

import click

_RESULT = click.Path(path_type=Path)


@click.command()
@click.argument("result", type=_RESULT)
@click.option("--alone", is_flag=True, help="Also run each tenant alone, for the isolation index.")
@click.option("--refusals", type=click.IntRange(min=1), metavar="N", help="Judge up to N refusals of each run by letting each in.")
@click.option("--window", "window_s", type=click.FloatRange(min=0, min_open=True), default=30.0, show_default=True,
              help="Seconds of a window of the windowed metrics.")  # fmt: skip
@click.option("--convergence", is_flag=True, help="Print how service came to its fair share after each change.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes for further runs.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
def metrics(
    result: Path, alone: bool, refusals: int | None, window_s: float, convergence: bool, jobs: int, as_csv: bool
) -> None:
    """Write RESULT/metrics.csv: fairness, service, isolation, refusals, waste and cost; docs/metrics.md defines each.

    What the metrics read is the records alone; --alone and --refusals simulate again, on the same draws.
    """
    from sim.experiments.judge import judge

    found = judge(
        result, alone=alone, refusals=refusals, window_s=window_s, convergence=convergence, jobs=jobs
    )
    click.echo(found.csv() if as_csv else found.text(), nl=not as_csv)
    click.echo(f"wrote {found.path}", err=True)


def register(app: click.Group) -> None:
    """Add the commands to the application."""
    app.add_command(metrics)
