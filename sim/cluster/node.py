"""A replica in SimPy's time: the wakes that `sim.cluster.replica.Replica` asks for become alarms (`Wake`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from sim.cluster.agenda import Wake
from sim.cluster.attempt import Attempt
from sim.cluster.clock import Clock
from sim.cluster.engine_request import NEVER_S, EngineRequest
from sim.cluster.engine_settings import EngineSettings
from sim.cluster.replica import Listener, Replica
from sim.cluster.server_work import ServerWork
from sim.engine.step_time import StepTime
from sim.scenario.profile import Profile

if TYPE_CHECKING:  # each is imported where a profile asks for it
    from sim.cluster.disaggregated import DisaggregatedReplica
    from sim.cluster.engine_group import Engine
    from sim.cluster.lora import LoraReplica
    from sim.cluster.pipeline import PipelinedReplica
    from sim.cluster.ranks import RankedReplica

R = TypeVar("R", bound=EngineRequest)
Unit: TypeAlias = "Replica[R] | PipelinedReplica[R] | DisaggregatedReplica[R] | RankedReplica[R] | LoraReplica[R]"
"""What a profile may call one replica."""


def replica_of(
    profile: Profile, step_time: StepTime, listener: Listener[R], arm: Callable[[float], None]
) -> Replica[R]:
    """Return an engine with the settings of a profile; ``step_time`` may be another than the profile's."""
    if profile.scheduling == "flow-prefill":
        from sim.cluster.flow_prefill import FlowReplica

        settings = _settings(profile, step_time)
        return FlowReplica(settings, operator_s=profile.operator_s, listener=listener, arm=arm)
    return Replica(_scheduled_settings(profile, step_time), listener=listener, arm=arm)


def _scheduled_settings(profile: Profile, step_time: StepTime) -> EngineSettings:
    """Return the settings of a profile, its scheduling and speculation included."""
    settings = _settings(profile, step_time)
    if profile.scheduling == "fair-batching":
        from sim.cluster.fair_batching import FairBatcher

        settings = replace(settings, batcher=FairBatcher(step_time, profile.tpot_slo_s or NEVER_S))
    else:
        settings = replace(settings, scheduling=profile.scheduling)
    if profile.speculation is not None:
        from sim.engine.speculation import SpeculativeStepTime

        settings = replace(
            settings,
            step_time=SpeculativeStepTime(step_time, profile.speculation),
            speculation=profile.speculation,
        )
    return settings


def unit_of(
    profile: Profile, listener: Listener[R], arm: Callable[[float], None]
) -> Unit[R]:
    """Return what a profile calls one replica: an engine, ranks of one, or several engines that divide the work."""
    if profile.data_parallel > 1:
        return _ranked(profile, listener, arm)
    if profile.pipeline_parallel > 1:
        return _staged(profile, listener, arm)
    layout = profile.disaggregated
    if profile.lora is not None:
        from sim.cluster.lora import LoraReplica

        return LoraReplica(
            profile.lora, make=lambda listener, arm: replica_of(profile, profile.step_time, listener, arm),
            listener=listener, arm=arm,
        )  # fmt: skip
    if layout is None:
        return replica_of(profile, profile.step_time, listener, arm)
    from sim.cluster.disaggregated import DecodeReplica, DisaggregatedReplica

    # A cache of prompts is of no use to an engine that computes none.
    decode = replace(_settings(profile, profile.step_time), prefix_caching=False)
    return DisaggregatedReplica(
        layout,
        make_prefill=lambda listener, arm: replica_of(profile, profile.step_time, listener, arm),
        make_decode=lambda listener, arm: DecodeReplica(decode, listener=listener, arm=arm),
        kv_bytes_per_token=profile.kv_bytes_per_token or 0.0,
        listener=listener,
        arm=arm,
    )


def _ranked(profile: Profile, listener: Listener[R], arm: Callable[[float], None]) -> RankedReplica[R]:
    """Return the ranks of a profile; experts that are shared keep them in step."""
    from sim.cluster.ranks import RankedReplica, RankInStep
    from sim.engine.ranks import Ranks, captured_tokens
    from sim.engine.step_table import TableStepTime

    step_time = profile.step_time
    shared = isinstance(step_time, TableStepTime) and step_time.shares_experts and profile.speculation is None
    ranks = Ranks(
        count=profile.data_parallel, in_step=profile.expert_parallel, score=profile.data_parallel_score,
        experts_s=step_time.experts_s if shared else None, captured_tokens=captured_tokens(profile.max_num_seqs),
    )  # fmt: skip
    make = RankInStep if ranks.in_step else Replica
    settings = _scheduled_settings(profile, profile.step_time)

    def rank(*, listener: Listener[R], arm: Callable[[float], None]) -> Engine[R]:
        if profile.pipeline_parallel > 1:
            return _staged(profile, listener, arm)
        return make(settings, listener=listener, arm=arm)

    return RankedReplica(ranks, make=rank, listener=listener, arm=arm)


def _staged(profile: Profile, listener: Listener[R], arm: Callable[[float], None]) -> PipelinedReplica[R]:
    """Return an engine whose layers are spread over the stages of a profile."""
    from sim.cluster.pipeline import PipelinedReplica
    from sim.engine.pipeline import Stages

    stages = Stages(count=profile.pipeline_parallel, transfer_s=profile.pipeline_transfer_s)
    return PipelinedReplica(_scheduled_settings(profile, profile.step_time), stages, listener=listener, arm=arm)


def _settings(profile: Profile, step_time: StepTime) -> EngineSettings:
    return EngineSettings(
        step_time=step_time,
        max_num_seqs=profile.max_num_seqs,
        max_num_batched_tokens=profile.max_num_batched_tokens,
        kv_blocks=profile.kv_blocks,
        block_tokens=profile.block_tokens,
        async_scheduling=profile.async_scheduling,
        prefix_caching=profile.prefix_caching,
        long_prefill_token_threshold=profile.long_prefill_token_threshold,
        long_prefill_token_threshold_adaptive=profile.long_prefill_token_threshold_adaptive,
        scheduler_reserve_full_isl=profile.scheduler_reserve_full_isl,
        watermark=profile.watermark,
    )


class Node:
    """One replica and its clock.

    ``up`` says whether it takes requests; ``reachable`` whether those sent to it arrive, which they still do while it
    drains.
    """

    def __init__(self, clock: Clock, replica_id: int, profile: Profile, listener: Listener[Attempt]) -> None:
        wake = Wake(clock.agenda)
        self.replica_id = replica_id
        self.profile = profile
        self.up = self.reachable = True
        self.replica = unit_of(profile, listener, wake.arm)
        wake.call = self.replica.boundary
        server = ServerWork(profile, self.replica)
        self.submit = server.submit if server.takes_time else self.replica.submit

    def cached_tokens(self, attempt: Attempt, now_s: float) -> int:
        """Return how many leading tokens of a prompt are in a cache here, in the best of several engines."""
        return _cached_tokens(self.replica, attempt, now_s)


def _cached_tokens(unit: Any, attempt: Attempt, now_s: float) -> int:
    """Look into an engine, or into all of a group."""
    engines = getattr(unit, "engines", None)
    if engines is not None:
        return max((_cached_tokens(engine, attempt, now_s) for engine in engines), default=0)
    cache = unit.prefix_cache
    if cache is None:
        return 0
    cache.sync(unit.kv_total_blocks - unit.kv_used_blocks_at(now_s))  # what was taken since is not there
    found, _ = cache.look(attempt, attempt.prompt_tokens)
    return int(found * cache.block_tokens)
