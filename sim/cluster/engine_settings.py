"""What an engine is set to; each layer of `sim.cluster.replica.Replica` takes from it what it needs."""

from __future__ import annotations

from dataclasses import dataclass

from sim.cluster.discipline import Batcher
from sim.engine.speculation import Speculation
from sim.engine.step_time import StepTime


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """The settings of one engine.

    Attributes
    ----------
    scheduling : one of `sim.cluster.discipline.DISCIPLINES`: "fcfs", or "priority" (lower `EngineRequest.priority`
        first), or "shortest-first".
    async_scheduling, prefix_caching : see `sim.cluster.replica`.
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
    batcher: Batcher | None = None
    speculation: Speculation | None = None
