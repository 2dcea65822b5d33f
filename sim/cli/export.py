"""Commands that bring a result elsewhere; heavy imports wait until one runs."""

from __future__ import annotations

from typing import Annotated

import typer

from sim.cli.app import JUDGING, ResultFolder, command, group

export = group("export", panel=JUDGING, about="Bring a result to where others keep theirs.")


@command(of=export)
def mlflow(
    result: ResultFolder,
    tracking_uri: Annotated[
        str,
        typer.Option(
            "--tracking-uri", metavar="URI", envvar="MLFLOW_TRACKING_URI",
            help="Where MLflow keeps its runs: a folder, or a server.",
        ),
    ] = "file:./mlruns",
    experiment: Annotated[
        str | None, typer.Option("--experiment", help="Name of the experiment; without it the scenario's title.")
    ] = None,
) -> None:
    """Write RESULT into MLflow: a run for each policy, variant and replication, a metric for each tenant's figure.

    Exporting again adds what is not there yet. Needs the extra `mlflow`; `mlflow ui` shows them.
    """
    from sim.analysis.to_mlflow import export as to_mlflow

    runs = to_mlflow(result, tracking_uri=tracking_uri, experiment=experiment)
    typer.echo(f"{len(runs)} new {'run' if len(runs) == 1 else 'runs'} in {tracking_uri}")
