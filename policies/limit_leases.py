"""Parts of a pool's limits, dealt out to gateways that decide alone.

Each gateway holds a part of every limit. From time to time it says in a common book what it has in use and what it
would use, gives back what others need more, and takes what is free. No part is ever in two hands: what is given back
can be taken only once it is in the book, and what a lost gateway held only once its time in the book has run out.

The functions here are pure; `Holder` brings parts to a core. The simulator and the live gateways run the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, runtime_checkable

from policies.api import CapacityChanged, EntitlementSpec, Event, Instruction, PoolLedger, Reason, Refuse, ServiceClass
from policies.core import GatewayCore
from policies.meters import ContinuousBucket, FixedWindow, SlidingWindow
from policies.sharing import Peers, Told

POOL = "pool"
SLOTS = "slots:"
RATE = "rate:"
_FADES_S = 1.5
"""A want that is over fades with this time constant: a pause does not cost the part. [choice]"""
_RATE_S = 5.0
"""Over how long the rate is taken that an entitlement asks for. A part that shrinks loses what it has saved up, so it
must not follow every swing. [choice]"""
_SHORT = frozenset({
    Reason.CONCURRENCY, Reason.POOL_FULL, Reason.LOW_PRIORITY, Reason.TOKENS, Reason.REQUESTS, Reason.QUEUE_FULL,
    Reason.QUEUE_TIMEOUT,
})  # fmt: skip
"""Refusals that a larger part might have spared."""


class Need(NamedTuple):
    """What one gateway has to say of one limit: how much there is as it sees it, in use and wanted."""

    total: float
    in_use: float
    wanted: float


@dataclass(frozen=True, slots=True)
class Share:
    """What the book says of one gateway: until when it holds its parts, what it needs, and what it has done."""

    until_us: int
    parts: Mapping[str, float]
    needs: Mapping[str, Need]
    entitlements: Mapping[str, Told] = field(default_factory=dict)
    replicas: Mapping[int, Told] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Book:
    """All parts. Until ``dealt_from_us`` nothing free is dealt out: somebody not heard yet may hold it."""

    dealt_from_us: int
    shares: Mapping[str, Share] = field(default_factory=dict)


@runtime_checkable
class Parted(Protocol):
    """A policy with rates of its own that can hold a part of each."""

    def rated(self, pool: PoolLedger) -> Mapping[str, float]:
        """Return the whole rate of each entitlement that has one or may be given one, in tokens (or requests) a second.

        Asked anew each round: a rate that is allocated moves, and its part has to be held before it is there.
        """
        ...

    def on_parts(self, parts: Mapping[str, float], pool: PoolLedger, now_s: float) -> None:
        """Meter so much of each rate from now on, in [0, 1]; what a smaller part has saved up shrinks with it."""
        ...


def why_unfit(policy: object) -> str:
    """Return why a policy cannot decide on parts of its limits; empty where it can.

    What counts slots does, since its books show the rest as taken. Rates have to be `Parted`.
    """
    meters = {type(meter) for meter in _meters(policy, 4)}
    if not isinstance(policy, Parted):
        has_rates = bool(meters) or getattr(policy, "has_rates", False)
        return f"{type(policy).__name__} has rates that cannot be parted" if has_rates else ""
    if meters - {ContinuousBucket}:
        return f"{type(policy).__name__} has windows, which cannot be parted; buckets can"
    return ""


def _meters(value: object, depth: int) -> Iterator[object]:
    if isinstance(value, ContinuousBucket | SlidingWindow | FixedWindow):
        yield value
    elif depth and isinstance(value, Mapping):
        for each in value.values():
            yield from _meters(each, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for each in value:
            yield from _meters(each, depth - 1)
    elif depth and type(value).__module__.startswith("policies.") and not isinstance(value, type):
        names = [*getattr(value, "__dict__", ()), *getattr(type(value), "__slots__", ())]
        for name in names:
            yield from _meters(getattr(value, name, None), depth - 1)


def slot_limit(spec: EntitlementSpec) -> float | None:
    """Return the slots that an entitlement may never pass; None where others' idle ones are open to it."""
    if spec.limit.slots is not None:
        return spec.limit.slots
    if spec.service_class in (ServiceClass.DEDICATED, ServiceClass.GUARANTEED):
        return spec.baseline.slots
    return None


def lacks(parts: Mapping[str, float], needs: Mapping[str, Need]) -> bool:
    """Return whether a gateway would use more of some limit than it holds; others should look what they can spare."""
    return any(parts.get(limit, 0.0) + 1e-9 < min(need.wanted, need.total) for limit, need in needs.items())


def is_whole(limit: str) -> bool:
    """Whether a limit is dealt out in whole numbers."""
    return not limit.startswith(RATE)


def renew(
    book: Book, name: str, holds: Mapping[str, float], needs: Mapping[str, Need], now_us: int, ttl_us: int
) -> tuple[Book, dict[str, float]]:
    """Return the book with this gateway's parts brought up to date, and those parts.

    Parameters
    ----------
    holds : what this gateway holds by its own account; it may be less than the book says, never more.
    """
    # Times that are further off than a renewal can set them are of a clock that was set back since.
    latest_us = now_us + ttl_us
    book = replace(book, dealt_from_us=min(book.dealt_from_us, latest_us))
    others = {
        one: share if share.until_us <= latest_us else replace(share, until_us=latest_us)
        for one, share in book.shares.items() if one != name and share.until_us >= now_us
    }  # fmt: skip
    parts: dict[str, float] = {}
    for limit, need in needs.items():
        own = book.shares.get(name)
        if own is not None:
            known = own.parts.get(limit, 0.0)
        else:  # in a book that has just begun, what it says it holds; later on its time has run out
            known = holds.get(limit, 0.0) if now_us < book.dealt_from_us else 0.0
        held = max(min(holds.get(limit, 0.0), known), need.in_use)
        theirs = {one: share.parts.get(limit, 0.0) for one, share in others.items()}
        totals = [share.needs[limit].total for share in others.values() if limit in share.needs]
        total = max(need.total, *totals) if totals else need.total
        wants = {one: share.needs[limit].wanted if limit in share.needs else 0.0 for one, share in others.items()}
        wants[name] = need.wanted
        target = targets(total, wants, whole=is_whole(limit))[name]
        if target > held and now_us >= book.dealt_from_us:
            free = total - math.fsum(theirs.values()) - held
            held += max(0.0, min(target - held, math.floor(free + 1e-9) if is_whole(limit) else free))
        elif target < held:
            held = max(target, need.in_use)
        parts[limit] = held
    shares = {**others, name: Share(now_us + ttl_us, parts, needs)}
    return replace(book, shares=shares), parts


def targets(total: float, wants: Mapping[str, float], *, whole: bool) -> dict[str, float]:
    """Return who should hold how much: what each wants if there is enough, with an even part of the rest.

    Where there is not enough, nobody who wants less than an even part gets less than it wants (max-min).
    """
    names = sorted(wants, key=lambda one: (wants[one], one))
    found: dict[str, float] = {}
    left = total
    for place, name in enumerate(names):
        even = left / (len(names) - place)
        found[name] = min(wants[name], even)
        left -= found[name]
    rest = max(0.0, left) / len(names)
    found = {name: amount + rest for name, amount in found.items()}
    if not whole:
        return found
    down = {name: float(math.floor(amount + 1e-9)) for name, amount in found.items()}
    spare = round(min(total, math.fsum(found.values())) - math.fsum(down.values()))
    for name in sorted(names, key=lambda one: (down[one] - found[one], one))[:spare]:
        down[name] += 1
    return down


class Holder:
    """One gateway's parts, and the books of its core that show the rest of each limit as taken by others.

    A policy reads totals (`policies.sharing`) and so lets in no more than the part, whatever it is.

    Attributes
    ----------
    parts : what it holds of each limit.
    is_short : whether something was refused since the last round that a larger part might have spared.
    """

    def __init__(self, core: GatewayCore) -> None:
        self.core = core
        self.peers = Peers(core.pool, None)
        self.parts: dict[str, float] = {}
        self.is_short = False
        self._policy = core.policy if isinstance(core.policy, Parted) else None
        self._slots = {
            name: most for name, book in core.pool.entitlements.items() if (most := slot_limit(book.spec)) is not None
        }
        self._rates = dict(self._policy.rated(core.pool)) if self._policy is not None else {}
        self._refused: dict[str, int] = {}
        self._most: dict[str, int] = {}
        self._wanted: dict[str, float] = {}
        self._demanded: dict[str, int] = {}
        self._round_s = -math.inf
        self._done: dict[str, dict[str, Told]] = {}
        self._gone: dict[str, Told] = {}
        self._replicas: dict[int, Told] = {}

    def limits(self) -> list[str]:
        """Return the names of the limits that are dealt out."""
        return [POOL, *(SLOTS + name for name in self._slots), *(RATE + name for name in self._rates)]

    def heard(self, entitlement_of: Mapping[str, str], instructions: Iterable[Instruction]) -> None:
        """Take note of what was refused for want of a part."""
        for step in instructions:
            if type(step) is Refuse and step.reason in _SHORT:
                name = entitlement_of.get(step.request_id)
                if name is not None:
                    self._refused[name] = self._refused.get(name, 0) + 1
                    self.is_short = True

    def own(self) -> tuple[dict[str, Told], dict[int, Told]]:
        """Return what this gateway itself has done and has in flight."""
        return self.peers.own()

    def has_enough(self, now_s: float) -> bool:
        """Return whether what this gateway holds is enough for what it is asked for now; nothing is noted by it."""
        if self.is_short:
            return False
        own, _ = self.own()
        held: dict[str, int] = {}
        for request in self.core.held.values():
            held[request.entitlement] = held.get(request.entitlement, 0) + 1
        elapsed_s, all_wanted = now_s - self._round_s, 1
        for name, told in own.items():
            want = told.in_flight + held.get(name, 0)
            all_wanted += want
            if name in self._slots and want + 1 > min(self._slots[name], self.parts.get(SLOTS + name, 0.0)):
                return False
            asked = told.demanded_tokens - self._demanded.get(name, 0)
            if name in self._rates and asked > self.parts.get(RATE + name, 0.0) * self._rates[name] * elapsed_s:
                return False
        return all_wanted <= self.parts.get(POOL, 0.0)

    def needs(self, now_s: float) -> dict[str, Need]:
        """Return what to say in this round."""
        if self._policy is not None:
            self._rates = dict(self._policy.rated(self.core.pool))
        own, _ = self.own()
        held: dict[str, int] = {}
        for request in self.core.held.values():
            held[request.entitlement] = held.get(request.entitlement, 0) + 1
        found, elapsed_s, all_wanted = {}, now_s - self._round_s, 0.0
        for name, told in own.items():
            want = float(told.in_flight + held.get(name, 0) + self._refused.get(name, 0))
            all_wanted += want
            if name in self._slots:
                most = self._slots[name]
                wanted = self._most_wanted(SLOTS + name, want + 1, most, elapsed_s)
                found[SLOTS + name] = Need(most, told.in_flight, wanted)
            if name in self._rates:
                asked = told.demanded_tokens - self._demanded.get(name, 0)
                wanted = self._rate_wanted(RATE + name, asked / self._rates[name], elapsed_s)
                found[RATE + name] = Need(1.0, 0.0, wanted)
                self._demanded[name] = told.demanded_tokens
        slots = float(self.core.pool.capacity.slots)
        in_use = sum(told.in_flight for told in own.values())
        found[POOL] = Need(slots, in_use, self._most_wanted(POOL, all_wanted + 1, slots, elapsed_s))
        self._round_s = now_s
        self._refused.clear()
        self.is_short = False
        return found

    def before(self, event: Event) -> None:
        """Take note of an event before the core does: of a capacity that changes, the part stays what it is."""
        if isinstance(event, CapacityChanged):
            taken = event.capacity.slots - self.parts.get(POOL, 0.0)
            self.core.pool.others_in_flight = max(0, math.ceil(taken - 1e-9))

    def _most_wanted(self, limit: str, want: float, most: float, elapsed_s: float) -> float:
        faded = self._wanted.get(limit, 0.0) * math.exp(-elapsed_s / _FADES_S)
        self._wanted[limit] = min(most, max(want, faded))
        return self._wanted[limit]

    def _rate_wanted(self, limit: str, asked: float, elapsed_s: float) -> float:
        """Return the mean rate that was asked for lately, as a share of the whole, and a hundredth for who begins."""
        if 0 < elapsed_s < math.inf:
            kept = math.exp(-elapsed_s / _RATE_S)
            self._wanted[limit] = kept * self._wanted.get(limit, 0.0) + (1 - kept) * asked / elapsed_s
        return min(1.0, self._wanted.get(limit, 0.0) + 0.01)

    def hold(self, parts: Mapping[str, float], now_s: float, shares: Mapping[str, Share] | None = None) -> None:
        """Decide with these parts from now on; ``shares`` is what the others say, None: what they last said."""
        self.parts = dict(parts)
        if shares is not None:
            self._hear(shares)
        own, _ = self.own()
        entitlements: dict[str, Told] = {}
        for name in own:
            told = self._sum(name)
            most = self._slots.get(name)
            if most is not None:
                told = told._replace(in_flight=max(0, math.ceil(most - parts.get(SLOTS + name, 0.0) - 1e-9)))
            entitlements[name] = told
        self.peers.learn(entitlements, self._replicas, now_s)
        pool = self.core.pool
        taken = pool.capacity.slots - parts.get(POOL, 0.0)
        pool.others_in_flight = max(0, math.ceil(taken - 1e-9))
        if self._policy is not None:
            self._policy.on_parts({name: parts.get(RATE + name, 0.0) for name in self._rates}, pool, now_s)

    def _hear(self, shares: Mapping[str, Share]) -> None:
        """Take in what the others have done; of one that is gone, what it had done stays done."""
        for gone in self._done.keys() - shares.keys():
            for name, told in self._done.pop(gone).items():
                before = self._gone.get(name, Told())
                self._gone[name] = before.plus(told._replace(in_flight=0, reserved_tokens=0))
        replicas: dict[int, Told] = {}
        for one, share in shares.items():
            self._done[one] = dict(share.entitlements)
            for replica_id, told in share.replicas.items():
                replicas[replica_id] = replicas.get(replica_id, Told()).plus(told)
        self._replicas = replicas

    def _sum(self, name: str) -> Told:
        told = self._gone.get(name, Told())
        for done in self._done.values():
            told = told.plus(done.get(name, Told()))
        return told


def exchange_parts(
    holders: Mapping[str, Holder], book: Book, now_us: int, ttl_us: int, who: Sequence[str] | None = None
) -> Book:
    """Let gateways renew their parts one after the other, as they would in a common store; return the book."""
    for name in who if who is not None else holders:
        holder = holders[name]
        now_s = now_us / 1e6
        needs = holder.needs(now_s)
        book, parts = renew(book, name, holder.parts, needs, now_us, ttl_us)
        entitlements, replicas = holder.own()
        shares = dict(book.shares)
        shares[name] = replace(shares[name], entitlements=entitlements, replicas=replicas)
        book = replace(book, shares=shares)
        holder.hold(parts, now_s, {one: share for one, share in shares.items() if one != name})
    return book
