"""What a policy, a router and an autoscaler must have, and what a policy may have besides."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from policies.ledgers import InFlight, PoolLedger, ReplicaLedger
from policies.messages import EntitlementState, PoolCapacity, RequestView, Verdict


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


class GaugeTable:
    """Gauges as two lists, for a policy with thousands: labels (scope, name, metric), which it may keep, and values."""

    __slots__ = ("labels", "values")

    def __init__(self, labels: list[tuple[str, str, str]], values: list[float]) -> None:
        self.labels = labels
        self.values = values

    def __iter__(self) -> Iterator[Gauge]:
        """Yield each as a `Gauge`."""
        for label, value in zip(self.labels, self.values, strict=True):
            yield Gauge(*label, value)


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
class Screening(Protocol):
    """A policy that may know that a request is refused before anybody has counted its tokens."""

    def screens(self, entitlement: str, sequences: int, pool: PoolLedger) -> bool:
        """Return whether so many more sequences of an entitlement are refused, however small. No side effect."""
        ...


@runtime_checkable
class Granting(Protocol):
    """A policy that grants each entitlement a number of slots; `policies.invariants` holds it to that."""

    def slots_granted(self, entitlement: str) -> float:
        """Return the most slots that an entitlement may have in flight when one more is let in; infinity for any."""
        ...


@runtime_checkable
class Auditing(Protocol):
    """A policy with books beside the core's that must agree with them; `policies.invariants` asks."""

    def faults(self, pool: PoolLedger, held: Mapping[str, RequestView]) -> Iterable[str]:
        """Return what does not agree, a sentence each. No side effect; it may look at everything."""
        ...


@runtime_checkable
class Reclaiming(Protocol):
    """A policy that takes back what was admitted where the pool has less than what is in flight needs."""

    def reclaim(self, pool: PoolLedger, now_s: float) -> Sequence[str]:
        """Ids of requests to evict now; asked after each tick and change of capacity."""
        ...


@runtime_checkable
class Dozing(Protocol):
    """A policy with many ticks of which most change nothing: the core leaves those out that it says do not."""

    def quiet_until_s(self, pool: PoolLedger, now_s: float) -> float:
        """Return the time up to which no tick would change anything if nothing else happened.

        Asked after a tick and what it let in. Infinity: for as long as nothing happens; ``now_s``: the next may do
        something. Whatever happens ends it where somebody is held then, with the first tick after that instant; while
        nobody is held, ticks have to change nothing.
        """
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
    """Which replica takes a request.

    A router, or a policy, that has a true ``wants_prefixes`` is told what is known of prompts' text
    (`RequestView.prefix`), one with ``wants_sessions`` the conversation they belong to, and a router with
    ``wants_reports`` has the replicas scraped.
    """

    def route(self, request: RequestView, replicas: Sequence[ReplicaLedger]) -> int | None:
        """Return a ready replica's id, or None where there is none."""
        ...


@runtime_checkable
class LoadFollowing(Protocol):
    """A router that keeps the replicas in the order of what they owe, and so must hear whenever one owes less."""

    def follow(self, replicas: Sequence[ReplicaLedger]) -> None:
        """Take the replicas as they are now: at the start, and whenever there are others, or what they owe changed.

        Until the next call, `Router.route` is given this very sequence for any replica of it, and each replica owes at
        least what it did but where `lighter` says so.
        """
        ...

    def lighter(self, replica: ReplicaLedger) -> None:
        """Hear that a request of this replica has ended or moved, so that it owes less."""
        ...


@runtime_checkable
class ReportFollowing(Protocol):
    """A router that keeps what it works out from reports, and so must hear of each."""

    def reported(self, replica: ReplicaLedger) -> None:
        """Hear that ``replica.report`` is another."""
        ...


@runtime_checkable
class CompletionFollowing(Protocol):
    """A router that learns how fast replicas are from what they have answered."""

    def completed(self, flight: InFlight, output_tokens: int, service_s: float) -> None:
        """Hear that ``flight.replica_id`` answered in full, ``service_s`` after it was sent there."""
        ...


@runtime_checkable
class Timekeeping(Protocol):
    """A router that must know what time it is."""

    def at_time(self, now_s: float) -> None:
        """Hear the time right before `Router.route`."""
        ...


@runtime_checkable
class CacheSeeing(Protocol):
    """A router or policy that may be set to know what is in the replicas' caches: only a simulator tells it now."""

    @property
    def needs_caches(self) -> bool:
        """Whether it is set so and was not told yet."""
        ...

    def tell_caches(self, cached_tokens: Callable[[str, int], int]) -> None:
        """Take the function that returns how much of an open request's prompt is in the cache of a replica."""
        ...
