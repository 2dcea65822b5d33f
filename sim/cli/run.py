"""Run a scenario, look at what there is, draw a result."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import click

from sim.cli.app import FAILED, app, load, scenario_options
from sim.errors import InputError


@app.command()
@scenario_options
@click.option("--out", type=click.Path(path_type=Path), help="Result folder; without it results/<scenario>-<hash>.")
@click.option("--policy", "policies", multiple=True, metavar="NAME", help="Run these policies only.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes to run cells in.")
@click.option("--progress/--no-progress", default=None, help="Progress on stderr; without it, if that is a terminal.")
def run(
    scenario: str,
    overrides: tuple[str, ...],
    seed: int | None,
    replications: int | None,
    out: Path | None,
    policies: tuple[str, ...],
    jobs: int,
    progress: bool | None,
) -> None:
    """Run SCENARIO (a path, or the name of a shipped one) and write its records.

    The summary goes to stdout. `tokenpools plot RESULT` draws the result. SCENARIO "tournament" runs every policy over
    all scenarios whose names begin so (docs/tournament.md).
    """
    from sim.analysis.summary import format_table
    from sim.analysis.warm_up import in_words
    from sim.cli.progress import shown
    from sim.experiments.run import run_scenario
    from sim.experiments.select import default_folder, with_policies
    from sim.records.result_folder import read_result

    gc.freeze()
    gc.enable()
    if scenario == "tournament":
        from sim.cli.judging import run_tournament

        run_tournament(overrides, seed, replications, out, policies, jobs, progress)
        return
    loaded = with_policies(load(scenario, overrides, seed, replications), policies)
    folder = out if out is not None else default_folder(scenario, loaded)
    if out is None and (folder / "manifest.json").exists():
        click.echo(format_table(read_result(folder).summary))
        click.echo(f"{folder} holds this very run already; remove it, or give --out, to run again", err=True)
        return
    with shown(loaded, progress) as on_progress:
        result = run_scenario(loaded, folder, jobs=jobs, on_progress=on_progress)
    click.echo(format_table(result.summary))
    if "warm_up" in result.manifest:
        click.echo(f"left out as warm-up: {in_words(result.manifest)}", err=True)
    for name, found in result.manifest["cells"][0].get("recorded", {}).items():
        click.echo(
            f"workload {name}: {found['failed']:,} requests that failed in its trace are left out, "
            f"{found['raised']:,} counts of 0 tokens count as 1", err=True,
        )  # fmt: skip
    for caveat in result.manifest.get("caveats", ()):
        click.echo(f"warning: {caveat}", err=True)
    click.echo(f"wrote {folder}; draw it with: tokenpools plot {folder}", err=True)


@app.command()
@scenario_options
def validate(scenario: str, overrides: tuple[str, ...], seed: int | None, replications: int | None) -> None:
    """Check SCENARIO and say what it would run."""
    from sim.scenario.load import expand, scenario_hash

    loaded = load(scenario, overrides, seed, replications)
    cells = expand(loaded)
    click.echo(f"{scenario}: good; {len(cells)} runs, hash {scenario_hash(loaded)}")


@app.command("list")
@click.argument("what", type=click.Choice(["scenarios", "policies", "profiles", "traces"]))
def list_(what: str) -> None:
    """List what a scenario may name."""
    from sim.scenario.catalogue import entries

    rows = entries(what)
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        click.echo(f"{name:<{width}}  {text}".rstrip())


@app.command()
def schema() -> None:
    """Print the JSON schema of a scenario file, for editors."""
    import json

    from sim.scenario.load import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@app.command()
@click.argument("result", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the figures; without it RESULT/plots.")
def plot(result: Path, out: Path | None) -> None:
    """Draw the figures of RESULT as PNG and SVG, and print their paths."""
    from sim.analysis.plots import plot_result
    from sim.records.result_folder import read_result

    folder = out if out is not None else result / "plots"
    loaded = read_result(result)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            str(folder), f"cannot be written ({error.strerror})", "name another folder with --out"
        ) from None
    for path in plot_result(loaded, folder):
        click.echo(path)


@app.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/reproduction"), show_default=True)
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes to run cells in.")
def reproduce(out: Path, jobs: int) -> None:
    """Run the paper's experiments and compare them with its figures; exit code 1 if a row is out of its range."""
    from sim.studies.paper_reproduction import reproduce as run_reproduction

    reproduction = run_reproduction(out, jobs=jobs)
    click.echo(reproduction.table)
    click.echo(f"wrote {out}", err=True)
    if not reproduction.passed:
        sys.exit(FAILED)
