"""Scenarios: read from a file, checked in full, and expanded into the runs they ask for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sim.errors import ScenarioError
from sim.scenario.editor_schemas import identified, with_shorthands
from sim.scenario.model import Capacity, Event, Phase, Policy, Scenario, Workload
from sim.scenario.overrides import located, overridden, replaced
from sim.scenario.pool import Entitlement, Pool
from sim.scenario.pool_amounts import Amounts
from sim.scenario.shorthand import canonical
from sim.scenario.validation_errors import explain, suggestion
from sim.scenario.vary import combinations, keeping, varied_paths
from sim.scenario.yaml_file import as_json, one_line, plain, read_mapping, shown

__all__ = [
    "Amounts",
    "Capacity",
    "Cell",
    "Entitlement",
    "Event",
    "Phase",
    "Policy",
    "Pool",
    "Scenario",
    "Workload",
    "expand",
    "json_schema",
    "load_scenario",
    "normalised",
    "parse_scenario",
    "resolved",
    "scenario_hash",
    "shipped_scenarios",
]

_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run of a scenario.

    Attributes
    ----------
    index : position in the order of `expand`.
    variant : for each varied path, the label of the value it has here.
    policy : the label of the one policy that runs.
    replication : which of the scenario's repetitions, from 0.
    scenario : what to run: the variant's values set, one policy, nothing left to vary.
    """

    index: int
    variant: dict[str, str]
    policy: str
    replication: int
    scenario: Scenario


def load_scenario(ref: str | Path, *, overrides: Sequence[str] = ()) -> Scenario:
    """Return a scenario by path or by the name of a shipped one.

    Parameters
    ----------
    overrides : ``path=value`` texts, set in order on the complete scenario; see `sim.scenario.overrides`. What is set
        is no longer varied.

    Raises
    ------
    ScenarioError : it cannot be read, or not run as it is.
    """
    source, file = _find(ref)
    scenario = parse_scenario(read_mapping(source, file), file)
    if not overrides:
        return scenario
    tree = resolved(scenario)
    for text in overrides:
        tree, left = overridden(tree, text, file, varied_paths(tree["vary"]))
        tree = tree | {"vary": keeping(tree["vary"], left)}
    return parse_scenario(tree, file)


def parse_scenario(mapping: Mapping[str, Any], file: str) -> Scenario:
    """Return the scenario that a mapping describes, every variant of it checked.

    Parameters
    ----------
    file : what to call it in errors; a profile's relative path starts in its folder.

    Raises
    ------
    ScenarioError : see `sim.scenario.validation_errors` for what it says.
    """
    file = one_line(file)
    scenario = _validated(mapping, file)
    for _ in _variants(scenario, file):
        pass
    return scenario


def expand(scenario: Scenario) -> list[Cell]:
    """Return every run: variants of the grid, in each the policies, and of each the replications."""
    cells: list[Cell] = []
    for labels, variant in _variants(scenario, "scenario"):
        for policy in variant.policies:
            alone = variant.model_copy(update={"policies": (policy,), "vary": {}})
            for replication in range(variant.replications):
                cells.append(
                    Cell(
                        index=len(cells),
                        variant=labels,
                        policy=policy.name,
                        replication=replication,
                        scenario=alone,
                    )
                )
    return cells


def resolved(scenario: Scenario) -> dict[str, Any]:
    """Return the scenario as a plain mapping, complete with defaults, that loads again to an equal scenario."""
    return scenario.model_dump(mode="json")


def scenario_hash(scenario: Scenario) -> str:
    """Return 12 hexadecimal digits that name the resolved scenario; 4 and 4.0 are the same number."""
    text = json.dumps(normalised(resolved(scenario)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a scenario file, shorthands included."""
    schema = with_shorthands(Scenario.model_json_schema())
    schema["$defs"]["Event"]["properties"]["capacity"]["anyOf"].append({"const": "full"})
    return identified(schema, "scenario")


def shipped_scenarios() -> list[str]:
    """Return the names of the scenarios that come with tokenpools."""
    names = (entry.name for entry in files("scenarios").iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def _find(ref: str | Path) -> tuple[Path | Traversable, str]:
    """Return where a scenario is and what to call it."""
    path, name = Path(ref), str(ref)
    bare = path.name == name and path.suffix not in _SUFFIXES
    if bare and name in shipped_scenarios():
        return files("scenarios") / f"{name}.yaml", f"scenarios/{name}.yaml"
    file = name if name.isprintable() and name else shown(name)
    try:
        there = path.exists()
    except (OSError, ValueError):
        there = False
    if not there:
        problem = "no such file or shipped scenario" if bare else "no such file"
        raise ScenarioError(file, "", problem, suggestion(path.stem, shipped_scenarios()))
    return path, file


def _validated(mapping: Mapping[str, Any], file: str) -> Scenario:
    raw = plain(mapping, file)
    if not isinstance(raw, dict):
        raise ScenarioError(file, "", "not a mapping", "start with version: 1")
    try:
        return Scenario.model_validate_json(as_json(canonical(raw, file), file))
    except ValidationError as error:
        raise explain(error, Scenario, raw, file) from None


def _variants(scenario: Scenario, file: str) -> list[tuple[dict[str, str], Scenario]]:
    """Return the labels and the scenario of every combination of what varies."""
    if not scenario.vary:
        return [({}, scenario)]
    found = []
    base = resolved(scenario) | {"vary": {}}
    for cell in combinations(scenario.vary, file):
        labels = {path: label for path, _, label in cell}
        tree = base
        try:
            for path, value, _ in cell:
                tree = replaced(tree, located(tree, path, file), value)
            found.append((labels, _validated(tree, file)))
        except ScenarioError as error:
            where, field, problem, fix = error.args
            setting = one_line(", ".join(f"{path}={label}" for path, label in labels.items()))
            raise ScenarioError(where, field, f"{problem} (where vary sets {setting})", fix) from None
    return found


def normalised(value: Any) -> Any:
    """Return a resolved value with every whole float as an int, so that 4 and 4.0 have one hash."""
    if isinstance(value, dict):
        return {key: normalised(item) for key, item in value.items()}
    if isinstance(value, list):
        return [normalised(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
