"""One replica, fed with requests whose arrivals and lengths are known: what calibration and validation simulate.

It is whatever the profile calls one replica: an engine, the data-parallel ranks of one behind their router, stages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.cluster.discipline import Batcher
from sim.cluster.engine_request import NEVER_S, EngineRequest
from sim.cluster.node import Unit, unit_of
from sim.cluster.ranks import RankedReplica
from sim.cluster.replica import Replica
from sim.cluster.server_work import ServerWork
from sim.engine.step_time import StepTime
from sim.errors import InputError
from sim.scenario.profile import Profile
from workloads.requests import Prefixes

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Latencies:
    """When requests got their first and their last token, shape (n,), seconds on the clock of their arrivals.

    Where the simulation made the arrivals, ``arrival_s`` says when, ``submitted_s`` when each request reached the
    engine, after what the server did to it, and ``others`` how many were there when it came.
    """

    first_token_s: Floats
    finish_s: Floats
    preemptions: int = 0
    arrival_s: Floats | None = None
    submitted_s: Floats | None = None
    others: Floats | None = None


class Work(NamedTuple):
    """What an engine did from one change of its batch to the next: an iteration, or a run of them that only decoded.

    Attributes
    ----------
    iterations : in the run; all have the same sequences.
    prefill_tokens, prefill_pairs : of prompts, see `StepTime.iteration_s`.
    decode_sequences : that got a token in each iteration.
    context_tokens : KV entries that the first iteration read for them.
    """

    start_s: float
    end_s: float
    iterations: int
    prefill_tokens: int
    prefill_pairs: float
    decode_sequences: int
    context_tokens: float


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """Requests of a measured run, by arrival: seconds from the first one on, and tokens, shape (n,) each.

    ``cached_tokens`` are those of each prompt that the engine found in its cache, where that was measured; else the
    replica finds none. ``prefixes`` say instead what prompts have in common, for the replica's own cache to find.
    """

    arrival_s: Floats
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    cached_tokens: NDArray[np.int64] | None = None
    prefixes: Prefixes | None = None

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.arrival_s)


@dataclass(frozen=True, slots=True)
class LoadGenerator:
    """Whoever asks, where that is one thread: while it works for a request that ended, it sees and sends nothing.

    It takes what it finds in turns, as an event loop does: all that came is looked at, then all that is due is sent.
    What is measured is when it looks.

    Attributes
    ----------
    per_request_s, per_prompt_token_s : its work for each request that ended, before it sends the next.
    per_send_s : what each sending takes.
    """

    per_request_s: float = 0.0
    per_prompt_token_s: float = 0.0
    per_send_s: float = 0.0


def replay(
    profile: Profile,
    requests: Requests,
    *,
    step_time: StepTime | None = None,
    max_in_flight: int | None = None,
    batcher: Batcher | None = None,
) -> Latencies:
    """Simulate the requests on one replica and return their latencies.

    Parameters
    ----------
    step_time : used instead of the profile's.
    max_in_flight : requests that whoever asks keeps open at most; the others wait there, first come, first served.
    batcher : used instead of the engine's own.

    Notes
    -----
    No gateway and no SimPy: an arrival is handed to the replica as soon as its clock has come there.
    """
    unit = profile if step_time is None else profile.model_copy(update={"step_time": step_time})
    run = _Run(unit, given_hits=requests.cached_tokens is not None)
    run.max_in_flight = len(requests) if max_in_flight is None else max_in_flight
    if batcher is not None:
        run.engine._batcher = batcher
    jobs = _jobs(requests)
    run.drive(zip(requests.arrival_s.tolist(), jobs, strict=True))
    return Latencies(np.array(run.first_token_s(jobs)), np.array(run.finish_s(jobs)), run.replica.preemptions)


def closed_loop(
    profile: Profile,
    requests: Requests,
    concurrency: int,
    *,
    max_in_flight: int | None = None,
    work: list[Work] | None = None,
    generator: LoadGenerator | None = None,
) -> Latencies:
    """Simulate clients that each send the next request when their last one has ended, as load generators do.

    ``requests.arrival_s`` is not used: the first ``concurrency`` come at 0. The latencies' ``arrival_s`` says when.

    Parameters
    ----------
    max_in_flight : how many of them the generator's connections let through at a time.
    work : to which all that the engine does is added, in order; only of a profile that is one engine.
    generator : the work of whoever asks; None: they take no time.
    """
    given_hits = requests.cached_tokens is not None
    run = (
        _Run(profile, given_hits=given_hits) if generator is None
        else _OneThread(profile, generator, given_hits=given_hits)
    )  # fmt: skip
    run.work = work
    run.max_in_flight = concurrency if max_in_flight is None else max_in_flight
    jobs = _jobs(requests)
    arrival_s = run.drive_closed(jobs, concurrency)
    return Latencies(
        np.array(run.first_token_s(jobs)), np.array(run.finish_s(jobs)), run.replica.preemptions, np.array(arrival_s),
        np.array([job.submitted_s for job in jobs]), np.array([float(job.others) for job in jobs]),
    )  # fmt: skip


def _jobs(requests: Requests) -> list[_Job]:
    lengths = zip(requests.prompt_tokens.tolist(), requests.output_tokens.tolist(), strict=True)
    jobs = [_Job(i, prompt, output) for i, (prompt, output) in enumerate(lengths)]
    if requests.prefixes is not None:
        for i, job in enumerate(jobs):
            job.prefix = requests.prefixes.of(i)
    if requests.cached_tokens is not None:
        for job, cached in zip(jobs, requests.cached_tokens.tolist(), strict=True):
            job.prefix, job.given_tokens = (), cached
    return jobs


class _GivenHits:
    """In a replica's place of `sim.cluster.prefix_cache.PrefixCache`: finds what a measured run found.

    Blocks that requests share are counted once for each, so a cache that shares much is fuller here than there.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens

    def sync(self, free_blocks: int) -> None:
        """Blocks are the replica's to count."""

    def look(self, request: _Job, tokens: int) -> tuple[int, int]:
        """Return how many blocks of a prompt are there; at least its last token is computed."""
        given = 0 if request.preemptions else min(request.given_tokens, tokens - 1)
        return given // self._block_tokens, 0

    def hold(self, request: _Job, blocks: int) -> None:
        """Nobody else looks for them."""

    def name(self, request: _Job, tokens: int) -> None:
        """Nobody else looks for them."""

    def let_go(self, request: _Job, blocks: int, tokens: int, *, comes_back: bool) -> int:  # noqa: ARG002
        """Return that all its blocks became free."""
        return blocks


class _Job(EngineRequest):
    __slots__ = ("finish_s", "first_token_s", "given_tokens", "index", "others")

    def __init__(self, index: int, prompt_tokens: int, output_tokens: int) -> None:
        super().__init__(prompt_tokens, output_tokens)
        self.index = index
        self.given_tokens = self.others = 0
        self.first_token_s = self.finish_s = NEVER_S


class _Run:
    """The loop that stands in for SimPy."""

    max_in_flight = 1
    work: list[Work] | None = None

    def __init__(self, profile: Profile, *, given_hits: bool) -> None:
        self._wake_s = NEVER_S
        self._next: Iterator[_Job] = iter(())
        self._in_flight = 0
        self._queue: deque[_Job] = deque()
        if given_hits:
            profile = profile.model_copy(update={"prefix_caching": True})
        self.replica: Unit[_Job] = unit_of(profile, self, self._arm)
        if given_hits:
            for engine in self._engines("says what each prompt found in its cache"):
                engine._cache = _GivenHits(profile.block_tokens)  # type: ignore[assignment]
        self._server = ServerWork(profile, self.replica)

    @property
    def engine(self) -> Replica[_Job]:
        """The one engine that the replica is."""
        assert isinstance(self.replica, Replica)
        return self.replica

    def _engines(self, what: str) -> list[Replica[_Job]]:
        """Return the engine, or those of the ranks; no other replica can be given what was measured of an engine."""
        found = self.replica.engines if isinstance(self.replica, RankedReplica) else [self.replica]
        engines = [each for each in found if isinstance(each, Replica)]
        if len(engines) < len(found):
            problem = f"{what}, and the profile's replica is made of several engines"
            raise InputError("run", problem, "leave cached_tokens out, or give a profile of one engine or of ranks")
        return engines

    def drive(self, arrivals: Iterable[tuple[float, _Job]]) -> None:
        """Run until all requests have ended."""
        for at_s, job in arrivals:
            self._run_until(at_s)
            self._ask(job, at_s)
        self._run_until(NEVER_S)

    def _ask(self, job: _Job, now_s: float) -> None:
        if self._in_flight < self.max_in_flight:
            self._in_flight += 1
            job.others = self.replica.running_count + self.replica.waiting_count
            self._server.submit(job, now_s)
        else:
            self._queue.append(job)

    def drive_closed(self, jobs: list[_Job], concurrency: int) -> list[float]:
        """Run with ``concurrency`` requests at a time; returns when each came."""
        self._next = iter(jobs)
        self._came_s: list[float] = []
        for _ in range(concurrency):
            self._send(0.0)
        self._run_until(NEVER_S)
        return self._came_s

    def _send(self, now_s: float) -> None:
        job = next(self._next, None)
        if job is not None:
            self._came_s.append(now_s)
            self._ask(job, now_s)

    def first_token_s(self, jobs: list[_Job]) -> list[float]:
        """Return the times of first tokens."""
        return [job.first_token_s for job in jobs]

    def finish_s(self, jobs: list[_Job]) -> list[float]:
        """Return the times of last tokens."""
        return [job.finish_s for job in jobs]

    def _run_until(self, until_s: float) -> None:
        while self._wake_s < until_s:
            self._step()

    def _step(self) -> None:
        now_s, self._wake_s = self._wake_s, NEVER_S
        if self.work is not None:
            since_s, iterations, tokens, pairs, sequences, entries = self.engine.under_way()
            if iterations:
                self.work.append(Work(since_s, now_s, iterations, tokens, pairs, sequences, entries))
        self.replica.boundary(now_s)

    def _arm(self, at_s: float) -> None:
        self._wake_s = at_s

    def on_first_token(self, request: _Job, now_s: float) -> None:
        request.first_token_s = now_s

    def on_finish(self, request: _Job, now_s: float) -> None:
        request.finish_s = now_s
        self._in_flight -= 1
        if self._queue:
            self._ask(self._queue.popleft(), now_s)
        self._send(now_s)


class _OneThread(_Run):
    """The same, asked by a generator of one thread."""

    def __init__(self, profile: Profile, generator: LoadGenerator, *, given_hits: bool) -> None:
        super().__init__(profile, given_hits=given_hits)
        self._generator = generator
        self._heard: list[tuple[_Job, bool]] = []
        self._turn_s = NEVER_S  # when it looks next
        self._free_s = -NEVER_S
        self._due: deque[tuple[float, _Job]] = deque()  # what it sends, and when; later ones later

    def drive_closed(self, jobs: list[_Job], concurrency: int) -> list[float]:
        self._next = iter(jobs)
        self._came_s = []
        self._free_s = 0.0
        self._send_next(min(concurrency, len(jobs)))
        self._run_until(NEVER_S)
        return self._came_s

    def _send_next(self, n: int) -> None:
        """Send so many more, one after another."""
        for _ in range(n):
            job = next(self._next, None)
            if job is None:
                return
            self._came_s.append(self._free_s)
            self._due.append((self._free_s, job))
            self._free_s += self._generator.per_send_s

    def _run_until(self, until_s: float) -> None:
        while True:
            due_s = self._due[0][0] if self._due else NEVER_S
            now_s = min(due_s, self._turn_s, self._wake_s)
            if not now_s < until_s:
                return
            if now_s == due_s:
                self._ask(self._due.popleft()[1], now_s)
            elif now_s == self._turn_s:
                self._turn(now_s)
            else:
                self._step()

    def _turn(self, now_s: float) -> None:
        """Look at all that came since the last turn, then send."""
        heard, self._heard = self._heard, []
        self._turn_s = NEVER_S
        self._free_s = max(self._free_s, now_s)
        ended = 0
        for job, last in heard:
            if not last:
                job.first_token_s = self._free_s
                continue
            job.finish_s = self._free_s
            self._free_s += self._generator.per_request_s + self._generator.per_prompt_token_s * job.prompt_tokens
            ended += 1
            self._in_flight -= 1
            if self._queue:
                self._ask(self._queue.popleft(), now_s)
        self._send_next(ended)

    def _hear(self, job: _Job, now_s: float, *, last: bool) -> None:
        self._heard.append((job, last))
        if self._turn_s == NEVER_S:
            self._turn_s = max(self._free_s, now_s)

    def on_first_token(self, request: _Job, now_s: float) -> None:
        self._hear(request, now_s, last=False)

    def on_finish(self, request: _Job, now_s: float) -> None:
        self._hear(request, now_s, last=True)
