"""The operator: kopf watches, this decides when a pool is looked at again, `Cluster` reads and writes.

Every pool has a task of its own (a daemon of kopf's) that looks at all of it when anything of it has changed, and now
and then without: what an event missed, the next look finds. While another operator of a higher priority lives, kopf
pauses this one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import kopf

from sim.adapters.operator.cluster import GROUP, VERSION, Changed, Cluster, ConflictError

LOG = logging.getLogger("tokenpools.operator")

RESYNC_S = 60.0
"""How long a pool is left alone at most. [choice]"""
RETRY_S = 1.0
_WARNING = frozenset({"Degraded", "Pending", "Expired"})

Key = tuple[str, str]


class Operator:
    """The handlers of one process.

    Parameters
    ----------
    cluster : reads and writes.
    clock : the time, with its zone.
    """

    def __init__(
        self, cluster: Cluster, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC), resync_s: float = RESYNC_S
    ) -> None:
        self._cluster = cluster
        self._clock = clock
        self._resync_s = resync_s
        self._changed: defaultdict[Key, asyncio.Event] = defaultdict(asyncio.Event)
        self._alive: set[Key] = set()
        self._last_pool: dict[str, Key] = {}
        self._workloads: dict[Key, tuple[str, str, str]] = {}
        self.registry = kopf.OperatorRegistry()
        pools, entitlements = (GROUP, VERSION, "tokenpools"), (GROUP, VERSION, "tokenentitlements")
        kopf.on.startup(registry=self.registry)(self._settings)
        kopf.on.event(*pools, registry=self.registry)(self._pool_seen)
        kopf.on.event(*entitlements, registry=self.registry)(self._entitlement_seen)
        kopf.daemon(*pools, registry=self.registry, cancellation_backoff=1.0, cancellation_timeout=5.0)(self._keep)
        kopf.on.delete(*pools, registry=self.registry)(self._pool_left)
        for plural in ("statefulsets", "deployments"):
            kopf.on.event("apps", "v1", plural, registry=self.registry)(self._workload_seen)

    def _settings(self, settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.persistence.finalizer = f"{GROUP}/operator"
        settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
        settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP)
        settings.posting.enabled = True
        settings.posting.level = logging.CRITICAL  # events are posted by hand, one for a phase that changes
        settings.watching.server_timeout = 270
        settings.scanning.disabled = True  # of namespaces and definitions: it would need rights over the whole cluster

    def _pool_seen(self, namespace: Any, name: str, spec: Mapping[str, Any], type: str | None, **_: Any) -> None:  # noqa: A002
        key = (namespace, name)
        ref = spec.get("workloadRef")
        if isinstance(ref, Mapping) and isinstance(ref.get("name"), str) and type != "DELETED":
            self._workloads[key] = (namespace, str(ref.get("kind", "StatefulSet")), ref["name"])
        else:
            self._workloads.pop(key, None)
        self._changed[key].set()

    def _workload_seen(self, namespace: Any, name: str, body: Mapping[str, Any], **_: Any) -> None:
        this = (namespace, str(body.get("kind", "")), name)
        for key, workload in self._workloads.items():
            if workload == this:
                self._changed[key].set()

    async def _entitlement_seen(
        self, namespace: Any, uid: str, spec: Mapping[str, Any], type: str | None, **_: Any  # noqa: A002
    ) -> None:
        """Have the pool looked at, and the one that the entitlement was of before."""
        ref = spec.get("poolRef")
        key = (namespace, str(ref.get("name", "")) if isinstance(ref, Mapping) else "")
        keys = {key, self._last_pool.get(uid, key)}
        if type == "DELETED":
            self._last_pool.pop(uid, None)
        else:
            self._last_pool[uid] = key
        for one in keys:
            if one in self._alive:
                self._changed[one].set()
            elif type != "DELETED":
                await self._look(one)

    async def _keep(self, namespace: Any, name: str, stopped: Any, **_: Any) -> None:
        """Look at a pool whenever something of it has changed, until it goes."""
        key = (namespace, name)
        self._alive.add(key)
        try:
            while not stopped:
                self._changed[key].clear()
                wait_s = await self._look(key)
                woken = [asyncio.ensure_future(one) for one in (self._changed[key].wait(), stopped.wait())]
                await asyncio.wait(woken, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                for one in woken:
                    one.cancel()
                await asyncio.gather(*woken, return_exceptions=True)
        finally:
            self._alive.discard(key)
            self._changed.pop(key, None)

    async def _look(self, key: Key) -> float:
        """Reconcile a pool; returns how long to wait for the next time, in seconds."""
        now, changed = self._clock(), list[Changed]()
        try:
            outcome = await asyncio.to_thread(self._cluster.reconcile, *key, now, changed)
        except ConflictError:
            return 0.0
        except Exception as error:  # whatever the API server or the way there says: the next look may do better
            LOG.warning("%s/%s was not reconciled: %s", *key, _one_line(error))
            return RETRY_S
        finally:
            for one in changed:
                self._post(one)
        if outcome is None or outcome.next_change is None:
            return self._resync_s
        return min(self._resync_s, max(0.0, (outcome.next_change - now).total_seconds()))

    async def _pool_left(self, namespace: Any, name: str, **_: Any) -> None:
        """Take the leases back before the pool may go; kopf calls again where it fails."""
        changed: list[Changed] = []
        try:
            await asyncio.to_thread(self._cluster.release, namespace, name, self._clock(), changed, leaving=True)
        except ConflictError:
            raise kopf.TemporaryError("an entitlement has changed meanwhile", delay=0.1) from None
        except Exception as error:
            raise kopf.TemporaryError(_one_line(error), delay=RETRY_S) from None
        finally:
            for one in changed:
                self._post(one)

    @staticmethod
    def _post(one: Changed) -> None:
        kind = "Warning" if one.phase in _WARNING else "Normal"
        body: Any = dict(one.body)
        kopf.event(body, type=kind, reason=one.reason, message=f"{one.phase}: {one.message}")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


async def operate(
    operator: Operator, *, namespace: str | None, peering: str | None, priority: int,
    stop_flag: asyncio.Event | None = None, liveness: str | None = None, vault: Any = None,
    ready_flag: asyncio.Event | None = None,
) -> None:
    """Run until cancelled.

    Parameters
    ----------
    namespace : to look at; None for all of them.
    peering : the KopfPeering by which operators find the one that works; None: this is the only one.
    """
    await kopf.operator(
        registry=operator.registry, clusterwide=namespace is None, namespaces=[namespace] if namespace else [],
        standalone=peering is None, peering_name=peering, priority=priority, stop_flag=stop_flag, ready_flag=ready_flag,
        liveness_endpoint=liveness, vault=vault,
    )
