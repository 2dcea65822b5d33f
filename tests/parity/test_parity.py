from __future__ import annotations

import random

import pytest

from parity.examples import EXAMPLES, renamed
from parity.replay import replay
from parity.tiny_world import Ask, TinyWorld, make_core
from policies.api import EntitlementSpec, Evict, Reason, Refuse, Resources, ServiceClass, Tick
from policies.no_control import NoControl
from policies.rate_limit import RateLimit
from policies.token_pool.params import TokenPool

SPECS = (
    EntitlementSpec(
        name="chat", tenant="a", service_class=ServiceClass.GUARANTEED, ttft_slo_s=1.0, baseline=Resources(slots=4),
    ),
    EntitlementSpec(
        name="synth", tenant="b", service_class=ServiceClass.ELASTIC, ttft_slo_s=30.0,
        baseline=Resources(60.0, slots=4),
    ),
    EntitlementSpec(name="filler", tenant="c", service_class=ServiceClass.PREEMPTIBLE, from_s=3.7, until_s=31.0),
    EntitlementSpec(name="spot", tenant="d", service_class=ServiceClass.SPOT, limit=Resources(50.0, None, 6)),
)
POLICIES = {
    "none": NoControl(),
    "rate-limit": RateLimit(requests_per_min=20, tokens_per_min=3000, window="sliding"),
    "rate-limit-bucket": RateLimit(requests_per_min=20, tokens_per_min=3000),
    "token-pool": TokenPool(mode="paper", max_request_tokens=200),
    "token-pool-frozen": TokenPool(mode="paper", weight_at="admission", tick_s=1.0, max_request_tokens=200),
    "token-pool-robust": TokenPool(tick_s=1.0, max_request_tokens=200),
    "token-pool-evicting": TokenPool(limits="static", tick_s=1.0, max_request_tokens=200),
}


def asks(seed: int, on_the_second: bool) -> list[Ask]:
    rng = random.Random(seed)
    made = []
    for spec in SPECS:
        at_s = 0.0
        while at_s < 40:
            at_s += 0.5 if on_the_second else rng.expovariate(2.0)
            made.append(Ask(
                at_s, spec.name, rng.randint(1, 90), max_output_tokens=rng.choice([90, 90, 600]),
                cancel_at_s=at_s + rng.choice([0.0, 1.5]) if rng.random() < 0.1 else None, fails=rng.random() < 0.1,
            ))
    return sorted(made, key=lambda ask: ask.at_s)


@pytest.mark.parametrize("on_the_second", [False, True], ids=["random times", "many events at one instant"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_policy_does_the_same_in_both_gateways(name: str, on_the_second: bool) -> None:
    def core():  # type: ignore[no-untyped-def]
        return make_core(
            renamed(EXAMPLES[name], {"elastic": "synth"}), SPECS, slots=12, replicas=2,
            router="least-outstanding-tokens", tokens_per_s=200.0, kv_bytes=400_000.0, kv_bytes_per_token=64.0,
        )

    recorded = TinyWorld(core(), asks(7, on_the_second), [(12.0, 6), (20.0, 0), (22.0, 12)]).run(60.0)
    replayed = replay(core(), [(now_s, event) for now_s, event, _ in recorded])
    assert replayed == recorded


@pytest.mark.parametrize("on_the_second", [False, True], ids=["random times", "many events at one instant"])
@pytest.mark.parametrize("name", POLICIES)
def test_the_live_gateway_does_what_the_simulated_one_did_bit_for_bit(name: str, on_the_second: bool) -> None:
    def core():  # type: ignore[no-untyped-def]
        return make_core(POLICIES[name], SPECS, slots=12, tokens_per_s=200.0)

    recorded = TinyWorld(core(), asks(7, on_the_second), [(12.0, 6), (20.0, 0), (22.0, 12)]).run(60.0)
    replayed = replay(core(), [(now_s, event) for now_s, event, _ in recorded])
    assert replayed == recorded
    reasons = {each.reason for _, _, steps in recorded for each in steps if isinstance(each, Refuse)}
    assert {Reason.NOT_BOUND, Reason.NO_CAPACITY} <= reasons
    if name.startswith("rate"):
        assert {Reason.REQUESTS, Reason.TOKENS} & reasons
    if name.startswith("token"):
        assert {Reason.CONCURRENCY, Reason.TOO_LARGE} <= reasons
        assert (Reason.LOW_PRIORITY in reasons) == (not name.endswith("robust"))  # limits come before priority
        assert sum(isinstance(event, Tick) for _, event, _ in recorded) > 10
    if name.endswith("evicting"):
        assert any(isinstance(each, Evict) for _, _, steps in recorded for each in steps)
