"""What policies see and say: views, events, verdicts, instructions and the Protocols.

Everything here is what a gateway can know. The true output length of a request is not among it: no type in this
module has a field for it. Times are seconds on the caller's clock, tokens are counts, KV cache is in bytes.

Small values are ``NamedTuple`` because one is made for every event of every request, and a tuple is the cheapest
frozen value Python has. Ledgers are mutable: the core (`policies.core`) writes them, policies only read them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol, runtime_checkable

# --------------------------------------------------------------------------------------------------------------------
# Names


class ServiceClass(StrEnum):
    """The five service classes of arXiv 2603.00356, most protected first."""

    DEDICATED = "dedicated"
    GUARANTEED = "guaranteed"
    ELASTIC = "elastic"
    SPOT = "spot"
    PREEMPTIBLE = "preemptible"


class EntitlementState(StrEnum):
    """Where an entitlement stands; only Bound ones are served (arXiv 2603.00356, check 1).

    Pending before it is in force, Expired after; in between Bound, or Degraded where the pool cannot hold its lease.
    """

    PENDING = "Pending"
    BOUND = "Bound"
    DEGRADED = "Degraded"
    EXPIRED = "Expired"


class Reason(StrEnum):
    """Why a request was let in, held or turned away: a column to group by, not a sentence to parse."""

    ADMITTED = "admitted"
    NOT_BOUND = "not_bound"
    CONCURRENCY = "concurrency"
    REQUESTS = "requests"
    TOKENS = "tokens"
    KV_CACHE = "kv_cache"
    LOW_PRIORITY = "low_priority"
    POOL_FULL = "pool_full"
    TOO_LARGE = "too_large"
    CONTEXT_LENGTH = "context_length"
    NO_CAPACITY = "no_capacity"
    PREEMPTED = "preempted"
    REPLICA_FAILED = "replica_failed"
    STATE_UNAVAILABLE = "state_unavailable"
    QUEUE_FULL = "queue_full"
    QUEUE_TIMEOUT = "queue_timeout"
    OVERLOADED = "overloaded"
    SLO = "slo"


# --------------------------------------------------------------------------------------------------------------------
# What is promised


@dataclass(frozen=True, slots=True)
class Resources:
    """A vector of the three schedulable resources; None means that the dimension is not limited.

    Attributes
    ----------
    tokens_per_s : token throughput, prompt and output alike (lambda in the paper).
    kv_bytes : KV cache (chi).
    slots : sequences in flight (r).
    """

    tokens_per_s: float | None = None
    kv_bytes: float | None = None
    slots: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EntitlementSpec:
    """What one tenant was promised in one pool.

    Attributes
    ----------
    baseline : what is reserved (dedicated, guaranteed) or held on average (elastic).
    limit : how far it may go with what others leave; a missing dimension is unlimited.
    ttft_slo_s : the service objective for time to first token (slo_e of the priority formula).
    from_s, until_s : when the entitlement is Bound; Pending before, Expired after.
    """

    name: str
    tenant: str
    service_class: ServiceClass
    ttft_slo_s: float | None = None
    baseline: Resources = Resources()
    limit: Resources = Resources()
    from_s: float = 0.0
    until_s: float = float("inf")


class PoolCapacity(NamedTuple):
    """What the pool has now, summed over ready replicas; None where a dimension is not known."""

    ready_replicas: int
    slots: int
    tokens_per_s: float | None = None
    kv_bytes: float | None = None


class RequestView(NamedTuple):
    """What a gateway can know about one attempt of a request: never its true output length.

    ``max_output_tokens`` is None where the client named none. ``priority`` is the engine's: lower goes first.
    """

    request_id: str
    entitlement: str
    tenant: str
    prompt_tokens: int
    max_output_tokens: int | None
    attempt: int = 1
    priority: int = 0


# --------------------------------------------------------------------------------------------------------------------
# Events: what the world tells the core


class Arrived(NamedTuple):
    """An attempt reached the gateway."""

    request: RequestView


class FirstToken(NamedTuple):
    """The upstream sent the first output token."""

    request_id: str


class Progress(NamedTuple):
    """``output_tokens`` have come back so far."""

    request_id: str
    output_tokens: int


class Finished(NamedTuple):
    """The upstream answered in full, with the usage it reports.

    ``prompt_tokens`` is the upstream's count of them, None where it gave none: what arrived was an estimate then.
    """

    request_id: str
    output_tokens: int
    cached_tokens: int = 0
    prompt_tokens: int | None = None


class Failed(NamedTuple):
    """The upstream broke off after ``output_tokens``.

    ``final`` where its client has a part of the answer already, so that no other replica can take it over.
    """

    request_id: str
    output_tokens: int = 0
    final: bool = False


class Cancelled(NamedTuple):
    """The client went away after ``output_tokens``."""

    request_id: str
    output_tokens: int = 0


class ReplicaReport(NamedTuple):
    """One scrape of one replica's metrics; ``seen_at_s`` is when it was true."""

    replica_id: int
    seen_at_s: float
    running: int
    waiting: int
    kv_used_fraction: float


class CapacityChanged(NamedTuple):
    """The pool's capacity, and which replicas are ready to take requests."""

    capacity: PoolCapacity
    ready_replicas: tuple[int, ...]


class Adopted(NamedTuple):
    """A request that runs already and these books do not hold: it began while they were out of reach, or under others.

    ``prompt_credited`` and ``output_tokens`` say what of its work other books have counted.
    """

    request: RequestView
    replica_id: int
    max_output_tokens: int
    forwarded_s: float
    prompt_credited: bool = False
    output_tokens: int = 0


class Tick(NamedTuple):
    """The time asked for by ``CallMeAt`` has come."""


Event = (
    Arrived | FirstToken | Progress | Finished | Failed | Cancelled | ReplicaReport | CapacityChanged | Adopted | Tick
)

# --------------------------------------------------------------------------------------------------------------------
# Instructions: what the core tells the world


class Forward(NamedTuple):
    """Send the request to a replica. ``max_output_tokens`` is what to ask for: the client's, or the default."""

    request_id: str
    replica_id: int
    max_output_tokens: int


class Demote(NamedTuple):
    """Give the request this engine priority (lower goes first) in place of its own; the Forward comes right after."""

    request_id: str
    priority: int


class Hold(NamedTuple):
    """Keep the request; a later Forward or Refuse will name it."""

    request_id: str
    reason: Reason


class Refuse(NamedTuple):
    """Answer with ``status``. ``retry_after_s`` is None where waiting cannot help: the answer is "never".

    ``needed`` and ``available`` are the two numbers that were compared, in the unit of the reason: slots, tokens,
    bytes, requests or priority weight.
    """

    request_id: str
    reason: Reason
    status: int
    retry_after_s: float | None
    needed: float
    available: float


class Evict(NamedTuple):
    """Terminate a running request and tell its client so."""

    request_id: str
    reason: Reason


class Scale(NamedTuple):
    """The pool should have this many replicas."""

    replicas: int


class CallMeAt(NamedTuple):
    """Send a Tick at this time."""

    at_s: float


Instruction = Forward | Demote | Hold | Refuse | Evict | Scale | CallMeAt

# --------------------------------------------------------------------------------------------------------------------
# Verdicts: what a policy tells the core


class Admit(NamedTuple):
    """Let it in, after evicting ``evict`` (request ids).

    ``priority`` demotes it: the engine is told this in place of the request's own. ``replicas`` are the only ones that
    the router may choose from.
    """

    evict: tuple[str, ...] = ()
    priority: int | None = None
    replicas: tuple[int, ...] | None = None


class Queue(NamedTuple):
    """Hold it at the gateway until `Queueing.dispatch` names it. Only a policy that is `Queueing` may say so."""

    reason: Reason


class Deny(NamedTuple):
    """Turn it away; fields as in `Refuse`."""

    reason: Reason
    needed: float
    available: float
    retry_after_s: float | None
    status: int = 429


Verdict = Admit | Queue | Deny
ADMIT = Admit()

# --------------------------------------------------------------------------------------------------------------------
# Ledgers: the core's books, which policies read


@dataclass(slots=True, eq=False)
class InFlight:
    """A request that was forwarded and has not ended.

    ``failed_at`` names the replicas that lost it, ``only_at`` those that it may go to (None: any). ``cached_tokens`` of
    its prompt is known at its end.
    """

    request: RequestView
    ledger: EntitlementLedger
    replica_id: int
    forwarded_s: float
    max_output_tokens: int
    reserved_tokens: int
    prompt_credited: bool = False
    output_tokens: int = 0
    failed_at: tuple[int, ...] = ()
    only_at: tuple[int, ...] | None = None
    cached_tokens: int = 0


@dataclass(slots=True, eq=False)
class EntitlementLedger:
    """The books of one entitlement.

    Attributes
    ----------
    in_flight : forwarded and not ended.
    reserved_tokens : prompt + max_output_tokens, summed over what is in flight.
    worked_tokens : tokens of work done since the start: a prompt counts at its first token, output as it is seen.
    demanded_tokens : prompt + max_output_tokens of everything that arrived, refused or not, first attempts only.
    demanded_requests : how many those were.
    mean_service_s : moving average of forwarded-to-finished times, None before the first.
    """

    spec: EntitlementSpec
    state: EntitlementState
    in_flight: int = 0
    reserved_tokens: int = 0
    worked_tokens: int = 0
    demanded_tokens: int = 0
    demanded_requests: int = 0
    admitted: int = 0
    refused: int = 0
    mean_service_s: float | None = None


@dataclass(slots=True, eq=False)
class ReplicaLedger:
    """What the gateway knows of one replica: its own bookkeeping, and the last report with its age."""

    replica_id: int
    ready: bool = True
    in_flight: int = 0
    outstanding_tokens: int = 0
    report: ReplicaReport | None = None


@dataclass(slots=True, eq=False)
class PoolLedger:
    """The books of the pool.

    ``mean_service_s`` is over all entitlements, None before the first completion. ``first_tokens`` counts those that
    the driver told of, and ``waited_s`` sums the seconds from forwarding to them. ``others_in_flight`` and
    ``others_reserved_tokens`` are known of other gateways of the same pool; in the books of entitlements and replicas
    they are included.
    """

    capacity: PoolCapacity
    entitlements: Mapping[str, EntitlementLedger]
    replicas: Sequence[ReplicaLedger]
    in_flight: dict[str, InFlight] = field(default_factory=dict)
    mean_service_s: float | None = None
    first_tokens: int = 0
    waited_s: float = 0.0
    others_in_flight: int = 0
    others_reserved_tokens: int = 0

    @property
    def all_in_flight(self) -> int:
        """How many requests the pool has in flight, those of other gateways included."""
        return len(self.in_flight) + self.others_in_flight


# --------------------------------------------------------------------------------------------------------------------
# Protocols


class Chance(Protocol):
    """A seeded source of uniform numbers in [0, 1); `random.Random` and numpy's Generator both are one."""

    def random(self) -> float:
        """Return the next number."""
        ...


class Gauge(NamedTuple):
    """One value for the timeline. ``scope`` is pool, replica or entitlement; ``name`` says which."""

    scope: str
    name: str
    metric: str
    value: float


class AdmissionPolicy(Protocol):
    """Who is let in. One object per pool, handed the books of the core; it keeps no clock and does no I/O.

    ``tick_s`` is how often `on_tick` is wanted (None: never). With ``wants_progress`` the driver reports the output
    of every running request right before each tick. With ``wants_reports`` it scrapes the replicas.
    """

    tick_s: float | None
    wants_progress: bool
    wants_reports: bool

    def decide(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Verdict:
        """Judge an arrival. No side effect: `on_admitted` follows an Admit, `Queueing.on_held` a Queue."""
        ...

    def on_admitted(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Charge what was let in. The ledgers already count it."""
        ...

    def on_ended(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Settle a request that finished, failed, was cancelled or evicted after ``flight.output_tokens``.

        The ledgers no longer count it as in flight.
        """
        ...

    def on_tick(self, pool: PoolLedger, now_s: float) -> None:
        """Update what is metered; the ledgers hold the work done until now."""
        ...

    def on_capacity(self, pool: PoolLedger, now_s: float) -> None:
        """Take note of a new ``pool.capacity`` or of an entitlement that changed its state."""
        ...

    def gauges(self, pool: PoolLedger, now_s: float) -> Iterable[Gauge]:
        """Return what the timeline should show of this policy's state."""
        ...


@runtime_checkable
class Queueing(Protocol):
    """A policy that holds requests at the gateway, in queues of its own."""

    def on_held(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> None:
        """Take a request for which `AdmissionPolicy.decide` said Queue. `dispatch` is asked right after."""
        ...

    def on_withdrawn(self, request_id: str, now_s: float) -> None:
        """Forget a held request: its client went away, or its entitlement is Bound no longer."""
        ...

    def dispatch(self, pool: PoolLedger, now_s: float) -> Iterator[tuple[str, Verdict]]:
        """Yield held requests that wait no longer, in order, each with an Admit or a Deny.

        Each is carried out before the next is asked for, so that the books are right. Asked whenever something is held
        and something arrived, ended, was reported or changed, and at ticks. While ``pool.capacity.ready_replicas`` is
        0 nothing may be let in.
        """
        ...


@runtime_checkable
class Watching(Protocol):
    """A policy that learns from first tokens. It needs ``wants_progress``, or the driver tells of none."""

    def on_first_token(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Hear that a request in flight has its first token; once for each."""
        ...


@runtime_checkable
class Clairvoyant(Protocol):
    """A policy that may be set to know output lengths beforehand, which no gateway can: only a simulator tells them."""

    @property
    def needs_lengths(self) -> bool:
        """Whether it is set so and was not told yet."""
        ...

    def tell_lengths(self, length_of: Callable[[str], int]) -> None:
        """Take the function that returns the true output tokens of a request that has arrived."""
        ...


class Leases(Protocol):
    """Which of the entitlements that are in force have their promise reserved in the pool."""

    def settle(self, in_force: Collection[str], capacity: PoolCapacity) -> Mapping[str, EntitlementState]:
        """Return Bound or Degraded for each; asked whenever one comes into force or leaves, or capacity changes."""
        ...


@runtime_checkable
class Leasing(Protocol):
    """A policy that has leases. Under any other, every entitlement is Bound as long as it is in force."""

    leases: Leases | None


class Margin(NamedTuple):
    """How much there is at most, how much of it is left, and in how many seconds all of it would be there again."""

    limit: float
    remaining: float
    reset_s: float


class Allowance(NamedTuple):
    """What an entitlement may still ask for; None where that is not limited."""

    requests: Margin | None = None
    tokens: Margin | None = None


UNLIMITED = Allowance()


@runtime_checkable
class Allowing(Protocol):
    """A policy whose clients may know what is left to them."""

    def allowance(self, entitlement: str, pool: PoolLedger, now_s: float) -> Allowance:
        """Return what an entitlement may still ask for. No side effect."""
        ...


@runtime_checkable
class Reclaiming(Protocol):
    """A policy that takes back what was admitted where the pool has less than what is in flight needs."""

    def reclaim(self, pool: PoolLedger, now_s: float) -> Sequence[str]:
        """Ids of requests to evict now; asked after each tick and change of capacity."""
        ...


@runtime_checkable
class Inheriting(Protocol):
    """A policy that goes on from the memory of another one, of an earlier configuration; others begin afresh."""

    def inherit(self, earlier: AdmissionPolicy, pool: PoolLedger, now_s: float) -> None:
        """Take over what still means something here; what is in flight was admitted here already."""
        ...


class Scaler(Protocol):
    """How many replicas the pool should have. It sees what the gateway sees.

    ``every_s`` is how often it is asked; ``wants_reports`` and ``wants_progress`` as in `AdmissionPolicy`.
    """

    every_s: float
    wants_reports: bool
    wants_progress: bool

    def replicas(self, pool: PoolLedger, current: int, now_s: float) -> int:
        """Return the number of replicas; ``current`` is how many were last asked for."""
        ...

    def gauges(self) -> Iterable[Gauge]:
        """Return what the timeline should show of what it last saw."""
        ...


class Router(Protocol):
    """Which replica takes a request."""

    def route(self, request: RequestView, replicas: Sequence[ReplicaLedger]) -> int | None:
        """Return a ready replica's id, or None where there is none."""
        ...
