"""Parts of policies in a scenario file: short forms, and errors that say what was meant."""

from __future__ import annotations

from typing import Any

import pytest

from policies.parts.estimates import Quantile, TenantMean
from policies.parts.orders import DominantResource
from sim.errors import ScenarioError
from sim.scenario.load import Scenario, parse_scenario


def scenario(policy: Any) -> Scenario:
    return parse_scenario({
        "version": 1, "seed": 1, "horizon_s": 1,
        "pool": {
            "profile": {
                "step_time": {"kind": "linear", "base_s": 0.02}, "max_num_seqs": 4, "max_num_batched_tokens": 256,
                "kv_blocks": 100,
            },
            "replicas": 1, "entitlements": [{"name": "chat", "service_class": "spot"}],
        },
        "workload": [{
            "entitlement": "chat", "arrivals": {"kind": "poisson", "rate_per_s": 4.0}, "prompt_tokens": 20,
            "output_tokens": 10,
        }],
        "policies": [policy],
    }, "parts.yaml")  # fmt: skip


def test_a_bare_name_stands_for_a_part() -> None:
    predicted = {"charge": "predicted", "estimate": "tenant-mean"}
    params = scenario({"kind": "fair-queue", "order": "drf", **predicted}).policies[0].params
    assert (params.order, params.estimate) == (DominantResource(), TenantMean())
    params = scenario({"kind": "vtc", **predicted, "estimate": {"kind": "quantile", "q": 0.5}}).policies[0].params
    assert params.estimate == Quantile(q=0.5)


def test_four_shares_of_classes_are_no_shares_of_entitlements() -> None:
    assert scenario({"kind": "class-slots", "shares": [0.0, 0.5, 0.1, 0.0]}).policies[0].params.shares[1] == 0.5
    assert scenario({"kind": "vtc", "flow": "tenant", "weights": {"chat": 2.0}}).policies[0].params.weights


@pytest.mark.parametrize(("policy", "message"), [
    ("fair-que", "policies[0]: unknown kind 'fair-que'; did you mean fair-queue?"),
    ({"kind": "vtc", "estimate": "tenant-men"}, "unknown kind 'tenant-men'; did you mean tenant-mean?"),
    ({"kind": "vtc", "estimate": {"kind": "quantile", "Q": 0.5}}, "Q: unknown field; did you mean q?"),
    ({"kind": "vtc", "estimate": {"kind": "quantile", "q": 1.5}}, "less than 1"),
    ({"kind": "vtc", "wieghts": {"chat": 2}}, "wieghts: unknown field; did you mean weights?"),
    ({"kind": "vtc", "weights": {"chatt": 2.0}}, "did you mean chat?"),
    ({"kind": "bands", "saturation": "ledgre"}, "unknown kind 'ledgre'; did you mean ledger?"),
    ({"kind": "bands", "priorities": {"chta": 1}}, "did you mean chat?"),
    ({"kind": "dedicated", "replicas": {"chat": 0}}, "replicas gives 'chat' 0"),
    ({"kind": "window"}, "limits nothing"),
    ({"kind": "llm-d", "version": "1999"}, "2026-08-22"),
])  # fmt: skip
def test_an_error_says_what_was_meant(policy: Any, message: str) -> None:
    with pytest.raises(ScenarioError) as found:
        scenario(policy)
    assert message in str(found.value)
