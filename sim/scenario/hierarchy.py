"""Groups, keys, budgets, prices and the calendar of a pool, as frozen models: the tree above its entitlements."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from policies.api import Resources, ServiceClass
from sim.scenario.pool_amounts import DIMENSIONS, Amounts, Name, check_known, check_unique
from sim.scenario.registered_types import MisfitError, Strict

if TYPE_CHECKING:
    from policies.budgets import Budget, Calendar
    from policies.hierarchy import HierarchySpec


class BudgetLimit(Strict):
    """How much may be used in a day or a month of the calendar."""

    unit: Literal["tokens", "money"] = Field(default="tokens", description="give tokens or money")
    per: Literal["day", "month"] = Field(description="give day or month")
    limit: float = Field(gt=0, description="give the most tokens, or the most money, of a period, e.g. 1000000")
    carry_over: Literal["none", "unused", "debt", "both"] = Field(
        default="none", description="give what goes into the next period: none, unused, debt or both"
    )
    carry_most: float | None = Field(
        default=None, ge=0, description="give the most that is carried over; left out, one period's limit"
    )

    @model_validator(mode="after")
    def _fits(self) -> BudgetLimit:
        if self.carry_most is not None and self.carry_over not in ("unused", "both"):
            raise MisfitError("carry_most", "given although nothing unused is carried over", "give carry_over: unused")
        return self

    def budget(self) -> Budget:
        """Return the budget as the core sees it."""
        from policies.budgets import Budget

        return Budget(
            unit=self.unit, per=self.per, limit=self.limit, carry_over=self.carry_over, carry_most=self.carry_most
        )


class Group(Strict):
    """An organisation, a team: a node of the tree above entitlements."""

    name: Name = Field(description="give the group a name, e.g. acme")
    parent: str | None = Field(default=None, description="give the group that this one belongs to; left out, none")
    service_class: ServiceClass | None = Field(
        default=None, description="give a class among its siblings; left out, the most protected one below it"
    )
    baseline: Amounts = Field(default=Amounts(), description="give what its siblings leave to it, e.g. {slots: 6}")
    limit: Amounts = Field(default=Amounts(), description="give the most that all below it use, e.g. {slots: 10}")
    budgets: tuple[BudgetLimit, ...] = Field(
        default=(), description="give budgets, e.g. [{per: month, limit: 5000, unit: money}]"
    )


class PoolKey(Strict):
    """A key below an entitlement, with limits of its own."""

    name: Name = Field(description="give the key a name, e.g. chat-production")
    entitlement: str = Field(description="give the name of an entitlement of the pool")
    limit: Amounts = Field(default=Amounts(), description="give the most it may use, e.g. {slots: 2}")
    budgets: tuple[BudgetLimit, ...] = Field(default=(), description="give budgets, e.g. [{per: day, limit: 100000}]")


class TokenPrice(Strict):
    """What a model's tokens cost, for budgets of money and what is said of use."""

    model: str = Field(default="", description="give the model's name; left out, the price holds for all others")
    prompt_per_million: float = Field(ge=0, description="give the price of a million prompt tokens, e.g. 0.2")
    output_per_million: float = Field(ge=0, description="give the price of a million output tokens, e.g. 0.6")
    cached_per_million: float | None = Field(
        default=None, ge=0, description="give that of cached prompt tokens; left out, that of others"
    )


class PoolCalendar(Strict):
    """When days and months begin."""

    starts: str | None = Field(
        default=None, description="give the date and time at second 0 of a simulation, e.g. 2026-01-01T00:00:00Z"
    )
    utc_offset_h: float = Field(
        default=0.0, ge=-24, le=24, description="give the hours by which midnight is ahead of UTC's, e.g. 1"
    )

    @model_validator(mode="after")
    def _fits(self) -> PoolCalendar:
        try:
            self._starts_s()
        except (ValueError, OverflowError):
            raise MisfitError("starts", f"{self.starts!r} is no time", "give e.g. 2026-01-01T00:00:00Z") from None
        return self

    def calendar(self) -> Calendar:
        """Return the calendar as the core sees it."""
        from policies.budgets import Calendar

        return Calendar(starts_s=self._starts_s(), utc_offset_s=timedelta(hours=self.utc_offset_h).total_seconds())

    def _starts_s(self) -> float:
        """Return second 0 in seconds since 1970; a time without a zone is one of the calendar's own."""
        offset = timedelta(hours=self.utc_offset_h)
        starts = datetime.fromisoformat(self.starts or "2026-01-01T00:00:00")
        if starts.tzinfo is None:
            starts = starts.replace(tzinfo=timezone(offset) if abs(offset) < timedelta(hours=24) else UTC)
        return starts.timestamp()


def is_usual_calendar(calendar: PoolCalendar) -> bool:
    """Return whether a calendar says nothing."""
    return calendar == PoolCalendar()


def hierarchy_spec(
    groups: Sequence[Group], keys: Sequence[PoolKey], entitlements: Iterable[Any], prices: Sequence[TokenPrice],
    calendar: PoolCalendar,
) -> HierarchySpec | None:
    """Return the tree of a pool; None where nothing stands above its policy."""
    members = list(entitlements)
    if not groups and not keys and not prices and not any(one.budgets or one.parent is not None for one in members):
        return None
    from policies.budgets import Price
    from policies.hierarchy import HierarchySpec, Node, entitlement_id, group_id, key_id

    nodes = [
        Node(
            node_id=group_id(one.name), parent=None if one.parent is None else group_id(one.parent),
            limit=one.limit.resources(), baseline=one.baseline.resources(), service_class=one.service_class,
            budgets=tuple(each.budget() for each in one.budgets),
        )
        for one in groups
    ]  # fmt: skip
    nodes += [
        Node(
            node_id=entitlement_id(one.name), parent=None if one.parent is None else group_id(one.parent),
            budgets=tuple(each.budget() for each in one.budgets),
        )
        for one in members
    ]  # fmt: skip
    nodes += [
        Node(
            node_id=key_id(one.name), parent=entitlement_id(one.entitlement), limit=one.limit.resources(),
            budgets=tuple(each.budget() for each in one.budgets),
        )
        for one in keys
    ]  # fmt: skip
    priced = {
        one.model: Price(
            prompt=one.prompt_per_million, output=one.output_per_million, cached=one.cached_per_million
        )
        for one in prices
    }  # fmt: skip
    return HierarchySpec(nodes=tuple(nodes), prices=priced, calendar=calendar.calendar())


def check_tree(
    groups: Sequence[Group], keys: Sequence[PoolKey], entitlements: Sequence[Any], prices: Sequence[TokenPrice]
) -> None:
    """Refuse a tree that contradicts itself.

    Raises
    ------
    MisfitError : a parent is unknown or its own descendant, a child has more than its parent, baselines do not fit, or
        money is counted without a price.
    """
    check_unique("groups", [one.name for one in groups])
    check_unique("keys", [one.name for one in keys])
    check_unique("prices", [one.model for one in prices])
    by_name = {one.name: one for one in groups}
    for field, several in (("groups", groups), ("entitlements", entitlements)):
        for index, one in enumerate(several):
            if one.parent is not None:
                check_known(f"{field}[{index}].parent", "group", one.parent, by_name)
    for index, group in enumerate(groups):
        _check_no_circle(f"groups[{index}].parent", group, by_name)
    members: dict[str, list[tuple[str, Any]]] = {name: [] for name in by_name}
    for field, several in (("groups", groups), ("entitlements", entitlements)):
        for index, one in enumerate(several):
            if one.parent is not None:
                members[one.parent].append((f"{field}[{index}]", one))
                _check_within(f"{field}[{index}]", one, by_name[one.parent])
            _check_budgets(f"{field}[{index}]", one.budgets, prices)
    for index, group in enumerate(groups):
        _check_baselines(f"groups[{index}]", group, [one for _, one in members[group.name]])
    known = {one.name: one for one in entitlements}
    for index, key in enumerate(keys):
        check_known(f"keys[{index}].entitlement", "entitlement", key.entitlement, known)
        _check_within(f"keys[{index}]", key, known[key.entitlement])
        _check_budgets(f"keys[{index}]", key.budgets, prices)


def _check_no_circle(path: str, group: Group, by_name: Mapping[str, Group]) -> None:
    seen, above = [group.name], group.parent
    while above is not None:
        if above in seen:
            raise MisfitError(path, f"{' is in '.join([*seen, above])}", "give a tree")
        seen.append(above)
        above = by_name[above].parent


def _check_within(path: str, child: Any, parent: Any) -> None:
    """Refuse a child with more than its parent has."""
    most, all_of_it = child.limit.resources(), parent.limit.resources()
    promised = _baseline(child)
    for dimension in DIMENSIONS:
        has = getattr(all_of_it, dimension)
        if has is None:
            continue
        for field, amount in (("limit", getattr(most, dimension)), ("baseline", getattr(promised, dimension))):
            if amount is not None and amount > has:
                raise MisfitError(
                    f"{path}.{field}.{dimension}", f"{amount:g} is above the {has:g} of {parent.name}, which it is in",
                    f"give at most {has:g}, or raise that of {parent.name}",
                )  # fmt: skip
    for index, budget in enumerate(child.budgets):
        for above in parent.budgets:
            if (above.unit, above.per) == (budget.unit, budget.per) and budget.limit > above.limit:
                raise MisfitError(
                    f"{path}.budgets[{index}].limit",
                    f"{budget.limit:g} {budget.unit} a {budget.per} is above the {above.limit:g} of {parent.name}",
                    f"give at most {above.limit:g}, or raise that of {parent.name}",
                )  # fmt: skip


def _baseline(one: Any) -> Resources:
    found: Resources = one.baseline.resources() if hasattr(one, "baseline") else Resources()
    return found


def _check_baselines(path: str, group: Group, members: Sequence[Any]) -> None:
    limit = group.limit.resources()
    for dimension in DIMENSIONS:
        has = getattr(limit, dimension)
        total = math.fsum(getattr(_baseline(one), dimension) or 0.0 for one in members)
        if has is not None and total > has * (1 + 1e-12):
            raise MisfitError(
                f"{path}.limit.{dimension}",
                f"{has:g} is below the baselines of {', '.join(one.name for one in members)}, which sum to {total:g}",
                f"give at least {total:g}, or lower them",
            )


def _check_budgets(path: str, budgets: Sequence[BudgetLimit], prices: Sequence[TokenPrice]) -> None:
    seen = set()
    for index, one in enumerate(budgets):
        if (one.unit, one.per) in seen:
            problem = f"a second budget of {one.unit} a {one.per}"
            raise MisfitError(f"{path}.budgets[{index}]", problem, "keep one of the two")
        seen.add((one.unit, one.per))
        if one.unit == "money" and not any(each.model == "" for each in prices):
            raise MisfitError(
                f"{path}.budgets[{index}].unit", "money, but pool.prices has no price for models that it does not name",
                "give prices: [{prompt_per_million: 0.2, output_per_million: 0.6}]",
            )  # fmt: skip
    by_unit = {(one.unit, one.per): one for one in budgets}
    for unit in ("tokens", "money"):
        day, month = by_unit.get((unit, "day")), by_unit.get((unit, "month"))
        if day is not None and month is not None and day.limit > month.limit:
            index = list(budgets).index(day)
            problem = f"{day.limit:g} a day is above its own {month.limit:g} a month"
            raise MisfitError(f"{path}.budgets[{index}].limit", problem, f"give at most {month.limit:g}")
