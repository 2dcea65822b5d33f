"""Meters: how much of something has been used, and how long until there is room for more.

Buckets and windows answer `wait_s` without a side effect that anyone could see, and are charged with `reserve`. What
was reserved can be corrected with `settle` when the true amount is known, at the meter that was charged and, of
windows, in the window that paid. Times are seconds on the caller's clock, never decreasing.

What a meter lets through, where everyone waits as told and `settle` brings `actual`:

- a sliding window: in any ``window_s``, reservations of at most ``limit``; what turns out above its reservation counts
  from then on as if it had been asked for then (`SlidingWindow.settle_or_charge`);
- a fixed window: in each window at most ``limit``, of which what was given back in time can be had again;
- a bucket: in any t seconds at most ``depth`` + ``rate_per_s`` * t, and what is given back in them of reservations that
  were made before them: a bucket has no periods that a refund could belong to;
- a leaky utilisation: as a bucket whose depth is what drains in ``horizon_s``, and one request on top of it.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from policies.native import mypyc_attr

_SLACK: Final = 1e-9
"""Share of the need that rounding may hide: at 20 per minute, a client that asks every 3 s is inside its rate."""


@mypyc_attr(allow_interpreted_subclasses=True)
class ContinuousBucket:
    """A token bucket that fills at ``rate_per_s`` up to ``depth``, and starts full.

    Settling above what was reserved may take the level below zero: the debt is filled up first. A refund never fills it
    above ``depth``.
    """

    __slots__ = ("_at_s", "_level", "depth", "rate_per_s")

    def __init__(self, *, rate_per_s: float, depth: float) -> None:
        if not (rate_per_s > 0 and depth > 0):
            raise ValueError(f"rate_per_s is {rate_per_s} and depth {depth}; give numbers above 0")
        self.rate_per_s = rate_per_s
        self.depth = depth
        self._level = depth
        self._at_s = 0.0

    def available(self, now_s: float) -> float:
        """Return what can be taken now; below zero where more was used than there was."""
        level = self._level + self.rate_per_s * (now_s - self._at_s)
        return level if level < self.depth else self.depth

    def wait_s(self, need: float, now_s: float) -> float | None:
        """Return the seconds until ``need`` is there: 0 for now, None for never."""
        if need > self.depth:
            return None
        missing = need - self.available(now_s)
        if missing <= _SLACK * need:
            return 0.0
        return missing / self.rate_per_s if self.rate_per_s > 0 else float("inf")

    def full_in_s(self, now_s: float) -> float:
        """Return the seconds until it is full."""
        missing = self.depth - self.available(now_s)
        if missing <= 0:
            return 0.0
        return missing / self.rate_per_s if self.rate_per_s > 0 else float("inf")

    def refit(self, *, rate_per_s: float, depth: float, now_s: float) -> None:
        """Fill at another rate, possibly 0, up to another depth, from now on."""
        self._level = min(self.available(now_s), depth)
        self._at_s = now_s
        self.rate_per_s = rate_per_s
        self.depth = depth

    def scale(self, *, rate_per_s: float, depth: float, kept: float, now_s: float) -> None:
        """Fill at another rate, and keep a share of what is there; what is owed is owed in full."""
        level = self.available(now_s)
        self._level = min(level * kept if level > 0 else level, depth)
        self._at_s = now_s
        self.rate_per_s = rate_per_s
        self.depth = depth

    def inherit(self, earlier: ContinuousBucket, now_s: float) -> None:
        """Hold what an earlier bucket holds, as far as this one can."""
        self._level = min(self.depth, earlier.available(now_s))
        self._at_s = now_s

    def reserve(self, amount: float, now_s: float) -> None:
        """Take ``amount``."""
        self._level = self.available(now_s) - amount
        self._at_s = now_s

    def settle(self, reserved: float, actual: float, now_s: float) -> None:
        """Make a reservation what it turned out to be, and give the rest back."""
        level = self.available(now_s) + reserved - actual
        self._level = level if level < self.depth else self.depth
        self._at_s = now_s


@mypyc_attr(allow_interpreted_subclasses=True)
class Charge:
    """One reservation, and until when the window lasts that it was made in: what `settle` needs to find it again."""

    __slots__ = ("amount", "until_s")

    def __init__(self, until_s: float, amount: float) -> None:
        self.until_s = until_s
        self.amount = amount


@mypyc_attr(allow_interpreted_subclasses=True)
class SlidingWindow:
    """At most ``limit`` in any ``window_s`` seconds, counting only what was reserved: refusals cost nothing.

    What was reserved at t counts until t + window_s, and no longer at that instant.
    """

    __slots__ = ("_charges", "_total", "limit", "window_s")

    def __init__(self, *, limit: float, window_s: float = 60.0) -> None:
        if not (limit > 0 and window_s > 0):
            raise ValueError(f"limit is {limit} and window_s {window_s}; give numbers above 0")
        self.limit = limit
        self.window_s = window_s
        self._charges: deque[Charge] = deque()
        self._total = 0.0

    def available(self, now_s: float) -> float:
        """Return what can be taken now; below zero where more was used than allowed."""
        charges = self._charges
        while charges and charges[0].until_s <= now_s:
            self._total -= charges.popleft().amount
        return self.limit - self._total

    def wait_s(self, need: float, now_s: float) -> float | None:
        """Return the seconds until ``need`` is there: 0 for now, None for never."""
        if need > self.limit:
            return None
        room = self.available(now_s)
        if need <= room:
            return 0.0
        wait_s = 0.0
        for charge in self._charges:
            room += charge.amount
            wait_s = charge.until_s - now_s
            if need <= room:
                break
        return wait_s

    def full_in_s(self, now_s: float) -> float:
        """Return the seconds until nothing counts any more."""
        return max(0.0, self._charges[-1].until_s - now_s) if self._charges else 0.0

    def reserve(self, amount: float, now_s: float) -> Charge:
        """Take ``amount``; hand what is returned to `settle`."""
        charge = Charge(now_s + self.window_s, amount)
        self._charges.append(charge)
        self._total += amount
        return charge

    def settle(self, charge: Charge, actual: float, now_s: float) -> None:
        """Make a reservation what it turned out to be. One that has left the window is past correcting."""
        if charge.until_s > now_s:
            self._total += actual - charge.amount
            charge.amount = actual

    def settle_or_charge(self, charge: Charge, actual: float, now_s: float) -> None:
        """Do the same; where the reservation has left the window, count what was used beyond it from now on."""
        if charge.until_s > now_s:
            self.settle(charge, actual, now_s)
        elif actual > charge.amount:
            self.reserve(actual - charge.amount, now_s)


@mypyc_attr(allow_interpreted_subclasses=True)
class FixedWindow:
    """At most ``limit`` in each window of ``window_s`` seconds; what is left of one is lost with it.

    Windows are [k * window_s, (k + 1) * window_s) of the clock, or begin with the first charge after the last one
    ended. A refund goes to the window that paid, and is lost with it; what is used beyond a reservation after its
    window has ended counts in the window of that instant. Use may pass the limit, where it is known only afterwards.
    """

    __slots__ = ("_by_clock", "_from_s", "_used", "limit", "window_s")

    def __init__(self, *, limit: float, window_s: float = 60.0, by_clock: bool = True) -> None:
        if not (limit > 0 and window_s > 0):
            raise ValueError(f"limit is {limit} and window_s {window_s}; give numbers above 0")
        self.limit = limit
        self.window_s = window_s
        self._by_clock = by_clock
        self._from_s = float("-inf")
        self._used = 0.0

    def used(self, now_s: float) -> float:
        """Return what was used in the window of now."""
        return self._used if now_s < self._from_s + self.window_s else 0.0

    def available(self, now_s: float) -> float:
        """Return what is left in the window of now; below zero where more was used than allowed."""
        return self.limit - self.used(now_s)

    def wait_s(self, need: float, now_s: float) -> float | None:
        """Return the seconds until ``need`` is there: 0 for now, None for never."""
        if need > self.limit:
            return None
        return 0.0 if need <= self.available(now_s) else self.left_s(now_s)

    def left_s(self, now_s: float) -> float:
        """Return the seconds until the window of now ends."""
        return self._from_s + self.window_s - now_s

    def reserve(self, amount: float, now_s: float) -> Charge:
        """Take ``amount``; hand what is returned to `settle`."""
        if now_s >= self._from_s + self.window_s:
            self._from_s = math.floor(now_s / self.window_s) * self.window_s if self._by_clock else now_s
            if now_s >= self._from_s + self.window_s:  # rounding can leave now at the end of the last window
                self._from_s = now_s
            self._used = 0.0
        self._used += amount
        return Charge(self._from_s + self.window_s, amount)

    def settle(self, charge: Charge, actual: float, now_s: float) -> None:
        """Make a reservation what it turned out to be, in the window that paid for it."""
        if charge.until_s > now_s:
            self._used += actual - charge.amount
            charge.amount = actual
        elif actual > charge.amount:
            self.reserve(actual - charge.amount, now_s)


@mypyc_attr(allow_interpreted_subclasses=True)
class LeakyUtilisation:
    """A level that drains at ``rate_per_s``; at ``horizon_s`` seconds' worth of it, utilisation is 1.

    Azure's provisioned throughput, as documented: who finds utilisation above 1 is turned away until it is 1, so that
    one request may pass it by any amount.
    """

    __slots__ = ("_at_s", "_level", "horizon_s", "rate_per_s")

    def __init__(self, *, rate_per_s: float, horizon_s: float) -> None:
        if not (rate_per_s > 0 and horizon_s > 0):
            raise ValueError(f"rate_per_s is {rate_per_s} and horizon_s {horizon_s}; give numbers above 0")
        self.rate_per_s = rate_per_s
        self.horizon_s = horizon_s
        self._level = 0.0
        self._at_s = 0.0

    def level(self, now_s: float) -> float:
        """Return what has not drained yet."""
        return max(0.0, self._level - self.rate_per_s * (now_s - self._at_s))

    def utilisation(self, now_s: float) -> float:
        """Return the level in units of what drains in ``horizon_s``."""
        return self.level(now_s) / (self.rate_per_s * self.horizon_s)

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until utilisation is at most 1."""
        over = self.level(now_s) - self.rate_per_s * self.horizon_s
        return 0.0 if over <= _SLACK * self.rate_per_s * self.horizon_s else over / self.rate_per_s

    def add(self, amount: float, now_s: float) -> None:
        """Raise the level, or lower it where an estimate was too high."""
        self._level = max(0.0, self.level(now_s) + amount)
        self._at_s = now_s


def most_of(meter: ContinuousBucket | FixedWindow | SlidingWindow) -> float:
    """Return the most that a meter can hold."""
    return meter.depth if isinstance(meter, ContinuousBucket) else meter.limit
