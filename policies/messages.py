"""What a gateway, its core and a policy tell each other: names, promises, events, instructions, verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

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
    BUDGET = "budget"
    PARENT_LIMIT = "parent_limit"


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

    def limited_to(self, slots: int | None) -> PoolCapacity:
        """Return a capacity with no more than these slots, None for all; token throughput shrinks with them."""
        if slots is None or slots >= self.slots:
            return self
        rate = self.tokens_per_s
        return self._replace(slots=slots, tokens_per_s=None if rate is None else rate * slots / self.slots)


class ReplicaKind(NamedTuple):
    """What one replica can do, where they differ: fields as in `policies.ledgers.ReplicaLedger`."""

    slots: int
    context_tokens: int | None
    speed: float


class RequestView(NamedTuple):
    """What a gateway can know about one attempt of a request: never its true output length.

    ``max_output_tokens`` is None where the client named none; it is of all answers together. ``priority`` is the
    engine's: lower goes first. ``sequences`` is how many slots it takes at a replica: one for each answer to each
    prompt. ``context_tokens`` is the least that its largest sequence is known to need of a replica's context; None
    where prompt and output are one sequence, and known exactly, as in a simulation.

    ``key`` and ``model`` are what `policies.hierarchy` finds limits and prices by, and ``wall_s`` is the time of the
    calendar, in seconds since 1970, at which it arrived; None where the core's own time tells it.

    ``prefix`` is what is known of its text: the lines that its tokens run through, (name, tokens from the start to the
    line's end) each, equal names meaning equal text up to there; empty where nobody asked (`policies.api.Router`).
    ``session`` names the conversation or agent that it belongs to, empty for one that stands alone.
    """

    request_id: str
    entitlement: str
    tenant: str
    prompt_tokens: int
    max_output_tokens: int | None
    attempt: int = 1
    priority: int = 0
    sequences: int = 1
    context_tokens: int | None = None
    key: str = ""
    model: str = ""
    wall_s: float | None = None
    prefix: tuple[tuple[int, int], ...] = ()
    session: str = ""


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
    """The client went away after ``output_tokens``, seen or not.

    ``prompt_begun`` where a replica had the request, so that its prompt counts as done. ``refused`` where the replica
    turned it away as its client's fault: it could never have been served, and was no demand.
    """

    request_id: str
    output_tokens: int = 0
    prompt_begun: bool = False
    refused: bool = False


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
    """Send a Tick at this time, in place of the one that was asked for before and has not come."""

    at_s: float


Instruction = Forward | Demote | Hold | Refuse | Evict | Scale | CallMeAt

# --------------------------------------------------------------------------------------------------------------------
# Verdicts: what a policy tells the core


class Admit(NamedTuple):
    """Let it in, after evicting ``evict`` (request ids).

    ``priority`` demotes it: the engine is told this in place of the request's own. ``replicas`` are the only ones that
    the router may choose from; with ``at_first`` that holds for now, and any other may take over from one that fails.
    """

    evict: tuple[str, ...] = ()
    priority: int | None = None
    replicas: tuple[int, ...] | None = None
    at_first: bool = False


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
