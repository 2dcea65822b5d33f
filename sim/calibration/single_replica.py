"""One replica, fed with requests whose arrivals and lengths are known: what calibration and validation simulate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.cluster.engine_request import NEVER_S, EngineRequest
from sim.cluster.node import replica_of
from sim.cluster.replica import Replica
from sim.engine.step_time import StepTime
from sim.scenario.profile import Profile

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Latencies:
    """When requests got their first and their last token, shape (n,), seconds on the clock of their arrivals.

    ``arrival_s`` is given where the simulation made the arrivals.
    """

    first_token_s: Floats
    finish_s: Floats
    preemptions: int = 0
    arrival_s: Floats | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """Requests of a measured run, by arrival: seconds from the first one on, and tokens, shape (n,) each."""

    arrival_s: Floats
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.arrival_s)


def replay(profile: Profile, requests: Requests, *, step_time: StepTime | None = None) -> Latencies:
    """Simulate the requests on one replica and return their latencies.

    Parameters
    ----------
    step_time : used instead of the profile's.

    Notes
    -----
    No gateway and no SimPy: an arrival is handed to the replica as soon as its clock has come there.
    """
    run = _Run(profile, step_time or profile.step_time)
    jobs = [
        _Job(i, int(prompt), int(output))
        for i, (prompt, output) in enumerate(zip(requests.prompt_tokens, requests.output_tokens, strict=True))
    ]
    run.drive(zip(requests.arrival_s.tolist(), jobs, strict=True))
    return Latencies(np.array(run.first_token_s(jobs)), np.array(run.finish_s(jobs)), run.replica.preemptions)


def closed_loop(profile: Profile, requests: Requests, concurrency: int) -> Latencies:
    """Simulate clients that each send the next request when their last one has ended, as load generators do.

    ``requests.arrival_s`` is not used: the first ``concurrency`` come at 0. The latencies' ``arrival_s`` says when.
    """
    run = _Run(profile, profile.step_time)
    jobs = [
        _Job(i, int(prompt), int(output))
        for i, (prompt, output) in enumerate(zip(requests.prompt_tokens, requests.output_tokens, strict=True))
    ]
    arrival_s = run.drive_closed(jobs, concurrency)
    return Latencies(
        np.array(run.first_token_s(jobs)), np.array(run.finish_s(jobs)), run.replica.preemptions, np.array(arrival_s)
    )


class _Job(EngineRequest):
    __slots__ = ("finish_s", "first_token_s", "index")

    def __init__(self, index: int, prompt_tokens: int, output_tokens: int) -> None:
        super().__init__(prompt_tokens, output_tokens)
        self.index = index
        self.first_token_s = self.finish_s = NEVER_S


class _Run:
    """The loop that stands in for SimPy."""

    def __init__(self, profile: Profile, step_time: StepTime) -> None:
        self._wake_s = NEVER_S
        self._next: Iterator[_Job] = iter(())
        self._overhead_s = profile.request_overhead_s
        self.replica: Replica[_Job] = replica_of(profile, step_time, self, self._arm)

    def drive(self, arrivals: Iterable[tuple[float, _Job]]) -> None:
        """Run until all requests have ended."""
        for at_s, job in arrivals:
            self._run_until(at_s)
            self.replica.submit(job, at_s + self._overhead_s)
        self._run_until(NEVER_S)

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
            self.replica.submit(job, now_s + self._overhead_s)

    def first_token_s(self, jobs: list[_Job]) -> list[float]:
        """Return the times of first tokens."""
        return [job.first_token_s for job in jobs]

    def finish_s(self, jobs: list[_Job]) -> list[float]:
        """Return the times of last tokens."""
        return [job.finish_s for job in jobs]

    def _run_until(self, until_s: float) -> None:
        while self._wake_s < until_s:
            now_s, self._wake_s = self._wake_s, NEVER_S
            self.replica.boundary(now_s)

    def _arm(self, at_s: float) -> None:
        self._wake_s = at_s

    def on_first_token(self, request: _Job, now_s: float) -> None:
        request.first_token_s = now_s

    def on_finish(self, request: _Job, now_s: float) -> None:
        request.finish_s = now_s
        self._send(now_s)
