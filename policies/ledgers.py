"""The core's ledgers, which policies read: requests in flight, entitlements, replicas, the pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from policies.messages import EntitlementSpec, EntitlementState, PoolCapacity, ReplicaReport, RequestView
from policies.native import mypyc_attr


@mypyc_attr(allow_interpreted_subclasses=True, acyclic=True)
class InFlight:
    """A request that was forwarded and has not ended.

    ``failed_at`` names the replicas that lost it, ``only_at`` those that it may go to (None: any). ``cached_tokens`` of
    its prompt is known at its end. ``counted_demand`` where its entitlement's demand holds it.
    """

    # Written out, and no dataclass: one is made for every request.
    __slots__ = (
        "cached_tokens", "counted_demand", "failed_at", "forwarded_s", "ledger", "max_output_tokens", "only_at",
        "output_tokens", "prompt_credited", "replica_id", "request", "reserved_tokens",
    )  # fmt: skip

    def __init__(
        self, request: RequestView, ledger: EntitlementLedger, replica_id: int, forwarded_s: float,
        max_output_tokens: int, reserved_tokens: int, prompt_credited: bool = False, output_tokens: int = 0,
    ) -> None:
        self.request = request
        self.ledger = ledger
        self.replica_id = replica_id
        self.forwarded_s = forwarded_s
        self.max_output_tokens = max_output_tokens
        self.reserved_tokens = reserved_tokens
        self.prompt_credited = prompt_credited
        self.output_tokens = output_tokens
        self.failed_at: tuple[int, ...] = ()
        self.only_at: tuple[int, ...] | None = None
        self.cached_tokens = 0
        self.counted_demand = False


@mypyc_attr(allow_interpreted_subclasses=True)
@dataclass(slots=True, eq=False)
class EntitlementLedger:
    """The books of one entitlement.

    Attributes
    ----------
    in_flight : sequences of what was forwarded and has not ended; a request is one unless it says otherwise.
    reserved_tokens : prompt + max_output_tokens, summed over what is in flight.
    worked_tokens : tokens of work done since the start: a prompt counts at its first token, output as it is seen.
    demanded_tokens : prompt + max_output_tokens of everything that arrived and could have been served, refused or not,
        first attempts only. What is refused for good is no demand: nobody gains by asking for what cannot be had.
    demanded_requests : how many sequences those were.
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


@mypyc_attr(allow_interpreted_subclasses=True)
@dataclass(slots=True, eq=False)
class ReplicaLedger:
    """What the gateway knows of one replica: its own bookkeeping, and the last report with its age.

    ``in_flight`` counts sequences. In a pool of several kinds of replicas ``slots`` and ``context_tokens`` are what
    this one runs at once and the longest prompt + output it serves, None where all are alike; ``speed`` is how fast its
    profile says it is, over the mean of the pool.
    """

    replica_id: int
    ready: bool = True
    in_flight: int = 0
    outstanding_tokens: int = 0
    report: ReplicaReport | None = None
    slots: int | None = None
    context_tokens: int | None = None
    speed: float = 1.0


@mypyc_attr(allow_interpreted_subclasses=True)
@dataclass(slots=True, eq=False)
class PoolLedger:
    """The books of the pool.

    ``mean_service_s`` is over all entitlements, None before the first completion. ``first_tokens`` counts those that
    the driver told of, and ``waited_s`` sums the seconds from forwarding to them. ``sequences_in_flight`` are those of
    ``in_flight``. ``others_in_flight`` (sequences) and
    ``others_reserved_tokens`` are known of other gateways of the same pool; in the books of entitlements and replicas
    they are included. ``recount``, where there is one, is to be called with the replicas when others than the core
    changed what they owe.
    """

    capacity: PoolCapacity
    entitlements: Mapping[str, EntitlementLedger]
    replicas: Sequence[ReplicaLedger]
    in_flight: dict[str, InFlight] = field(default_factory=dict)
    mean_service_s: float | None = None
    first_tokens: int = 0
    waited_s: float = 0.0
    sequences_in_flight: int = 0
    others_in_flight: int = 0
    others_reserved_tokens: int = 0
    recount: Callable[[Sequence[ReplicaLedger]], None] | None = None

    @property
    def all_in_flight(self) -> int:
        """How many sequences the pool has in flight, those of other gateways included."""
        return self.sequences_in_flight + self.others_in_flight
