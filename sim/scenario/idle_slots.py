"""Policies that by a default of their own never use all slots of a replica, said before they run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from sim.scenario.model import Policy
from sim.scenario.pool import Pool

_BOUNDS = ("max_in_flight_per_replica", "requests_per_replica")


def idle_slots(pool: Pool, policies: Iterable[Policy]) -> list[str]:
    """Return a sentence for each policy whose own default lets less into a replica than it has slots for.

    A bound that somebody chose, other than the default, is taken to be meant.
    """
    slots = pool.profile.slots
    found = []
    for policy in policies:
        bound = _default_bound(policy.params)
        if bound is None or bound[1] >= slots:
            continue
        name, most = bound
        fix = f"give {name}: {slots}, or null for what fits" if name else "choose a detector for such replicas"
        found.append(
            f"{policy.name} by default lets {most} requests into each replica, which has {slots} slots: "
            f"{slots - most} of them stay empty; {fix}"
        )
    return found


def _default_bound(params: Any) -> tuple[str, int] | None:
    """Return the name and the value of a bound that was left at its default; a preset's has no name."""
    is_preset = hasattr(params, "expand")
    for held in (params, getattr(params, "saturation", None)) if not is_preset else ():
        for name in _BOUNDS:
            most = getattr(held, name, None)
            if isinstance(most, int) and most == _default_of(type(held), name):
                return ("" if held is params else "saturation.") + name, most
    if is_preset and (bound := _bound_within(params.expand())) is not None:
        return "", bound
    return None


def _bound_within(params: Any) -> int | None:
    for held in (params, getattr(params, "saturation", None)):
        for name in _BOUNDS:
            most = getattr(held, name, None)
            if isinstance(most, int):
                return most
    return None


def _default_of(kind: type, name: str) -> Any:
    return next(one.default for one in fields(kind) if one.name == name)
