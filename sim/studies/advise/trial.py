"""Settings as scenarios, and what draws of the demand say of them; every policy and setting meets the same draws."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from policies.api import ServiceClass
from sim.analysis.study import Study
from sim.analysis.summary import ALL
from sim.errors import InputError, ScenarioError
from sim.experiments.demands import demands
from sim.experiments.executors import Executor
from sim.experiments.own_limit import LEAST, holding_times, lost_share
from sim.experiments.sweep import sweep
from sim.scenario.load import Scenario, parse_scenario, resolved
from sim.studies.advise.capacity import tokens_per_s
from sim.studies.advise.demand import Tree, at_factor
from sim.studies.advise.model import STRESS, Measured, Objective, Setting
from sim.studies.tournament_policies import policy_settings

_RATES = 1.2
"""Of what an entitlement asks for in its busiest minute, what it is promised in tokens/s. [choice]"""
_MINUTE_S = 60.0


@dataclass(slots=True, eq=False)
class Bench:
    """Where settings are tried.

    Attributes
    ----------
    tree : the demand at factor 1.
    folder : of the runs; what is there already is not run again.
    baselines : slots for each entitlement with an objective.
    runs : how many draws were run.
    """

    tree: Tree
    objectives: Mapping[str, Objective]
    folder: Path
    executor: Executor | None = None
    baselines: Mapping[str, float] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    runs: int = 0
    _known: dict[str, Measured] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """The seed of the search's draws."""
        return int(self.tree["seed"])

    def scenario(
        self, policy: str, setting: Setting, *, factor: float = 1.0, tree: Tree | None = None, noisy: float = 1.0
    ) -> Scenario:
        """Return the scenario of a setting, ``noisy`` being a factor on the demand of who has no objective.

        Raises
        ------
        ScenarioError : it is not valid: baselines over what the pool has, for example.
        """
        asked = copy.deepcopy(at_factor(self.tree if tree is None else tree, factor))
        if noisy != 1:
            quiet = [one["entitlement"] for one in asked["workload"] if self._baseline(one["entitlement"]) is not None]
            asked = copy.deepcopy(at_factor(asked, noisy, spare=quiet))
        pool = asked["pool"]
        pool["replicas"] = setting.replicas
        slots = setting.replicas * parse_slots(pool["profile"])
        for one in pool["entitlements"]:
            baseline = self._baseline(one["name"])
            if baseline is None:
                one["service_class"] = str(ServiceClass.SPOT)
                if setting.limit_share is not None:
                    one["limit"] = {"slots": max(1, round(setting.limit_share * slots))}
                continue
            objective = self.objectives.get(one["name"])
            chosen = objective.service_class if objective is not None else None
            one["service_class"] = str(chosen or setting.service_class)
            one["baseline"] = {"slots": max(1.0, float(round(baseline * setting.baseline_share)))}
        asked["policies"] = [self.parameters(policy, setting, asked)]
        return parse_scenario(asked, "advise")

    def _baseline(self, entitlement: str) -> float | None:
        return self.baselines.get(entitlement.removesuffix("-next"))

    def parameters(self, policy: str, setting: Setting, asked: Tree) -> Mapping[str, Any]:
        """Return a policy with its parameters: the user's own, or what the tournament's rule makes of the pool."""
        if policy in self.given:
            found: Mapping[str, Any] = self.given[policy]
            return found
        rated = copy.deepcopy(asked)
        profile = rated["pool"]["profile"]
        each = profile.get("tokens_per_s") or self._capacity_tokens_per_s(rated)
        profile["tokens_per_s"] = each * setting.rate_share
        room = setting.replicas * profile["tokens_per_s"]
        wanted = self._asked_tokens_per_s()
        promised = {one["name"]: _RATES * wanted.get(one["name"], 0.0) for one in rated["pool"]["entitlements"]}
        total = sum(promised[name] for name in promised if name in self.baselines)
        for one in rated["pool"]["entitlements"]:
            one["limit"] = {}
            if one["name"] in self.baselines:
                part = setting.baseline_share * min(1.0, 0.95 * room / total)
                one["baseline"] = {"tokens_per_s": part * promised[one["name"]]}
        rated |= {"policies": ["none"]}
        (made,) = policy_settings(parse_scenario(rated, "advise"), (policy,))
        params = made.model_dump(mode="json")
        return {key: value for key, value in params.items() if value is not None}

    def _demands(self) -> list[Any]:
        return demands(parse_scenario(self.tree | {"policies": ["none"]}, "advise"), 0)

    def _capacity_tokens_per_s(self, tree: Tree) -> float:
        drawn = self._demands()
        prompt = float(np.concatenate([one.prompt_tokens for one in drawn]).mean())
        output = float(np.concatenate([one.output_tokens for one in drawn]).mean())
        return tokens_per_s(parse_scenario(tree | {"policies": ["none"]}, "advise").pool.profile, prompt, output)

    def _asked_tokens_per_s(self) -> dict[str, float]:
        """Return the tokens/s of each entitlement's busiest minute."""
        span_s = float(self.tree["horizon_s"])
        minute_s = min(_MINUTE_S, span_s)
        edges = np.arange(max(1, int(span_s // minute_s)) + 1) * minute_s
        minutes: dict[str, Any] = {}
        for workload, drawn in zip(self.tree["workload"], self._demands(), strict=True):
            tokens = np.histogram(drawn.arrival_s, edges, weights=drawn.prompt_tokens + drawn.output_tokens)[0]
            name = workload["entitlement"]
            minutes[name] = minutes.get(name, 0.0) + tokens
        return {name: float(tokens.max()) / minute_s for name, tokens in minutes.items()}

    def measure(
        self, policy: str, setting: Setting, *, factor: float, seed: int, draws: int, tree: Tree | None = None,
        events: Sequence[Mapping[str, Any]] = (), noisy: float = 1.0,
    ) -> Measured | None:
        """Return what so many draws gave; None where the setting is not valid."""
        try:
            scenario = self.scenario(policy, setting, factor=factor, tree=tree, noisy=noisy)
        except ScenarioError:
            return None
        plain = resolved(scenario) | {"seed": seed, "replications": draws, "events": list(events)}
        key = json.dumps([plain, draws], sort_keys=True)
        if key not in self._known:
            self.runs += draws
            self._known[key] = self.run(parse_scenario(plain, "advise"))
        return self._known[key]

    def run(self, scenario: Scenario) -> Measured:
        """Run a scenario of one policy and setting, and return what its replications gave."""
        result = sweep(scenario, self.folder, executor=self.executor)
        if result.errors:
            raise InputError("advise", result.errors[0], "")
        study = Study(self.folder)
        (case,) = study.cases
        asking = {one.entitlement for one in scenario.workload}
        tenants = {one.spec().tenant: one.ttft_slo_s for one in scenario.pool.entitlements if one.name in asking}

        def by_draw(tenant: str, metric: str) -> list[float]:
            values = study.values(case, tenant, metric).tolist()
            # A draw in which nobody of a tenant came holds for it.
            return [1.0 if math.isnan(one) and metric == "slo_attainment" else one for one in values]

        rest = [tenant for tenant, slo_s in tenants.items() if slo_s is None]
        return Measured(
            {tenant: by_draw(tenant, "slo_attainment") for tenant, slo_s in tenants.items() if slo_s is not None},
            {tenant: by_draw(tenant, "refused_share") for tenant in tenants},
            by_draw(ALL, "output_tokens_per_s"),
            _answered(*([by_draw(tenant, metric) for tenant in rest] for metric in ("offered", "finished"))),
        )


def _answered(offered: Sequence[Sequence[float]], finished: Sequence[Sequence[float]]) -> list[float]:
    """Return, by draw, the share of requests that had their whole answer by the end, over several tenants.

    What waits in a queue until the end counts as little as what was refused.
    """
    if not offered:
        return [1.0]
    asked, done = np.sum(offered, axis=0), np.sum(finished, axis=0)
    found: list[float] = np.where(asked > 0, done / np.maximum(asked, 1), 1.0).tolist()
    return found


def parse_slots(profile: Mapping[str, Any]) -> int:
    """Return the slots of a replica from its profile as plain values."""
    layout = profile.get("disaggregated")
    engines = profile.get("data_parallel", 1) if layout is None else layout["decode_engines"]
    return int(engines * profile["max_num_seqs"])


def enough_slots(tree: Tree, objectives: Sequence[str]) -> dict[str, float]:
    """Return, for entitlements with an objective, the fewest slots in which less than 1 % find all taken.

    At the stressed demand, in full batches: what an entitlement needs in its busy minute, not on average.
    """
    scenario = parse_scenario(at_factor(tree, STRESS) | {"policies": ["none"]}, "advise")
    drawn = demands(scenario, 0)
    found = {}
    for name in objectives:
        held = sorted(
            hold
            for workload, demand in zip(scenario.workload, drawn, strict=True) if workload.entitlement == name
            for hold in holding_times(scenario.pool.profile, demand)
        )  # fmt: skip
        if not held:
            problem = "asks for nothing in the window"
            raise InputError(f"--objective {name}", problem, "give another --from-s, or leave the objective out")
        few, enough = 0, 1
        while lost_share(held, enough) >= LEAST:
            few, enough = enough, 2 * enough
        while enough - few > 1:
            middle = (few + enough) // 2
            few, enough = (middle, enough) if lost_share(held, middle) >= LEAST else (few, middle)
        found[name] = float(enough)
    return found
