"""The CRDs' own rules, by a library of CEL, and as the API server's answer to kubectl."""

from __future__ import annotations

from typing import Any

import cel
import pytest

from adapters.crd_schema import faults, rules_in
from adapters.kube_api import CRDS

SCHEMAS = {one["spec"]["names"]["kind"]: one["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for one in CRDS}
POOL: dict[str, Any] = {"spec": {"model": "m", "scaling": {"minReplicas": 1, "maxReplicas": 2}}}
ENTITLEMENT: dict[str, Any] = {
    "spec": {"tenantId": "acme", "poolRef": {"name": "llama"}, "qos": {"serviceClass": "guaranteed"},
             "resources": {"concurrency": 5}},
}  # fmt: skip


def changed(one: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"spec": {name: value for name, value in {**one["spec"], **spec}.items() if value is not None}}


@pytest.mark.parametrize(("place", "rule"), [one for schema in SCHEMAS.values() for one in rules_in(schema)])
def test_every_rule_can_be_read(place: str, rule: str) -> None:
    assert place
    cel.compile(rule)


def test_what_may_be() -> None:
    for kind, one in (
        ("TokenPool", POOL), ("TokenPool", changed(POOL, scaling={"minReplicas": 2, "maxReplicas": 2})),
        ("TokenEntitlement", ENTITLEMENT), ("TokenEntitlement", changed(ENTITLEMENT, limits={"concurrency": 9})),
        ("TokenEntitlement", changed(ENTITLEMENT, qos={"serviceClass": "spot"})),
        ("TokenEntitlement", changed(ENTITLEMENT, qos={"serviceClass": "spot"}, resources=None, limits={})),
        ("TokenEntitlement", changed(ENTITLEMENT, validity={"notBefore": "2026-01-01T00:00:00Z"})),
        ("TokenEntitlement", changed(ENTITLEMENT, validity={
            "notBefore": "2026-01-01T00:00:00+02:00", "notAfter": "2026-01-01T00:00:00Z",
        })),
    ):  # fmt: skip
        assert faults(SCHEMAS[kind], one) == [], one
        assert faults(SCHEMAS[kind], one, one) == [], one


@pytest.mark.parametrize(
    ("kind", "one", "said"),
    [
        ("TokenPool", changed(POOL, scaling={"minReplicas": 3, "maxReplicas": 2}), "maxReplicas is below minReplicas"),
        ("TokenPool", changed(POOL, model=None), "'model' is a required property"),
        ("TokenEntitlement", changed(ENTITLEMENT, qos={"serviceClass": "spot"}, limits={}), "give one of the two"),
        ("TokenEntitlement", changed(ENTITLEMENT, qos={"serviceClass": "preemptible"}, limits={}), "one of the two"),
        ("TokenEntitlement", changed(ENTITLEMENT, qos={"serviceClass": "gold"}), "'gold' is not one of"),
        ("TokenEntitlement", changed(ENTITLEMENT, qos={"serviceClass": "elastic", "sloTargetMs": 0}), "0"),
        ("TokenEntitlement", changed(ENTITLEMENT, validity={
            "notBefore": "2026-01-02T00:00:00Z", "notAfter": "2026-01-01T00:00:00Z",
        }), "spec.validity: notAfter is not after notBefore"),
    ],
)  # fmt: skip
def test_what_may_not(kind: str, one: dict[str, Any], said: str) -> None:
    (found,) = faults(SCHEMAS[kind], one)
    assert said in found


def test_an_entitlement_stays_its_tenants() -> None:
    schema = SCHEMAS["TokenEntitlement"]
    assert faults(schema, changed(ENTITLEMENT, tenantId="other"), ENTITLEMENT) == [
        "spec: an entitlement stays its tenant's"
    ]
    assert faults(schema, changed(ENTITLEMENT, resources={"concurrency": 6}), ENTITLEMENT) == []
