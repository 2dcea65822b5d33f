"""A scenario at another load: the same demand, so many times as much of it.

Rates of arrival are multiplied; so are the users or clients of a closed loop (at least one) and the speed at which a
trace is played, whose horizon shrinks with it: the same requests come, closer together. What is promised stays as it
is, so that at 1.3 those who were inside their promise may be outside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.errors import InputError
from sim.scenario.load import Scenario, parse_scenario, resolved

LOADS = (0.8, 1.0, 1.3)
"""The loads of a tournament, as multiples of each scenario's own. [choice]"""

_RATES = (
    "rate_per_s", "rate_on_per_s", "rate_off_per_s", "spike_rate_per_s", "from_rate_per_s", "to_rate_per_s",
    "rates_per_s", "rate_factor", "scale",
)  # fmt: skip
_PEOPLE = ("users", "clients")


def at_load(scenario: Scenario, load: float) -> Scenario:
    """Return the scenario at ``load`` times its demand; the scenario itself at 1.

    Raises
    ------
    InputError : a workload's arrivals have nothing that says how many come.
    """
    if load == 1.0:
        return scenario
    tree = resolved(scenario)
    stretched = 1.0
    for number, workload in enumerate(tree["workload"]):
        arrivals = workload["arrivals"]
        found = {name: arrivals[name] for name in _RATES if arrivals.get(name) is not None}
        people = [name for name in _PEOPLE if name in arrivals]
        if not found and not people:
            raise InputError(
                f"workload[{number}].arrivals", f"{arrivals['kind']} has no rate to multiply by {load:g}",
                "leave this scenario out, or run it at load 1",
            )
        arrivals |= {name: _times(value, load) for name, value in found.items()}
        arrivals |= {name: max(1, round(arrivals[name] * load)) for name in people}
        if "scale" in found:
            stretched = load
    if stretched != 1.0 and tree.get("horizon_s") is not None:
        tree["horizon_s"] /= stretched
    return parse_scenario(tree, scenario.title or "tournament")


def _times(value: Any, load: float) -> Any:
    if isinstance(value, list | tuple):
        return [each * load for each in value]
    if isinstance(value, Mapping):
        return {name: each * load for name, each in value.items()}
    return value * load
