"""Budgets by the calendar: so many tokens, or so much money, a day or a month.

A period's account is charged with what a request may use when it is let in, and corrected when it has ended. What was
charged belongs to the period in which the request arrived, also where it ends in the next one. A period never goes
back: where the clock is set back over the end of a month, the later month goes on, so that nothing is spent twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Unit = Literal["tokens", "money"]
Per = Literal["day", "month"]
CarryOver = Literal["none", "unused", "debt", "both"]

_DAY_S = 86_400.0
_MOST_IDLE_PERIODS = 1200
_DAYS_BEFORE = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a model's tokens cost, in money per million tokens.

    Attributes
    ----------
    cached : of the prompt tokens that a prefix cache held; None: as other prompt tokens.
    """

    prompt: float
    output: float
    cached: float | None = None

    def of(self, prompt_tokens: float, output_tokens: float, cached_tokens: float = 0) -> float:
        """Return what so many tokens cost; ``cached_tokens`` are among those of the prompt."""
        cached = self.prompt if self.cached is None else self.cached
        prompt = self.prompt * (prompt_tokens - cached_tokens) + cached * cached_tokens
        return (prompt + self.output * output_tokens) / 1e6


FREE = Price(prompt=0.0, output=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much may be used in a period of the calendar.

    Attributes
    ----------
    limit : in tokens (prompt and output alike) or in money.
    carry_over : what goes into the next period: what is left (unused), what was overspent (debt), both or none.
    carry_most : the most that is carried over of what is left; None: one period's limit.
    """

    unit: Unit
    per: Per
    limit: float
    carry_over: CarryOver = "none"
    carry_most: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calendar:
    """Which period a time falls into.

    Attributes
    ----------
    starts_s : the time of the calendar at second 0 of the core, in seconds since 1970 (UTC), where requests do not
        bring it along.
    utc_offset_s : how far midnight is ahead of UTC's, all year round.
    """

    starts_s: float = 0.0
    utc_offset_s: float = 0.0

    def period(self, per: Per, wall_s: float) -> int:
        """Return the number of the period: of a day since 1970, of a month since the year 0."""
        if per == "day":
            return int((wall_s + self.utc_offset_s) // _DAY_S)
        return _month(int((wall_s + self.utc_offset_s) // _DAY_S))

    def ends_s(self, per: Per, period: int) -> float:
        """Return when a period ends, in seconds since 1970."""
        if per == "day":
            return (period + 1) * _DAY_S - self.utc_offset_s
        return _first_day(period + 1) * _DAY_S - self.utc_offset_s


def _month(day: int) -> int:
    """Return the month (year * 12 + month - 1) of a day since 1970; no module here may know what time it is."""
    month = 1970 * 12 + day * 12 // 366
    while _first_day(month + 1) <= day:
        month += 1
    while _first_day(month) > day:
        month -= 1
    return month


def _first_day(month: int) -> int:
    """Return the first day of a month, in days since 1970, by the Gregorian calendar's leap years."""
    year, place = divmod(month, 12)
    leaps = [(year - 1) // each - 1969 // each for each in (4, 100, 400)]
    is_leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return (year - 1970) * 365 + leaps[0] - leaps[1] + leaps[2] + _DAYS_BEFORE[place] + (is_leap and place > 1)


class BudgetState(NamedTuple):
    """How a budget stands: ``used`` of ``limit`` (with what was carried over), and when the period ends (Unix time)."""

    node: str
    unit: Unit
    per: Per
    limit: float
    used: float
    resets_at_s: float

    @property
    def remaining(self) -> float:
        """What is left; below 0 where more was used than there was."""
        return self.limit - self.used


class Balance(NamedTuple):
    """An account as a store keeps it: of a period, what was used and carried in, and the same of the one before."""

    period: int
    used: float
    carried: float = 0.0
    last_used: float = 0.0
    last_carried: float = 0.0


class BudgetAccount:
    """What was used of one budget."""

    __slots__ = ("budget", "carried", "last_carried", "last_used", "period", "used")

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.period: int | None = None
        self.used = 0.0
        self.carried = 0.0
        self.last_used = 0.0
        self.last_carried = 0.0

    def roll(self, period: int) -> int:
        """Go on to a period, unless it is over already, and return the one that counts now."""
        if self.period is None:
            self.period = period
        elif period > self.period:
            for _ in range(min(period - self.period, _MOST_IDLE_PERIODS)):
                self.last_used, self.last_carried = self.used, self.carried
                self.carried, self.used = self._left_over(), 0.0
            self.period = period
        return self.period

    @property
    def limit(self) -> float:
        """The period's limit, with what was carried over."""
        return self.budget.limit + self.carried

    def available_in(self, period: int) -> float:
        """Return what would be left in a period, without going on to it."""
        if self.period is None or period <= self.period:
            return self.limit - self.used
        ahead = BudgetAccount(self.budget)
        ahead.restore(self.balance())
        ahead.roll(period)
        return ahead.limit - ahead.used

    def charge(self, period: int, amount: float) -> int:
        """Use an amount, and return the period that pays."""
        period = self.roll(period)
        self.used += amount
        return period

    def correct(self, period: int, change: float) -> None:
        """Change what was charged to a period. In one that is long over a refund is lost; more use counts now."""
        if self.period is None:
            self.period = period
        if period == self.period:
            self.used += change
        elif period == self.period - 1:
            self.last_used += change
            self.carried = self._left_over()
        elif change > 0:
            self.used += change

    def _left_over(self) -> float:
        rule, most = self.budget.carry_over, self.budget.carry_most
        left = self.budget.limit + self.last_carried - self.last_used
        if left >= 0:
            return min(left, self.budget.limit if most is None else most) if rule in ("unused", "both") else 0.0
        return left if rule in ("debt", "both") else 0.0

    def balance(self) -> Balance:
        """Return it as a store keeps it."""
        return Balance(self.period or 0, self.used, self.carried, self.last_used, self.last_carried)

    def restore(self, balance: Balance) -> None:
        """Go on from what a store or an earlier account has; the limits are those of now."""
        self.period, self.used, self.carried, self.last_used, self.last_carried = balance
