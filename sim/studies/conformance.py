"""Our replica on the loads that vLLM's own scheduler is given, iteration by iteration.

`benchmarks/conformance` makes the loads and runs vLLM; here the replica tells of each iteration what vLLM's driver
tells: who computes how many tokens, the blocks in use, and who was preempted. What it jumps over is told as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from sim.cluster.engine_request import DECODE, EngineRequest
from sim.cluster.engine_settings import EngineSettings
from sim.cluster.pipeline import PipelinedReplica
from sim.cluster.replica import Replica
from sim.engine.pipeline import Stages
from sim.engine.speculation import Speculation
from sim.engine.step_time import LinearStepTime

Step = tuple[float, dict[str, int], int, list[str]]
"""When an iteration began, the tokens of each request in it, the blocks in use, and who was preempted for it."""


class Asked(EngineRequest):
    """A request of a load, with the name that the traces know it by."""

    __slots__ = ("name",)

    def __init__(self, name: str, entry: Mapping[str, Any]) -> None:
        super().__init__(entry["prompt"], entry["output"], entry.get("priority", 0))
        self.name = name
        self.stops = bool(entry.get("stops"))
        if entry.get("prefix"):
            self.prefix = tuple((line, end) for line, end in entry["prefix"])


class TracedReplica(Replica[Asked]):
    """A replica that writes down every iteration."""

    __slots__ = ("_first_used", "_lost", "steps")

    def __init__(self, settings: EngineSettings, **heard: Any) -> None:
        super().__init__(settings, **heard)
        self.steps: list[Step] = []
        self._lost: list[str] = []
        self._first_used = 0

    def _preempt(self, request: Asked, blocks: int, tokens: int) -> None:
        self._lost.append(request.name)
        super()._preempt(request, blocks, tokens)

    def _decoding_tokens(self) -> dict[str, int]:
        drafts = 0 if self._speculation is None else self._speculation.tokens
        return {r.name: 1 + drafts for r in self._running if r.state == DECODE and r not in self._paused}

    def _begin_iteration(self, now_s: float, chunks: list[tuple[Asked, int]]) -> None:
        tokens = self._decoding_tokens() | {r.name: n for r, n in chunks} | {r.name: 1 for r in self._overrunning}
        self.steps.append((round(now_s, 9), tokens, self.kv.used_blocks, self._lost))
        self._lost = []
        super()._begin_iteration(now_s, chunks)

    def _begin_decode_run(self, now_s: float) -> None:
        self._first_used = self.kv.used_blocks
        super()._begin_decode_run(now_s)

    def _complete(self) -> list[Asked]:
        if self._chunks is None:
            tokens = self._decoding_tokens()
            for i in range(self._run):
                used = self.kv.used_blocks if i else self._first_used
                used += self.kv.growth(self.clock, self._gained(i + 1))
                reads = self._reads(self._decoding)
                at_s = self._run_start_s + self._step.decode_run_s(self._decoding, reads, i)
                self.steps.append((round(at_s, 9), tokens, used, self._lost if i == 0 else []))
            self._lost = []
        return super()._complete()


class TracedPipeline(PipelinedReplica[Asked]):
    """An engine of several stages that writes down every batch that it plans."""

    def __init__(self, settings: EngineSettings, stages: Stages, **heard: Any) -> None:
        super().__init__(settings, stages, **heard)
        self.steps: list[Step] = []
        self._lost: list[str] = []

    def _preempt(self, request: Asked) -> None:
        self._lost.append(request.name)
        super()._preempt(request)

    def _plan(self, now_s: float) -> bool:
        preempted = super()._plan(now_s)
        rows = self._batches[-1].rows
        if rows:
            tokens = {row.request.name: row.tokens for row in rows}
            self.steps.append((round(now_s, 9), tokens, self.kv_used_blocks_at(now_s), self._lost))
            self._lost = []
        return preempted


@dataclass(frozen=True, slots=True)
class Trace:
    """What an engine did with a load."""

    steps: list[Step]
    first_s: dict[str, float]
    finish_s: dict[str, float]
    preemptions: dict[str, int]


class _Heard:
    def __init__(self) -> None:
        self.first_s: dict[str, float] = {}
        self.finish_s: dict[str, float] = {}

    def on_first_token(self, request: Asked, now_s: float) -> None:
        """Note a first token."""
        self.first_s[request.name] = now_s

    def on_finish(self, request: Asked, now_s: float) -> None:
        """Note a last token."""
        self.finish_s[request.name] = now_s


def speculation_of(drafts: int, accepted: Sequence[int]) -> Speculation:
    """Return drafts of which as many are accepted in the mean as a load has vLLM accept."""
    mean = fmean(accepted)
    low, high = 0.0, 1.0
    for _ in range(60):  # the mean of an acceptance rate rises with it
        rate = (low + high) / 2
        low, high = (rate, high) if sum(rate**i for i in range(1, drafts + 1)) < mean else (low, rate)
    return Speculation(tokens=drafts, acceptance=high, per_draft_token_s=0.0)


def settings_of(setting: Mapping[str, Any]) -> EngineSettings:
    """Return a load's settings as our engine takes them."""
    drafts = setting.get("drafts")
    return EngineSettings(
        step_time=LinearStepTime(**setting["step"]),
        speculation=speculation_of(drafts, setting["accepted"]) if drafts else None,
        max_num_seqs=setting["max_num_seqs"],
        max_num_batched_tokens=setting["max_num_batched_tokens"],
        kv_blocks=setting["kv_blocks"],
        block_tokens=setting["block_tokens"],
        scheduling=setting["scheduling"],
        async_scheduling=setting["async_scheduling"],
        prefix_caching=setting["prefix_caching"],
        long_prefill_token_threshold=setting["long_prefill_token_threshold"],
        long_prefill_token_threshold_adaptive=setting["long_prefill_token_threshold_adaptive"],
        scheduler_reserve_full_isl=setting["reserve_full_prompt"],
        watermark=setting["watermark"],
    )


def traced(setting: Mapping[str, Any], **heard: Any) -> TracedReplica | TracedPipeline:
    """Return the engine of a load."""
    if "stages" not in setting:
        return TracedReplica(settings_of(setting), **heard)
    stages = Stages(count=setting["stages"], transfer_s=setting["transfer_s"])
    return TracedPipeline(settings_of(setting), stages, **heard)


def replay(case: Mapping[str, Any]) -> Trace:
    """Return what our replica does with a load."""
    heard = _Heard()
    wakes = [math.inf]
    replica = traced(case["setting"], listener=heard, arm=lambda at_s: wakes.__setitem__(0, at_s))
    requests: dict[str, Asked] = {}

    def until(at_s: float) -> None:
        while wakes[0] < at_s:
            now_s, wakes[0] = wakes[0], math.inf
            replica.boundary(now_s)

    for entry in sorted(case["script"], key=lambda entry: entry["at_s"]):
        until(entry["at_s"])
        name = str(entry["id"])
        if entry["what"] == "submit":
            requests[name] = Asked(name, entry)
            replica.submit(requests[name], entry["at_s"])
        else:
            replica.abort(requests[name], entry["at_s"])
    until(1e9)
    return Trace(replica.steps, heard.first_s, heard.finish_s, {name: r.preemptions for name, r in requests.items()})


def first_difference(theirs: Sequence[Sequence[Any]], ours: Sequence[Sequence[Any]]) -> str:
    """Return where two traces part, in words; empty where they are the same."""
    for i, (a, b) in enumerate(zip(theirs, ours, strict=False)):
        for what, at in (("tokens", 1), ("preempted", 3), ("blocks", 2)):
            if a[at] != b[at]:
                return f"{what}: iteration {i} at {a[0]} s: vLLM {a[at]}, ours {b[at]} at {b[0]} s"
        if abs(a[0] - b[0]) > 1e-6:
            return f"time: iteration {i}: vLLM at {a[0]} s, ours at {b[0]} s"
    if len(theirs) != len(ours):
        return f"length: vLLM {len(theirs)} iterations, ours {len(ours)}"
    return ""
