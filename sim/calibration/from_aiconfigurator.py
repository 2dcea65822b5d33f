"""A profile of a model on a GPU that nobody here measured: from the operator database of AIConfigurator.

The package aiconfigurator-core (NVIDIA, Apache-2.0; the extra ``aiconfigurator``) holds measured times of operators and
collectives by GPU and engine version, and adds them up to iterations. Asked for each on a grid, they make a table step
time like one from kernel tables; what hosts and servers take is in none of them.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from types import MappingProxyType
from typing import Any

from sim.calibration.kernel_tables import thinned
from sim.engine.links import Links
from sim.engine.step_table import TableStepTime
from sim.errors import InputError
from sim.extras import require
from sim.scenario.profile import Calibration, Profile
from sim.scenario.validation_errors import suggestion

PACKAGE = "aiconfigurator-core"
SYSTEMS: Mapping[str, str] = MappingProxyType({
    "A100-80GB": "a100_sxm", "B200-SXM": "b200_sxm", "B300-SXM": "b300_sxm", "GB200": "gb200", "GB300": "gb300",
    "H100-PCIE": "h100_pcie", "H100-SXM": "h100_sxm", "H200-SXM": "h200_sxm", "L4": "l4", "L40S": "l40s",
    "RTX-PRO-6000": "rtx_pro_6000_server",
})  # fmt: skip
"""What the package calls GPUs."""

_TOKENS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_BEFORE = (0, 1024, 4096, 16384)
_BATCHES = (1, 4, 16, 64, 128, 256)
_CONTEXTS = (16, 256, 1024, 4096, 16384)
_ATTENTION = ("attention", "mla", "dsa", "gdn", "kda", "msa", "mamba")
_COLLECTIVES = ("_ar", "allreduce", "all_gather", "reduce_scatter", "dispatch", "combine", "p2p", "a2a")
_LEAST_S = 1e-7
_USABLE = 0.9  # vLLM's gpu_memory_utilization


def calibrate_aiconfigurator(
    model: str,
    gpu: str,
    *,
    tp: int = 1,
    ep: int = 1,
    dp: int = 1,
    backend: str = "vllm",
    version: str | None = None,
    gemm_quant: str | None = None,
    max_num_seqs: int = 256,
    max_num_batched_tokens: int = 8192,
    kv_blocks: int | None = None,
    name: str | None = None,
    today: date | None = None,
) -> Profile:
    """Return the profile of an engine of ``tp`` x ``dp`` GPUs: the iterations, sequences and KV blocks of each rank.

    Parameters
    ----------
    model : as the package knows it (``meta-llama/Meta-Llama-3.1-70B``), or the end of such a name.
    gpu : one of `SYSTEMS`.
    tp, ep, dp : ranks of tensor, expert and attention data parallelism; experts are shared by tp x dp, of which ``ep``
        by whole experts.
    backend, version : whose measurements; left out, the newest version that the package has.
    gemm_quant : precision of weights, as the package names it (``fp8``, ``nvfp4``); left out, the model's own.
    kv_blocks : of 16 tokens; left out, what 0.9 of the memory holds after weights and reserve, by the package.

    Raises
    ------
    InputError : the package is not installed, or knows no such model, GPU or layout.
    """
    sdk = _sdk()
    known = sdk.models()
    path = _named(model, known, "model")
    system = SYSTEMS.get(gpu)
    if system is None:
        raise InputError(f"GPU {gpu}", "unknown to aiconfigurator-core", suggestion(gpu, list(SYSTEMS)))
    experts = {"moe_tp_size": tp * dp // ep, "moe_ep_size": ep} if tp * dp % ep == 0 else None
    if experts is None:
        raise InputError("--ep", f"{ep} does not divide the {tp * dp} GPUs", "give a divisor of --tp x --dp")
    if gemm_quant is not None and gemm_quant not in sdk.precisions():
        raise InputError("--precision", f"unknown precision {gemm_quant}", suggestion(gemm_quant, sdk.precisions()))
    options: dict[str, Any] = {"tp_size": tp, "attention_dp_size": dp, **experts, "gemm_quant_mode": gemm_quant}
    try:
        version = version or sdk.newest(system, backend)
        handle = sdk.compile(path, system, backend, backend_version=version, **options)
        step_time = _step_time(handle, max_num_batched_tokens, tp * dp)
        blocks = kv_blocks or sdk.kv_blocks(path, system, backend, version, options, max_num_batched_tokens)
    except Exception as error:  # the package raises of many kinds
        word = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        problem = f"cannot be estimated by {PACKAGE} ({word})"
        raise InputError(f"{model} on {gpu}", problem, "give another layout, or measure") from None
    release = importlib.metadata.version(PACKAGE)
    layout = f"TP {tp}" + (f", EP {ep}" if ep > 1 else "") + (f", DP {dp}" if dp > 1 else "")
    return Profile(
        name=name or f"{gpu.lower()}-{path.rsplit('/', 1)[-1].lower()}-tp{tp}",
        source=f"{PACKAGE} {release} (NVIDIA, Apache-2.0): {path} on {gpu}, {layout}, {backend} {version}",
        error="not compared with a run; such profiles by family: docs/fidelity.md",
        gpus=tp * dp,
        data_parallel=dp,
        expert_parallel=dp > 1 and ep > 1,
        step_time=step_time,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max(max_num_batched_tokens, max_num_seqs),
        kv_blocks=blocks,
        async_scheduling=True,
        prefix_caching=True,
        calibration=Calibration(
            method="iterations added up from a database of measured operators and collectives",
            date=(today or date.today()).isoformat(),
            engine=f"{backend} {version}",
            measurements=0,
            ranges={
                "prefill_tokens": (1.0, float(_TOKENS[-1])),
                "decode_sequences": (1.0, float(_BATCHES[-1])),
                "context_tokens_each": (1.0, float(_CONTEXTS[-1])),
            },
        ),
    )


@dataclass(frozen=True, slots=True)
class IterationOperators:
    """What iterations of a model take on a GPU: seconds of kernels by tokens, of attention, and of collectives."""

    handle: Any

    def prompts(self, batch: int, tokens: int) -> tuple[float, float, float]:
        """Return those of an iteration of ``batch`` prompts of ``tokens`` each."""
        found = self.handle.run_static_per_op(batch_size=batch, isl=tokens, osl=1, prefix=0, mode="static_ctx")
        return _split(found[0])

    def decode(self, batch: int, context: int) -> tuple[float, float, float]:
        """Return those of an iteration of ``batch`` sequences of ``context`` entries each."""
        return _split(self.handle.decode_step_per_op(batch, max(1, context - 1), 2))


def iteration_operators(
    model: str, gpu: str, *, tp: int = 1, backend: str = "vllm", gemm_quant: str | None = None
) -> IterationOperators:
    """Return the operators of an engine's iterations, by the newest measurements of ``backend`` that the package has.

    Raises
    ------
    InputError : the package is not installed, or knows no such model, GPU or layout.
    """
    sdk = _sdk()
    path = _named(model, sdk.models(), "model")
    system = SYSTEMS.get(gpu)
    if system is None:
        raise InputError(f"GPU {gpu}", "unknown to aiconfigurator-core", suggestion(gpu, list(SYSTEMS)))
    options: dict[str, Any] = {
        "tp_size": tp, "attention_dp_size": 1, "moe_tp_size": tp, "moe_ep_size": 1, "gemm_quant_mode": gemm_quant,
    }  # fmt: skip
    try:
        version = sdk.newest(system, backend)
        return IterationOperators(sdk.compile(path, system, backend, backend_version=version, **options))
    except Exception as error:  # the package raises of many kinds
        word = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        problem = f"cannot be estimated by {PACKAGE} ({word})"
        raise InputError(f"{model} on {gpu}, {backend}", problem, "give another model or GPU") from None


def known_gpu(gpu: str) -> str | None:
    """Return a GPU's name if vLLM's defaults on it are known; what the package calls it is checked later."""
    return gpu if gpu in SYSTEMS else None


def _step_time(handle: Any, max_num_batched_tokens: int, gpus: int) -> TableStepTime:
    """Return the table of what the package says of prompts, of decodes, and of what the GPUs tell each other."""
    import pandas as pd

    tokens = tuple(n for n in _TOKENS if n <= max(512, max_num_batched_tokens))

    def prompt(n: int, before: int) -> tuple[float, float, float]:
        found = handle.run_static_per_op(batch_size=1, isl=n + before, osl=1, prefix=before, mode="static_ctx")
        return _split(found[0])

    def decode(batch: int, context: int) -> tuple[float, float, float]:
        return _split(handle.decode_step_per_op(batch, max(1, context - 1), 2))

    prompts = {(n, c): prompt(n, c) for n in tokens for c in _BEFORE}
    decodes = {(b, k): decode(b, k) for b in _BATCHES for k in _CONTEXTS}
    rest = {float(b): decodes[b, _CONTEXTS[0]][0] for b in _BATCHES}
    rest |= {float(n): max(prompts[n, 0][0], max(rest.values())) for n in tokens if n > _BATCHES[-1]}
    told = {float(b): decodes[b, _CONTEXTS[0]][2] for b in _BATCHES}
    told |= {float(n): prompts[n, 0][2] for n in tokens if n > _BATCHES[-1]}
    links = None
    if gpus > 1:
        seconds = [max(_LEAST_S, told[n]) for n in sorted(told)]  # all collectives of an iteration, by its tokens
        links = Links(
            ranks=gpus, bytes_per_token=1.0, all_reduces=1, message_bytes=tuple(sorted(told)),
            all_reduce_s=tuple(seconds),
        )  # fmt: skip
    series = pd.Series(rest).sort_index().cummax()
    dense_tokens, dense_s = thinned(series, 0.003)
    rows = tuple(tuple(max(_LEAST_S, decodes[b, k][1]) for k in _CONTEXTS) for b in _BATCHES)
    one = tuple((1.0, 1.0) for _ in range(2))
    return TableStepTime(
        dense_tokens=tuple(dense_tokens), dense_s=tuple(dense_s),
        sequences=(1.0, 256.0), sequence_s=(_LEAST_S, _LEAST_S),
        decode_batch=_floats(_BATCHES), decode_context=_floats(_CONTEXTS), decode_s=rows,
        prefill_tokens=_floats(tokens), prefill_context=_floats(_BEFORE),
        prefill_s=tuple(tuple(max(_LEAST_S, prompts[n, c][1]) for c in _BEFORE) for n in tokens),
        beside_batch=_floats(_BATCHES), beside_context=_floats(_CONTEXTS), beside_s=rows,
        mixed_tokens=(16.0, 8192.0), mixed_before=(0.0, 16384.0), mixed_batch=(1.0, 256.0),
        mixed_context=(16.0, 16384.0), mixed_ratio=((one, one), (one, one)), links=links,
    )  # fmt: skip


def _split(operators: Any) -> tuple[float, float, float]:
    """Return the seconds of kernels that depend on tokens alone, of attention, and of collectives."""
    rest_ms = attention_ms = told_ms = 0.0
    for operator, latency_ms, *_ in operators:
        name = operator.lower()
        if any(word in name for word in _COLLECTIVES):
            told_ms += latency_ms
        elif any(word in name for word in _ATTENTION) and not name.endswith("gemm"):
            attention_ms += latency_ms
        else:
            rest_ms += latency_ms
    return rest_ms / 1e3, attention_ms / 1e3, told_ms / 1e3


def _floats(values: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(map(float, values))


def _named(model: str, known: list[str], what: str) -> str:
    """Return the full name that a model is known by."""
    if model in known:
        return model
    short = {path.rsplit("/", 1)[-1].lower().removeprefix("meta-"): path for path in known}
    found = short.get(model.rsplit("/", 1)[-1].lower().removeprefix("meta-"))
    if found is None:
        raise InputError(f"{what} {model}", f"unknown to {PACKAGE}", suggestion(model, [*known, *short]))
    return found


class _Sdk:
    """The few calls of the package that are used, quiet: it prints and logs of what it falls back on."""

    def __init__(self) -> None:
        from aiconfigurator_core.sdk.engine import EngineHandle

        self._handle = EngineHandle

    def models(self) -> list[str]:
        from importlib.resources import files

        entries = files("aiconfigurator_core").joinpath("model_configs").iterdir()
        ends = "_config.json"
        names = [e.name.removesuffix(ends) for e in entries if e.name.endswith(ends) and "hf_quant" not in e.name]
        return sorted(name.replace("--", "/", 1) for name in names)

    def precisions(self) -> list[str]:
        """Return what weights may be, as the package names it."""
        from aiconfigurator_core.sdk.common import GEMMQuantMode

        return [mode.name for mode in GEMMQuantMode]

    def newest(self, system: str, backend: str) -> str:
        """Return the version whose measurements the package takes where none is named."""
        from aiconfigurator_core.sdk.engine import _literal_backend_version

        with _quiet():
            return str(_literal_backend_version(system, backend, None, None, None))

    def compile(self, *args: Any, **options: Any) -> Any:
        with _quiet():
            return self._handle.compile(*args, **options)

    def kv_blocks(
        self, path: str, system: str, backend: str, version: str | None, options: Mapping[str, Any], batched: int
    ) -> int:
        """Return the KV blocks that the package says fit into 0.9 of the memory."""
        from aiconfigurator_core.sdk.memory import KVCacheEstimator

        with _quiet():
            estimator = KVCacheEstimator.from_request(
                path, system, backend, version, max_num_tokens=batched, max_batch_size=1, **options
            )
            found = estimator.estimate(is_of_free=False, fraction=_USABLE, gpu_memory_capacity_bytes_override=None)
        return int(found["total_kv_size_tokens"]) // 16


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _sdk() -> _Sdk:
    require("aiconfigurator_core", "calibrate aiconfigurator")
    return _Sdk()
