"""A profile from measured kernel times alone: nothing of a run is used."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from sim.calibration.kernel_tables import (
    KernelTables,
    grid_errors,
    read_kernel_tables,
    read_meta,
    step_from_tables,
    unsplit_batch,
)
from sim.calibration.link_tables import LinkTable, gpu_named, read_link_table, shipped_links
from sim.engine.links import Links
from sim.engine.ranks import rank_score_of
from sim.engine.step_table import ExtrapolationWarning, TableStepTime
from sim.errors import InputError, shortened
from sim.profiles.gpus import GPUS
from sim.profiles.models import MODELS, model_named
from sim.profiles.roofline import BLOCK_TOKENS, blocks_in, on_gpus, read_shape, room_for_kv_bytes
from sim.scenario.profile import Calibration, Physics, Profile
from sim.scenario.validation_errors import suggestion

_SLOWEST, _FASTEST, _LONGEST_S = 1e8, 1e13, 0.1  # of links: gigabit Ethernet, five times NVLink of 2025 [choice]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkChoice:
    """Where the times of collectives come from.

    Nothing given means what comes with tokenpools for the GPU that the tables name. ``table`` is a file of measured
    all-reduces, ``latency_s`` and ``bytes_per_s`` a law, ``gpu`` a GPU whose shipped times to take; ``none`` leaves
    collectives out.
    """

    table: Path | None = None
    latency_s: float | None = None
    bytes_per_s: float | None = None
    gpu: str | None = None
    none: bool = False


def calibrate_kernels(
    folder: Path,
    *,
    kv_blocks: int | None = None,
    layers: int | None = None,
    hidden_size: int | None = None,
    experts: int | None = None,
    experts_per_token: int | None = None,
    max_num_seqs: int = 256,
    max_num_batched_tokens: int = 2048,
    gpus: int | None = None,
    expert_parallel: int = 1,
    links: LinkChoice | None = None,
    async_scheduling: bool = True,
    prefix_caching: bool = True,
    kv_bytes_per_token: float | None = None,
    max_model_tokens: int | None = None,
    physics: Physics | None = None,
    name: str | None = None,
    today: date | None = None,
) -> Profile:
    """Return a profile whose step time is interpolated from a folder of kernel times; see `read_kernel_tables`.

    Parameters
    ----------
    kv_blocks : of a rank, of 16 tokens; left out, what a rank's GPUs are reckoned to leave after the weights.
    layers, hidden_size, experts, experts_per_token : of the model; left out, those of the model that ``meta.yaml``
        names, if `MODELS` knows it.
    gpus : that share the layers by tensor parallelism, as in the tables; left out, what the folder's name ends in
        (``tp2``), else 1.
    expert_parallel : ranks that share the experts, each with requests of its own; the tables are those of one rank, and
        so are ``kv_blocks`` and ``max_num_seqs``. The profile is that of an engine of so many data-parallel ranks.
    links : where the times of what GPUs tell each other come from.

    Raises
    ------
    InputError : the folder does not hold what it should, or not for so many GPUs.
    """
    if not folder.is_dir():
        raise InputError(str(folder), "is no folder", "name a folder of kernel tables")
    meta = read_meta(folder)
    shape = _shape(meta)
    ranks = _ranks(folder, meta, gpus)
    _check_heads(folder, meta, shape, ranks)
    count = layers or _needed(meta, shape.get("num_hidden_layers"), "layers", "the model's layers, e.g. --layers 32")
    tables = read_kernel_tables(
        folder,
        layers=int(count),
        experts=experts or int(shape.get("num_experts", 128)),
        experts_per_token=experts_per_token or int(shape.get("num_experts_per_tok", 8)),
    )
    if expert_parallel > 1:
        if tables.experts is None:
            problem = f"--expert-parallel {expert_parallel}, and the tables hold no moe.csv"
            raise InputError(str(folder), problem, "leave it out, or give tables of a mixture of experts")
        if expert_parallel > tables.experts.count:
            problem = f"{expert_parallel} ranks share {tables.experts.count} experts"
            raise InputError("--expert-parallel", problem, f"give at most {tables.experts.count}")
        tables = replace(tables, experts=replace(tables.experts, ranks=expert_parallel))
    choice, found = links or LinkChoice(), None
    _check_choice(choice)
    if max(ranks, expert_parallel) > 1 and not choice.none:
        hidden = hidden_size or shape.get("hidden_size")
        found = _links(choice, meta, ranks, expert_parallel, int(count), hidden)
    elif choice != LinkChoice() and not choice.none:
        raise InputError("--link-*", "given for one GPU, which has none to talk to", "leave it out, or give --gpus")
    error = ""
    if kv_blocks is None:
        kv_blocks = _reckoned_blocks(meta, shape, ranks, expert_parallel)
        error = f"; KV cache reckoned, {BLOCK_TOKENS * kv_blocks} tokens a rank: give what vLLM prints"
    gpu, kv_heads = GPUS.get(gpu_named(str(meta.get("gpu", ""))) or ""), int(shape.get("num_key_value_heads", 0))
    unsplit = unsplit_batch(gpu.multiprocessors, max(1, kv_heads // ranks)) if gpu and kv_heads else 0
    step_time = step_from_tables(tables, ranks, found[0] if found else None, unsplit)
    sentence, measurements = _against_itself(step_time, tables, kv_blocks, max_num_batched_tokens)
    error = sentence + error
    measured = " ".join(str(meta[key]) for key in ("gpu", "model") if key in meta) or folder.name
    engine = f"vLLM {meta['vllm_version']}, CUDA {meta['cuda_version']}" if "vllm_version" in meta else ""
    source = f"kernel times of {measured}, {engine or 'engine unknown'}"
    total = ranks * expert_parallel
    if total > 1 and found is None:
        error += f"; made without the links between its {total} GPUs: too fast by what their collectives take"
    return Profile(
        name=name or folder.name,
        source=source + (f"; links: {found[1]}" if found else ""),
        error=error,
        gpus=total,
        tensor_parallel=ranks if ranks > 1 else None,
        data_parallel=expert_parallel,
        expert_parallel=expert_parallel > 1,
        data_parallel_score=rank_score_of(str(meta.get("vllm_version", ""))),
        step_time=step_time,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        kv_blocks=kv_blocks,
        async_scheduling=async_scheduling,
        prefix_caching=prefix_caching,
        kv_bytes_per_token=kv_bytes_per_token,
        max_model_tokens=max_model_tokens,
        physics=physics,
        calibration=Calibration(
            method="interpolation of measured kernel times, all layers summed",
            date=(today or date.today()).isoformat(),
            engine=engine,
            measurements=measurements,
            ranges={
                "prefill_tokens": (1.0, step_time.prefill_tokens[-1]),
                "decode_sequences": (1.0, step_time.decode_batch[-1]),
                "context_tokens_each": (1.0, step_time.decode_context[-1]),
            },
        ),
    )


def _reckoned_blocks(meta: dict[str, Any], shape: dict[str, Any], ranks: int, expert_ranks: int) -> int:
    """Return the KV blocks of a rank: what 0.9 of its GPUs' memory leaves after its weights, of 16 bits.

    Experts are dealt out over the ranks that share them, the rest of the model is whole on each.
    """
    gpu = gpu_named(str(meta.get("gpu", "")))
    if gpu is None or not shape:
        what = "GPU" if gpu is None else "model"
        problem = f"missing, and meta.yaml names no known {what} to reckon it of"
        raise InputError("--kv-blocks", problem, "give it, or --kv-tokens; vLLM prints both when it starts")
    model = on_gpus(read_shape(shape), ranks)
    elsewhere_bytes = model.work.expert_parameters * model.work.bytes_per_parameter * (1 - 1 / expert_ranks)
    room_bytes = room_for_kv_bytes(gpu, model.weight_bytes - elsewhere_bytes, ranks)
    blocks = blocks_in(room_bytes, model)
    if blocks < 1:
        problem = f"missing, and the weights leave {room_bytes / 1e9:.1f} GB of {ranks} x {gpu} for it"
        raise InputError("--kv-blocks", problem, "give it, or tables of more GPUs")
    return blocks


def gpu_of(folder: Path) -> str | None:
    """Return the GPU that a folder's ``meta.yaml`` names; None where it names none that is known."""
    return gpu_named(str(read_meta(folder).get("gpu", "")))


def _against_itself(
    step_time: TableStepTime, tables: KernelTables, kv_blocks: int, max_num_batched_tokens: int
) -> tuple[str, int]:
    """Return the sentence about the step time against its own tables, and how many measurements those are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        grid = grid_errors(step_time, tables)
    # Iterations that no engine of these settings can run are measured too, and left out here.
    feasible = grid[
        (grid.prefill_chunk + grid.n_decode <= max_num_batched_tokens)
        & (grid.n_decode * grid.kv_decode + grid.kv_prefill <= kv_blocks * 16)
    ]
    means = feasible.groupby("kind").error.agg(lambda error: float(error.abs().mean()))
    sentence = f"against {len(feasible)} iterations of its own tables: " + ", ".join(
        f"{kind} {100 * error:.1f} %" for kind, error in means.items()
    )
    return sentence, len(tables.attention) + len(tables.dense_s) + len(tables.sequence_s)


def _shape(meta: dict[str, Any]) -> dict[str, Any]:
    known = model_named(str(meta.get("model", "")))
    return dict(known[1]) if known else {}


def _needed(meta: dict[str, Any], value: Any, option: str, fix: str) -> Any:
    if value is not None:
        return value
    name = str(meta.get("model", ""))
    known = suggestion(name.rsplit("/", 1)[-1].lower(), list(MODELS)) if name else f"known: {', '.join(MODELS)}"
    said = f"meta.yaml names {shortened(name, 60)}, which is not known" if name else "meta.yaml names no known model"
    raise InputError(f"--{option}", f"missing, and {said}", f"give {fix} ({known})")


def _check_heads(folder: Path, meta: dict[str, Any], shape: dict[str, Any], ranks: int) -> None:
    heads = int(shape.get("num_attention_heads", 0))
    if heads % ranks:
        problem = f"{ranks} GPUs do not divide the {heads} attention heads of {meta['model']}, which vLLM refuses"
        raise InputError(str(folder), problem, "give the tables of a divisor, or correct the model in meta.yaml")


def _ranks(folder: Path, meta: dict[str, Any], gpus: int | None) -> int:
    """Return the GPUs that the tables are of, and refuse another number."""
    named = re.search(r"tp(\d+)$", folder.resolve().name)
    of_tables = int(named[1]) or None if named else None
    profiled = meta.get("tp_degrees") or [gpus or of_tables]
    if gpus is None and (of_tables is None or of_tables in profiled):
        return of_tables or 1
    if gpus is None:
        listed = ", ".join(map(str, profiled))
        problem = f"is named for {of_tables} GPUs, and meta.yaml was written for tables of {listed}"
        raise InputError(str(folder), problem, "give the folder that goes with it")
    if of_tables is not None and gpus != of_tables:
        problem = f"holds the tables of {of_tables} GPU{'s' * (of_tables > 1)}, not of {gpus}"
        raise InputError(str(folder), problem, f"give --gpus {of_tables}, or the folder of {gpus}")
    if gpus not in profiled:
        problem = f"was profiled for {', '.join(map(str, profiled))} GPUs, not for {gpus}"
        raise InputError(str(folder), problem, f"give --gpus {profiled[-1]}, or tables of {gpus}")
    return gpus


def _check_choice(choice: LinkChoice) -> None:
    """Refuse two answers to where the times of collectives come from."""
    law = choice.latency_s is not None or choice.bytes_per_s is not None
    given = {"--link-table": choice.table, "--link-bytes-per-s": law, "--link-gpu": choice.gpu}
    given |= {"--no-links": choice.none}
    names = [name for name, value in given.items() if value]
    if len(names) > 1:
        raise InputError(names[0], f"given beside {' and '.join(names[1:])}", "give one of them")


def _links(
    choice: LinkChoice, meta: dict[str, Any], ranks: int, expert_parallel: int, layers: int, hidden: Any
) -> tuple[Links, str] | None:
    """Return the collectives of an iteration and where their times come from; None where nothing is known."""
    if ranks > 1 and expert_parallel > 1:
        problem = "experts shared beside tensor parallelism are not in such tables"
        raise InputError("--expert-parallel", problem, "give --gpus 1")
    joined = max(ranks, expert_parallel)
    table: LinkTable | None = None
    source = ""
    if choice.table is not None:
        table = read_link_table(choice.table, joined)
    elif choice.bytes_per_s is None and choice.latency_s is None:
        gpu = choice.gpu or gpu_named(str(meta.get("gpu", "")))
        if choice.gpu is not None and choice.gpu not in GPUS:
            raise InputError("--link-gpu", f"unknown GPU {choice.gpu}", suggestion(choice.gpu, list(GPUS)))
        table = shipped_links(gpu, joined, str(meta.get("vllm_version", ""))) if gpu else None
        if table is None and choice.gpu is not None:
            raise InputError("--link-gpu", f"no times between {joined} {gpu} are shipped", "give --link-bytes-per-s")
        if table is None:
            return None
    elif choice.bytes_per_s is not None and not _SLOWEST <= choice.bytes_per_s <= _FASTEST:
        problem = f"{choice.bytes_per_s:g} bytes per second is no link between GPUs"
        raise InputError("--link-bytes-per-s", problem, "give bytes and not gigabytes per second, e.g. 4.5e11")
    elif choice.latency_s is not None and not choice.latency_s <= _LONGEST_S:
        raise InputError("--link-latency-s", f"{choice.latency_s:g} s is no link's", "give seconds, e.g. 1e-5")
    elif choice.bytes_per_s is None:
        raise InputError("--link-latency-s", "given without a bandwidth", "give --link-bytes-per-s too, e.g. 4.5e11")
    else:
        source = f"{choice.latency_s or 0:g} s and {choice.bytes_per_s:g} bytes/s a GPU, as given"
    width = _needed(meta, hidden, "hidden-size", "the width of the model, e.g. --hidden-size 5120")
    per_iteration: dict[str, Any] = {"all_reduces": 2 * layers} if ranks > 1 else {"all_to_alls": 2 * layers}
    common: dict[str, Any] = {"ranks": joined, "bytes_per_token": 2.0 * int(width), **per_iteration}
    if table is not None:
        return Links(**common, message_bytes=table.message_bytes, all_reduce_s=table.all_reduce_s), table.source
    return Links(**common, latency_s=choice.latency_s or 0.0, bytes_per_s=choice.bytes_per_s), source
