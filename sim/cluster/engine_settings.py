"""What an engine is set to; each layer of `sim.cluster.replica.Replica` takes from it what it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.cluster.discipline import Batcher
from sim.engine.step_time import StepTime

if TYPE_CHECKING:
    from sim.engine.speculation import Speculation


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """The settings of one engine.

    Attributes
    ----------
    scheduling : one of `sim.cluster.discipline.DISCIPLINES`: "fcfs", or "priority" (lower `EngineRequest.priority`
        first), or "shortest-first".
    async_scheduling, prefix_caching : see `sim.cluster.replica`.
    long_prefill_token_threshold : the most tokens that an iteration takes of one prompt, where others are there too;
        0 for no limit. ``long_prefill_token_threshold_adaptive``: or an even share of the budget, if that is more.
    scheduler_reserve_full_isl : whether a request is let in only where its whole prompt fits.
    watermark : the share of the KV blocks that is kept free of those who come in beside others.
    batcher : limits the prompt tokens of an iteration; None: the token budget alone does.
    speculation : how several tokens come of one iteration; None: one does. What that costs is in ``step_time``.
    """

    step_time: StepTime
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_blocks: int
    block_tokens: int
    scheduling: str = "fcfs"
    async_scheduling: bool = False
    prefix_caching: bool = False
    long_prefill_token_threshold: int = 0
    long_prefill_token_threshold_adaptive: bool = False
    scheduler_reserve_full_isl: bool = True
    watermark: float = 0.0
    batcher: Batcher | None = None
    speculation: Speculation | None = None
