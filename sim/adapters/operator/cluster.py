"""Reads a pool's objects from a cluster, and writes what they should say; each write only where something differs."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException

from sim.adapters.operator.reconcile import (
    BOUND,
    Object,
    Outcome,
    Verdict,
    entitlement_status,
    pool_status,
    reconcile,
    without_pool,
)

LOG = logging.getLogger("tokenpools.operator")

GROUP, VERSION = "inference.example.com", "v1"
LABEL = f"{GROUP}/pool"
_APPS, _LEASES = ("apps", "v1"), ("coordination.k8s.io", "v1")
_MERGE = {"_content_type": "application/merge-patch+json"}
_GONE, _CONFLICT = 404, 409


class ConflictError(Exception):
    """Somebody has changed an object meanwhile: read it again, and decide again."""


@dataclass(frozen=True, slots=True)
class Changed:
    """A phase that is another than before, for an event of the cluster."""

    body: Object
    phase: str
    reason: str
    message: str


class Cluster:
    """The objects of a cluster's pools.

    Parameters
    ----------
    api_client : a configured ``kubernetes.client.ApiClient``; what the process's configuration says where it is None.
    """

    def __init__(self, api_client: Any = None, *, timeout_s: float = 10.0) -> None:
        self._custom: Any = client.CustomObjectsApi(api_client)
        self._core: Any = client.CoreV1Api(api_client)
        self._to = {"_request_timeout": timeout_s}

    def reconcile(self, namespace: str, name: str, now: datetime, changed: list[Changed]) -> Outcome | None:
        """Bring a pool and its entitlements up to date; returns nothing where there is no pool.

        Parameters
        ----------
        changed : what was written is noted here, also where another write fails.

        Raises
        ------
        ConflictError : call again.
        ApiException : the API server refuses, or fails.
        """
        pool = self._get(GROUP, VERSION, namespace, "tokenpools", name)
        entitlements = self.entitlements_of(namespace, name)
        if pool is None or "deletionTimestamp" in pool["metadata"]:
            self.release(namespace, name, now, changed, leaving=pool is not None)
            return None
        workload = self._workload(namespace, pool)
        ready = _ready(pool, workload)
        outcome = reconcile(pool, entitlements, ready, now)
        self._write_entitlements(entitlements, outcome.entitlements, now, name, changed)
        self._write_config(namespace, pool, outcome)
        if workload is not None and outcome.least_replicas:
            self._scale(namespace, pool["spec"]["workloadRef"], workload, outcome)
        before = pool.get("status") or {}
        status = pool_status(outcome, before, _generation(pool), ready, now)
        if self._write_status("tokenpools", pool, status) and before.get("phase") != outcome.phase:
            changed.append(Changed(pool, outcome.phase, outcome.reason, outcome.message))
        return outcome

    def release(self, namespace: str, name: str, now: datetime, changed: list[Changed], *, leaving: bool) -> None:
        """Take the leases of a pool that goes, or is not there, from its entitlements."""
        entitlements = self.entitlements_of(namespace, name)
        verdicts = without_pool(entitlements, name, leaving=leaving)
        self._write_entitlements(entitlements, verdicts, now, None, changed)

    def entitlements_of(self, namespace: str, pool: str) -> list[Object]:
        """Return the entitlements of a pool, but for those that are being deleted."""
        found = self._custom.list_namespaced_custom_object(GROUP, VERSION, namespace, "tokenentitlements", **self._to)
        return [
            one for one in found["items"]
            if _pool_of(one) == pool and "deletionTimestamp" not in one["metadata"]
        ]  # fmt: skip

    # ----------------------------------------------------------------------------------------------------------------

    def _write_entitlements(
        self, entitlements: Sequence[Object], verdicts: Mapping[str, Verdict], now: datetime, pool: str | None,
        changed: list[Changed],
    ) -> None:
        for one in entitlements:
            verdict = verdicts[one["metadata"]["name"]]
            self._write_lease(one, verdict, pool)
            before = one.get("status") or {}
            status = entitlement_status(verdict, before, _generation(one), now, pool or "")
            if self._write_status("tokenentitlements", one, status) and before.get("phase") != verdict.phase:
                changed.append(Changed(one, verdict.phase, verdict.reason, verdict.message))

    def _write_status(self, plural: str, one: Object, status: Mapping[str, Any]) -> bool:
        """Write a status where it says something new; returns whether it did.

        Raises
        ------
        ConflictError : the object is another by now.
        """
        before = one.get("status") or {}
        if all(before.get(name) == value for name, value in status.items()):
            return False
        metadata = one["metadata"]
        body = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": dict(status)}
        return self._tried(
            self._custom.patch_namespaced_custom_object_status, GROUP, VERSION, metadata["namespace"], plural,
            metadata["name"], body, **_MERGE,
        )

    def _write_lease(self, one: Object, verdict: Verdict, pool: str | None) -> None:
        """Keep a Lease for what is reserved, owned by its entitlement; none for who has nothing."""
        metadata = one["metadata"]
        name, namespace = f"tokenpools-{metadata['name']}", metadata["namespace"]
        have = self._get(*_LEASES, namespace, "leases", name)
        if verdict.phase != BOUND or not verdict.lease:
            if have is not None:
                self._tried(self._custom.delete_namespaced_custom_object, *_LEASES, namespace, "leases", name)
            return
        wanted = {
            "metadata": {
                "name": name, "labels": {LABEL: pool}, "ownerReferences": [_owner(one)],
                "annotations": {f"{GROUP}/{key}": f"{value:g}" for key, value in verdict.lease.items()},
            },
            "spec": {"holderIdentity": metadata["uid"]},
        }  # fmt: skip
        if have is None:
            body = {"apiVersion": "/".join(_LEASES), "kind": "Lease", **wanted}
            self._tried(self._custom.create_namespaced_custom_object, *_LEASES, namespace, "leases", body)
        elif not _holds(have, wanted):
            self._tried(
                self._custom.patch_namespaced_custom_object, *_LEASES, namespace, "leases", name, wanted, **_MERGE
            )

    def _write_config(self, namespace: str, pool: Object, outcome: Outcome) -> None:
        """Keep the objects of a pool in a ConfigMap for the gateways; those of a pool that makes no sense stay."""
        if outcome.objects is None:
            return
        name = f"tokenpools-{pool['metadata']['name']}"
        wanted = {
            "metadata": {"name": name, "labels": {LABEL: pool["metadata"]["name"]}, "ownerReferences": [_owner(pool)]},
            "data": {"objects.yaml": outcome.objects},
        }  # fmt: skip
        have = self._config_map(namespace, name)
        if have is None:
            self._tried(self._core.create_namespaced_config_map, namespace, wanted)
        elif not _holds(have, wanted):
            self._tried(self._core.patch_namespaced_config_map, name, namespace, wanted, **_MERGE)

    def _scale(self, namespace: str, ref: Object, workload: Object, outcome: Outcome) -> None:
        """Give a workload what the leases need, and no more than the pool's bound; between these, others scale it."""
        now = (workload.get("spec") or {}).get("replicas", 1)
        wanted = max(outcome.least_replicas, min(now, outcome.most_replicas))
        if wanted != now:
            plural = _plural(ref)
            self._tried(
                self._custom.patch_namespaced_custom_object_scale, *_APPS, namespace, plural, ref["name"],
                {"spec": {"replicas": wanted}}, **_MERGE,
            )
            LOG.info("%s/%s: %d replicas instead of %d", namespace, ref["name"], wanted, now)

    def _workload(self, namespace: str, pool: Object) -> Object | None:
        ref = (pool.get("spec") or {}).get("workloadRef")
        if not isinstance(ref, Mapping) or not isinstance(ref.get("name"), str):
            return None
        return self._get(*_APPS, namespace, _plural(ref), ref["name"])

    def _get(self, group: str, version: str, namespace: str, plural: str, name: str) -> Object | None:
        try:
            found: Object = self._custom.get_namespaced_custom_object(
                group, version, namespace, plural, name, **self._to
            )
        except ApiException as error:
            if error.status == _GONE:
                return None
            raise
        return found

    def _config_map(self, namespace: str, name: str) -> Object | None:
        try:
            found = self._core.read_namespaced_config_map(name, namespace, _preload_content=False, **self._to)
        except ApiException as error:
            if error.status == _GONE:
                return None
            raise
        if found.status == _GONE:
            return None
        read: Object = json.loads(found.data)
        return read

    def _tried(self, call: Any, *given: Any, **more: Any) -> bool:
        """Write; returns False where the object has gone meanwhile.

        Raises
        ------
        ConflictError : somebody was faster.
        """
        try:
            call(*given, **more, **self._to)
        except ApiException as error:
            if error.status == _GONE:
                return False
            if error.status == _CONFLICT:
                raise ConflictError from None
            raise
        return True


def _pool_of(one: Object) -> str | None:
    ref = (one.get("spec") or {}).get("poolRef")
    name = ref.get("name") if isinstance(ref, Mapping) else None
    return name if isinstance(name, str) else None


def _plural(ref: Object) -> str:
    return "deployments" if ref.get("kind") == "Deployment" else "statefulsets"


def _ready(pool: Object, workload: Object | None) -> int:
    """Return how many replicas are ready: of a pool that names no workload, as many as it must have."""
    spec = pool.get("spec") or {}
    if "workloadRef" not in spec:
        least = (spec.get("scaling") or {}).get("minReplicas")
        return least if type(least) is int else 0
    return int((workload or {}).get("status", {}).get("readyReplicas") or 0)


def _generation(one: Object) -> int:
    return int(one["metadata"].get("generation", 0))


def _owner(one: Object) -> dict[str, Any]:
    metadata = one["metadata"]
    return {
        "apiVersion": one["apiVersion"], "kind": one["kind"], "name": metadata["name"], "uid": metadata["uid"],
        "controller": True,
    }  # fmt: skip


def _holds(have: Any, wanted: Any) -> bool:
    """Whether an object says all that it should; what else it says is others' business."""
    if isinstance(wanted, Mapping):
        return isinstance(have, Mapping) and all(_holds(have.get(name), value) for name, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(have, list) and len(have) == len(wanted) and all(map(_holds, have, wanted))
    return bool(have == wanted)
