"""Kubernetes manifests of kind TokenPool and TokenEntitlement as the pool of a scenario.

The fields are those of arXiv 2603.00356, section 4; ``limits`` of an entitlement is ours. What ``kubectl get -o yaml``
adds (status, labels, a List around it all) is accepted and ignored. Other kinds are refused: a pool that silently lacks
an entitlement would be a wrong experiment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from policies.api import ServiceClass
from sim.errors import ScenarioError
from sim.scenario.registered_types import MisfitError, Strict
from sim.scenario.validation_errors import explain, suggestion
from sim.scenario.yaml_file import as_json, describe, one_line, read_documents, shown

_KINDS = ("TokenPool", "TokenEntitlement")
_BASELINED = (ServiceClass.DEDICATED, ServiceClass.GUARANTEED, ServiceClass.ELASTIC)

Mapped = dict[str, Any]


class _Metadata(BaseModel):
    """Labels, annotations and whatever else a cluster keeps here do not matter."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)
    name: str = Field(min_length=1, max_length=253, description="give the object's name")


class _Ref(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)
    name: str = Field(min_length=1, description="give the name of what is referred to")


class _Scaling(Strict):
    least: int = Field(alias="minReplicas", ge=1, description="give a whole number, e.g. 1")
    most: int = Field(alias="maxReplicas", ge=1, description="give a whole number, e.g. 8")

    @model_validator(mode="after")
    def _fits(self) -> _Scaling:
        if self.most < self.least:
            raise MisfitError(
                "maxReplicas", f"{self.most} is below minReplicas ({self.least})", f"give at least {self.least}"
            )
        return self


class _Workload(Strict):
    kind: Literal["StatefulSet", "Deployment"] = Field(
        default="StatefulSet", description="give StatefulSet or Deployment"
    )
    name: str = Field(min_length=1, description="give the name of what runs the replicas")


class _PoolSpec(Strict):
    model: str = Field(min_length=1, description="give the model that the pool serves")
    backend: _Ref | None = Field(alias="backendRef", default=None, description="give {name: ...}")
    workload: _Workload | None = Field(
        alias="workloadRef", default=None, description="give {kind: StatefulSet, name: vllm}; for the operator"
    )
    scaling: _Scaling = Field(description="give {minReplicas: 1, maxReplicas: 8}")


class _Amounts(Strict):
    tokens_per_s: float | None = Field(
        alias="tokensPerSecond", default=None, ge=0, description="give prompt plus output tokens per second, e.g. 90"
    )
    kv_gib: float | None = Field(
        alias="kvCacheGiB", default=None, ge=0, description="give GiB as a plain number, e.g. 4"
    )
    slots: float | None = Field(alias="concurrency", default=None, ge=0, description="give sequences in flight, e.g. 6")

    def amounts(self) -> Mapped:
        return {name: value for name, value in dict(self).items() if value is not None}


class _Qos(Strict):
    service_class: ServiceClass = Field(
        alias="serviceClass", description="give dedicated, guaranteed, elastic, spot or preemptible"
    )
    slo_ms: float | None = Field(
        alias="sloTargetMs", default=None, gt=0, description="give milliseconds as a plain number, e.g. 500"
    )


class _Validity(Strict):
    begins: str | None = Field(
        alias="notBefore", default=None, description="give a time with its zone, e.g. 2026-01-31T00:00:00Z"
    )
    ends: str | None = Field(
        alias="notAfter", default=None, description="give a time with its zone, e.g. 2026-12-31T00:00:00Z"
    )

    @model_validator(mode="after")
    def _fits(self) -> _Validity:
        for name, value in (("notBefore", self.begins), ("notAfter", self.ends)):
            try:
                found = None if value is None else datetime.fromisoformat(value)
            except ValueError:
                found = datetime.min
            if found is not None and found.tzinfo is None:
                raise MisfitError(name, f"{value!r} is no time with its zone", "give e.g. 2026-01-31T00:00:00Z")
        return self


class _EntitlementSpec(Strict):
    tenant: str = Field(alias="tenantId", min_length=1, description="give the tenant's name")
    pool: _Ref = Field(alias="poolRef", description="give {name: ...} of a TokenPool in this file")
    qos: _Qos = Field(description="give {serviceClass: elastic, sloTargetMs: 500}")
    resources: _Amounts = Field(
        default=_Amounts(), description="give {tokensPerSecond: 90, kvCacheGiB: 4, concurrency: 6}"
    )
    limits: _Amounts = Field(default=_Amounts(), description="give the most it may burst to, as in resources")
    validity: _Validity = Field(
        default=_Validity(), description="give {notBefore: ..., notAfter: ...}; for the operator: a scenario has from_s"
    )


class _Object(Strict):
    api_version: str = Field(alias="apiVersion", min_length=1, description="give the API version of the resource")
    metadata: _Metadata = Field(description="give {name: ...}")
    status: Any = Field(default=None, description="what the cluster says; ignored")


class PoolManifest(_Object):
    """A TokenPool."""

    kind: Literal["TokenPool"]
    spec: _PoolSpec = Field(description="give model and scaling")


class EntitlementManifest(_Object):
    """A TokenEntitlement."""

    kind: Literal["TokenEntitlement"]
    spec: _EntitlementSpec = Field(description="give tenantId, poolRef, qos and resources")


def pool_from_manifests(path: Path, file: str) -> Mapped:
    """Return the pool that a file of manifests describes, in the form of a scenario's ``pool``.

    Replicas are minReplicas, and ``autoscaler`` says between which bounds they may be scaled where those differ. A
    backendRef names the profile. Resources of spot and preemptible entitlements, which have no baseline, are limits.

    Raises
    ------
    ScenarioError : naming the document, the object and the field.
    """
    pools: dict[str, PoolManifest] = {}
    entitlements: dict[str, tuple[str, EntitlementManifest]] = {}
    for place, raw in _objects(path, file):
        found = parsed(raw, place)
        name = found.metadata.name
        if name in (pools if isinstance(found, PoolManifest) else entitlements):
            raise ScenarioError(place, "metadata.name", f"a second {found.kind} of this name", "rename or remove one")
        if isinstance(found, PoolManifest):
            pools[name] = found
        else:
            entitlements[name] = (place, found)
    if len(pools) != 1:
        problem = f"{len(pools)} TokenPools ({', '.join(pools)})" if pools else "no TokenPool"
        raise ScenarioError(file, "", problem, "keep exactly one in the file, with its TokenEntitlements")
    ((pool_name, pool),) = pools.items()
    if not entitlements:
        raise ScenarioError(file, "", f"no TokenEntitlement for pool {pool_name}", "add at least one")
    return pool_of(pool_name, pool, entitlements)


def pool_of(name: str, pool: PoolManifest, entitlements: Mapping[str, tuple[str, EntitlementManifest]]) -> Mapped:
    """Return what manifests describe, in the form of a scenario's ``pool``; with each what to call its place.

    Raises
    ------
    ScenarioError : an entitlement is of another pool, or has fields that do not go together.
    """
    made = [_entitlement(one, name, place) for place, one in entitlements.values()]
    scaling = pool.spec.scaling
    result: Mapped = {"replicas": scaling.least, "entitlements": made}
    if pool.spec.backend is not None:
        result["profile"] = pool.spec.backend.name
    if scaling.most > scaling.least:
        result["autoscaler"] = {
            "kind": "capacity", "min_replicas": scaling.least, "max_replicas": scaling.most,
        }  # fmt: skip
    return result


def _objects(path: Path, file: str) -> Iterator[tuple[str, Mapped]]:
    """Yield each object with what to call its place; a List is opened."""
    for number, (line, value) in enumerate(read_documents(path, file), 1):
        where = f"{file}: document {number}"
        if not isinstance(value, dict):
            raise ScenarioError(f"{where}, line {line}", "", f"holds {describe(value)}", "give a Kubernetes object")
        if value.get("kind") == "List" and isinstance(value.get("items"), list):
            for index, item in enumerate(value["items"]):
                if not isinstance(item, dict):
                    raise ScenarioError(where, f"items[{index}]", f"holds {describe(item)}", "give an object")
                yield _called(f"{where}, item {index + 1}", item), item
        else:
            yield _called(f"{where}, line {line}", value), value


def _called(where: str, raw: Mapped) -> str:
    metadata = raw.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    words = [one_line(str(word)) for word in (raw.get("kind"), name) if isinstance(word, str)]
    return f"{where} ({' '.join(words)})" if words else where


def parsed(raw: Mapped, place: str) -> PoolManifest | EntitlementManifest:
    """Return one object.

    Raises
    ------
    ScenarioError : it is none of ours, or has fields that it must not have; ``place`` says where it stands.
    """
    kind = raw.get("kind")
    if kind not in _KINDS:
        problem = "missing" if kind is None else f"unknown kind {shown(kind)}"
        raise ScenarioError(place, "kind", problem, suggestion(str(kind), _KINDS))
    model: type[PoolManifest | EntitlementManifest] = PoolManifest if kind == "TokenPool" else EntitlementManifest
    try:
        return model.model_validate_json(as_json(raw, place))
    except ValidationError as error:
        raise explain(error, model, raw, place) from None


def _entitlement(manifest: EntitlementManifest, pool_name: str, place: str) -> Mapped:
    spec = manifest.spec
    if spec.pool.name != pool_name:
        raise ScenarioError(
            place, "spec.poolRef.name", f"unknown pool {shown(spec.pool.name)}", suggestion(spec.pool.name, [pool_name])
        )
    resources, limits = spec.resources.amounts(), spec.limits.amounts()
    made: Mapped = {
        "name": manifest.metadata.name,
        "tenant": spec.tenant,
        "service_class": spec.qos.service_class.value,
    }
    if spec.qos.slo_ms is not None:
        made["ttft_slo_s"] = spec.qos.slo_ms / 1000
    if spec.qos.service_class in _BASELINED:
        made |= {"baseline": resources, "limit": limits}
        return made
    if resources and limits:
        raise ScenarioError(
            place, "spec.limits", f"given beside resources, which are the limits of a {spec.qos.service_class} one",
            "keep one of the two",
        )
    return made | {"limit": resources or limits}
