"""Commands that make profiles from measurements, and compare profiles with them."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sim.cli import completion, tables
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

_TOO_NOISY = 0.2  # of the error on iterations that were left out, relative [choice]
_Out = Annotated[Path | None, typer.Option("--out", help="Profile file to write; without it stdout.")]
_PrefixCaching = Annotated[bool, typer.Option("--prefix-caching/--no-prefix-caching")]
_AsyncScheduling = Annotated[bool, typer.Option("--async-scheduling/--no-async-scheduling")]
_KvBlocks = Annotated[int | None, typer.Option("--kv-blocks", min=1, help="KV blocks of 16 tokens.")]
_KvTokens = Annotated[int | None, typer.Option("--kv-tokens", min=16, help="KV cache in tokens, instead of blocks.")]
_TtftFrom = Annotated[
    Literal["arrival", "queue"],
    typer.Option("--ttft-from", help="Where first tokens count from: the arrival, or the engine's queue."),
]
_Scenario = Annotated[
    str | None,
    typer.Option(
        "--scenario", help="Scenario whose replicas, router and policy the run went through; without it one replica.",
        autocompletion=completion.scenarios,
    ),
]  # fmt: skip
# Of a command that may begin from a profile: what is not given stays the profile's.
_Seqs = Annotated[
    int | None,
    typer.Option("--max-num-seqs", min=1, help="As vLLM was started; else the profile's, or its default."),
]
_BatchedTokens = Annotated[int | None, typer.Option("--max-num-batched-tokens", min=1, help="Likewise.")]
_Gpus = Annotated[int, typer.Option("--gpus", min=1, help="GPUs that share the model.")]
_OfGpu = Annotated[
    str | None,
    typer.Option("--gpu", help="GPU that vLLM ran on, e.g. H100-SXM: its default limits hang on it."),
]
_StartsAsync = Annotated[
    bool | None,
    typer.Option("--async-scheduling/--no-async-scheduling", help="As vLLM was started; else the profile's, or on."),
]
_StartsCaching = Annotated[
    bool | None,
    typer.Option("--prefix-caching/--no-prefix-caching", help="As vLLM was started; else the profile's, or on."),
]
_StartsGpus = Annotated[int | None, typer.Option("--gpus", min=1, help="GPUs of a replica; else the profile's, or 1.")]


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
    kv_blocks: _KvBlocks = None,
    kv_tokens: _KvTokens = None,
    layers: Annotated[
        int | None, typer.Option("--layers", min=1, help="Of the model; without it, of the one meta.yaml names.")
    ] = None,
    hidden_size: Annotated[int | None, typer.Option("--hidden-size", min=1, help="Likewise; links need it.")] = None,
    experts: Annotated[int | None, typer.Option("--experts", min=1, help="Of a layer; likewise.")] = None,
    experts_per_token: Annotated[int | None, typer.Option("--experts-per-token", min=1, help="Likewise.")] = None,
    gpus: Annotated[
        int | None,
        typer.Option("--gpus", min=1, help="GPUs that share the layers; without it, as the folder's name says (tp2)."),
    ] = None,
    expert_parallel: Annotated[
        int, typer.Option("--expert-parallel", min=1, help="Ranks that share the experts, each with its own requests.")
    ] = 1,
    link_table: Annotated[
        Path | None,
        typer.Option("--link-table", help="CSV of all-reduce times: gpus, bytes and all_reduce_us (or median_ms)."),
    ] = None,
    link_latency_s: Annotated[
        float | None, typer.Option("--link-latency-s", min=0, help="Seconds of a collective of no size.")
    ] = None,
    link_bytes_per_s: Annotated[
        float | None,
        typer.Option("--link-bytes-per-s", callback=above_zero, help="Bandwidth of a GPU's links, one way."),
    ] = None,
    link_gpu: Annotated[
        str | None, typer.Option("--link-gpu", help="GPU whose shipped all-reduces to take, e.g. H100-SXM.")
    ] = None,
    no_links: Annotated[bool, typer.Option("--no-links", help="Leave out what GPUs tell each other.")] = False,
    max_num_seqs: _Seqs = None,
    max_num_batched_tokens: _BatchedTokens = None,
    async_scheduling: _AsyncScheduling = True,
    prefix_caching: _PrefixCaching = True,
    out: _Out = None,
) -> None:
    """From a FOLDER of kernel times (dense.csv, attention.csv, per_sequence.csv, moe.csv).

    Several GPUs: all-reduces and all-to-alls are in no such table. Without a `--link-` option those that come with
    tokenpools for the GPU that meta.yaml names are taken.
    """
    from sim.calibration.from_kernels import LinkChoice, calibrate_kernels, gpu_of

    blocks = _blocks(kv_blocks, kv_tokens) if kv_blocks or kv_tokens else None
    engine: dict[str, Any] = {"kv_blocks": blocks, "async_scheduling": async_scheduling}
    engine |= {"prefix_caching": prefix_caching, **_batch(gpu_of(folder), max_num_seqs, max_num_batched_tokens)}
    links = LinkChoice(
        table=link_table, latency_s=link_latency_s, bytes_per_s=link_bytes_per_s, gpu=link_gpu, none=no_links
    )
    shape: dict[str, Any] = {"layers": layers, "hidden_size": hidden_size, "experts": experts}
    shape |= {"experts_per_token": experts_per_token}
    made = calibrate_kernels(folder, gpus=gpus, expert_parallel=expert_parallel, links=links, **shape, **engine)
    _write(made, out)
    ends = made.step_time.measured_to
    if made.max_num_batched_tokens > ends[0] or made.max_num_seqs > ends[1]:
        typer.echo(
            f"warning: the tables end at {ends[0]:.0f} tokens and {ends[1]:.0f} sequences of an iteration; what the "
            "engine may run beyond is extrapolated", err=True,
        )  # fmt: skip


@command(of=calibrate)
def records(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    kv_blocks: _KvBlocks = None,
    kv_tokens: _KvTokens = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--profile", help="Profile to begin from (a name or a path); without it a fitted step time.",
            autocompletion=completion.profiles,
        ),
    ] = None,
    share: Annotated[float, typer.Option("--share", max=1, callback=above_zero, help="To fit.")] = 0.5,
    term: Annotated[
        list[str] | None, typer.Option("--term", help="Fit this too, e.g. request_overhead_s; repeat it.")
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="TERM", help="Leave this term as it is; repeat it.")
    ] = None,
    scenario: _Scenario = None,
    ttft_from: _TtftFrom = "arrival",
    max_num_seqs: _Seqs = None,
    max_num_batched_tokens: _BatchedTokens = None,
    async_scheduling: _StartsAsync = None,
    prefix_caching: _StartsCaching = None,
    gpus: _StartsGpus = None,
    gpu: _OfGpu = None,
    out: _Out = None,
) -> None:  # fmt: skip
    """From a measured run: a table with arrival, lengths, first-token and finish times, or a load generator's file.

    Read are result folders of `tokenpools replay`, CSV, parquet and JSONL of such columns, requests.jsonl of
    LLMServingSim (what meta.json beside it says of the engine is taken where no option does), GuideLLM, aiperf, and
    `vllm bench serve --save-detailed`, and vLLM's OTLP traces.
    """
    from sim.calibration.from_records import calibrate_records, terms_for
    from sim.calibration.measured import read_run
    from sim.calibration.on_scenario import replay_on
    from sim.calibration.run_engine import engine_of
    from sim.scenario.load import load_scenario

    run = _read(read_run, file, ttft_from, scenario)
    there = engine_of(file)
    if kv_blocks is None and kv_tokens is None:
        kv_tokens = there.kv_tokens
    begin = _start(start, gpu, kv_blocks, kv_tokens, {
        "max_num_seqs": max_num_seqs or there.settings.get("max_num_seqs"),
        "max_num_batched_tokens": max_num_batched_tokens or there.settings.get("max_num_batched_tokens"),
        "async_scheduling": async_scheduling, "prefix_caching": prefix_caching, "gpus": gpus,
    })  # fmt: skip
    for misfit in there.misfits(begin) if start is not None else ():
        typer.echo(f"warning: {misfit}", err=True)
    replaying = None
    if scenario is not None:
        loaded = load_scenario(scenario)
        replaying = lambda profile: replay_on(loaded, run, profile=profile)  # noqa: E731
    terms = terms_for(begin, extra=term or (), without=without or ())
    _write(calibrate_records(begin, run, terms=terms, share=share, replaying=replaying).profile, out)


@command(of=calibrate)
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    kv_blocks: _KvBlocks = None,
    kv_tokens: _KvTokens = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--profile", help="Profile to begin from (a name or a path), links too; without it a fitted step time.",
            autocompletion=completion.profiles,
        ),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="TERM", help="Leave this term as it is; repeat it.")
    ] = None,
    expert_share: Annotated[
        float | None,
        typer.Option(
            "--expert-share", max=1, callback=above_zero,
            help="Share of a layer's experts that a token uses, e.g. 0.0625: a mixture of experts.",
        ),
    ] = None,
    max_num_seqs: _Seqs = None,
    max_num_batched_tokens: _BatchedTokens = None,
    async_scheduling: _StartsAsync = None,
    prefix_caching: _StartsCaching = None,
    gpus: _StartsGpus = None,
    gpu: _OfGpu = None,
    out: _Out = None,
) -> None:  # fmt: skip
    """From a sweep: CSV with concurrency, prompt_tokens, output_tokens, ttft_s and tpot_s.

    With a column gpus it holds several layouts of one model, which are fitted together: what GPUs share is learnt from
    all of them. A column kv_blocks says how much each holds; a row without a point is a layout that was not measured.
    --out is a folder then, for a profile of each: gpus-1.yaml and so on.
    """
    from sim.calibration.from_sweep import calibrate_sweep, read_sweep, sweep_terms
    from sim.calibration.layout_files import calibrate_layouts, layout_sweeps, read_layouts

    given = {
        "max_num_seqs": max_num_seqs, "max_num_batched_tokens": max_num_batched_tokens,
        "async_scheduling": async_scheduling, "prefix_caching": prefix_caching, "gpus": gpus,
    }  # fmt: skip
    layouts = read_layouts(file)
    if layouts is None:
        begin = _start(start, gpu, kv_blocks, kv_tokens, given, expert_share)
        terms = sweep_terms(begin, without=without or ())
        _write(calibrate_sweep(begin, read_sweep(file), terms=terms, place=file.stem).profile, out)
        return
    if gpus is not None:
        raise InputError("--gpus", f"{gpus}, and {file} has a column gpus", "leave it out")
    if out is None:
        raise InputError("--out", f"missing, and {file} holds a profile for each number of gpus", "name a folder")
    if kv_blocks is None and kv_tokens is None and start is None:
        kv_blocks = next((layout.kv_blocks for layout in layouts if layout.kv_blocks is not None), None)
    sweeps = layout_sweeps(_start(start, gpu, kv_blocks, kv_tokens, given, expert_share), layouts)
    for sweep, made in zip(sweeps, calibrate_layouts(sweeps, without=without or (), place=file.stem), strict=True):
        _write(made, out / f"gpus-{sweep.gpus}.yaml")


@command(of=calibrate)
def aiconfigurator(
    model_name: Annotated[str, typer.Argument(metavar="MODEL", help="E.g. Llama-3.1-70B.")],
    gpu: Annotated[str, typer.Argument(metavar="GPU", help="E.g. H200-SXM.")],
    tp: Annotated[int, typer.Option("--tp", min=1, help="Ranks of tensor parallelism.")] = 1,
    ep: Annotated[int, typer.Option("--ep", min=1, help="Ranks that share whole experts.")] = 1,
    dp: Annotated[int, typer.Option("--dp", min=1, help="Ranks of attention data parallelism.")] = 1,
    precision: Annotated[
        str | None, typer.Option("--precision", help="Of weights, e.g. fp8; without it the model's own.")
    ] = None,
    version: Annotated[str | None, typer.Option("--vllm", help="Of vLLM; without it the newest measured.")] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--profile", help="Profile (a name or a path) fitted on another GPU, to be carried over to this one.",
            autocompletion=completion.profiles,
        ),
    ] = None,
    measured_on: Annotated[
        str | None, typer.Option("--measured-on", metavar="GPU", help="GPU that the --profile was measured on.")
    ] = None,
    kv_blocks: _KvBlocks = None,
    kv_tokens: _KvTokens = None,
    max_num_seqs: _Seqs = None,
    max_num_batched_tokens: _BatchedTokens = None,
    out: _Out = None,
) -> None:
    """From NVIDIA's database of measured operators, for a MODEL on a GPU that it knows; nothing is measured here.

    With --profile and --measured-on a profile that was fitted on one GPU is carried over to another: what its host
    takes stays, what its GPU takes is scaled.
    """
    from sim.calibration.from_aiconfigurator import calibrate_aiconfigurator, known_gpu
    from sim.extras import require

    if (start is None) != (measured_on is None):
        missing = "--measured-on" if measured_on is None else "--profile"
        problem = f"missing beside {'--profile' if measured_on is None else '--measured-on'}"
        raise InputError(missing, problem, "give both, or neither")
    if start is not None and dp > 1:
        raise InputError("--dp", f"{dp}, and a profile is carried over rank by rank", "leave it out")
    require("aiconfigurator_core", "calibrate aiconfigurator")  # before anything is said of what it would take
    blocks = _blocks(kv_blocks, kv_tokens) if kv_blocks or kv_tokens else None
    batch = _batch(known_gpu(gpu), max_num_seqs, max_num_batched_tokens)
    made = calibrate_aiconfigurator(
        model_name, gpu, tp=tp, ep=ep, dp=dp, gemm_quant=precision, version=version, kv_blocks=blocks,
        max_num_seqs=batch["max_num_seqs"], max_num_batched_tokens=batch["max_num_batched_tokens"],
    )  # fmt: skip
    if start is not None and measured_on is not None:
        from sim.calibration.other_gpu import measured_operators, on_other_gpu
        from sim.scenario.profile import load_profile

        begin = load_profile(start, file="--profile")
        if begin.gpus != tp:
            raise InputError("--tp", f"{tp}, and the profile is of {begin.gpus} GPUs", f"give --tp {begin.gpus}")
        there, here = (measured_operators(model_name, each, tp=tp, gemm_quant=precision) for each in (measured_on, gpu))
        made = on_other_gpu(begin, there, here, name=made.name).model_copy(
            update={name: getattr(made, name) for name in ("max_num_seqs", "max_num_batched_tokens", "kv_blocks")}
        )
    _write(made, out)


@command(of=calibrate)
def endpoint(
    base_url: Annotated[
        str, typer.Option("--base-url", metavar="URL", help="Root of a vLLM that nobody else uses meanwhile.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", help="Model to ask for; without it the first that the server lists.")
    ] = None,
    max_num_seqs: _Seqs = None,
    max_num_batched_tokens: _BatchedTokens = None,
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
    gpu: _OfGpu = None,
    out: _Out = None,
) -> None:  # fmt: skip
    """From a running server, measured with fresh prompts: its iterations, and what it takes outside them."""
    from sim.calibration.from_server import calibrate_live
    from sim.calibration.measure_server import measure_endpoint

    measurements = measure_endpoint(
        base_url, key=os.environ.get("OPENAI_API_KEY"), quick=quick, model=model,
        **_batch(gpu, max_num_seqs, max_num_batched_tokens), max_model_tokens=max_model_tokens, kv_blocks=kv_blocks,
        block_tokens=block_tokens, kv_bytes_per_token=kv_bytes_per_token, async_scheduling=async_scheduling,
        token_ids=token_ids, progress=lambda words: typer.echo(f"measuring {words}", err=True),
    )  # fmt: skip
    made = calibrate_live(measurements)
    _write(made, out)
    if made.calibration is not None and max(made.calibration.noise_floor.values(), default=0.0) > _TOO_NOISY:
        hint = "leave --quick out" if quick else "see that nobody else uses it"
        typer.echo(f"warning: chance is a fifth of an iteration and more; measure again, and {hint}", err=True)


@command(of=calibrate)
def model(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A known model's name, or its config.json.")],
    gpu: Annotated[str, typer.Option("--gpu", help="GPU, e.g. H100-SXM.")],
    gpus: _Gpus = 1,
    weight_bits: Annotated[Literal["16", "8", "4"], typer.Option("--weight-bits")] = "16",
    kv_blocks: _KvBlocks = None,
    kv_tokens: _KvTokens = None,
    gpu_memory_utilization: Annotated[
        float, typer.Option("--gpu-memory-utilization", max=1, callback=above_zero, help="As vLLM was started.")
    ] = 0.9,
    max_num_seqs: _Seqs = None,
    max_num_batched_tokens: _BatchedTokens = None,
    out: _Out = None,
) -> None:
    """From no measurement: a roofline for the model of CONFIG on a GPU, with the links between several."""
    from sim.calibration.from_model import calibrate_model

    blocks = _blocks(kv_blocks, kv_tokens) if kv_blocks or kv_tokens else None
    batch = _batch(gpu, max_num_seqs, max_num_batched_tokens)
    made = calibrate_model(
        config, gpu, gpus=gpus, weight_bits=int(weight_bits), kv_blocks=blocks,
        gpu_memory_utilization=gpu_memory_utilization, max_num_seqs=batch["max_num_seqs"],
        max_num_batched_tokens=batch["max_num_batched_tokens"],
    )  # fmt: skip
    _write(made, out)


def _blocks(kv_blocks: int | None, kv_tokens: int | None) -> int:
    """Return the KV blocks of 16 tokens, given as such or in tokens."""
    if kv_blocks is not None and kv_tokens is not None and kv_blocks != kv_tokens // 16:
        problem = f"{kv_tokens}, which is {kv_tokens // 16} blocks, beside --kv-blocks {kv_blocks}"
        raise InputError("--kv-tokens", problem, "give one of them")
    found = kv_blocks if kv_tokens is None else kv_tokens // 16
    if found is None:
        raise InputError("--kv-blocks", "missing", "give it, or --kv-tokens; vLLM prints both when it starts")
    return found


def _read(reader: Any, file: Path, ttft_from: str, scenario: str | None) -> Any:
    """Return the measured run of a file, and say how it was read."""
    run = reader(file, ttft_from=ttft_from, behind_gateway=scenario is not None)
    for note in run.notes:
        typer.echo(f"{file}: {note}", err=True)
    return run


def _batch(gpu: str | None, max_num_seqs: int | None, max_num_batched_tokens: int | None) -> dict[str, int]:
    """Return the sequences and tokens of an iteration: what is given, else vLLM's default on the GPU, and say so."""
    from sim.profiles.gpus import batch_defaults

    usual = batch_defaults(gpu)
    seqs, tokens = max_num_seqs or usual.max_num_seqs, max_num_batched_tokens or usual.max_num_batched_tokens
    if max_num_seqs is None:
        seqs = min(seqs, tokens)  # as vLLM does
    if tokens < seqs:
        raise InputError(
            "--max-num-batched-tokens", f"{tokens} is below --max-num-seqs ({seqs}), which vLLM refuses",
            f"give at least {seqs}",
        )  # fmt: skip
    taken = [f"--max-num-seqs {seqs}"] if max_num_seqs is None else []
    taken += [f"--max-num-batched-tokens {tokens}"] if max_num_batched_tokens is None else []
    if taken:
        typer.echo(f"taken: {' '.join(taken)} ({usual.words}); give what yours was started with", err=True)
    return {"max_num_seqs": seqs, "max_num_batched_tokens": tokens}


def _start(
    ref: str | None,
    gpu: str | None,
    kv_blocks: int | None,
    kv_tokens: int | None,
    given: dict[str, Any],
    expert_share: float | None = None,
) -> Profile:
    """Return what a fit begins from: a named profile with what is given changed, else one of a fitted step time."""
    from sim.engine.step_fitted import FittedStepTime
    from sim.scenario.profile import Profile, load_profile, parse_profile

    engine = {name: value for name, value in given.items() if value is not None}
    if ref is None:
        engine |= _batch(gpu, given["max_num_seqs"], given["max_num_batched_tokens"])
        usual: dict[str, Any] = {"async_scheduling": True, "prefix_caching": True}
        step_time = FittedStepTime(weights_s=1e-2, per_token_s=4e-5, expert_share=expert_share or 0.0)
        return Profile(step_time=step_time, kv_blocks=_blocks(kv_blocks, kv_tokens), **usual | engine)
    if gpu is not None:
        raise InputError("--gpu", "given beside --profile, which says what its engine takes", "leave one of them out")
    begin = load_profile(ref, file="--profile")
    if expert_share is not None:
        if not isinstance(begin.step_time, FittedStepTime):
            problem = f"given, and the step time of {begin.name} is of kind {begin.step_time.kind}"
            raise InputError("--expert-share", problem, "leave it out, or begin from one of kind fitted")
        begin = begin.model_copy(update={"step_time": replace(begin.step_time, expert_share=expert_share)})
    if kv_blocks is not None or kv_tokens is not None:
        engine["kv_blocks"] = max(1, _blocks(kv_blocks, kv_tokens) * 16 // begin.block_tokens)
    tree = begin.model_dump(mode="json", exclude_none=True)
    del tree["name"]  # it is no longer what was shipped
    return parse_profile(tree | engine, "--profile, with the options given")


@command("validate-profile", panel=TRAFFIC)
def validate_profile(
    profile: Annotated[
        str, typer.Argument(metavar="PROFILE", help="A name or a path.", autocompletion=completion.profiles)
    ],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A measured run.")],
    scenario: _Scenario = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Another engine setting, e.g. kv_blocks=2588; repeat it."),
    ] = None,
    ttft_from: _TtftFrom = "arrival",
    plots: Annotated[Path | None, typer.Option("--plots", help="Folder for a plot of every request.")] = None,
    at_most: Annotated[
        float | None,
        typer.Option(
            "--at-most", callback=above_zero, help="Exit with 1 where a mean is off by more than this many percent."
        ),
    ] = None,
) -> None:
    """Simulate a measured RUN with PROFILE (a name or a path) and print the errors, and what of them is chance.

    RUN is what `tokenpools calibrate records` takes. What a meta.json beside it says of the engine's sequences, batched
    tokens and KV blocks is taken where `--set` says nothing. With `--scenario` the run goes through that scenario's
    replicas, router and first policy, each replica being PROFILE.
    """
    from sim.calibration.measured import read_run
    from sim.calibration.on_scenario import validate_scenario
    from sim.calibration.run_engine import FILE, engine_of
    from sim.calibration.validate import error_table, judge, plot_validation, save_plot
    from sim.calibration.validate import validate_profile as compare
    from sim.scenario.load import load_scenario
    from sim.scenario.profile import load_profile, with_settings

    measured = _read(read_run, run, ttft_from, scenario)
    there = engine_of(run)
    loaded = with_settings(load_profile(profile, file="PROFILE"), overrides or ())
    set_here = tuple(each.partition("=")[0] for each in overrides or ())
    taken = there.unlike(loaded, set_here)
    if taken:
        said = ", ".join(f"{name} {value} (the profile has {getattr(loaded, name)})" for name, value in taken.items())
        typer.echo(f"taken from {FILE} beside the run: {said}; --set gives others", err=True)
        loaded = with_settings(loaded, [f"{name}={value}" for name, value in taken.items()])
    for caveat in (*loaded.caveats, *there.misfits(loaded)):
        typer.echo(f"warning: {caveat}", err=True)
    if scenario is None:
        table, simulated = compare(loaded, measured)
    else:
        table, simulated = validate_scenario(load_scenario(scenario), measured, loaded)
    typer.echo(error_table(table))
    if plots is not None:
        figure = plot_validation(measured, simulated, f"{measured.name}, simulated with {loaded.name}")
        typer.echo(save_plot(figure, plots, f"{measured.name}"), err=True)
    if at_most is None:
        return
    means = table[table.statistic == "mean"]
    unknown = list(means[means.error.isna()].metric)
    if unknown:
        typer.echo(f"failed: nothing was measured of {', '.join(unknown)}", err=True)
    if unknown or not judge(table, at_most / 100):
        sys.exit(FAILED)


@command("profiles", panel=TRAFFIC)
def profiles(
    model_name: Annotated[str, typer.Argument(metavar="MODEL", help="E.g. Llama-3.1-70B.")],
    gpu: Annotated[str, typer.Argument(metavar="[GPU]", help="E.g. H200-SXM.")] = "",
) -> None:
    """Name the shipped profiles nearest to a MODEL and a GPU, with their errors and what they were measured for."""
    from sim.profiles.nearest import described, unsaid

    if unsaid(model_name, gpu):
        typer.echo(unsaid(model_name, gpu), err=True)
    tables.show_rows(described(model_name, gpu))
