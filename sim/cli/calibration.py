"""Commands that make profiles from measurements, and compare profiles with them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sim.cli import completion
from sim.cli.app import FAILED, TRAFFIC, above_zero, command, group
from sim.cli.help_pages import Group
from sim.errors import InputError

if TYPE_CHECKING:
    from sim.scenario.profile import Profile


class _EndpointFirst(Group):
    """A group that takes its options as those of ``endpoint``: ``tokenpools calibrate --base-url URL``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0].startswith("--") and args[0] != "--help":
            args = ["endpoint", *args]
        return super().parse_args(ctx, args)


calibrate = group(
    "calibrate", panel=TRAFFIC, cls=_EndpointFirst,
    about="Make a profile from measurements; it goes to --out, or to stdout. Options alone mean `endpoint`.",
)  # fmt: skip

_Out = Annotated[Path | None, typer.Option("--out", help="Profile file to write; without it stdout.")]
_PrefixCaching = Annotated[bool, typer.Option("--prefix-caching/--no-prefix-caching")]
_AsyncScheduling = Annotated[bool, typer.Option("--async-scheduling/--no-async-scheduling")]
_KvBlocks = Annotated[int, typer.Option("--kv-blocks", min=1, help="KV blocks of 16 tokens.")]
_BatchedTokens = Annotated[int, typer.Option("--max-num-batched-tokens", min=1, help="As vLLM was started.")]
_Seqs = Annotated[int, typer.Option("--max-num-seqs", min=1, help="As vLLM was started.")]
_Gpus = Annotated[int, typer.Option("--gpus", min=1, help="GPUs that share the model.")]


def _write(profile: Profile, out: Path | None) -> None:
    from sim.calibration.profile_file import profile_text, write_profile

    if out is None:
        typer.echo(profile_text(profile), nl=False)
    else:
        write_profile(profile, out)
    typer.echo(f"{profile.error}" + (f"; wrote {out}" if out else ""), err=True)


@command(of=calibrate)
def kernels(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER")],
    layers: Annotated[int, typer.Option("--layers", min=1, help="Layers of the model.")],
    kv_blocks: _KvBlocks,
    gpus: _Gpus = 1,
    max_num_seqs: _Seqs = 256,
    max_num_batched_tokens: _BatchedTokens = 2048,
    async_scheduling: _AsyncScheduling = True,
    prefix_caching: _PrefixCaching = True,
    out: _Out = None,
) -> None:
    """From a FOLDER of kernel times (dense.csv, attention.csv, per_sequence.csv, moe.csv)."""
    from sim.calibration.from_kernels import calibrate_kernels

    engine = _engine(kv_blocks, max_num_seqs, max_num_batched_tokens, async_scheduling, prefix_caching)
    _write(calibrate_kernels(folder, layers=layers, gpus=gpus, **engine), out)


@command(of=calibrate)
def records(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    kv_blocks: _KvBlocks,
    start: Annotated[
        str | None,
        typer.Option(
            "--profile", help="Profile to begin from (a name or a path); without it a fitted step time.",
            autocompletion=completion.profiles,
        ),
    ] = None,
    share: Annotated[float, typer.Option("--share", max=1, callback=above_zero, help="To fit.")] = 0.5,
    max_num_seqs: _Seqs = 256,
    max_num_batched_tokens: _BatchedTokens = 2048,
    async_scheduling: _AsyncScheduling = True,
    prefix_caching: _PrefixCaching = True,
    out: _Out = None,
) -> None:  # fmt: skip
    """From a run's records: CSV or parquet with arrival, lengths, first-token and finish times, or requests.jsonl."""
    from sim.calibration.from_records import calibrate_records
    from sim.calibration.measured import read_run

    run = read_run(file)
    engine = _engine(kv_blocks, max_num_seqs, max_num_batched_tokens, async_scheduling, prefix_caching)
    _write(calibrate_records(_start(start, engine), run, share=share).profile, out)


@command(of=calibrate)
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    kv_blocks: _KvBlocks,
    max_num_seqs: _Seqs = 256,
    max_num_batched_tokens: _BatchedTokens = 2048,
    async_scheduling: _AsyncScheduling = True,
    prefix_caching: _PrefixCaching = True,
    out: _Out = None,
) -> None:
    """From a sweep: CSV with concurrency, prompt_tokens, output_tokens, ttft_s and tpot_s."""
    from sim.calibration.from_sweep import calibrate_sweep, read_sweep

    engine = _engine(kv_blocks, max_num_seqs, max_num_batched_tokens, async_scheduling, prefix_caching)
    _write(calibrate_sweep(_start(None, engine), read_sweep(file), place=file.stem).profile, out)


@command(of=calibrate)
def endpoint(
    base_url: Annotated[
        str, typer.Option("--base-url", metavar="URL", help="Root of a vLLM that nobody else uses meanwhile.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", help="Model to ask for; without it the first that the server lists.")
    ] = None,
    max_num_seqs: _Seqs = 256,
    max_num_batched_tokens: _BatchedTokens = 2048,
    max_model_tokens: Annotated[
        int | None, typer.Option("--max-model-tokens", min=32, help="Without it what the server says.")
    ] = None,
    kv_blocks: Annotated[
        int | None, typer.Option("--kv-blocks", min=1, help="Without it what vLLM's metrics say.")
    ] = None,
    block_tokens: Annotated[int | None, typer.Option("--block-tokens", min=1, help="Likewise.")] = None,
    kv_bytes_per_token: Annotated[
        float | None,
        typer.Option("--kv-bytes-per-token", callback=above_zero, help="Of the model; else unknown."),
    ] = None,
    async_scheduling: _AsyncScheduling = True,
    token_ids: Annotated[
        str, typer.Option("--token-ids", metavar="A:B", help="Ids to make prompts of.")
    ] = "100:999",
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer measurements: a third of the time, wider intervals.")
    ] = False,
    out: _Out = None,
) -> None:  # fmt: skip
    """From a running server, measured with fresh prompts: its iterations, and what it takes outside them."""
    from sim.calibration.from_server import calibrate_live
    from sim.calibration.measure_server import measure_endpoint

    measurements = measure_endpoint(
        base_url, key=os.environ.get("OPENAI_API_KEY"), quick=quick, model=model, max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens, max_model_tokens=max_model_tokens, kv_blocks=kv_blocks,
        block_tokens=block_tokens, kv_bytes_per_token=kv_bytes_per_token, async_scheduling=async_scheduling,
        token_ids=token_ids, progress=lambda words: typer.echo(f"measuring {words}", err=True),
    )  # fmt: skip
    _write(calibrate_live(measurements), out)


@command(of=calibrate)
def model(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The model's config.json.")],
    gpu: Annotated[str, typer.Option("--gpu", help="GPU, e.g. H100-SXM.")],
    gpus: _Gpus = 1,
    weight_bits: Annotated[Literal["16", "8", "4"], typer.Option("--weight-bits")] = "16",
    out: _Out = None,
) -> None:
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


def _engine(
    kv_blocks: int, max_num_seqs: int, max_num_batched_tokens: int, async_scheduling: bool, prefix_caching: bool
) -> dict[str, Any]:
    return {
        "kv_blocks": kv_blocks,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        "async_scheduling": async_scheduling,
        "prefix_caching": prefix_caching,
    }


def _start(ref: str | None, engine: dict[str, Any]) -> Profile:
    from sim.engine.step_fitted import FittedStepTime
    from sim.scenario.profile import Profile, load_profile

    begin: Any = FittedStepTime(weights_s=1e-2, per_token_s=4e-5)
    if ref is not None:
        begin = load_profile(ref, file="--profile").step_time
    return Profile(step_time=begin, **engine)


@command("validate-profile", panel=TRAFFIC)
def validate_profile(
    profile: Annotated[
        str, typer.Argument(metavar="PROFILE", help="A name or a path.", autocompletion=completion.profiles)
    ],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A measured run.")],
    plots: Annotated[Path | None, typer.Option("--plots", help="Folder for a plot of every request.")] = None,
    at_most: Annotated[
        float | None,
        typer.Option("--at-most", help="Exit with 1 where a mean is off by more than this many percent."),
    ] = None,
) -> None:
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
    typer.echo(error_table(table))
    if plots is not None:
        figure = plot_validation(measured, simulated, f"{measured.name}, simulated with {loaded.name}")
        typer.echo(save_plot(figure, plots, f"{measured.name}"), err=True)
    means = table[table.statistic == "mean"]
    unknown = list(means[means.error.isna()].metric)
    if at_most is not None and unknown:
        typer.echo(f"failed: nothing was measured of {', '.join(unknown)}", err=True)
    if at_most is not None and (unknown or not 100 * float(means.error.abs().max()) <= at_most):
        sys.exit(FAILED)
