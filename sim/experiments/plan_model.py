"""What a plan is asked and what it answers: knobs, a goal, a cost, trials."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sim.errors import InputError

REPLICAS = "pool.replicas"
Setting = dict[str, Any]

_KNOB = re.compile(r"(?P<path>[^=\s]+)\s*=\s*(?P<low>[-+0-9.eE]+)\.\.(?P<high>[-+0-9.eE]+)")


@dataclass(frozen=True, slots=True)
class Knob:
    """A field of the scenario that the plan may set, between two ends; whole numbers where both ends are."""

    path: str
    low: float
    high: float
    whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """When a setting is good enough.

    Attributes
    ----------
    attainment : the share of the offered requests that must meet their objective, for each tenant.
    confidence : of the one-sided lower bound of that share's mean over replications.
    tenants : those that count; empty for all that have an objective.
    """

    attainment: float = 0.95
    confidence: float = 0.95
    tenants: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cost:
    """What there shall be little of, or, where ``most``, what there shall be much of: a limit that spares a tenant."""

    path: str = REPLICAS
    most: bool = False

    def of(self, value: float) -> float:
        """Return the cost of a value: less is better."""
        return -value if self.most else value


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting of one policy.

    Attributes
    ----------
    cost : replicas, or what else `Cost` names; less is better, so that what there shall be most of is negative.
    attainment : of the tenant that is worst off, mean over replications.
    at_least : its one-sided lower bound.
    """

    policy: str
    setting: Setting
    cost: float
    attainment: float
    at_least: float
    tenant: str

    def __str__(self) -> str:
        """Return the setting in words, and what it attained."""
        setting = ", ".join(f"{path}={value}" for path, value in self.setting.items())
        return f"{setting}: {self.attainment:.1%}, at least {max(0.0, self.at_least):.1%} ({self.tenant})"

    def meets(self, goal: Goal) -> bool:
        """Whether the bound is at the goal or above."""
        return bool(self.at_least >= goal.attainment)


@dataclass(frozen=True, slots=True)
class PlanResult:
    """The cheapest setting of a policy that meets the goal and holds on fresh seeds; None: there is none.

    Attributes
    ----------
    best : the cheapest that met the goal and held, else the cheapest that met it.
    checked : what fresh seeds say of it.
    fell : cheaper settings that met the goal in the search and not on fresh seeds, with what fresh seeds say of them.
    """

    policy: str
    best: Trial | None
    checked: Trial | None
    holds: bool
    trials: tuple[Trial, ...]
    fell: tuple[Trial, ...] = ()

    @property
    def frontier(self) -> list[Trial]:
        """The trials that no other one beats in both cost and attainment, cheapest first."""
        ordered = sorted(self.trials, key=lambda trial: (trial.cost, -trial.attainment))
        found: list[Trial] = []
        for trial in ordered:
            if not found or trial.attainment > found[-1].attainment:
                found.append(trial)
        return found


def parse_knob(text: str) -> Knob:
    """Return the knob of ``path=low..high``.

    Raises
    ------
    InputError : it is none.
    """
    match = _KNOB.fullmatch(text.strip())
    try:
        low, high = (float(match["low"]), float(match["high"])) if match else (math.nan, math.nan)
    except ValueError:
        low = high = math.nan
    if match is None or not low < high:
        raise InputError(f"--over {text!r}", "is no range", "give path=low..high, e.g. pool.replicas=1..16")
    whole = all(re.fullmatch(r"[-+]?\d+", match[end]) for end in ("low", "high"))
    return Knob(match["path"], low, high, whole)


def default_cost(knobs: Sequence[Knob]) -> Cost:
    """Return what a plan has little of if nobody says: replicas, or what the first knob sets."""
    paths = [knob.path for knob in knobs]
    return Cost(REPLICAS if REPLICAS in paths else paths[0])
