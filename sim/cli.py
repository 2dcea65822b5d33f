"""The command. Bodies load, call one function and print; heavy imports wait until a command needs them."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from sim.errors import InputError, RunError, TokenpoolsError

if TYPE_CHECKING:
    from sim.scenario import Scenario

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="tokenpools")
def app() -> None:
    """Decide who gets how much of the GPUs in multi-tenant LLM inference, and who is turned away."""


def _warn(
    message: Warning | str, category: type[Warning], filename: str, lineno: int,
    file: TextIO | None = None, line: str | None = None,  # noqa: ARG001
) -> None:
    """Show what is for the user as this command shows errors, and the rest as Python does."""
    if issubclass(category, UserWarning):
        click.echo(f"warning: {message}", err=True)
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def main() -> None:
    """Run the command: results on stdout, all else on stderr; exit code 0 done, 1 failed run, 2 bad input."""
    _start_light()
    warnings.showwarning = _warn
    try:
        app.main(standalone_mode=False)
    except click.exceptions.Abort:
        _stop("interrupted; nothing was written", INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(BAD_INPUT)
    except TokenpoolsError as error:
        _stop(f"error: {error}", BAD_INPUT)
    except RunError as error:
        _stop(f"error: {error}", FAILED)
    except KeyboardInterrupt:
        _stop("interrupted; nothing was written", INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of stdout has gone; there is nobody to tell
        sys.exit(FAILED)


def _start_light() -> None:
    """Take a third off the time until a run begins, which for a small scenario is most of it."""
    gc.disable()  # imports make many objects and no garbage; `run` turns it on again
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # nothing here multiplies matrices
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # looking for some means reading every installed package


def _stop(message: str, code: int) -> None:
    click.echo(message, err=True)
    sys.exit(code)


def scenario_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command its SCENARIO and what changes it."""
    for option in (
        click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Set a field by its dotted path."),
        click.option("--seed", type=int, help="Use another seed."),
        click.option("--replications", type=int, help="Repeat with other draws."),
        click.argument("scenario"),
    ):
        command = option(command)
    return command


def load(ref: str, overrides: Sequence[str], seed: int | None, replications: int | None) -> Scenario:
    """Return the scenario that `scenario_options` ask for."""
    from sim.scenario import load_scenario

    extra = [*overrides]
    if seed is not None:
        extra.append(f"seed={seed}")
    if replications is not None:
        extra.append(f"replications={replications}")
    return load_scenario(ref, overrides=extra)


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
    from sim.experiments.run import run_scenario
    from sim.experiments.select import default_folder, with_policies
    from sim.progress import shown
    from sim.results import read_result

    gc.freeze()
    gc.enable()
    if scenario == "tournament":
        cli_metrics.run_tournament(overrides, seed, replications, out, policies, jobs, progress)
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
    click.echo(f"wrote {folder}; draw it with: tokenpools plot {folder}", err=True)


@app.command()
@scenario_options
def validate(scenario: str, overrides: tuple[str, ...], seed: int | None, replications: int | None) -> None:
    """Check SCENARIO and say what it would run."""
    from sim.scenario import expand, scenario_hash

    loaded = load(scenario, overrides, seed, replications)
    cells = expand(loaded)
    click.echo(f"{scenario}: good; {len(cells)} runs, hash {scenario_hash(loaded)}")


@app.command("list")
@click.argument("what", type=click.Choice(["scenarios", "policies", "profiles", "traces"]))
def list_(what: str) -> None:
    """List what a scenario may name."""
    from sim.catalogue import entries

    rows = entries(what)
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        click.echo(f"{name:<{width}}  {text}".rstrip())


@app.command()
def schema() -> None:
    """Print the JSON schema of a scenario file, for editors."""
    import json

    from sim.scenario import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@app.command()
@click.argument("result", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the figures; without it RESULT/plots.")
def plot(result: Path, out: Path | None) -> None:
    """Draw the figures of RESULT as PNG and SVG, and print their paths."""
    from sim.analysis.plots import plot_result
    from sim.results import read_result

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
    from sim.experiments.reproduce import reproduce as run_reproduction

    reproduction = run_reproduction(out, jobs=jobs)
    click.echo(reproduction.table)
    click.echo(f"wrote {out}", err=True)
    if not reproduction.passed:
        sys.exit(FAILED)


# The commands of each area register themselves on `app`; these modules import nothing heavier than click.
from sim import cli_experiments, cli_fidelity, cli_live, cli_metrics, cli_replay, cli_trace  # noqa: E402

__all__ = ["app", "cli_experiments", "cli_fidelity", "cli_live", "cli_metrics", "cli_replay", "cli_trace", "main"]
cli_fidelity.register(app)
cli_live.register(app)
cli_metrics.register(app)
