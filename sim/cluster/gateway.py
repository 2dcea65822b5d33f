"""The simulated gateway: carries events into `policies.core` and its instructions out to replicas and clients.

Every decision is the core's; this file only moves things and writes down when.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import simpy

from policies.api import (
    Arrived,
    CallMeAt,
    CapacityChanged,
    Event,
    Evict,
    Failed,
    Finished,
    FirstToken,
    Forward,
    Instruction,
    PoolCapacity,
    Progress,
    Reason,
    Refuse,
    ReplicaReport,
    RequestView,
    Tick,
)
from policies.core import GatewayCore
from sim.cluster.attempt import Attempt
from sim.cluster.engine_request import DECODE, PREFILL
from sim.cluster.node import Node
from sim.records import Outcome
from workloads.clients import Client
from workloads.generate import WorkloadSpec

Log = Callable[[float, Event, Sequence[Instruction]], None]


class SimulatedGateway:
    """Gateway, clients and replicas on one SimPy environment.

    Parameters
    ----------
    nodes : the replicas; `connect` gives them, since they need this object as their listener.
    tenants : tenant of each workload.
    log : hears every event with the core's answer, for the records of decisions and for parity tests.
    on_drained : called when the last open request has ended; asked for by `expect`.
    """

    def __init__(
        self,
        env: simpy.Environment,
        core: GatewayCore,
        workloads: Sequence[WorkloadSpec],
        tenants: Sequence[str],
        *,
        log: Log | None = None,
    ) -> None:
        self._env = env
        self._core = core
        self._workloads = workloads
        self._entitlements = [w.entitlement for w in workloads]
        self._priorities = [w.priority for w in workloads]
        self._clients: list[Client] = [w.client for w in workloads]
        self._tenants = tenants
        self._log = log
        self._nodes: list[Node] = []
        self._open: dict[str, Attempt] = {}
        self._metered = core.wants_progress
        self._retries_pending = 0
        self.attempts: list[Attempt] = []
        self.ended = 0

    def connect(self, nodes: list[Node]) -> None:
        """Take the replicas and start the core."""
        self._nodes = nodes
        self._carry_out(self._core.start(self._env.now))

    @property
    def busy(self) -> bool:
        """Whether any request is open or will be tried again."""
        return bool(self._open) or self._retries_pending > 0

    def _tell(self, event: Event) -> None:
        now_s = self._env.now
        instructions = self._core.handle(event, now_s)
        if self._log is not None:
            self._log(now_s, event, instructions)
        if instructions:
            self._carry_out(instructions)

    # ------------------------------------------------------------------------------------------------------ clients

    def arrive(self, attempt: Attempt) -> None:
        """Bring an attempt to the gateway."""
        workload = attempt.workload
        self.attempts.append(attempt)
        self._open[attempt.request_id] = attempt
        view = RequestView(
            attempt.request_id,
            self._entitlements[workload],
            self._tenants[workload],
            attempt.prompt_tokens,
            attempt.asked_tokens or None,
            attempt.number,
            self._priorities[workload],
        )
        self._tell(Arrived(view))

    def _end(self, attempt: Attempt, outcome: Outcome) -> None:
        """Close an attempt; its client may come again."""
        del self._open[attempt.request_id]
        attempt.outcome = outcome
        self.ended += 1
        if outcome is Outcome.FINISHED:
            return
        now_s = self._env.now
        again_s = self._clients[attempt.workload].next_attempt_s(
            outcome.name.lower(),
            attempt.http_status,
            None if attempt.retry_after_s != attempt.retry_after_s else attempt.retry_after_s,
            attempt.number,
            now_s,
        )
        if again_s is not None:
            attempt.final = False
            self._retries_pending += 1
            again = simpy.Timeout(self._env, max(0.0, again_s - now_s), attempt)
            again.callbacks.append(self._retry)  # type: ignore[union-attr]

    def _retry(self, event: simpy.Event) -> None:
        last: Attempt = event.value  # type: ignore[assignment]
        self._retries_pending -= 1
        self.arrive(
            Attempt(
                last.request_id,
                last.number + 1,
                last.workload,
                last.priority,
                self._env.now,
                last.first_arrival_s,
                last.prompt_tokens,
                last.output_tokens,
                last.asked_tokens,
            )
        )

    # ----------------------------------------------------------------------------------------------------- replicas

    def on_first_token(self, request: Attempt, now_s: float) -> None:
        """Hear a first token from a replica."""
        request.first_token_s = now_s
        if self._metered:
            self._tell(FirstToken(request.request_id))

    def on_finish(self, request: Attempt, now_s: float) -> None:
        """Hear a last token from a replica."""
        request.finish_s = now_s
        request.delivered_tokens = outputs = request.outputs
        self._end(request, Outcome.FINISHED)
        self._tell(Finished(request.request_id, outputs))

    def fail(self, node: Node) -> None:
        """Crash a replica: what ran there fails."""
        now_s = self._env.now
        for attempt in node.replica.fail(now_s):
            attempt.delivered_tokens = attempt.outputs
            attempt.finish_s = now_s
            attempt.http_status = 502
            attempt.reason = Reason.REPLICA_FAILED.value
            self._end(attempt, Outcome.FAILED)
            self._tell(Failed(attempt.request_id, attempt.outputs))

    def capacity_changed(self, capacity: PoolCapacity) -> None:
        """Tell the core what the pool has now."""
        self._tell(CapacityChanged(capacity, tuple(n.replica_id for n in self._nodes if n.up)))

    def scrape(self) -> None:
        """Report every replica's metrics to the core."""
        now_s = self._env.now
        for node in self._nodes:
            if node.up:
                replica = node.replica
                self._tell(
                    ReplicaReport(
                        node.replica_id,
                        now_s,
                        replica.running_count,
                        replica.waiting_count,
                        replica.kv_used_blocks_at(now_s) / max(1, replica.kv.total_blocks),
                    )
                )

    def _outputs(self, attempt: Attempt, now_s: float) -> int:
        return self._nodes[attempt.replica].replica.outputs_at(attempt, now_s) if attempt.replica >= 0 else 0

    # ------------------------------------------------------------------------------------------------- instructions

    def _carry_out(self, instructions: Sequence[Instruction]) -> None:
        for step in instructions:
            kind = type(step)
            if kind is Forward:
                self._forward(step)  # type: ignore[arg-type]
            elif kind is Refuse:
                self._refuse(step)  # type: ignore[arg-type]
            elif kind is CallMeAt:
                tick = simpy.Timeout(self._env, max(0.0, step.at_s - self._env.now))  # type: ignore[union-attr]
                tick.callbacks.append(self._tick)  # type: ignore[union-attr]
            elif kind is Evict:
                self._evict(step)  # type: ignore[arg-type]
            # Hold needs nothing done; Scale is for a pool that can grow, which a fixed one cannot.

    def _forward(self, step: Forward) -> None:
        attempt = self._open[step.request_id]
        now_s = self._env.now
        attempt.forwarded_s = now_s
        attempt.replica = step.replica_id
        attempt.asked_tokens = step.max_output_tokens
        if attempt.output_tokens > step.max_output_tokens:
            attempt.output_tokens = step.max_output_tokens
        self._nodes[step.replica_id].replica.submit(attempt, now_s)

    def _refuse(self, step: Refuse) -> None:
        attempt = self._open[step.request_id]
        attempt.reason = step.reason.value
        attempt.http_status = step.status
        attempt.finish_s = self._env.now
        if step.retry_after_s is not None:
            attempt.retry_after_s = step.retry_after_s
        self._end(attempt, Outcome.REFUSED)

    def _evict(self, step: Evict) -> None:
        attempt = self._open[step.request_id]
        now_s = self._env.now
        if attempt.replica >= 0:
            attempt.delivered_tokens = self._outputs(attempt, now_s)
            self._nodes[attempt.replica].replica.abort(attempt, now_s)
        attempt.reason = step.reason.value
        attempt.http_status = 503
        attempt.finish_s = now_s
        self._end(attempt, Outcome.EVICTED)

    def _tick(self, _: simpy.Event) -> None:
        if self._core.wants_progress:
            now_s = self._env.now
            for attempt in list(self._open.values()):
                if attempt.replica >= 0:
                    self._tell(Progress(attempt.request_id, self._outputs(attempt, now_s)))
        self._tell(Tick())

    # ----------------------------------------------------------------------------------------------------- horizon

    def close(self) -> None:
        """Note what is still open when the run ends."""
        now_s = self._env.now
        for attempt in self._open.values():
            attempt.delivered_tokens = self._outputs(attempt, now_s)
            attempt.outcome = Outcome.RUNNING if attempt.state in (PREFILL, DECODE) else Outcome.WAITING
        self._open.clear()
