from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from policies.api import EntitlementSpec, Forward, PoolCapacity, Reason, Refuse, RequestView, Resources, ServiceClass
from policies.core import GatewayCore
from policies.no_control import NoControlPolicy
from policies.routing import RoundRobinRouter
from sim.live.gateway.settings import FallbackSettings
from sim.live.shared_state.fallback import FallbackRules, share_of

SPECS = [
    EntitlementSpec(name="gold", tenant="a", service_class=ServiceClass.GUARANTEED, baseline=Resources(slots=6)),
    EntitlementSpec(name="mixed", tenant="b", service_class=ServiceClass.ELASTIC, baseline=Resources(slots=4)),
    EntitlementSpec(name="spot", tenant="c", service_class=ServiceClass.SPOT, limit=Resources(slots=5)),
]


def rules(gateways: int, when: FallbackSettings | None = None) -> FallbackRules:
    core = GatewayCore(
        entitlements=SPECS, capacity=PoolCapacity(2, 16), replica_ids=[0, 1], policy=NoControlPolicy(),
        router=RoundRobinRouter(),
    )
    core.start(0.0)
    return FallbackRules(when or FallbackSettings(), core.pool, (), gateways, 64)


@given(slots=st.integers(1, 40), gateways=st.integers(1, 40))
def test_all_gateways_together_stay_within_the_baseline_or_have_one_each(slots: int, gateways: int) -> None:
    spec = EntitlementSpec(
        name="e", tenant="t", service_class=ServiceClass.GUARANTEED, baseline=Resources(slots=slots)
    )
    assert gateways * share_of(spec, gateways) <= max(slots, gateways)


def test_open_within_the_share_and_closed_to_the_others() -> None:
    away = rules(gateways=2)
    said = [away.decide(RequestView(f"g{number}", "gold", "t", 8, None)) for number in range(4)]
    assert [type(each) for each in said] == [Forward, Forward, Forward, Refuse]
    assert [each.replica_id for each in said if isinstance(each, Forward)] == [0, 1, 0]
    for name in ("mixed", "spot", "unknown"):
        refusal = away.decide(RequestView(name, name, "t", 8, 8))
        assert isinstance(refusal, Refuse)
        assert (refusal.reason, refusal.status) == (Reason.STATE_UNAVAILABLE, 503)
    away.ended("g0")
    away.ended("never-seen")
    assert isinstance(away.decide(RequestView("again", "gold", "t", 8, 8)), Forward)


def test_elastic_and_spot_may_be_opened() -> None:
    away = rules(gateways=2, when=FallbackSettings(elastic="open", spot="open"))
    for name, share in (("mixed", 2), ("spot", 2)):
        said = [away.decide(RequestView(f"{name}{number}", name, "t", 8, 8)) for number in range(share + 1)]
        assert [type(each) for each in said] == [Forward] * share + [Refuse]
