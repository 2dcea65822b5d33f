"""Demand as a scenario: from traces and logs, a tenant a workload; or a scenario's own, at any factor of its rate."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from policies.api import ServiceClass
from sim.errors import InputError
from sim.scenario.load import Scenario, parse_scenario, resolved
from sim.scenario.profile import Profile
from sim.scenario.validation_errors import suggestion
from sim.studies.advise.model import Objective
from sim.traces.sources import Source, open_source
from workloads.formats.rows import Rows, join_rows

Tree = dict[str, Any]

_BLOCKS = 10
"""Blocks that a window is redrawn in, so that draws differ and bursts keep together. [choice]"""
_MOST_TENANTS = 60
_WARM_UP = 0.1
REST = "others"
"""The workload of all tenants of a trace that are too many to name."""


def from_scenario(scenario: Scenario, objectives: Sequence[Objective]) -> Tree:
    """Return the tree of a scenario's demand, without its events, variants and shadows, with these objectives.

    Raises
    ------
    InputError : an objective is for nobody, or nobody has one.
    """
    tree = resolved(scenario) | {"events": [], "vary": {}, "shadow": [], "replications": 1}
    names = [one["name"] for one in tree["pool"]["entitlements"]]
    for objective in objectives:
        if objective.entitlement not in names:
            place = f"--objective {objective.entitlement}"
            raise InputError(place, "no such entitlement", suggestion(objective.entitlement, names))
    _with_objectives(tree, objectives)
    return tree


def from_traces(
    refs: Sequence[str], objectives: Sequence[Objective], profile: Profile, *, window_s: float, format_: str | None,
    from_s: float | None, seed: int,
) -> Tree:
    """Return the tree of recorded demand: the busiest window of each trace, redrawn in blocks for each draw.

    Who asks for nothing in the window has an entitlement all the same, so that a gateway knows its key.

    Raises
    ------
    InputError : a trace cannot be read, or an objective is for nobody in it.
    """
    workload: list[Tree] = []
    outputs: list[np.ndarray[Any, Any]] = []
    named: dict[str, None] = {}
    for ref in refs:
        rows = _rows(open_source(ref, format_))
        begin_s, length_s = _window(rows, window_s, from_s, ref)
        inside = rows.between(int(rows.time_ns[0]), begin_s, begin_s + length_s)
        outputs.append(inside.output_tokens)
        arrivals: Tree = {
            "kind": "trace", "file": _place(ref), "from_trace_s": round(begin_s, 3),
            "until_trace_s": round(begin_s + length_s, 3), "bootstrap_block_s": round(length_s / _BLOCKS, 3),
        }  # fmt: skip
        if format_ is not None:
            arrivals["format"] = format_
        asks = inside.max_output_tokens is not None and bool(inside.max_output_tokens.any())
        asking = _tenants(inside, ref)
        for tenant in _tenants(rows, ref):
            entitlement = tenant or _bare(ref)
            if entitlement in named:
                raise InputError(ref, f"a second demand of {entitlement}", "give traces whose tenants differ")
            named[entitlement] = None
            if tenant not in asking:
                continue
            mine = arrivals | ({"tenant": tenant} if tenant else {})
            workload.append({"name": entitlement, "entitlement": entitlement, "arrivals": mine, "ask_max_tokens": asks})
    for objective in objectives:
        if objective.entitlement not in named:
            place = f"--objective {objective.entitlement}"
            raise InputError(place, "nobody of that name is in the demand", suggestion(objective.entitlement, named))
    horizon_s = window_s
    tree: Tree = {
        "version": 1, "title": f"Advice for {', '.join(map(_bare, refs))}", "seed": seed, "horizon_s": horizon_s,
        "warmup_s": round(_WARM_UP * horizon_s, 3), "replications": 1,
        "pool": {
            "profile": profile.model_dump(mode="json"), "replicas": 1,
            "entitlements": [{"name": name, "service_class": str(ServiceClass.SPOT)} for name in named],
            "default_max_output_tokens": int(np.quantile(np.concatenate(outputs), 0.95)) + 1,
        },
        "workload": workload, "policies": ["none"],
    }  # fmt: skip
    _with_objectives(tree, objectives)
    return resolved(parse_scenario(tree, "advise"))


def _with_objectives(tree: Tree, objectives: Sequence[Objective]) -> None:
    asked = {one.entitlement: one for one in objectives}
    for one in tree["pool"]["entitlements"]:
        if one["name"] in asked:
            one["ttft_slo_s"] = asked[one["name"]].ttft_s
        one["baseline"], one["limit"] = {}, {}
    if not any(one.get("ttft_slo_s") for one in tree["pool"]["entitlements"]):
        names = ", ".join(one["name"] for one in tree["pool"]["entitlements"][:8])
        raise InputError("advise", "nobody has an objective", f"give --objective NAME=SECONDS for some of {names}")


def at_factor(tree: Tree, factor: float, *, spare: Sequence[str] = ()) -> Tree:
    """Return the demand with its rate times ``factor``: recordings are compressed in time, rates multiplied.

    The demand of entitlements in ``spare`` stays as it is.

    Raises
    ------
    InputError : a workload's arrivals have no rate to multiply.
    """
    if factor == 1:
        return tree
    found = copy.deepcopy(tree)
    for workload in found["workload"]:
        if workload.get("entitlement") in spare:
            continue
        workload["arrivals"] = _faster(workload["arrivals"], factor, workload["name"])
    return found


def _faster(arrivals: Mapping[str, Any], factor: float, name: str) -> Tree:
    found = dict(arrivals)
    if found.get("kind") in ("trace", "servegen"):
        found["scale"] = float(found.get("scale") or 1.0) * factor
        return found
    rates = [key for key in found if key.endswith("_per_s") and found[key] is not None]
    for key in rates:
        value = found[key]
        found[key] = [one * factor for one in value] if isinstance(value, list) else value * factor
    if not rates and "users" in found:
        found["users"] = math.ceil(found["users"] * factor)
    elif not rates:
        fix = "leave --stress 1, or describe the demand by a rate"
        raise InputError(f"workload {name}", f"{found.get('kind')} arrivals have no rate to multiply", fix)
    return found


def with_twin(tree: Tree, name: str) -> Tree:
    """Return the demand with one more tenant that asks as ``name`` does, from draws of its own."""
    found = copy.deepcopy(tree)
    twin = f"{name}-next"
    (entitlement,) = (one for one in found["pool"]["entitlements"] if one["name"] == name)
    found["pool"]["entitlements"].append(copy.deepcopy(entitlement) | {"name": twin, "tenant": twin})
    for workload in [one for one in found["workload"] if one["entitlement"] == name]:
        found["workload"].append(
            copy.deepcopy(workload) | {"name": f"{workload['name']}-next", "entitlement": twin, "key": None}
        )
    return found


# ------------------------------------------------------------------------------------------------------------ traces


def _rows(source: Source) -> Rows:
    return join_rows(list(source.rows()))


def _window(rows: Rows, window_s: float, from_s: float | None, ref: str) -> tuple[float, float]:
    """Return beginning and length of the busiest window, by tokens; what is shorter is taken whole."""
    at_s = rows.since_s(int(rows.time_ns[0]))
    span_s = float(at_s[-1])
    if span_s <= 0:
        raise InputError(ref, "all of its requests came at one instant", "give a log of some minutes")
    length_s = min(window_s, span_s)
    if from_s is not None:
        if from_s >= span_s:
            raise InputError("--from-s", f"{from_s:g}, and {ref} lasts {span_s:g} s", "give less")
        return from_s, min(length_s, span_s - from_s)
    work = np.concatenate(([0.0], np.cumsum(rows.prompt_tokens + 2.0 * rows.output_tokens)))
    begins = np.linspace(0, span_s - length_s, 200) if span_s > length_s else np.zeros(1)
    sums = work[np.searchsorted(at_s, begins + length_s)] - work[np.searchsorted(at_s, begins)]
    return float(begins[int(np.argmax(sums))]), length_s


def _tenants(rows: Rows, ref: str) -> list[str]:
    if rows.tenant is None or not any(rows.tenant.names):
        return [""]
    present = {rows.tenant.names[code] for code in np.unique(rows.tenant.codes).tolist()}
    if "" in present:
        problem = "some of its requests name a tenant and some do not"
        raise InputError(ref, problem, "give the traffic of one kind, or convert it with a tenant for each")
    if len(present) > _MOST_TENANTS:
        problem = f"it has {len(present)} tenants, more than {_MOST_TENANTS}"
        raise InputError(ref, problem, "describe groups of them in a scenario (arrivals.groups)")
    return sorted(present)


def _place(ref: str) -> str:
    path = Path(ref)
    return str(path.resolve()) if path.is_file() else ref


def _bare(ref: str) -> str:
    return Path(ref).name.split(".")[0]
