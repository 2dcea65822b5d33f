"""What a person may write for short, brought into the one form that the models know.

A bare name stands for ``{kind: name}``, a bare number for a constant length, ``full`` for ``{}``, a profile's name for
its content; a name left out is taken from what it names. Anything of another shape is left for the models to refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from policies.registry import PARTS
from sim.errors import ScenarioError
from sim.scenario import plugins
from sim.scenario.profile import load_profile
from sim.scenario.vary import with_profiles
from sim.scenario.yaml_file import describe, one_line
from workloads.catalogue import TRACES

_LENGTHS = ("prompt_tokens", "output_tokens", "max_output_tokens")


def canonical(raw: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Return the canonical form of a scenario; ``raw`` is left as it is.

    Raises
    ------
    ScenarioError : the profile that it names does not exist or is not one.
    """
    scenario = dict(raw)
    if isinstance(scenario.get("pool"), dict):
        scenario["pool"] = _pool(scenario["pool"], file)
    _each(scenario, "workload", partial(_workload, folder=Path(file).parent))
    if isinstance(scenario.get("workload"), list):
        for i, one in enumerate(scenario["workload"]):
            _find("arrivals", one, "arrivals", file, f"workload[{i}].arrivals")
            _find("clients", one, "client", file, f"workload[{i}].client")
    if isinstance(scenario.get("workload"), list):
        _name_workloads([one for one in scenario["workload"] if isinstance(one, dict)])
    _each(scenario, "events", _event)
    for field in ("policies", "shadow"):
        if isinstance(scenario.get(field), list):
            scenario[field] = [_policy(one, file, f"{field}[{i}]") for i, one in enumerate(scenario[field])]
    if isinstance(scenario.get("vary"), dict):
        scenario["vary"] = with_profiles(scenario["vary"], lambda one: _profile(one, file, "vary.pool.profile"))
    return scenario


def _pool(raw: dict[str, Any], file: str) -> dict[str, Any]:
    pool = _with_manifests(raw, file)
    if "profile" in pool:
        pool["profile"] = _profile(pool["profile"], file, "pool.profile")
    if isinstance(pool.get("also"), list):
        pool["also"] = [
            {**one, "profile": _profile(one["profile"], file, f"pool.also[{i}].profile")}
            if isinstance(one, dict) and "profile" in one else one
            for i, one in enumerate(pool["also"])
        ]
    _bare_name(pool, "router")
    _bare_name(pool, "autoscaler")
    _find("routers", pool, "router", file, "pool.router")
    _each(pool, "entitlements", _entitlement)
    return pool


def _with_manifests(raw: dict[str, Any], file: str) -> dict[str, Any]:
    """Put what a file of Kubernetes manifests describes in the place of its name; what stands beside it wins."""
    pool = {key: value for key, value in raw.items() if key != "manifests"}
    if "manifests" not in raw:
        return pool
    ref = raw["manifests"]
    if not isinstance(ref, str):
        raise ScenarioError(file, "pool.manifests", f"holds {describe(ref)}", "give the path of a YAML file")
    if "entitlements" in raw:
        raise ScenarioError(file, "pool.entitlements", "given beside manifests", "keep one of the two")
    from sim.scenario.manifests import pool_from_manifests  # here, because few scenarios have any

    path = Path(file).parent / ref
    return pool_from_manifests(path, one_line(str(path))) | pool


def _profile(raw: object, file: str, field: str) -> object:
    """Put a profile's content for its name, so that a resolved scenario needs no other file."""
    if not isinstance(raw, str):
        return raw
    return load_profile(raw, folder=Path(file).parent, file=file, field=field).model_dump(mode="json")


def _entitlement(raw: dict[str, Any]) -> dict[str, Any]:
    return {**raw, "tenant": raw["name"]} if "name" in raw and raw.get("tenant") is None else raw


def _workload(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    workload = dict(raw)
    for name in _LENGTHS:
        if _is_number(workload.get(name)):
            workload[name] = {"kind": "constant", "value": workload[name]}
    _bare_name(workload, "client")
    if isinstance(workload.get("arrivals"), dict):
        workload["arrivals"] = _beside(workload["arrivals"], folder)
    return workload


def _beside(arrivals: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Name a trace that lies beside the scenario by its path from here, as profiles are found too."""
    ref = arrivals.get("file")
    if not isinstance(ref, str) or "\0" in ref or ref in TRACES or folder == Path() or Path(ref).is_absolute():
        return arrivals
    found = folder / ref
    return {**arrivals, "file": str(found)} if found.exists() else arrivals


def _name_workloads(workloads: list[dict[str, Any]]) -> None:
    """Call each unnamed workload what its entitlement is called, the second of a name "name#2"."""
    taken = {one["name"] for one in workloads if isinstance(one.get("name"), str)}
    for workload in workloads:
        base = workload.get("entitlement")
        if workload.get("name") is None and isinstance(base, str):
            names = (base if index == 1 else f"{base}#{index}" for index in count(1))
            workload["name"] = next(name for name in names if name not in taken)
            taken.add(workload["name"])


def _event(raw: dict[str, Any]) -> dict[str, Any]:
    return {**raw, "capacity": {}} if raw.get("capacity") == "full" else raw


def _policy(raw: object, file: str, field: str) -> object:
    if isinstance(raw, str):
        raw = {"kind": raw}
    if not isinstance(raw, dict):
        return raw
    params = {key: value for key, value in raw.items() if key not in ("name", "autoscaler")}
    kind = params.get("kind")
    _find("policies", {"": params}, "", file, field)
    known = plugins.POLICY_KINDS.get(kind) if isinstance(kind, str) else None
    for part in [each.name for each in fields(known.params) if "discriminator" in each.metadata] if known else PARTS:
        _bare_name(params, part)  # other policies may have plain words under the same name, as token pools' order
    name = raw.get("name")
    policy = {"name": _label(kind) if name is None else name, "params": params}
    if raw.get("autoscaler") is not None:
        policy["autoscaler"] = raw["autoscaler"]
        _bare_name(policy, "autoscaler")
    return policy


def _label(kind: object) -> object:
    """Return what results call a policy without a name: what it calls itself, where it is named by module and class."""
    if isinstance(kind, str) and ":" in kind and kind in plugins.POLICY_KINDS:
        return plugins.own_kind(plugins.POLICY_KINDS.params(kind))
    return "unnamed" if kind is None else kind


def _find(group: str, parent: object, key: str, file: str, field: str) -> None:
    """See that the kind that stands under a key is known, wherever it comes from."""
    found = parent.get(key) if isinstance(parent, dict) else None
    if isinstance(found, dict):
        try:
            plugins.find(group, found.get("kind"))
        except plugins.PluginError as error:
            place, problem, fix = error.args
            raise ScenarioError(file, f"{field}.kind", one_line(f"{place}: {problem}"), fix) from error


def _each(parent: dict[str, Any], key: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    if isinstance(parent.get(key), list):
        parent[key] = [change(one) if isinstance(one, dict) else one for one in parent[key]]


def _bare_name(parent: dict[str, Any], key: str) -> None:
    if isinstance(parent.get(key), str):
        parent[key] = {"kind": parent[key]}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def with_pool_and_policy(raw: dict[str, Any], file: str) -> dict[str, Any]:
    """Return a configuration that has a scenario's ``pool`` and one ``policy``, with their shorthands written out."""
    known: dict[str, Any] = {"pool": raw["pool"]} if "pool" in raw else {}
    if "policy" in raw:
        known["policies"] = [raw["policy"]]
    if isinstance(raw.get("shadow"), list):
        known["shadow"] = raw["shadow"]
    brought = canonical(known, file)
    found = dict(raw) | {name: brought[name] for name in ("pool", "shadow") if name in brought}
    if "policy" in raw:
        (found["policy"],) = brought["policies"]
    return found
