"""A profile that was measured on one GPU, for another: each term by what the model's operators take on both.

Data sheets say what a GPU could do; operators were measured on both (aiconfigurator-core), and what a term of a fitted
step time stands for can be asked of them: iterations of one sequence, what each further one adds, an entry of its
context, a token, a query-key pair. A term is scaled by the ratio, the median over the engines whose kernels were
measured on both GPUs, since one engine's two measurements are of different releases.

FlashAttention 2 packs the query heads that share a KV head only where every sequence has one query (vLLM 0.19's
`FlashAttentionMetadataBuilder` says so); beside prompts it computes a whole tile of 64 queries for each sequence and
head. FlashAttention 3 packs them always. What that adds is taken from vLLM's kernels: prompts of 64 tokens, batch for
batch, less decodes.

What several tokens take beyond one (``batched_s``) stays: the line over loads from one sequence on holds the step. The
host is another one too, of which no database knows: its terms stay. The work that a server has with those who run
is tokens it hands on, of which a slower GPU makes fewer a second, so ``request_per_running_s`` shrinks with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from importlib.resources import files
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from sim.calibration.from_aiconfigurator import SYSTEMS, iteration_operators
from sim.engine.step_fitted import FittedStepTime
from sim.errors import InputError
from sim.scenario.profile import Profile
from sim.scenario.validation_errors import suggestion

SHIPPED = "operators.csv"
ENGINES = ("vllm", "sglang", "trtllm")
PACKS_BESIDE_PROMPTS = frozenset({"H100-SXM", "H100-PCIE", "H200-SXM", "B200-SXM", "B300-SXM", "GB200", "GB300"})
"""GPUs on which vLLM's kernel for prompts packs grouped queries: FlashAttention 3, FlashInfer's for Blackwell."""

_OWN = "vllm"
_LONE_CONTEXT = 16  # entries, too few to matter
_SEQUENCES = (1, 8, 32, 64, 100)  # as sweeps have them: a straight line is fitted over such loads there too
_CONTEXTS, _OF_SEQUENCES = (256, 1024, 4096), 16
_TOKENS = (4096, 8192)
_TILE, _TILE_BATCHES = 64, (8, 16, 32, 64)  # queries that a tile of FlashAttention 2 has


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTerms:
    """What terms of a fitted step time come to, in seconds, by the operators of one engine on one GPU.

    ``weights_s`` is an iteration of one sequence of few entries; ``per_decode_sequence_beside_prompts_s`` is known of
    vLLM alone.
    """

    weights_s: float
    per_decode_sequence_s: float
    per_context_token_s: float
    per_token_s: float
    per_prefill_pair_s: float
    per_decode_sequence_beside_prompts_s: float = 0.0


def shipped_operators(model: str, gpu: str) -> dict[str, OperatorTerms]:
    """Return what comes with tokenpools of a model in bf16 on one GPU, by engine.

    Raises
    ------
    InputError : nothing of the kind comes with it.
    """
    with files("sim.profiles").joinpath(SHIPPED).open(encoding="utf-8") as file:
        table = pd.read_csv(file)
    rows = table[(table.model == model) & (table.gpu == gpu)]
    if rows.empty:
        known = sorted({f"{row.model} on {row.gpu}" for row in table.itertuples()})
        raise InputError(f"{model} on {gpu}", f"is not in {SHIPPED}", suggestion(f"{model} on {gpu}", known))
    names = [each.name for each in fields(OperatorTerms)]
    return {
        str(engine): OperatorTerms(**dict(zip(names, map(float, values), strict=True)))
        for engine, values in zip(rows.engine, rows[names].to_numpy(), strict=True)
    }


def measured_operators(model: str, gpu: str, **layout: Any) -> dict[str, OperatorTerms]:
    """Return the same of any model and GPU that the package aiconfigurator-core knows, by engine.

    ``layout`` is what `sim.calibration.from_aiconfigurator.iteration_operators` takes.

    Raises
    ------
    InputError : the package is not installed, or knows no such model, GPU or layout.
    """
    found, last = {}, None
    for engine in ENGINES:
        try:
            found[engine] = _terms(iteration_operators(model, gpu, backend=engine, **layout), gpu, engine)
        except InputError as error:
            last = error
    if not found:
        assert last is not None
        raise last
    return found


def on_other_gpu(
    profile: Profile, there: dict[str, OperatorTerms], here: dict[str, OperatorTerms], *, name: str = ""
) -> Profile:
    """Return a profile measured on one GPU (``there``) as it would be on another (``here``).

    Limits (sequences, tokens, KV blocks) stay: they are the engine's, and the caller's to give.

    Raises
    ------
    InputError : the step time has no terms to scale, or no engine was measured on both GPUs.
    """
    step_time = profile.step_time
    if not isinstance(step_time, FittedStepTime):
        problem = f"its step time is {step_time.kind}, which has no terms that operators stand for"
        raise InputError(f"profile {profile.name}", problem, "give one of kind fitted (calibrate records, or sweep)")
    ratios = term_ratios(there, here)
    scaled = {term: getattr(step_time, term) * ratio for term, ratio in ratios.items()}
    beside_s = step_time.per_decode_sequence_beside_prompts_s
    if _OWN in there and _OWN in here:
        beside_s += (
            here[_OWN].per_decode_sequence_beside_prompts_s - there[_OWN].per_decode_sequence_beside_prompts_s
        )
    words = ", ".join(f"{term} x{ratio:.2f}" for term, ratio in ratios.items())
    return profile.model_copy(
        update={
            "name": name or profile.name,
            "source": f"{profile.source}; on another GPU by measured operators (aiconfigurator-core): {words}",
            "error": "not compared with a run; one such transfer, H100 to A100: docs/fidelity.md",
            "step_time": replace(step_time, **scaled, per_decode_sequence_beside_prompts_s=max(0.0, beside_s)),
            "request_per_running_s": profile.request_per_running_s / ratios["weights_s"],
            "calibration": None,
        }
    )


def term_ratios(there: dict[str, OperatorTerms], here: dict[str, OperatorTerms]) -> dict[str, float]:
    """Return by what each term is multiplied: the median over engines measured on both.

    Raises
    ------
    InputError : there is none.
    """
    both = [engine for engine in there if engine in here]
    if not both:
        one, other = (", ".join(each) or "no engine" for each in (there, here))
        problem = f"measured with {one} on one, {other} on the other"
        raise InputError("operators of the two GPUs", problem, "name GPUs that one engine was measured on")
    names = [each.name for each in fields(OperatorTerms)][:-1]
    return {
        term: float(median(getattr(here[engine], term) / getattr(there[engine], term) for engine in both))
        for term in names
    }


def _terms(operators: Any, gpu: str, engine: str) -> OperatorTerms:
    """Read the terms off iterations of both kinds."""

    def decode_s(batch: int, context: int) -> float:
        return float(sum(operators.decode(batch, context)))

    ladder = [decode_s(batch, _LONE_CONTEXT) for batch in _SEQUENCES]
    entries = [_OF_SEQUENCES * context for context in _CONTEXTS]
    rest_s, attention_s = zip(*(operators.prompts(1, n)[:2] for n in _TOKENS), strict=True)
    beside_s = 0.0
    if engine == _OWN and gpu not in PACKS_BESIDE_PROMPTS:
        tiles = [operators.prompts(batch, _TILE)[1] - operators.decode(batch, _TILE)[1] for batch in _TILE_BATCHES]
        beside_s = _slope(_TILE_BATCHES, tiles)
    return OperatorTerms(
        weights_s=ladder[0],
        per_decode_sequence_s=_slope(_SEQUENCES, ladder),
        per_context_token_s=_slope(entries, [decode_s(_OF_SEQUENCES, context) for context in _CONTEXTS]),
        per_token_s=(rest_s[1] - rest_s[0]) / (_TOKENS[1] - _TOKENS[0]),
        per_prefill_pair_s=attention_s[1] / (_TOKENS[1] * (_TOKENS[1] + 1) / 2),
        per_decode_sequence_beside_prompts_s=max(0.0, beside_s),
    )


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    return float(np.polyfit(np.asarray(x, float), np.asarray(y, float), 1)[0])


def table_rows(model: str, gpus: Sequence[str] = tuple(SYSTEMS)) -> list[tuple[Any, ...]]:
    """Return the rows of the shipped table for a model: model, GPU, engine and its terms."""
    return [
        (model, gpu, engine, *(float(f"{term:.4g}") for term in astuple(terms)))
        for gpu in gpus
        for engine, terms in measured_operators(model, gpu).items()
    ]
