"""Measures how long a server's iterations take, from outside: what a profile needs to know.

Streams of one iteration get their tokens together, so the gap between two tokens of a stream is an iteration. A batch
that only decodes shows decode iterations; a prompt sent beside one stream lengthens the gap in which it is computed.
Neither gap contains the server's work outside its iterations, which a request to an idle server shows: its first token
takes that long more than its iteration.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean, median
from typing import NamedTuple, TypeVar

from sim.errors import RunError
from sim.live.loadgen.attempt import LiveAttempt
from sim.live.loadgen.completions_client import Completions, PromptKind
from sim.live.loadgen.token_delays import Pace, longer_iteration_s, pace
from sim.records.schema import Outcome

_GAPS = 16  # decode iterations to watch at least,
_MOST_GAPS = 96  # and at most,
_WATCH_S = 1.2  # in between so many as take this long: longer than a machine is busy at a stretch
_TRIES = 3
_MOST_MISSED = 6  # measurements in a row, after which the server is not what it is taken for
_SETTLE = 8  # tokens of the background stream before a prompt is sent beside it, and after it
_LONE = (8, 40)  # prompt and output tokens of the stream that is watched first, alone

_T = TypeVar("_T")


class DecodeSeen(NamedTuple):
    """Iterations in which ``sequences`` decoded and read ``context_tokens`` in all, at the median."""

    sequences: int
    context_tokens: int
    duration_s: float


class PromptSeen(NamedTuple):
    """An iteration that computed a prompt beside one decoding sequence of ``context_tokens``."""

    prompt_tokens: int
    context_tokens: int
    duration_s: float


class IdleSeen(NamedTuple):
    """The time to the first token of a prompt that came to an idle server."""

    prompt_tokens: int
    ttft_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What no latency tells: the engine's settings."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_tokens: int
    kv_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes
    ----------
    decodes : pairs of sequences and prompt tokens, the context that decoding starts from.
    prompts : lengths of prompts, computed beside a stream and on an idle server.
    repeats : how often each prompt.
    """

    decodes: Sequence[tuple[int, int]]
    prompts: Sequence[int]
    repeats: int = 3


@dataclass(slots=True, eq=False)
class Seen:
    """What was measured."""

    decodes: list[DecodeSeen] = field(default_factory=list)
    prompts: list[PromptSeen] = field(default_factory=list)
    idle: list[IdleSeen] = field(default_factory=list)


def plan_for(engine: Engine, *, quick: bool = False) -> Plan:
    """Return what to measure of an engine: batches up to its slots, contexts and prompts up to what it takes."""
    longest = engine.max_model_tokens - _GAPS - 8
    contexts = _spread(16, int(0.8 * longest), 2 if quick else 3)
    sequences = _spread(1, engine.max_num_seqs, 3 if quick else 6)
    fits = 0.9 * engine.kv_tokens
    decodes = [(n, c) for n, c in itertools.product(sequences, contexts) if n * (c + 4 * _GAPS) <= fits]
    most = min(longest, engine.max_num_batched_tokens - 2)  # in one iteration, beside the stream
    return Plan(
        decodes=decodes, prompts=_spread(8, most, 4 if quick else 8), repeats=2 if quick else 3
    )


def _spread(least: int, most: int, count: int) -> list[int]:
    """Return numbers from ``least`` to ``most``, each the same factor above the last."""
    if most <= least:
        return [least]
    factor = (most / least) ** (1 / (count - 1))
    return sorted({round(least * factor**i) for i in range(count)})


class _MissedError(Exception):
    """A measurement that came to nothing."""


class Probe:
    """Sends what a plan asks for, one measurement after the other, to a server that nobody else uses.

    A measurement of which a request is refused, breaks off or is answered with nonsense is taken again, three times in
    all, and then left out. A server whose events do not carry one token each is refused: its iterations cannot be seen.
    """

    def __init__(self, completions: Completions, prompts: PromptKind, engine: Engine, key: str | None = None) -> None:
        self._completions = completions
        self._prompts = prompts
        self._engine = engine
        self._key = key
        self._sent = 0
        self._lone_s = math.nan  # an iteration of one short stream
        self._latest_s = math.nan  # of the batch that was watched last
        self._missed = 0  # in a row

    async def measure(self, plan: Plan, progress: Callable[[str], None] = lambda _: None) -> Seen:
        """Return what was seen; ``progress`` hears what is measured next, and what is left out.

        Raises
        ------
        RunError : `_MOST_MISSED` measurements in a row came to nothing.
        """
        seen = Seen()
        for pace_s in await self._tried(self._lone, progress):  # and connections and caches
            self._lone_s = self._latest_s = pace_s
        for length in plan.prompts:
            progress(f"prompts of {length} tokens")
            for _ in range(plan.repeats):
                seen.idle += await self._tried(partial(self._idle, length), progress)
            for repeat in range(plan.repeats):
                part = 0.2 + 0.6 * repeat / max(1, plan.repeats)
                seen.prompts += filter(None, await self._tried(partial(self._beside, length, part), progress))
        for sequences, context in plan.decodes:
            progress(f"{sequences} sequences of {context} tokens")
            found = await self._tried(partial(self._decode, sequences, context), progress)
            if None in found:
                progress("nothing of this: they did not all decode at once")
            seen.decodes += filter(None, found)
        return seen

    async def _tried(self, take: Callable[[], Awaitable[_T]], progress: Callable[[str], None]) -> list[_T]:
        """Return a measurement as the one element of a list, which is empty where it came to nothing."""
        for attempt in range(_TRIES):
            try:
                found = [await take()]
            except _MissedError as error:
                self._missed += 1
                if self._missed >= _MOST_MISSED:
                    raise RunError(str(error)) from None
                if attempt == _TRIES - 1:
                    progress(f"nothing more of this: {error}")
            else:
                self._missed = 0
                return found
        return []

    async def _lone(self) -> float:
        """Return the duration of an iteration of one short stream."""
        prompt_tokens, output_tokens = _LONE
        lone = self._attempt(prompt_tokens, min(output_tokens, self._engine.max_model_tokens - prompt_tokens))
        token_s = (await self._ask(lone)).token_s or []
        found = pace(token_s, 0, len(token_s))
        if found is None:
            raise _MissedError(f"a stream of {len(token_s)} events shows no iterations")
        return found.iteration_s

    async def _idle(self, prompt_tokens: int) -> IdleSeen:
        attempt = await self._ask(self._attempt(prompt_tokens, 1))
        return IdleSeen(prompt_tokens, attempt.first_token_s - attempt.arrival_s)

    async def _beside(self, prompt_tokens: int, part: float) -> PromptSeen | None:
        """Send a prompt beside a stream, after this part of one of its iterations; None where they did not meet."""
        output = min(2 * _SETTLE + 8, self._engine.max_model_tokens - 16)
        stream = self._attempt(8, output)
        running = asyncio.ensure_future(self._ask(stream))
        try:
            tokens = stream.token_s = []  # filled while it runs
            while len(tokens) < _SETTLE and not running.done():
                await asyncio.sleep(0.001)
            if len(tokens) < 2:
                await running
                return None
            await asyncio.sleep(self._lone_s * part)
            beside = await self._ask(self._attempt(prompt_tokens, 1))
            await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        # Both tokens of an iteration are sent at once, so the nearest one tells which gap it was.
        nearest = min(range(1, len(tokens)), key=lambda i: abs(tokens[i] - beside.first_token_s))
        duration_s = longer_iteration_s(tokens, nearest, self._lone_s, _SETTLE)
        if abs(tokens[nearest] - beside.first_token_s) < duration_s / 2:
            return PromptSeen(prompt_tokens, 8 + nearest, duration_s)
        return None

    async def _decode(self, sequences: int, context_tokens: int) -> DecodeSeen | None:
        """Watch a batch while all of it decodes; None where it never did, for want of memory."""
        batch = [self._attempt(context_tokens, self._outputs(sequences, context_tokens)) for _ in range(sequences)]
        ended = await asyncio.gather(*(self._ask(one) for one in batch), return_exceptions=True)
        for one in ended:  # raised when all have ended, so that none is left on the server
            if isinstance(one, BaseException):
                raise one
        from_s, until_s = max(a.first_token_s for a in batch), min(a.finish_s for a in batch)
        paces: list[Pace] = []
        for attempt in batch:
            times = attempt.token_s or []
            found = pace(times, bisect_left(times, from_s), bisect_right(times, until_s))
            paces += [] if found is None else [found]
        if len(paces) < sequences / 2:
            return None
        contexts = context_tokens + fmean(one.token for one in paces)
        self._latest_s = median(one.iteration_s for one in paces)
        return DecodeSeen(sequences, round(sequences * contexts), self._latest_s)

    def _outputs(self, sequences: int, context_tokens: int) -> int:
        """Return how many tokens each sequence of a batch is to get, so that all of them decode long enough."""
        gaps = min(max(_GAPS, math.ceil(_WATCH_S / self._latest_s)), _MOST_GAPS)
        # Whoever comes first must still be there when the last one's prompt has been computed.
        waits = math.ceil(sequences * context_tokens / self._engine.max_num_batched_tokens) + 2
        fits = max(_GAPS + waits, self._engine.kv_tokens // sequences - context_tokens)
        return min(gaps + waits, fits, self._engine.max_model_tokens - context_tokens)

    def _attempt(self, prompt_tokens: int, output_tokens: int) -> LiveAttempt:
        self._sent += 1
        name = f"calibrate-{self._sent}"
        return LiveAttempt(
            name, 1, 0, 0, 0.0, 0.0, prompt_tokens, output_tokens, output_tokens, token_s=[]
        )

    async def _ask(self, attempt: LiveAttempt) -> LiveAttempt:
        body = self._prompts.body(attempt)
        attempt.arrival_s = self._completions.now_s()
        await self._completions.ask(attempt, body, self._key)
        asked = f"a request of {attempt.prompt_tokens} + {attempt.asked_tokens} tokens"
        if attempt.outcome is not Outcome.FINISHED:
            words = f"{attempt.outcome.name.lower()}, status {attempt.http_status}: {attempt.error}"
            raise _MissedError(f"{asked} was {words}")
        events = len(attempt.token_s or ())
        counted = attempt.usage_tokens if attempt.usage_tokens >= 0 else attempt.asked_tokens
        # Some servers tell the end in an event of its own.
        if counted not in (events, events - 1) or counted != attempt.asked_tokens:
            said = f"{counted} tokens" if attempt.usage_tokens >= 0 else "no usage"
            raise _MissedError(
                f"{asked} was answered with {events} events and {said}: iterations show only where each event "
                "is one token (no speculative decoding, --stream-interval 1) and min_tokens and ignore_eos are obeyed"
            )
        return attempt


async def measure(
    base_url: str, prompts: PromptKind, engine: Engine, plan: Plan, *, key: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Seen:
    """Measure a server; see `Probe`."""
    origin_s = asyncio.get_running_loop().time()
    fresh = replace(prompts, seed=prompts.seed + 1)
    async with Completions(base_url, origin_s=origin_s) as completions:
        return await Probe(completions, fresh, engine, key).measure(plan, progress)
