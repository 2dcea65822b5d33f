"""From a server's address to what was measured of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sim import collector
from sim.calibration.from_server import Measurements
from sim.errors import InputError
from sim.live.loadgen.completions_client import PromptKind, id_range
from sim.live.loadgen.discover import discover
from sim.live.loadgen.iteration_timing import Engine, measure, plan_for

_STATE = "give it by hand"


def measure_endpoint(
    base_url: str, *, model: str | None = None, max_num_seqs: int = 256, max_num_batched_tokens: int = 2048,
    max_model_tokens: int | None = None, kv_blocks: int | None = None, block_tokens: int | None = None,
    kv_bytes_per_token: float | None = None, async_scheduling: bool = True, token_ids: str = "100:999",
    key: str | None = None, quick: bool = False, progress: Callable[[str], None] = lambda _: None,
) -> Measurements:
    """Measure a server; what is not given is read from its metrics and its list of models.

    Raises
    ------
    InputError : it does not answer, or does not say what is not given.
    RunError : it refused a measurement.
    """
    first, last = id_range(token_ids)
    found = discover(base_url, key=key)
    if found.v0_engine:
        raise InputError(
            base_url, "runs vLLM's V0 engine, which no profile stands for: it computes prompts first, on their own",
            "start it with VLLM_USE_V1=1, or a vLLM from 0.11 on, which has V1 only",
        )  # fmt: skip
    blocks = kv_blocks or _number(found.cache, "num_gpu_blocks", base_url, "--kv-blocks")
    block = block_tokens or _number(found.cache, "block_size", base_url, "--block-tokens")
    longest = max_model_tokens or found.max_model_tokens
    if longest is None:
        raise InputError(base_url, "does not say how long a context may be", "give --max-model-tokens")
    engine = Engine(
        max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens, max_model_tokens=longest,
        kv_tokens=blocks * block,
    )  # fmt: skip
    prompts = PromptKind(model=model or found.model, first_id=first, last_id=last)
    with collector.paused():
        seen = asyncio.run(
            measure(base_url, prompts, engine, plan_for(engine, quick=quick), key=key, progress=progress)
        )
    return Measurements(
        steps=seen, name=prompts.model, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens,
        kv_blocks=blocks, block_tokens=block, kv_bytes_per_token=kv_bytes_per_token, max_model_tokens=longest,
        async_scheduling=async_scheduling, prefix_caching=found.cache.get("enable_prefix_caching") == "True",
    )  # fmt: skip


def _number(cache: object, name: str, base_url: str, option: str) -> int:
    value = cache.get(name, "") if isinstance(cache, dict) else ""
    if not (value.isascii() and value.isdecimal() and len(value) < 19):
        raise InputError(base_url, f"its metrics do not say {name}", f"{_STATE}: {option}")
    return int(value)
