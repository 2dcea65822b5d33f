"""The simulated gateway: carries events into `policies.core` and its instructions out to replicas and clients.

Every decision is the core's; this file only moves things and writes down when.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from policies.api import (
    Arrived,
    CallMeAt,
    Cancelled,
    CapacityChanged,
    Demote,
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
    Scale,
    Tick,
)
from policies.core import GatewayCore
from sim.cluster.agenda import Alarm
from sim.cluster.attempt import Attempt
from sim.cluster.clock import Clock
from sim.cluster.node import Node
from sim.records.schema import Outcome
from workloads.clients import Chance, Client, Impatient, SharedCooldown, deadline_s
from workloads.generate import WorkloadSpec
from workloads.requests import Following, FollowUp

if TYPE_CHECKING:
    from policies.shadow import ShadowedCore
    from sim.cluster.gateways import Gateways

Log = Callable[[float, Event, Sequence[Instruction]], None]


# A NamedTuple's own constructor is a Python function that calls this; per request the detour shows.
_new: Final = tuple.__new__
# As in `sim.cluster.agenda`: compiled, what is Final here is found without a look-up.
_Arrived: Final = Arrived
_Finished: Final = Finished
_FirstToken: Final = FirstToken
_Forward: Final = Forward
_Progress: Final = Progress
_RequestView: Final = RequestView
# An enum's attribute is looked up by a Python function of its class.
_FINISHED: Final = Outcome.FINISHED


class _Logged:
    """A core whose events and answers are written down."""

    __slots__ = ("_core", "_log")

    def __init__(self, core: GatewayCore | Gateways | ShadowedCore, log: Log) -> None:
        self._core = core
        self._log = log

    def handle(self, event: Event, now_s: float) -> Sequence[Instruction]:
        """See `policies.core.GatewayCore.handle`."""
        instructions = self._core.handle(event, now_s)
        self._log(now_s, event, instructions)
        return instructions


class SimulatedGateway:
    """Gateway, clients and replicas on one clock.

    Parameters
    ----------
    tenants : tenant of each workload.
    following : of each workload, what comes after its requests; empty where nothing does.
    chances : of each workload, what its clients' jitter is drawn from; empty for none.
    notice_s : how late the core hears of changes of capacity and of the replicas' metrics.
    ttft_slos_s : of each workload, its objective, for engines that go by deadlines; infinity where it has none.
    with_prefixes, with_sessions : whether requests bring along what is known of their text, and their conversation.
    with_adapters : whether replicas hear which model a request asks for.
    log : hears every event with the core's answer, for the records of decisions and for parity tests.
    """

    def __init__(
        self,
        env: Clock,
        core: GatewayCore | Gateways | ShadowedCore,
        workloads: Sequence[WorkloadSpec],
        tenants: Sequence[str],
        *,
        following: Sequence[Following | None] = (),
        chances: Sequence[Chance | None] = (),
        notice_s: float = 0.0,
        ttft_slos_s: Sequence[float] | None = None,
        with_prefixes: bool = False,
        with_sessions: bool = False,
        with_adapters: bool = False,
        log: Log | None = None,
    ) -> None:
        self._agenda = env.agenda
        self._core = core
        self._told: GatewayCore | Gateways | ShadowedCore | _Logged = core if log is None else _Logged(core, log)
        self._metered = core.wants_progress
        # What every request of a workload has in common.
        # Limits and prices above go by the last two.
        self._who = [
            (w.entitlement, tenant, w.key or "", w.model or "") for w, tenant in zip(workloads, tenants, strict=True)
        ]
        self._clients: list[Client] = [w.client for w in workloads]
        self._chances: Sequence[Chance | None] = chances or [None] * len(workloads)
        self._impatient = [isinstance(w.client, Impatient) for w in workloads]
        self._some_impatient = any(self._impatient)
        self._cooling: dict[tuple[int, str], float] = {}  # sessions that keep still, and until when
        self._share_cooldown = [isinstance(w.client, SharedCooldown) for w in workloads]
        self._following = following or [None] * len(workloads)
        self._some_follow = any(one is not None for one in self._following)
        self._to_follow = 0
        self._names = [w.name for w in workloads]
        self._nodes: list[Node] = []
        self._submit: list[Callable[[Attempt, float], None]] = []
        self._open: dict[str, Attempt] = {}
        self._coming_again: dict[str, Attempt] = {}
        self._notice_s = notice_s
        self._ttft_slos_s = ttft_slos_s
        self._with_prefixes, self._with_sessions, self._with_adapters = with_prefixes, with_sessions, with_adapters
        self._on_drained: Callable[[], None] | None = None
        self._on_scale: Callable[[int], None] | None = None
        self.attempts: list[Attempt] = []
        self.ended = 0

    def connect(self, nodes: list[Node]) -> None:
        """Take the replicas, which need this object as their listener, and start the core."""
        self._nodes = nodes
        self._submit = [node.submit for node in nodes]
        now_s = self._agenda.now_s
        self._carry_out(self._core.start(now_s), now_s)

    @property
    def nobody_comes(self) -> bool:
        """Whether no client is about to come again, or with a next request."""
        return not self._coming_again and not self._to_follow

    @property
    def held(self) -> tuple[str, ...]:
        """The open requests that no replica has yet."""
        return tuple(name for name, attempt in self._open.items() if attempt.replica < 0)

    def unsettled(self) -> set[Attempt]:
        """Return the attempts that are open, or the last before one that is to come: not all of them is known yet."""
        return {*self._open.values(), *self._coming_again.values()}

    def output_tokens_of(self, request_id: str) -> int:
        """Return how long the answer to an open request will be: what only a simulator knows."""
        return self._open[request_id].output_tokens

    def cached_tokens_at(self, request_id: str, replica_id: int) -> int:
        """Return how much of an open request's prompt is in a replica's cache now: what only a simulator knows."""
        return self._nodes[replica_id].cached_tokens(self._open[request_id], self._agenda.now_s)

    def _session(self, attempt: Attempt) -> str:
        """Return the name of the chain of requests that this one is of; none where its workload has no chains."""
        if self._following[attempt.workload] is None:
            return ""
        return f"{self._names[attempt.workload]}-{self._in_chain(attempt)[0]}"

    def when_drained(self, call: Callable[[], None]) -> None:
        """Call back whenever nothing is open and nobody will come again."""
        self._on_drained = call

    def when_scaled(self, call: Callable[[int], None]) -> None:
        """Call with the number of replicas that the core wants, whenever that changes."""
        self._on_scale = call

    def _tell(self, event: Event, now_s: float) -> None:
        instructions = self._told.handle(event, now_s)
        if instructions:
            self._carry_out(instructions, now_s)

    # ------------------------------------------------------------------------------------------------------ clients

    def arrive(self, attempt: Attempt, now_s: float) -> None:
        """Bring an attempt to the gateway."""
        self.attempts.append(attempt)
        request_id = attempt.request_id
        self._open[request_id] = attempt
        entitlement, tenant, key, model = self._who[attempt.workload]
        asked_tokens = attempt.asked_tokens or None
        view = _new(
            _RequestView,
            (
                request_id, entitlement, tenant, attempt.prompt_tokens, asked_tokens, attempt.number, attempt.priority,
                1, None, key, model, None,
                attempt.prefix or () if self._with_prefixes else (),
                self._session(attempt) if self._with_sessions else "",
            ),
        )
        if self._some_impatient and self._impatient[attempt.workload] and attempt.number == 1:
            until_s = deadline_s(self._clients[attempt.workload], now_s)
            self._agenda.call_at(until_s, partial(self._lose_patience, attempt))
        self._carry_out(self._told.handle(_new(_Arrived, (view,)), now_s), now_s)

    def _end(self, attempt: Attempt, outcome: Outcome, now_s: float) -> None:
        """Close an attempt that did not finish; its client may come again."""
        del self._open[attempt.request_id]
        attempt.outcome = outcome
        attempt.finish_s = now_s
        self.ended += 1
        retry_after_s = None if math.isnan(attempt.retry_after_s) else attempt.retry_after_s
        workload = attempt.workload
        client = self._clients[workload]
        again_s = client.next_attempt_s(
            outcome.name.lower(), attempt.http_status, retry_after_s, attempt.number, now_s, self._chances[workload]
        )
        if self._share_cooldown[workload]:
            self._cool(attempt, outcome, retry_after_s, now_s)
        if again_s is not None and again_s < deadline_s(client, attempt.first_arrival_s):
            attempt.final = False
            self._coming_again[attempt.request_id] = attempt
            self._agenda.call_at(again_s, partial(self._retry, attempt))
            return
        if self._some_follow:
            self._follow(attempt, False, now_s)
        if not self._open:
            self._drained()

    def _in_chain(self, attempt: Attempt) -> tuple[str, str]:
        """Return the chain that a request is of, and its step: chat-7 begins chain 7, chat-7.3 is the third of it.

        A workload's name may have dots of its own.
        """
        chain, _, step = attempt.request_id[len(self._names[attempt.workload]) + 1 :].partition(".")
        return chain, step

    def _cool(self, attempt: Attempt, outcome: Outcome, retry_after_s: float | None, now_s: float) -> None:
        """Let the session of a request that was turned away keep still for as long as it was told."""
        client = self._clients[attempt.workload]
        if isinstance(client, SharedCooldown):
            session = attempt.workload, self._in_chain(attempt)[0]
            until_s = now_s + client.cooldown_s(outcome.name.lower(), retry_after_s)
            self._cooling[session] = max(until_s, self._cooling.get(session, 0.0))

    def _still_until_s(self, workload: int, chain: str, now_s: float) -> float:
        """Return until when a session keeps still; now or earlier where it does not."""
        if not self._share_cooldown[workload]:
            return now_s
        until_s = self._cooling.get((workload, chain), now_s)
        if until_s <= now_s:
            self._cooling.pop((workload, chain), None)
        return until_s

    def _drained(self) -> None:
        if self._on_drained is not None and not self._coming_again and not self._to_follow:
            self._on_drained()

    def _lose_patience(self, first: Attempt, _: Alarm) -> None:
        """Cancel what a client waits for no longer; ``first`` was its first attempt."""
        attempt = self._open.get(first.request_id)
        if attempt is None:
            return
        client = self._clients[attempt.workload]
        if isinstance(client, Impatient) and client.waits_for == "first-token" and attempt.first_token_s > 0:
            return
        now_s = self._agenda.now_s
        outputs = self._outputs(attempt, now_s)
        _deliver(attempt, outputs)
        if attempt.replica >= 0:
            self._nodes[attempt.replica].replica.abort(attempt, now_s)
        attempt.http_status = 499
        self._end(attempt, Outcome.CANCELLED, now_s)
        self._tell(Cancelled(attempt.request_id, outputs), now_s)

    def _follow(self, attempt: Attempt, succeeded: bool, now_s: float) -> None:
        """Let what waits for the end of a request come, each in its time."""
        following = self._following[attempt.workload]
        if following is None:
            return
        chain, step = self._in_chain(attempt)
        for follow_up in following.ended(int(chain), int(step or 1), succeeded, now_s):
            self._to_follow += 1
            call = partial(self._come, attempt.workload, attempt.priority, chain, follow_up)
            self._agenda.call_at(now_s + follow_up.delay_s, call)

    def _come(self, workload: int, priority: int, chain: str, follow_up: FollowUp, _: Alarm) -> None:
        now_s = self._agenda.now_s
        still_until_s = self._still_until_s(workload, chain, now_s)
        if still_until_s > now_s:
            self._agenda.call_at(still_until_s, partial(self._come, workload, priority, chain, follow_up))
            return
        self._to_follow -= 1
        step, _delay_s, prompt_tokens, output_tokens, asked_tokens, prefix = follow_up
        name = f"{self._names[workload]}-{chain}.{step}"
        attempt = Attempt(name, 1, workload, priority, now_s, now_s, prompt_tokens, output_tokens, asked_tokens)
        attempt.prefix = prefix
        self.arrive(attempt, now_s)

    def _retry(self, last: Attempt, _: Alarm) -> None:
        now_s = self._agenda.now_s
        still_until_s = self._still_until_s(last.workload, self._in_chain(last)[0], now_s)
        if still_until_s > now_s:
            self._agenda.call_at(still_until_s, partial(self._retry, last))
            return
        del self._coming_again[last.request_id]
        again = Attempt(
            last.request_id,
            last.number + 1,
            last.workload,
            last.priority,
            now_s,
            last.first_arrival_s,
            last.prompt_tokens,
            last.output_tokens,
            last.asked_tokens,
        )
        again.prefix = last.prefix
        self.arrive(again, now_s)

    # ----------------------------------------------------------------------------------------------------- replicas

    def on_first_token(self, request: Attempt, now_s: float) -> None:
        """Hear a first token from a replica."""
        if not request.first_token_s > 0:  # who was sent to another replica keeps the first of all
            request.first_token_s = now_s
        if self._metered:
            self._tell(_new(_FirstToken, (request.request_id,)), now_s)

    def on_finish(self, request: Attempt, now_s: float) -> None:
        """Hear a last token from a replica."""
        request_id = request.request_id
        request.finish_s = now_s
        request.delivered_tokens = outputs = request.outputs
        request.outcome = _FINISHED
        del self._open[request_id]
        self.ended += 1
        cached_tokens = request.cached_tokens
        if cached_tokens < 0:  # the replica keeps no prefixes
            cached_tokens = 0
        instructions = self._told.handle(_new(_Finished, (request_id, outputs, cached_tokens, None)), now_s)
        if instructions:
            self._carry_out(instructions, now_s)
        if self._some_follow:
            self._follow(request, True, now_s)
        if not self._open:
            self._drained()

    def fail(self, node: Node) -> None:
        """Crash a replica: what ran there fails, unless the core sends it elsewhere."""
        now_s = self._agenda.now_s
        for attempt in node.replica.fail(now_s):
            self._lost(attempt, now_s)

    def _lost(self, attempt: Attempt, now_s: float) -> None:
        outputs = attempt.outputs
        _deliver(attempt, outputs)
        instructions = self._told.handle(Failed(attempt.request_id, outputs), now_s)
        if any(isinstance(step, Forward) and step.request_id == attempt.request_id for step in instructions):
            attempt.begin_again()
        else:
            attempt.http_status = 502
            attempt.reason = Reason.REPLICA_FAILED.value
            self._end(attempt, Outcome.FAILED, now_s)
        self._carry_out(instructions, now_s)

    def capacity_changed(self, capacity: PoolCapacity, ready_replicas: tuple[int, ...]) -> None:
        """Let the core know what the pool has now and which replicas take requests, in its time."""
        self._in_time(CapacityChanged(capacity, ready_replicas))

    def _in_time(self, event: Event) -> None:
        if self._notice_s:
            self._agenda.call_at(self._agenda.now_s + self._notice_s, lambda _: self._tell(event, self._agenda.now_s))
        else:
            self._tell(event, self._agenda.now_s)

    def scrape(self) -> None:
        """Report every replica's metrics to the core."""
        now_s = self._agenda.now_s
        for node in self._nodes:
            if node.up:
                replica = node.replica
                used_fraction = replica.kv_used_blocks_at(now_s) / max(1, replica.kv_total_blocks)
                report = ReplicaReport(
                    node.replica_id, now_s, replica.running_count, replica.waiting_count, used_fraction
                )
                self._in_time(report)

    def _outputs(self, attempt: Attempt, now_s: float) -> int:
        return self._nodes[attempt.replica].replica.outputs_at(attempt, now_s) if attempt.replica >= 0 else 0

    # ------------------------------------------------------------------------------------------------- instructions

    def _carry_out(self, instructions: Sequence[Instruction], now_s: float) -> None:
        for step in instructions:
            # The commonest first; match would try the classes one by one as well, but slower.
            if type(step) is _Forward:
                request_id, replica_id, max_output_tokens = step
                attempt = self._open[request_id]
                if attempt.replica < 0:  # who is sent to another replica keeps the first time, as with the first token
                    attempt.forwarded_s = now_s
                attempt.replica = replica_id
                if self._with_adapters:
                    attempt.adapter = self._who[attempt.workload][3]
                if self._ttft_slos_s is not None:
                    attempt.due_s = attempt.first_arrival_s + self._ttft_slos_s[attempt.workload]
                if attempt.output_tokens > max_output_tokens:
                    attempt.output_tokens = max_output_tokens
                if self._nodes[replica_id].reachable:
                    self._submit[replica_id](attempt, now_s)
                else:  # the core has not heard yet that it is gone
                    self._lost(attempt, now_s)
            elif isinstance(step, Refuse):
                self._refuse(step, now_s)
            elif isinstance(step, CallMeAt):
                self._call = Alarm(self._tick)
                self._agenda.set(self._call, max(step.at_s, now_s))
            elif isinstance(step, Evict):
                self._evict(step, now_s)
            elif isinstance(step, Demote):
                self._open[step.request_id].priority = step.priority
            elif isinstance(step, Scale) and self._on_scale is not None:
                self._on_scale(step.replicas)
            # Hold needs nothing done.

    def _refuse(self, step: Refuse, now_s: float) -> None:
        attempt = self._open[step.request_id]
        attempt.reason = step.reason.value
        attempt.http_status = step.status
        if step.retry_after_s is not None:
            attempt.retry_after_s = step.retry_after_s
        self._end(attempt, Outcome.REFUSED, now_s)

    def _evict(self, step: Evict, now_s: float) -> None:
        attempt = self._open[step.request_id]
        _deliver(attempt, self._outputs(attempt, now_s))
        self._nodes[attempt.replica].replica.abort(attempt, now_s)
        attempt.reason = step.reason.value
        attempt.http_status = 503
        self._end(attempt, Outcome.EVICTED, now_s)

    def _tick(self, alarm: Alarm) -> None:
        if alarm is not self._call:  # another call took its place
            return
        now_s = self._agenda.now_s
        if self._metered:
            for attempt in list(self._open.values()):
                if attempt.replica >= 0:
                    progress = _new(_Progress, (attempt.request_id, self._outputs(attempt, now_s)))
                    self._tell(progress, now_s)
        self._tell(Tick(), now_s)

    # ----------------------------------------------------------------------------------------------------- horizon

    def close(self) -> None:
        """Note what is still open when the run ends."""
        now_s = self._agenda.now_s
        for attempt in self._open.values():
            _deliver(attempt, self._outputs(attempt, now_s))
            runs = attempt.replica >= 0 and self._nodes[attempt.replica].replica.runs(attempt)
            attempt.outcome = Outcome.RUNNING if runs else Outcome.WAITING
        self._open.clear()
        # Whoever would have come again after the end has made its last attempt: every request has exactly one.
        for attempt in self._coming_again.values():
            attempt.final = True


def _deliver(attempt: Attempt, output_tokens: int) -> None:
    """Count output that came back: who was sent to another replica has what the first one made, until there is more."""
    if output_tokens > attempt.delivered_tokens:
        attempt.delivered_tokens = output_tokens
