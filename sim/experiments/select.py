"""Which policies of a scenario to run, and where its result goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sim.errors import InputError
from sim.scenario import plugins
from sim.scenario.load import Policy, Scenario, parse_scenario, resolved, scenario_hash
from sim.scenario.validation_errors import suggestion


def with_policies(scenario: Scenario, names: Sequence[str]) -> Scenario:
    """Return the scenario with these policies only: labels of its own, or registered kinds with their defaults.

    Raises
    ------
    InputError : a name is neither.
    """
    if not names:
        return scenario
    known = {policy.name: policy for policy in scenario.policies}
    chosen: list[Policy] = []
    for name in dict.fromkeys(names):
        if name in known:
            chosen.append(known[name])
        elif _is_kind(name):
            tree = resolved(scenario) | {"policies": [name], "vary": {}}
            chosen.append(parse_scenario(tree, f"--policy {name}").policies[0])
        else:
            every = dict.fromkeys([*known, *plugins.names("policies")])
            raise InputError(f"--policy {name}", "unknown policy", suggestion(name, every))
    return scenario.model_copy(update={"policies": tuple(chosen)})


def _is_kind(name: str) -> bool:
    plugins.find("policies", name)
    return name in plugins.POLICY_KINDS


def default_folder(ref: str, scenario: Scenario) -> Path:
    """Return ``results/<scenario>-<hash>``, the same for the same resolved scenario."""
    return Path("results") / f"{Path(ref).stem}-{scenario_hash(scenario)}"
