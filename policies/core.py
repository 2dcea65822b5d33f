"""The gateway as a state machine: events in, instructions out.

It keeps every book a gateway has (what is in flight, held, reserved and worked; replicas; service times; the states of
entitlements) and asks the policy for verdicts. It has no clock and no I/O, so a simulated and a real gateway that meet
the same events at the same times do the same things.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from policies.api import (
    ADMIT,
    UNLIMITED,
    AdmissionPolicy,
    Admit,
    Adopted,
    Allowance,
    Allowing,
    Arrived,
    CacheSeeing,
    CallMeAt,
    Cancelled,
    CapacityChanged,
    Clairvoyant,
    Demote,
    Deny,
    Dozing,
    EntitlementLedger,
    EntitlementSpec,
    EntitlementState,
    Event,
    Failed,
    Finished,
    FirstToken,
    Forward,
    Hold,
    InFlight,
    Instruction,
    PoolCapacity,
    PoolLedger,
    Progress,
    Reason,
    Reclaiming,
    Refuse,
    ReplicaKind,
    ReplicaLedger,
    ReplicaReport,
    RequestView,
    Router,
    Scale,
    Scaler,
    Screening,
    Tick,
    Verdict,
    Watching,
)
from policies.native import mypyc_attr
from policies.pool_state import BOUND, NEVER_S, PoolState

if TYPE_CHECKING:
    from policies.budgets import BudgetState
    from policies.hierarchy import Hierarchy

NO_CAPACITY_RETRY_S: Final = 5.0
"""Retry-After while no replica is ready or a lease does not fit: nobody knows until when, so ask soon. [choice]"""

Decide = Callable[[RequestView, int, PoolLedger, float], Verdict]
"""As `policies.api.AdmissionPolicy.decide`."""

# A NamedTuple's own constructor is a Python function that calls this; once per request the detour shows.
_new: Final = tuple.__new__
# Compiled, what is Final here is found without a look-up.
_ADMIT: Final = ADMIT
_Arrived: Final = Arrived
_Finished: Final = Finished
_FirstToken: Final = FirstToken
_Forward: Final = Forward
_Progress: Final = Progress


@mypyc_attr(allow_interpreted_subclasses=True)
class GatewayCore(PoolState):
    """One pool's gateway.

    Parameters
    ----------
    entitlements : the promises of the pool, with distinct names; in which order they come does not matter.
    capacity : what the pool has at the start.
    replica_ids : the replicas, all ready at the start.
    policy, router : objects of this pool alone; they may have memory.
    default_max_output_tokens : what a request that names no limit is taken to ask for.
    max_context_tokens : longest prompt + output that a replica can serve; None where it is not known.
    scaler : says how many replicas the pool should have; None where nobody does.
    retry_failed : whether a request that failed at one replica is sent once more to each of the others that is ready.
    hierarchy : limits and budgets above the entitlements, which are asked before the policy; None where there are none.
    kinds : of each replica, what it can do, where they differ; a request goes only to one that it fits in.
    service_smoothing : share of the old value that a new service time leaves in the moving averages, in [0, 1).

    Attributes
    ----------
    pool : the books.
    wants_progress, wants_reports : what the policy needs from the driver, see `policies.api.AdmissionPolicy`.
    wants_prefixes, wants_sessions : whether requests are to bring what is known of their text, and their session.
    late_events : how many events named a request that was not in flight; normal after an Evict.
    withdrawn : how many held requests were cancelled, or ended where this core was out of reach.
    """

    def __init__(
        self, *, entitlements: Sequence[EntitlementSpec], capacity: PoolCapacity, replica_ids: Sequence[int],
        policy: AdmissionPolicy, router: Router, default_max_output_tokens: int = 256,
        max_context_tokens: int | None = None, service_smoothing: float = 0.9, scaler: Scaler | None = None,
        retry_failed: bool = False, hierarchy: Hierarchy | None = None,
        kinds: Mapping[int, ReplicaKind] | None = None,
    ) -> None:
        if not 0 <= service_smoothing < 1:
            raise ValueError(f"service_smoothing is {service_smoothing}; give a share in [0, 1), e.g. 0.9")
        super().__init__(
            entitlements, capacity, replica_ids, policy, router, default_max_output_tokens, hierarchy, kinds
        )
        self._decide: Decide = policy.decide
        self._reclaim = policy.reclaim if isinstance(policy, Reclaiming) else None
        self._allowance = policy.allowance if isinstance(policy, Allowing) else None
        self._screens = policy.screens if isinstance(policy, Screening) else None
        self._on_first_token = policy.on_first_token if isinstance(policy, Watching) else None
        self._max_context = NEVER_S if max_context_tokens is None else max_context_tokens
        self._fresh_share = 1 - service_smoothing
        self._retry_failed = retry_failed
        self._scaler = scaler
        self._replicas_wanted = capacity.ready_replicas
        self._next_scale_s = NEVER_S
        self.wants_progress = policy.wants_progress or (scaler is not None and scaler.wants_progress)
        self.wants_reports = (
            policy.wants_reports or (scaler is not None and scaler.wants_reports)
            or getattr(router, "wants_reports", False)
        )
        self.wants_prefixes = any(getattr(one, "wants_prefixes", False) for one in (policy, router))
        self.wants_sessions = any(getattr(one, "wants_sessions", False) for one in (policy, router))
        self.late_events = 0
        self.withdrawn = 0
        self._start_s = 0.0
        self._ticks = self._scales = 0
        self._next_tick_s = NEVER_S
        self._handlers: dict[type, Callable[[Any, float], Sequence[Instruction]]] = {
            Arrived: self._arrived, FirstToken: self._first_token, Progress: self._progress, Finished: self._finished,
            Failed: self._failed, Cancelled: self._broken_off, ReplicaReport: self._report,
            CapacityChanged: self._capacity_changed, Adopted: self._adopted, Tick: self._tick,
        }
        self._quiet_until_s = policy.quiet_until_s if isinstance(policy, Dozing) else None
        self._dozes = False
        self._may_doze = self._quiet_until_s is not None
        if self._may_doze:
            self._waking = {kind: handler for kind, handler in self._handlers.items() if kind is not Tick}
            self._handlers |= dict.fromkeys(self._waking, self._awake)

    def start(self, now_s: float) -> Sequence[Instruction]:
        """Begin: entitlements get their states, and ticks will come at ``now_s`` + k * tick_s.

        From here on at most one CallMeAt is open at any time: a new one replaces it. The Tick that answers it brings
        the next, if there is one; where a policy dozes, any other event may.

        Raises
        ------
        ValueError : the policy needs to know output lengths, or policy or router the caches, and nobody told it.
        """
        policy = self._policy
        if isinstance(policy, Clairvoyant) and policy.needs_lengths:
            raise ValueError(
                "the policy estimates output lengths by an oracle, which only the simulator has; "
                "give another estimate, e.g. {kind: max-tokens}"
            )
        for one in (policy, self._router):
            if isinstance(one, CacheSeeing) and one.needs_caches:
                raise ValueError(
                    "exact looks into the replicas' prefix caches, which only the simulator can; "
                    "give index: approximate"
                )
        self._start_s = now_s
        if self._policy.tick_s is not None:
            self._ticks = 1
            self._next_tick_s = now_s + self._policy.tick_s
        if self._scaler is not None:
            self._next_scale_s = now_s + self._scaler.every_s
        return (*self._change_states(now_s), *self._next_call())

    def handle(self, event: Event, now_s: float) -> Sequence[Instruction]:
        """Return what to do, in order, about something that happened at ``now_s`` (seconds, never decreasing).

        Raises
        ------
        KeyError : the request names an entitlement that the pool does not have.
        ValueError : a request with this id is in flight or held already.
        """
        # The commonest without the detour of a bound method.
        if not self._may_doze:
            if type(event) is _Arrived:
                return self._arrived(event, now_s)
            if type(event) is _Finished:
                return self._finished(event, now_s)
            if type(event) is _FirstToken:
                return self._first_token(event, now_s)
            if type(event) is _Progress:
                return self._progress(event, now_s)
        return self._handlers[type(event)](event, now_s)

    @property
    def replicas_wanted(self) -> int:
        """How many replicas were last asked for; as many as there were at the start before that."""
        return self._replicas_wanted

    @property
    def call_me_at_s(self) -> float:
        """When the Tick is due that was last asked for; infinity where none was."""
        return min(self._next_tick_s, self._next_change_s, self._next_scale_s)

    def allowance(self, entitlement: str, now_s: float) -> Allowance:
        """Return what an entitlement may still ask for, as far as the policy says."""
        left = UNLIMITED if self._allowance is None else self._allowance(entitlement, self.pool, now_s)
        return left if self._hierarchy is None else self._hierarchy.allowance(entitlement, left, now_s)

    def budgets(self, entitlement: str, key: str, now_s: float) -> list[BudgetState]:
        """Return how the budgets stand that a request of this entitlement, with this key, is charged to."""
        return [] if self._hierarchy is None else self._hierarchy.budgets(entitlement, key, now_s)

    def judge_through(self, wrap: Callable[[Decide], Decide]) -> None:
        """Put a function between this core and its policy's verdicts: to look on, or to change one for a what-if."""
        self._decide = wrap(self._decide)

    @property
    def max_context_tokens(self) -> int | None:
        """The longest prompt + output that a replica can serve; None where it is not known."""
        return None if self._max_context == NEVER_S else int(self._max_context)

    def refuses_any(self, entitlement: str, sequences: int, now_s: float) -> bool:
        """Return whether a request would be refused now, however small: to know it before it is counted.

        False says nothing. No side effect.
        """
        ledger = self._ledgers[entitlement]
        if ledger.state is not BOUND or not self._ready:
            return True
        if self._hierarchy is not None and self._hierarchy.exhausted(entitlement, "", now_s):
            return True
        if self._screens is not None and self._screens(entitlement, sequences, self.pool):
            return True
        left = self.allowance(entitlement, now_s)
        return any(margin is not None and margin.remaining < 1 for margin in (left.requests, left.tokens))

    @property
    def started_s(self) -> float:
        """The time at which it began."""
        return self._start_s

    # ----------------------------------------------------------------------------------------------------------------
    # Arrivals

    def _arrived(self, event: Arrived, now_s: float) -> Sequence[Instruction]:
        # The state of an entitlement must not hang on whether the Tick or an arrival of the same instant comes first.
        before = self._change_states(now_s) if now_s >= self._next_change_s else ()
        request = event.request
        # Whole, as a rest would be made a list of for every request.
        request_id, name, _, prompt_tokens, max_output_tokens, attempt, _, sequences, context_tokens, _, _, _, _, _ = (
            request
        )
        ledger = self._ledgers.get(name)
        if ledger is None:
            raise KeyError(f"request {request_id} names entitlement {name!r}; this pool has {list(self._ledgers)}")
        if request_id in self._flights or request_id in self._held:
            raise ValueError(f"request {request_id} arrived while it is in flight or held; give each try its own id")
        if max_output_tokens is None:
            max_output_tokens = self.default_max_output_tokens
        reserved_tokens = prompt_tokens + max_output_tokens
        if context_tokens is None:
            context_tokens = reserved_tokens
        if attempt == 1 and context_tokens <= self._max_context:
            ledger.demanded_tokens += reserved_tokens
            ledger.demanded_requests += sequences
        if ledger.state is not BOUND or not self._ready or context_tokens > self._max_context:
            ledger.refused += 1
            return (*before, self._unservable(request, ledger, context_tokens, now_s))
        hierarchy = self._hierarchy
        if hierarchy is not None:
            hierarchy.heard(request, now_s)
            denied = hierarchy.denies(request, max_output_tokens, now_s)
            if denied is not None:
                return (*before, self._refused_above(denied, request, ledger, max_output_tokens))
        verdict = self._decide(request, max_output_tokens, self.pool, now_s)
        if verdict is _ADMIT and not before:
            return (self._forward(request, ledger, max_output_tokens, now_s),)
        return (*before, *self._carry_out(verdict, request, ledger, max_output_tokens, now_s))

    def _refused_above(
        self, denied: Deny, request: RequestView, ledger: EntitlementLedger, max_output_tokens: int
    ) -> Refuse:
        """Refuse for a limit above the entitlement. To the policy it was no demand: nobody gains by asking for it."""
        ledger.refused += 1
        if request.attempt == 1:
            self._was_no_demand(request, ledger, max_output_tokens)
        reason, needed, available, retry_after_s, status = denied
        return Refuse(request.request_id, reason, status, retry_after_s, needed, available)

    def _adopted(self, event: Adopted, now_s: float) -> Sequence[Instruction]:
        """Book what runs already. Nobody is asked, since it cannot be refused any more; it can be evicted later."""
        request, replica_id, max_output_tokens, forwarded_s, prompt_credited, output_tokens = event
        request_id = request.request_id
        if request_id in self._flights:
            self.late_events += 1
            return ()
        ledger = self._ledgers.get(request.entitlement)
        if ledger is None:
            raise KeyError(f"request {request_id} names entitlement {request.entitlement!r}, which this pool lacks")
        self._withdraw(request_id, now_s)
        if replica_id not in self._replica:
            self._know(replica_id, ready=False)
        flight = InFlight(
            request, ledger, replica_id, forwarded_s, max_output_tokens, request.prompt_tokens + max_output_tokens,
            prompt_credited, output_tokens,
        )
        self._book(flight, now_s)
        return ()

    def _unservable(
        self, request: RequestView, ledger: EntitlementLedger, context_tokens: int, now_s: float
    ) -> Refuse:
        """Return the refusal of a request that no policy could let in."""
        if ledger.state is EntitlementState.DEGRADED:
            return Refuse(request.request_id, Reason.NOT_BOUND, 429, NO_CAPACITY_RETRY_S, 1, 0)
        if ledger.state is not BOUND:
            wait_s = ledger.spec.from_s - now_s if ledger.state is EntitlementState.PENDING else None
            return Refuse(request.request_id, Reason.NOT_BOUND, 403, wait_s, 1, 0)
        if not self._ready:
            return Refuse(request.request_id, Reason.NO_CAPACITY, 503, NO_CAPACITY_RETRY_S, 1, 0)
        return Refuse(request.request_id, Reason.CONTEXT_LENGTH, 400, None, context_tokens, self._max_context)

    def _carry_out(
        self, verdict: Verdict, request: RequestView, ledger: EntitlementLedger, max_output_tokens: int, now_s: float
    ) -> list[Instruction]:
        request_id = request.request_id
        if isinstance(verdict, Admit):
            evict, priority, replicas, at_first = verdict
            instructions: list[Instruction] = [self._evict(victim, now_s) for victim in evict] if evict else []
            if priority is not None:
                request = request._replace(priority=priority)
            forward = self._forward(request, ledger, max_output_tokens, now_s, replicas, bound=not at_first)
            if priority is not None and type(forward) is Forward:
                instructions.append(Demote(request_id, priority))
            instructions.append(forward)
            return instructions
        if isinstance(verdict, Deny):
            reason, needed, available, retry_after_s, status = verdict
            ledger.refused += 1
            if retry_after_s is None and request.attempt == 1:
                self._was_no_demand(request, ledger, max_output_tokens)
            return [Refuse(request_id, reason, status, retry_after_s, needed, available)]
        if self._queueing is None:
            raise TypeError(f"{type(self._policy).__name__} holds request {request_id} and has no way to release it")
        self._held[request_id] = request
        self._queueing.on_held(request, max_output_tokens, self.pool, now_s)
        return [Hold(request_id, verdict.reason), *self._release(now_s)]

    @staticmethod
    def _was_no_demand(request: RequestView, ledger: EntitlementLedger, max_output_tokens: int) -> None:
        """Take back from what was asked for what can never be had: nobody shall gain by asking for it."""
        ledger.demanded_tokens -= request.prompt_tokens + max_output_tokens
        ledger.demanded_requests -= request.sequences

    def _forward(
        self, request: RequestView, ledger: EntitlementLedger, max_output_tokens: int, now_s: float,
        only_at: tuple[int, ...] | None = None, *, bound: bool = True,
    ) -> Instruction:
        books = self._replicas
        if only_at is not None:
            if len(only_at) == 1:
                book = self._replica.get(only_at[0])
                books = [] if book is None else [book]
            else:
                books = [book for book in books if book.replica_id in only_at]
        if self._mixed:
            books = self._fitting(request, max_output_tokens, books)
        if self._at_time is not None:
            self._at_time(now_s)
        replica_id = self._route(request, books)
        if replica_id is None:  # a router may find no replica fit although one is ready
            ledger.refused += 1
            return Refuse(request.request_id, Reason.NO_CAPACITY, 503, NO_CAPACITY_RETRY_S, 1, 0)
        request_id = request.request_id
        reserved_tokens = request.prompt_tokens + max_output_tokens
        flight = InFlight(request, ledger, replica_id, now_s, max_output_tokens, reserved_tokens)
        if bound:
            flight.only_at = only_at
        flight.counted_demand = request.attempt == 1
        self._book(flight, now_s)
        return _new(_Forward, (request_id, replica_id, max_output_tokens))

    @staticmethod
    def _fitting(
        request: RequestView, max_output_tokens: int, books: list[ReplicaLedger]
    ) -> list[ReplicaLedger]:
        """Return the replicas whose context is long enough; the very list where all are."""
        need_tokens = request.context_tokens
        if need_tokens is None:
            need_tokens = request.prompt_tokens + max_output_tokens
        if all(book.context_tokens is None or book.context_tokens >= need_tokens for book in books):
            return books
        return [book for book in books if book.context_tokens is None or book.context_tokens >= need_tokens]

    def _take_back(self, now_s: float) -> list[Instruction]:
        """Evict what the policy wants back."""
        return [self._evict(request_id, now_s) for request_id in self._reclaim(self.pool, now_s)]  # type: ignore[misc]

    def _release(self, now_s: float) -> list[Instruction]:
        """Carry out, one by one, what the policy says about the requests that it holds."""
        instructions: list[Instruction] = []
        if self._queueing is None:
            return instructions
        for request_id, verdict in self._queueing.dispatch(self.pool, now_s):
            request = self._held.pop(request_id, None)
            if request is None:
                raise KeyError(f"the policy releases request {request_id}, which is not held")
            max_output_tokens = self._most_output_of(request)
            ledger = self._ledgers[request.entitlement]
            if self._hierarchy is not None and isinstance(verdict, Admit):
                denied = self._hierarchy.denies(request, max_output_tokens, now_s)
                if denied is not None:  # others have used it meanwhile
                    instructions.append(self._refused_above(denied, request, ledger, max_output_tokens))
                    continue
            if isinstance(verdict, Admit) and not verdict.evict and verdict.priority is None:
                only_at, bound = verdict.replicas, not verdict.at_first
                instructions.append(self._forward(request, ledger, max_output_tokens, now_s, only_at, bound=bound))
            else:
                instructions += self._carry_out(verdict, request, ledger, max_output_tokens, now_s)
        return instructions

    # ----------------------------------------------------------------------------------------------------------------
    # What becomes of a request

    def _first_token(self, event: FirstToken, now_s: float) -> Sequence[Instruction]:
        flight = self._flights.get(event.request_id)
        if flight is None:
            self.late_events += 1
        elif not flight.prompt_credited:
            flight.prompt_credited = True
            flight.ledger.worked_tokens += flight.request.prompt_tokens
            self.pool.first_tokens += 1
            self.pool.waited_s += max(0.0, now_s - flight.forwarded_s)  # an adopted one may be of another clock
            if self._on_first_token is not None:
                self._on_first_token(flight, self.pool, now_s)
        return ()

    def _progress(self, event: Progress, now_s: float) -> Sequence[Instruction]:  # noqa: ARG002
        flight = self._flights.get(event.request_id)
        if flight is None:
            self.late_events += 1
        elif event.output_tokens > flight.output_tokens:
            self._credit(flight, event.output_tokens)
        return ()

    def _finished(self, event: Finished, now_s: float) -> Sequence[Instruction]:
        flight = self._flights.pop(event.request_id, None)
        if flight is None:
            return self._ended_elsewhere(event.request_id, now_s)
        flight.cached_tokens = event.cached_tokens
        service_s = now_s - flight.forwarded_s
        if service_s < 0.0:  # an adopted one may be of another clock
            service_s = 0.0
        if self._completed is not None:
            self._completed(flight, event.output_tokens, service_s)
        ledger, pool = flight.ledger, self.pool
        mean_s = ledger.mean_service_s
        ledger.mean_service_s = service_s if mean_s is None else mean_s + self._fresh_share * (service_s - mean_s)
        mean_s = pool.mean_service_s
        pool.mean_service_s = service_s if mean_s is None else mean_s + self._fresh_share * (service_s - mean_s)
        # An answer in one piece has no first token of its own; the output that it may have is counted with the prompt.
        if not flight.prompt_credited and (
            event.prompt_tokens is not None or event.output_tokens <= flight.output_tokens
        ):
            self._credit(flight, flight.output_tokens)
        if event.prompt_tokens is not None and event.prompt_tokens != flight.request.prompt_tokens:
            # Of a prompt that other books have counted (`Adopted`), these may not hold what is taken off here.
            ledger.worked_tokens = max(0, ledger.worked_tokens + event.prompt_tokens - flight.request.prompt_tokens)
            flight.request = flight.request._replace(prompt_tokens=event.prompt_tokens)
        self._close(flight, event.output_tokens, now_s)
        return tuple(self._release(now_s)) if self._held else ()

    def _failed(self, event: Failed, now_s: float) -> Sequence[Instruction]:
        flight = self._flights.get(event.request_id)
        if flight is not None and self._retry_failed and not event.final:
            if self._at_time is not None:
                self._at_time(now_s)
            elsewhere = self._send_elsewhere(flight, event.output_tokens)
            if elsewhere is not None:
                return (elsewhere,)
        return self._broken_off(event, now_s)

    def _send_elsewhere(self, flight: InFlight, output_tokens: int) -> Forward | None:
        """Move a request that a replica lost; None where there is no other. What it had done counts as work done."""
        lost_at = self._replica[flight.replica_id]
        flight.failed_at = (*flight.failed_at, flight.replica_id)
        others = [book for book in self._replicas if book.ready and book.replica_id not in flight.failed_at]
        if flight.only_at is not None:
            others = [book for book in others if book.replica_id in flight.only_at]
        if self._mixed:
            others = self._fitting(flight.request, flight.max_output_tokens, others)
        replica_id = self._route(flight.request, others) if others else None
        if replica_id is None:
            return None
        if output_tokens > flight.output_tokens:
            self._credit(flight, output_tokens)
        for book, sign in ((lost_at, -1), (self._replica[replica_id], 1)):
            book.in_flight += sign * flight.request.sequences
            book.outstanding_tokens += sign * flight.reserved_tokens
        if self._lighter is not None:
            self._lighter(lost_at)
        flight.replica_id = replica_id
        return Forward(flight.request.request_id, replica_id, flight.max_output_tokens)

    def _broken_off(self, event: Failed | Cancelled, now_s: float) -> Sequence[Instruction]:
        flight = self._flights.pop(event.request_id, None)
        if flight is not None:
            if type(event) is Cancelled:
                self._before_cancelled(flight, event)
            self._close(flight, event.output_tokens, now_s)
            return tuple(self._release(now_s)) if self._held else ()
        return self._ended_elsewhere(event.request_id, now_s)

    def _ended_elsewhere(self, request_id: str, now_s: float) -> Sequence[Instruction]:
        """Hold no longer what was cancelled, or let in and ended where this core was out of reach."""
        if not self._withdraw(request_id, now_s):
            self.late_events += 1
            return ()
        self.withdrawn += 1
        return tuple(self._release(now_s)) if self._held else ()

    def _before_cancelled(self, flight: InFlight, event: Cancelled) -> None:
        """Count the prompt of what a replica had begun, and take what it refused out of the demand."""
        if event.prompt_begun and not flight.prompt_credited:
            self._credit(flight, flight.output_tokens)
        if event.refused and flight.counted_demand:
            flight.counted_demand = False
            self._was_no_demand(flight.request, flight.ledger, flight.max_output_tokens)

    # ----------------------------------------------------------------------------------------------------------------
    # What becomes of the pool

    def _report(self, event: ReplicaReport, now_s: float) -> Sequence[Instruction]:
        replica = self._replica.get(event.replica_id)
        if replica is not None:
            replica.report = event
            if self._reported is not None:
                self._reported(replica)
        return tuple(self._release(now_s)) if self._held else ()

    def _capacity_changed(self, event: CapacityChanged, now_s: float) -> Sequence[Instruction]:
        for replica_id in event.ready_replicas:
            if replica_id not in self._replica:
                self._know(replica_id, ready=True)
        for replica in self._replicas:
            replica.ready = replica.replica_id in event.ready_replicas
        self._ready = sum(replica.ready for replica in self._replicas)
        self._recount()
        self.pool.capacity = event.capacity
        instructions = self._settle(now_s)
        if self._reclaim is not None:
            instructions += self._take_back(now_s)
        if self._held:
            instructions += self._release(now_s)
        return tuple(instructions)

    def _tick(self, event: Tick, now_s: float) -> Sequence[Instruction]:  # noqa: ARG002
        """Do what is due. A tick that comes early finds nothing due, and asks for the rest of the time."""
        instructions: list[Instruction] = []
        if now_s >= self._next_change_s:
            instructions += self._change_states(now_s)
        tick_s = self._policy.tick_s
        if tick_s is not None and now_s >= self._next_tick_s:
            self._policy.on_tick(self.pool, now_s)
            if self._reclaim is not None:
                instructions += self._take_back(now_s)
            # Multiples of the start, so that lateness does not add up. Ticks that were slept through are left out.
            self._ticks = max(self._ticks + 1, int((now_s - self._start_s) / tick_s))
            while self._start_s + self._ticks * tick_s <= now_s:
                self._ticks += 1
            self._next_tick_s = self._start_s + self._ticks * tick_s
        if self._scaler is not None and now_s >= self._next_scale_s:
            instructions += self._scale(self._scaler, now_s)
        if self._held:
            instructions += self._release(now_s)
        if self._quiet_until_s is not None and tick_s is not None:
            self._doze(max(now_s, self._quiet_until_s(self.pool, now_s)), tick_s, now_s)
        return (*instructions, *self._next_call())

    def _doze(self, until_s: float, tick_s: float, now_s: float) -> None:
        """Leave out the ticks up to ``until_s``."""
        self._next_tick_s = NEVER_S if until_s == NEVER_S else self._tick_after(until_s, tick_s)
        self._dozes = self._next_tick_s > self._tick_after(now_s, tick_s)

    def _tick_after(self, after_s: float, tick_s: float) -> float:
        """Return the first tick after a time, of those that were not there yet."""
        number = max(self._ticks, int((after_s - self._start_s) / tick_s))
        while self._start_s + number * tick_s <= after_s:
            number += 1
        return self._start_s + number * tick_s

    def _awake(self, event: Event, now_s: float) -> Sequence[Instruction]:
        """Handle what is no Tick; a policy that dozes has its next tick where somebody is held then."""
        said = self._waking[type(event)](event, now_s)
        tick_s = self._policy.tick_s
        if not (self._dozes and self._held) or tick_s is None:
            return said
        self._dozes = False
        self._next_tick_s = self._tick_after(now_s, tick_s)
        return (*said, *self._next_call())

    def _scale(self, scaler: Scaler, now_s: float) -> list[Instruction]:
        """Ask the autoscaler, and for the replicas that it wants if they are not what was last asked for."""
        while self._next_scale_s <= now_s:
            self._scales += 1
            self._next_scale_s = self._start_s + self._scales * scaler.every_s
        wanted = scaler.replicas(self.pool, self._replicas_wanted, now_s)
        if wanted == self._replicas_wanted:
            return []
        self._replicas_wanted = wanted
        return [Scale(wanted)]

    def _next_call(self) -> tuple[CallMeAt, ...]:
        at_s = self.call_me_at_s
        return (CallMeAt(at_s),) if at_s < NEVER_S else ()

