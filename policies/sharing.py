"""Several gateways in front of one pool: what one lets the others know, and how it takes in what they say.

What others have in flight, reserved, worked and were asked for is added to a gateway's own books, so that a policy
reads totals without knowing of gateways. Between two exchanges the part of the others stays as it was last told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from policies.api import PoolLedger


class Told(NamedTuple):
    """What one gateway itself has done and has in flight, for one entitlement or at one replica."""

    in_flight: int = 0
    reserved_tokens: int = 0
    worked_tokens: int = 0
    demanded_tokens: int = 0
    demanded_requests: int = 0

    def plus(self, other: Told) -> Told:
        """Return the sum."""
        return Told(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def less(self, other: Told) -> Told:
        """Return the difference."""
        return Told(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


@runtime_checkable
class Sharing(Protocol):
    """A policy with meters and counts of its own that others' use has to go into."""

    def on_shared(self, worked_tokens: Mapping[str, int], pool: PoolLedger, now_s: float) -> None:
        """Hear what others' requests have used of each entitlement since the last time; ``pool`` counts theirs too."""
        ...


@dataclass(slots=True)
class Peers:
    """What one gateway's books hold of the others'; made when it holds nothing yet."""

    pool: PoolLedger
    policy: object
    entitlements: dict[str, Told] = field(default_factory=dict)
    replicas: dict[int, Told] = field(default_factory=dict)

    def own(self) -> tuple[dict[str, Told], dict[int, Told]]:
        """Return what is this gateway's alone, by entitlement and by replica."""
        entitlements = {
            name: Told(
                book.in_flight, book.reserved_tokens, book.worked_tokens, book.demanded_tokens, book.demanded_requests
            ).less(self.entitlements.get(name, Told()))
            for name, book in self.pool.entitlements.items()
        }
        replicas = {
            book.replica_id: Told(book.in_flight, book.outstanding_tokens).less(
                self.replicas.get(book.replica_id, Told())
            )
            for book in self.pool.replicas
        }
        return entitlements, replicas

    def learn(self, entitlements: Mapping[str, Told], replicas: Mapping[int, Told], now_s: float) -> None:
        """Take in what all the others have, in place of what they were last known to have."""
        used: dict[str, int] = {}
        for name, told in entitlements.items():
            change = told.less(self.entitlements.get(name, Told()))
            book = self.pool.entitlements[name]
            book.in_flight += change.in_flight
            book.reserved_tokens += change.reserved_tokens
            book.worked_tokens += change.worked_tokens
            book.demanded_tokens += change.demanded_tokens
            book.demanded_requests += change.demanded_requests
            self.pool.others_in_flight += change.in_flight
            self.pool.others_reserved_tokens += change.reserved_tokens
            used[name] = change.worked_tokens
        for ledger in self.pool.replicas:
            told = replicas.get(ledger.replica_id, Told())
            change = told.less(self.replicas.get(ledger.replica_id, Told()))
            ledger.in_flight += change.in_flight
            ledger.outstanding_tokens += change.reserved_tokens
        if self.pool.recount is not None:
            self.pool.recount(self.pool.replicas)
        self.entitlements, self.replicas = dict(entitlements), dict(replicas)
        if isinstance(self.policy, Sharing):
            self.policy.on_shared(used, self.pool, now_s)


def exchange(gateways: Sequence[Peers], now_s: float) -> None:
    """Let every gateway know what all the others have."""
    told = [gateway.own() for gateway in gateways]
    for index, gateway in enumerate(gateways):
        entitlements: dict[str, Told] = {}
        replicas: dict[int, Told] = {}
        for other, (by_entitlement, by_replica) in enumerate(told):
            if other == index:
                continue
            for name, amount in by_entitlement.items():
                entitlements[name] = entitlements.get(name, Told()).plus(amount)
            for replica_id, amount in by_replica.items():
                replicas[replica_id] = replicas.get(replica_id, Told()).plus(amount)
        gateway.learn(entitlements, replicas, now_s)
