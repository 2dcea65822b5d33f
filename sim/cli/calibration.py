"""Commands that make profiles from measurements, and compare profiles with them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sim.errors import InputError

if TYPE_CHECKING:
    from sim.scenario.profile import Profile

_PATH = click.Path(path_type=Path)


class _EndpointFirst(click.Group):
    """A group that takes its options as those of ``endpoint``: ``tokenpools calibrate --base-url URL``."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        if arguments and arguments[0].startswith("--") and arguments[0] != "--help":
            arguments = ["endpoint", *arguments]
        return super().parse_args(context, arguments)


@click.group(cls=_EndpointFirst)
def calibrate() -> None:
    """Make a profile from measurements; it goes to --out, or to stdout. Options alone mean ``endpoint``."""


def _engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--out", type=_PATH, help="Profile file to write; without it stdout."),
        click.option("--prefix-caching/--no-prefix-caching", default=True, show_default=True),
        click.option("--async-scheduling/--no-async-scheduling", default=True, show_default=True),
        click.option("--kv-blocks", type=click.IntRange(min=1), required=True, help="KV blocks of 16 tokens."),
        click.option("--max-num-batched-tokens", type=click.IntRange(min=1), default=2048, show_default=True),
        click.option("--max-num-seqs", type=click.IntRange(min=1), default=256, show_default=True),
    ):
        command = option(command)
    return command


def _write(profile: Profile, out: Path | None) -> None:
    from sim.calibration.profile_file import profile_text, write_profile

    if out is None:
        click.echo(profile_text(profile), nl=False)
    else:
        write_profile(profile, out)
    click.echo(f"{profile.error}" + (f"; wrote {out}" if out else ""), err=True)


@calibrate.command()
@click.argument("folder", type=_PATH)
@click.option("--layers", type=click.IntRange(min=1), required=True, help="Layers of the model.")
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True, help="GPUs that share the model.")
@_engine_options
def kernels(folder: Path, layers: int, gpus: int, out: Path | None, **engine: Any) -> None:
    """From a FOLDER of kernel times (dense.csv, attention.csv, per_sequence.csv, moe.csv)."""
    from sim.calibration.from_kernels import calibrate_kernels

    _write(calibrate_kernels(folder, layers=layers, gpus=gpus, **engine), out)


@calibrate.command()
@click.argument("file", type=_PATH)
@click.option("--profile", "start", help="Profile to begin from (a name or a path); without it a fitted step time.")
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), default=0.5, show_default=True, help="To fit.")
@_engine_options
def records(file: Path, start: str | None, share: float, out: Path | None, **engine: Any) -> None:
    """From a run's records: CSV or parquet with arrival, lengths, first-token and finish times, or requests.jsonl."""
    from sim.calibration.from_records import calibrate_records
    from sim.calibration.measured import read_run

    run = read_run(file)
    _write(calibrate_records(_start(start, engine), run, share=share).profile, out)


@calibrate.command()
@click.argument("file", type=_PATH)
@_engine_options
def sweep(file: Path, out: Path | None, **engine: Any) -> None:
    """From a sweep: CSV with concurrency, prompt_tokens, output_tokens, ttft_s and tpot_s."""
    from sim.calibration.from_sweep import calibrate_sweep, read_sweep

    _write(calibrate_sweep(_start(None, engine), read_sweep(file), place=file.stem).profile, out)


@calibrate.command()
@click.option("--base-url", required=True, metavar="URL", help="Root of a vLLM that nobody else uses meanwhile.")
@click.option("--model", help="Model to ask for; without it the first that the server lists.")
@click.option("--max-num-seqs", type=click.IntRange(min=1), default=256, show_default=True, help="As vLLM was started.")
@click.option("--max-num-batched-tokens", type=click.IntRange(min=1), default=2048, show_default=True, help="Likewise.")
@click.option("--max-model-tokens", type=click.IntRange(min=32), help="Without it what the server says.")
@click.option("--kv-blocks", type=click.IntRange(min=1), help="Without it what vLLM's metrics say.")
@click.option("--block-tokens", type=click.IntRange(min=1), help="Likewise.")
@click.option("--kv-bytes-per-token", type=click.FloatRange(min=0, min_open=True), help="Of the model; else unknown.")
@click.option("--async-scheduling/--no-async-scheduling", default=True, show_default=True)
@click.option("--token-ids", default="100:999", show_default=True, metavar="A:B", help="Ids to make prompts of.")
@click.option("--quick", is_flag=True, help="Fewer measurements: a third of the time, wider intervals.")
@click.option("--out", type=_PATH, help="Profile file to write; without it stdout.")
def endpoint(base_url: str, quick: bool, out: Path | None, **given: Any) -> None:
    """From a running server, measured with fresh prompts: its iterations, and what it takes outside them."""
    from sim.calibration.from_server import calibrate_live
    from sim.calibration.measure_server import measure_endpoint

    key = os.environ.get("OPENAI_API_KEY")
    measurements = measure_endpoint(
        base_url, key=key, quick=quick, progress=lambda words: click.echo(f"measuring {words}", err=True), **given
    )
    _write(calibrate_live(measurements), out)


@calibrate.command()
@click.argument("config", type=_PATH)
@click.option("--gpu", required=True, help="GPU, e.g. H100-SXM.")
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--weight-bits", type=click.Choice(["16", "8", "4"]), default="16", show_default=True)
@click.option("--out", type=_PATH, help="Profile file to write; without it stdout.")
def model(config: Path, gpu: str, gpus: int, weight_bits: str, out: Path | None) -> None:
    """From no measurement: a roofline for the model of CONFIG (its config.json) on a GPU."""
    from sim.profiles.roofline import roofline_profile

    try:
        shape = json.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(str(config), f"cannot be read ({error.strerror})", "name a config.json") from None
    except ValueError as error:
        raise InputError(str(config), f"is no JSON ({error})", "give the model's config.json") from None
    if not isinstance(shape, dict):
        raise InputError(str(config), "is not a mapping", "give the model's config.json")
    _write(roofline_profile(shape, gpu, gpus=gpus, weight_bits=int(weight_bits), name=config.stem), out)


def _start(ref: str | None, engine: dict[str, Any]) -> Profile:
    from sim.engine.step_fitted import FittedStepTime
    from sim.scenario.profile import Profile, load_profile

    begin: Any = FittedStepTime(weights_s=1e-2, per_token_s=4e-5)
    if ref is not None:
        begin = load_profile(ref, file="--profile").step_time
    return Profile(step_time=begin, **engine)


@click.command("validate-profile")
@click.argument("profile")
@click.argument("run", type=_PATH)
@click.option("--plots", type=_PATH, help="Folder for a plot of every request.")
@click.option("--at-most", type=float, help="Exit with 1 where a mean is off by more than this many percent.")
def validate_profile(profile: str, run: Path, plots: Path | None, at_most: float | None) -> None:
    """Simulate a measured RUN with PROFILE (a name or a path) and print the errors.

    RUN is a file of a request's times a row, as `tokenpools calibrate records` takes it.
    """
    from sim.calibration.measured import read_run
    from sim.calibration.validate import error_table, plot_validation, save_plot
    from sim.calibration.validate import validate_profile as compare
    from sim.scenario.profile import load_profile

    measured = read_run(run)
    loaded = load_profile(profile, file="PROFILE")
    table, simulated = compare(loaded, measured)
    click.echo(error_table(table))
    if plots is not None:
        figure = plot_validation(measured, simulated, f"{measured.name}, simulated with {loaded.name}")
        click.echo(save_plot(figure, plots, f"{measured.name}"), err=True)
    worst = float(table[table.statistic == "mean"].error.abs().max())
    if at_most is not None and not 100 * worst <= at_most:  # also where no mean could be taken
        sys.exit(1)


def register(app: click.Group) -> None:
    """Add the commands to the application."""
    app.add_command(calibrate)
    app.add_command(validate_profile)
