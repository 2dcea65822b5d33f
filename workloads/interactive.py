"""Requests that wait for the answers to others: closed loops, conversations and agents.

All that happens is drawn beforehand, with streams of its own: how long people think and tools run, how often, and how
many tokens. What a policy changes is when each request comes, and nothing else, so policies meet the same people.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from workloads.bursts import Gamma
from workloads.lengths import MAX_TOKENS
from workloads.points import LEAST_RATE_PER_S
from workloads.prefixes import ChainPrefixes, Chosen, name_space
from workloads.requests import Demand, Floats, FollowUp, Ints, Lengths, Prefixes, Streams

_BLOCK = 32
_AFTER_REFUSAL = {"description": "give what a refusal for good does, e.g. abandon: the rest is never asked, or go-on"}
_CONTEXT = {"ge": 1, "le": MAX_TOKENS, "description": "give the most tokens of context that are sent, e.g. 32768"}
_CV = {"ge": 0, "le": 100, "description": "give standard deviation over mean, e.g. 1.0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop:
    """A fixed number of users, each of whom asks, reads the answer, thinks and asks again, for ever.

    A user's first request comes after a thinking time. ``requests`` of the workload is how many they make together;
    where it or the workload's end is reached, nobody asks again. A refusal for good is taken as an answer.
    """

    kind: Literal["closed-loop"] = "closed-loop"
    users: int = field(metadata={"ge": 1, "le": 1_000_000, "description": "give the number of users, e.g. 20"})
    mean_think_s: float = field(
        default=0.0, metadata={"ge": 0, "description": "give the mean time between answer and request, e.g. 10"}
    )
    think_cv: float = field(default=1.0, metadata=_CV)

    def demand(
        self, lengths: Lengths, stream: Streams, name: str, from_s: float, until_s: float, limit: int | None
    ) -> Demand:
        """See `workloads.generate.Interactive`."""
        plan = _Loop(self, lengths, stream, name, until_s, limit)
        starts_s = from_s + plan.thinks_s(0)[:, 0]
        order = np.argsort(starts_s, kind="stable")
        order = order[starts_s[order] < until_s][:limit]
        plan.users = order
        prompt, output, asked = plan.lengths(0)
        return Demand(starts_s[order], prompt[order, 0], output[order, 0], asked[order, 0], plan)


class _Loop:
    """The plan of a closed loop: blocks of requests for all users, drawn when the first of them is needed."""

    def __init__(
        self, law: ClosedLoop, lengths: Lengths, stream: Streams, name: str, until_s: float, limit: int | None
    ) -> None:
        self._law, self._lengths, self._stream, self._name = law, lengths, stream, name
        self._thinks: dict[int, Floats] = {}
        self._blocks: dict[int, tuple[Ints, Ints, Ints]] = {}
        self.until_s, self.limit = until_s, limit
        self.users: Ints = np.empty(0, dtype=np.int64)

    def thinks_s(self, block: int) -> Floats:
        """Return thinking times, shape (users, requests of the block)."""
        if block not in self._thinks:
            rng = self._stream(f"{self._name}/think#{block}")
            drawn = positive(rng, self._law.users * _BLOCK, self._law.mean_think_s, self._law.think_cv)
            self._thinks[block] = drawn.reshape(self._law.users, _BLOCK)
        return self._thinks[block]

    def lengths(self, block: int) -> tuple[Ints, Ints, Ints]:
        """Return prompts, outputs and what is asked for, shape (users, requests of the block)."""
        if block not in self._blocks:
            shape = (self._law.users, _BLOCK)
            prompt, output, asked = self._lengths(self._law.users * _BLOCK, f"#{block}" if block else "")
            self._blocks[block] = prompt.reshape(shape), output.reshape(shape), asked.reshape(shape)
        return self._blocks[block]

    def begin(self) -> _LoopRun:
        """See `workloads.requests.Plan`."""
        return _LoopRun(self)


class _LoopRun:
    """A closed loop at work: it counts the requests."""

    def __init__(self, plan: _Loop) -> None:
        self._plan = plan
        self._left = math.inf if plan.limit is None else plan.limit - len(plan.users)

    def ended(self, chain: int, step: int, succeeded: bool, now_s: float) -> Sequence[FollowUp]:  # noqa: ARG002
        """See `workloads.requests.Following`."""
        block, within = divmod(step, _BLOCK)
        user = int(self._plan.users[chain])
        delay_s = float(self._plan.thinks_s(block)[user, within])
        if self._left <= 0 or now_s + delay_s >= self._plan.until_s:
            return ()
        self._left -= 1
        prompt, output, asked = (int(column[user, within]) for column in self._plan.lengths(block))
        return (FollowUp(step + 1, delay_s, prompt, output, asked),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sessions:
    """Conversations: each request repeats all that was said before, and adds what the user says now.

    Conversations begin at ``rate_per_s``; the workload's ``requests`` counts them, not their turns. Its prompt_tokens
    are what the user adds at a turn, its output_tokens an answer. A prompt is the system prompt, all earlier turns and
    answers, and the addition; beyond ``max_context_tokens`` the oldest are left out.
    """

    kind: Literal["sessions"] = "sessions"
    rate_per_s: float = field(
        metadata={"ge": LEAST_RATE_PER_S, "description": "give conversations begun per second, e.g. 0.5"}
    )
    cv: float = field(
        default=1.0,
        metadata={"gt": 0, "le": 100, "description": "give the variation of the gaps between them, e.g. 1 as Poisson"},
    )
    mean_turns: float = field(metadata={"ge": 1, "le": 10_000, "description": "give the mean number of turns, e.g. 4"})
    mean_think_s: float = field(metadata={"ge": 0, "description": "give the mean seconds until the next turn, e.g. 30"})
    think_cv: float = field(default=1.0, metadata=_CV)
    system_tokens: int = field(
        default=0, metadata={"ge": 0, "le": MAX_TOKENS, "description": "give the tokens of the system prompt, e.g. 400"}
    )
    max_context_tokens: int = field(default=131_072, metadata=_CONTEXT)
    after_refusal: Literal["abandon", "go-on"] = field(default="abandon", metadata=_AFTER_REFUSAL)

    def demand(
        self, lengths: Lengths, stream: Streams, name: str, from_s: float, until_s: float, limit: int | None
    ) -> Demand:
        """See `workloads.generate.Interactive`."""
        starts_s = Gamma(rate_per_s=self.rate_per_s, cv=self.cv).times_s(
            stream(f"{name}/arrivals"), from_s, until_s, limit
        )
        turns = geometric(stream(f"{name}/turns"), len(starts_s), self.mean_turns)
        ends = np.cumsum(turns)
        total = int(ends[-1]) if len(ends) else 0
        prompt, output, asked = lengths(total)
        delay_s = positive(stream(f"{name}/think"), total, self.mean_think_s, self.think_cv)
        said = prompt + output
        before = np.cumsum(said) - said  # of all conversations; less what was said before this one began
        first = ends - turns
        context = self.system_tokens + before - np.repeat(before[first] if total else before, turns) + prompt
        stage = np.arange(total) - np.repeat(first, turns)
        # Where the oldest turns are left out, what follows the system prompt is no longer what it was.
        apart_from = np.where(context > self.max_context_tokens, min(self.system_tokens, self.max_context_tokens), -1)
        chain = np.repeat(np.arange(len(ends)), turns)
        prefixes = ChainPrefixes(name_space(f"sessions {name}"), self.system_tokens, chain, apart_from)
        context = np.minimum(context, self.max_context_tokens)
        plan = Stages(ends, stage, delay_s, context, output, asked, self.after_refusal == "go-on", prefixes)
        return plan.demand(starts_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agents:
    """Agents at tasks: a chain of calls with a tool run between them, some of which fan out into parallel ones.

    Tasks begin at ``rate_per_s``; the workload's ``requests`` counts them, not their calls. Its prompt_tokens are what
    each call adds (the task, a tool's result), its output_tokens what the model answers. A call's prompt is the system
    prompt, all that was said in the task before, and the addition. With the probability ``fan_out_share`` a step is
    ``fan_out`` calls at once, and the next step begins when all of them have been answered.
    """

    kind: Literal["agents"] = "agents"
    rate_per_s: float = field(metadata={"ge": LEAST_RATE_PER_S, "description": "give tasks begun per second, e.g. 0.1"})
    cv: float = field(
        default=1.0,
        metadata={"gt": 0, "le": 100, "description": "give the variation of the gaps between them, e.g. 1 as Poisson"},
    )
    mean_steps: float = field(metadata={"ge": 1, "le": 10_000, "description": "give the mean number of steps, e.g. 8"})
    fan_out: int = field(
        default=1,
        metadata={"ge": 1, "le": 1000, "description": "give the parallel calls of a step that fans out, e.g. 4"},
    )
    fan_out_share: float = field(
        default=0.0, metadata={"ge": 0, "le": 1, "description": "give the share of steps that fan out, e.g. 0.2"}
    )
    mean_tool_s: float = field(metadata={"ge": 0, "description": "give the mean seconds a tool runs, e.g. 2"})
    tool_cv: float = field(default=1.0, metadata=_CV)
    system_tokens: int = field(
        default=0,
        metadata={"ge": 0, "le": MAX_TOKENS, "description": "give the tokens of system prompt and tools, e.g. 3000"},
    )
    max_context_tokens: int = field(default=131_072, metadata=_CONTEXT)
    after_refusal: Literal["abandon", "go-on"] = field(default="abandon", metadata=_AFTER_REFUSAL)

    def demand(
        self, lengths: Lengths, stream: Streams, name: str, from_s: float, until_s: float, limit: int | None
    ) -> Demand:
        """See `workloads.generate.Interactive`."""
        starts_s = Gamma(rate_per_s=self.rate_per_s, cv=self.cv).times_s(
            stream(f"{name}/arrivals"), from_s, until_s, limit
        )
        steps = geometric(stream(f"{name}/steps"), len(starts_s), self.mean_steps)
        total_steps = int(steps.sum())
        first_step = np.cumsum(steps) - steps
        wide = stream(f"{name}/fan-out").random(total_steps) < self.fan_out_share
        wide[first_step] = False  # a task begins with one call
        width = np.where(wide, self.fan_out, 1)
        calls = np.add.reduceat(width, first_step) if total_steps else width
        total = int(width.sum())
        prompt, output, asked = lengths(total)
        delay_s = positive(stream(f"{name}/tool"), total, self.mean_tool_s, self.tool_cv)
        ends = np.cumsum(calls)
        step_of_call = np.repeat(np.arange(total_steps), width)
        # What was said before a step, from the start of its task: a parallel call knows nothing of the others.
        said = np.zeros(total_steps, dtype=np.int64)
        np.add.at(said, step_of_call, prompt + output)
        before = np.cumsum(said) - said
        before -= np.repeat(before[first_step] if total_steps else before, steps)
        shared = self.system_tokens + before[step_of_call]
        context = shared + prompt
        stage = (np.arange(total_steps) - np.repeat(first_step, steps))[step_of_call]
        # The next step repeats the calls of this one in their order, so only the first of them goes on with the task's
        # text. Where the oldest is left out, what follows the system prompt is no longer what it was.
        others = np.arange(total) > (np.cumsum(width) - width)[step_of_call]
        apart_from = np.where(others, shared, -1)
        too_long = context > self.max_context_tokens
        apart_from[too_long] = min(self.system_tokens, self.max_context_tokens)
        chain = np.repeat(np.arange(len(ends)), calls)
        prefixes = ChainPrefixes(name_space(f"agents {name}"), self.system_tokens, chain, apart_from)
        context = np.minimum(context, self.max_context_tokens)
        plan = Stages(ends, stage, delay_s, context, output, asked, self.after_refusal == "go-on", prefixes)
        return plan.demand(starts_s)


@dataclass(frozen=True, slots=True, eq=False)
class Stages:
    """Chains of stages: all requests of a stage come once all of the one before have ended, each after its delay.

    Attributes
    ----------
    ends : where each chain ends in the other columns; the first stage is one request.
    stage : of each request, from 0, rising in a chain.
    delay_s : from the end of the stage before.
    goes_on : whether a chain outlives a request that was refused for good.
    prefixes : what their prompts have in common.
    """

    ends: Ints
    stage: Ints
    delay_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    max_output_tokens: Ints
    goes_on: bool
    prefixes: Prefixes

    def demand(self, starts_s: Floats) -> Demand:
        """Return the first requests of the chains, which begin at these times, with this as their plan."""
        first = np.concatenate(([0], self.ends[:-1])).astype(np.int64)[: len(starts_s)]
        prompt, output, asked = self.prompt_tokens, self.output_tokens, self.max_output_tokens
        prefixes = Chosen(self.prefixes, first)
        return Demand(starts_s, prompt[first], output[first], asked[first], self, prefixes)

    def begin(self) -> _StagesRun:
        """See `workloads.requests.Plan`."""
        return _StagesRun(self)


class _StagesRun:
    """Chains at work: which stage each is in, and how many of its requests have not ended."""

    def __init__(self, plan: Stages) -> None:
        self._plan = plan
        self._at: dict[int, tuple[int, int, bool]] = {}  # chain: where its stage ends, requests open, all well

    def ended(self, chain: int, step: int, succeeded: bool, now_s: float) -> Sequence[FollowUp]:  # noqa: ARG002
        """See `workloads.requests.Following`."""
        plan = self._plan
        start = int(plan.ends[chain - 1]) if chain else 0
        stage_end, open_, well = self._at.pop(chain, (start + 1, 1, True))
        open_, well = open_ - 1, well and succeeded
        chain_end = int(plan.ends[chain])
        if open_:
            self._at[chain] = (stage_end, open_, well)
            return ()
        if stage_end == chain_end or not (well or plan.goes_on):
            return ()
        # Stages are short: looking for the end of the next one costs little.
        next_end = stage_end + 1
        while next_end < chain_end and plan.stage[next_end] == plan.stage[stage_end]:
            next_end += 1
        self._at[chain] = (next_end, next_end - stage_end, True)
        return [
            FollowUp(
                i - start + 1,
                float(plan.delay_s[i]),
                int(plan.prompt_tokens[i]),
                int(plan.output_tokens[i]),
                int(plan.max_output_tokens[i]),
                plan.prefixes.of(i),
            )
            for i in range(stage_end, next_end)
        ]


def positive(rng: np.random.Generator, n: int, mean: float, cv: float) -> Floats:
    """Return lognormal numbers with this mean and coefficient of variation; all 0 for a mean of 0."""
    variance = math.log1p(cv * cv)
    drawn = rng.standard_normal(n)
    return np.zeros(n) if not mean else np.exp(math.log(mean) - variance / 2 + math.sqrt(variance) * drawn)


def geometric(rng: np.random.Generator, n: int, mean: float) -> Ints:
    """Return numbers of at least 1 with this mean, each next one equally likely to be the last."""
    u = rng.random(n)
    if mean <= 1:
        return np.ones(n, dtype=np.int64)
    return 1 + np.floor(np.log1p(-u) / math.log1p(-1 / mean)).astype(np.int64)
