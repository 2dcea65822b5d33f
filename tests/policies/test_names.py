"""A name decides nothing: tenants called otherwise meet the same verdicts, in every policy."""

from __future__ import annotations

import random
from typing import Any

import pytest
from parity.examples import EXAMPLES
from parity.tiny_world import Ask, TinyWorld, make_core

from policies.api import EntitlementSpec, Forward, PoolCapacity, Resources, ServiceClass
from policies.token_pool.leases import LeaseBook

TENANTS = 4


def named(params: Any) -> bool:
    """Whether it says something about entitlements by name; those of this module have others."""
    return any(
        isinstance(value := getattr(params, name, None), dict) and bool(value)
        for name in getattr(params, "__dataclass_fields__", {})
    )


UNNAMED = {label: params for label, params in EXAMPLES.items() if not named(params)}


def asks(names: list[str], seed: int) -> list[Ask]:
    """Four tenants that want the same; many come at the very same instant, each time in another order."""
    chance = random.Random(seed)
    found = []
    for step in range(25):
        at_s = 0.25 * step
        for tenant in chance.sample(range(TENANTS), TENANTS):
            found += [Ask(at_s, names[tenant], chance.choice((4, 16, 40)), 30)] * chance.choice((0, 1, 2))
    return found


def decided(params: Any, names: list[str], seed: int, service_class: ServiceClass) -> list[Any]:
    specs = [
        EntitlementSpec(name=name, tenant=f"t-{name}", service_class=service_class, ttft_slo_s=2.0,
                        baseline=Resources(10.0, None, 1.3) if service_class is ServiceClass.ELASTIC else Resources())
        for name in names
    ]  # fmt: skip
    core = make_core(params, specs, slots=6, replicas=5, kv_bytes=4000.0, kv_bytes_per_token=10.0, tokens_per_s=60.0)
    world = TinyWorld(core, asks(names, seed))
    log = world.run(60.0)
    def seen(step: Any) -> Any:  # which of several replicas that are alike is whose is no advantage
        return step._replace(replica_id=0) if isinstance(step, Forward) else step

    return [(at_s, type(event).__name__, [seen(step) for step in said]) for at_s, event, said in log]


@pytest.mark.parametrize("service_class", [ServiceClass.ELASTIC, ServiceClass.SPOT])
@pytest.mark.parametrize("params", UNNAMED.values(), ids=UNNAMED.keys())
def test_who_wins_does_not_hang_on_what_anybody_is_called(params: Any, service_class: ServiceClass) -> None:
    ordered = decided(params, ["ant", "bee", "cat", "dog"], 5, service_class)
    assert len(ordered) > 100
    for names in (["dog", "cat", "bee", "ant"], ["cat", "ant", "dog", "bee"]):
        assert decided(params, names, 5, service_class) == ordered


def test_leases_that_tie_are_placed_as_they_are_listed() -> None:
    for names in (("a", "b"), ("b", "a")):
        three = Resources(None, None, 3)
        specs = [
            EntitlementSpec(name=name, tenant="t", service_class=ServiceClass.ELASTIC, baseline=three) for name in names
        ]
        settled = LeaseBook(specs).settle(names, PoolCapacity(1, 4))
        assert [str(settled[name]) for name in names] == ["Bound", "Degraded"]
