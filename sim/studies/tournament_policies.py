"""How each policy of a tournament is set: by one rule from the pool and its entitlements, for all scenarios alike.

A policy runs with its defaults. What it cannot run without, because it depends on the pool or on who is promised what,
comes from these numbers, and from nothing for which one would have to know the traffic:

- capacity C: replicas times the profile's tokens/s, and S: replicas times its slots;
- rate r_e of an entitlement: the tokens/s promised to it and its part of what nobody was promised. That rest goes in
  equal parts to those without a baseline; where all have one, in proportion to baselines. All rates are scaled so that
  they sum to 90 % of C: limits that sum to all of it would leave a queue that never empties;
- weight w_e: r_e over the least of them;
- objective: the least TTFT objective of any entitlement;
- what the profile says of an iteration, for whom is told it, and how often the replicas are looked at.

Tokens of prompt and output count alike where a rate of tokens/s is metered, because C counts them so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from policies.fairserve import FairServe
from policies.registry import POLICIES
from sim.errors import InputError
from sim.scenario import plugins
from sim.scenario.load import Policy, Scenario, parse_scenario, resolved
from sim.scenario.validation_errors import suggestion

HEADROOM = 0.9
"""Share of the capacity to which all rates sum. [choice]"""


@dataclass(frozen=True, slots=True)
class Numbers:
    """What the rules are made of."""

    replicas: int
    slots: int
    tokens_per_s: float
    promised: Mapping[str, float]
    rates: Mapping[str, float]
    classes: Mapping[str, str]
    tenants: Mapping[str, str]
    objectives_s: Mapping[str, float]
    scrape_interval_s: float
    step: Mapping[str, float]

    def per_min(self, name: str) -> float:
        """Return the rate of an entitlement in tokens a minute."""
        return round(60 * self.rates[name], 3)

    @property
    def weights(self) -> dict[str, float]:
        """Return each rate over the least of them."""
        least = min(self.rates.values())
        return {name: round(rate / least, 6) for name, rate in self.rates.items()}


def numbers(scenario: Scenario) -> Numbers:
    """Return the numbers of a scenario's pool, at the size to which its autoscaler may bring it.

    Raises
    ------
    ValueError : its profile does not say how many tokens/s it serves.
    """
    pool = scenario.pool
    replicas = getattr(pool.autoscaler, "max_replicas", None) or pool.replicas
    capacity = pool.capacity(replicas)
    if capacity.tokens_per_s is None:
        raise ValueError("the profile has no tokens_per_s; give it, so that rates can be set from it")
    baselines = {one.name: one.spec().baseline.tokens_per_s or 0.0 for one in pool.entitlements}
    rest = max(0.0, capacity.tokens_per_s - sum(baselines.values()))
    without = [name for name, promised in baselines.items() if not promised]
    total = sum(baselines.values())
    rates = {
        name: promised + (
            (rest / len(without) if not promised else 0.0) if without else rest * promised / total
        )
        for name, promised in baselines.items()
    }  # fmt: skip
    # With everything promised there is nothing left for those without a baseline: they get a hundredth, to live.
    rates = {name: max(rate, 0.01 * capacity.tokens_per_s) for name, rate in rates.items()}
    scale = HEADROOM * capacity.tokens_per_s / sum(rates.values())
    rates = {name: scale * rate for name, rate in rates.items()}
    return Numbers(
        replicas=replicas, slots=capacity.slots, tokens_per_s=capacity.tokens_per_s, promised=baselines, rates=rates,
        classes={one.name: str(one.service_class) for one in pool.entitlements},
        tenants={one.name: one.tenant for one in pool.entitlements},
        objectives_s={one.name: one.ttft_slo_s for one in pool.entitlements if one.ttft_slo_s is not None},
        scrape_interval_s=pool.scrape_interval_s, step=_step(pool.profile.step_time),
    )  # fmt: skip


def _step(step_time: Any) -> dict[str, float]:
    """Return an iteration's coefficients under `policies.polyserve`'s names; nothing where it is not linear."""
    if getattr(step_time, "kind", None) != "linear":
        return {}
    return {
        "base_s": step_time.base_s, "per_sequence_s": step_time.per_decode_sequence_s,
        "per_context_token_s": step_time.per_context_token_s, "per_prompt_token_s": step_time.per_prefill_token_s,
    }


def _rated(found: Numbers) -> dict[str, Any]:
    return {"per_entitlement": {name: {"tokens_per_min": found.per_min(name)} for name in found.rates}}


def _alike(found: Numbers) -> dict[str, Any]:
    return _rated(found) | {"input_weight": 1.0, "output_weight": 1.0}


def _weighted(found: Numbers) -> dict[str, Any]:
    return {"weights": found.weights}


def _shares(found: Numbers) -> dict[str, float]:
    total = sum(found.rates.values())
    return {name: round(rate / total, 6) for name, rate in found.rates.items()}


def _prio_reserve(found: Numbers) -> dict[str, Any]:
    limit = sum(found.per_min(name) for name in found.rates)
    return {"tokens_per_min": limit, "weights": _shares(found), "input_weight": 1.0, "output_weight": 1.0}


def _class_slots(found: Numbers) -> dict[str, Any]:
    """Reserve for each class what its entitlements were promised; SMG's own shares know nothing of promises."""
    classes = ("dedicated", "guaranteed", "elastic")  # system, interactive, default; bulk has nothing reserved
    promised = [
        sum(amount for name, amount in found.promised.items() if found.classes[name] == one) for one in classes
    ]
    return {"shares": [*(round(min(1.0, amount / found.tokens_per_s), 6) for amount in promised), 0.0]}


def _dagor(found: Numbers) -> dict[str, Any]:
    return {"threshold_s": min(found.objectives_s.values())}


def _dedicated(found: Numbers) -> dict[str, Any]:
    """Deal the replicas in proportion to rates, by largest remainders, at least one each.

    Those who are worth less than half a replica share what they are worth together, at least one.
    """
    ideal = {name: found.replicas * share for name, share in _shares(found).items()}
    small = sum(amount for amount in ideal.values() if amount < 0.5)
    large = {name: amount for name, amount in ideal.items() if amount >= 0.5}
    count = found.replicas - (max(1, round(small)) if small else 0)
    if not 0 < len(large) <= count:
        return {}  # its default: dealt evenly
    scale = count / sum(large.values())
    dealt = {name: max(1, int(scale * amount)) for name, amount in large.items()}
    while sum(dealt.values()) != count:
        more = sum(dealt.values()) < count
        rest = {name: scale * large[name] - dealt[name] for name in dealt if more or dealt[name] > 1}
        name = max(rest, key=lambda one: (rest[one] if more else -rest[one], one))
        dealt[name] += 1 if more else -1
    return {"replicas": dealt}


def _llm_d(found: Numbers) -> dict[str, Any]:
    """Take reports of four scrapes for fresh: llm-d's 0.2 s are four of its own."""
    return {"stale_s": 4 * found.scrape_interval_s}


def _datarobot(found: Numbers) -> dict[str, Any]:
    """Reserve for those who were promised something what they were; capacity is all rates together."""
    reserved = {name: share for name, share in _shares(found).items() if found.promised[name]}
    return {"capacity": sum(found.per_min(name) for name in found.rates), "unit": "token", "reserved": reserved}


def _fairserve(found: Numbers) -> dict[str, Any]:
    """Allow so many requests of the usual size as its rate holds, to an application and to any one of its users."""
    usual = FairServe()
    tokens = usual.usual_prompt_tokens + usual.usual_output_tokens
    each = {name: max(1.0, round(found.per_min(name) / tokens, 3)) for name in found.rates}
    return {"app_per_min_by": each, "user_per_min_by": each, "weights": found.weights}


RULES: Mapping[str, Callable[[Numbers], dict[str, Any]]] = {
    "cap": lambda _: {"max_in_flight_per_replica": None},
    "adaptive": _weighted,
    "class-slots": _class_slots,
    "dagor": _dagor,
    "dedicated": _dedicated,
    "prio-reserve": _prio_reserve,
    "rate-limit": _rated,
    "window": _alike,
    "reserve": _alike,
    "ptu": _alike,
    "fair-queue": _weighted,
    "vtc": _weighted,
    "drr": _weighted,
    "las": _weighted,
    "llm-d-flow-control": _llm_d,
    "datarobot": _datarobot,
    "fairserve": _fairserve,
    "polyserve": lambda found: dict(found.step),
}
"""What is set of each policy that needs something set; the others run with their defaults."""

_PRODUCTS = {kind for kind, entry in POLICIES.items() if entry.params.__module__.startswith("policies.presets")}
LEFT_OUT = frozenset({"fair-queue"} | _PRODUCTS)
"""Kinds that do not take part: parts to make policies of, and products, which are such policies set in another way."""


VARIANTS: Mapping[str, dict[str, Any]] = {"token-pool-paper": {"kind": "token-pool", "mode": "paper"}}
"""Further policies: a kind with another setting."""


def names() -> list[str]:
    """Return the names of all policies of the tournament."""
    return [*(kind for kind in POLICIES if kind not in LEFT_OUT), *VARIANTS]


def check_names(chosen: Sequence[str]) -> None:
    """Refuse what is no policy, of tokenpools or from outside.

    Raises
    ------
    InputError : a name is none.
    """
    for name in chosen:
        plugins.find("policies", name)
        if name not in plugins.POLICY_KINDS and name not in VARIANTS:
            every = [*plugins.names("policies"), *VARIANTS]
            raise InputError(f"--policy {name}", "unknown policy", suggestion(name, every))


def policy_settings(scenario: Scenario, chosen: tuple[str, ...] = ()) -> tuple[Policy, ...]:
    """Return the policies of a tournament, set for a scenario; all `names` unless some are chosen.

    Any registered kind may be chosen, also one that does not take part by itself.

    Raises
    ------
    ScenarioError : a policy does not fit the scenario.
    """
    found = numbers(scenario)
    policies = []
    for name in chosen or names():
        own = VARIANTS.get(name, {"kind": name})
        rule = RULES.get(own["kind"])
        label = {} if ":" in name else {"name": name}  # module:Class is called what it calls itself
        policies.append({**label, **own, **(rule(found) if rule else {})})
    tree = resolved(scenario) | {"policies": policies, "vary": {}}
    return parse_scenario(tree, scenario.title or "tournament").policies
