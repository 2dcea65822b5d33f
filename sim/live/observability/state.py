"""What the admin page and `tokenpools replay` read: the gateway's books as JSON, and its last refusals."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

from policies.api import EntitlementLedger, Gauge, Reason, ReplicaLedger, ServiceClass
from policies.core import GatewayCore
from policies.hierarchy import Hierarchy
from sim.live.observability.observer import Ended, RequestLog

_KEPT = 50
_OWN_LIMITS = (Reason.CONCURRENCY, Reason.TOKENS, Reason.KV_CACHE)
_PROTECTED = (ServiceClass.GUARANTEED, ServiceClass.DEDICATED)
_OF_ENTITLEMENT = ("debt", "burst", "weight", "limit_slots", "limit_tokens_per_s", "metered_tokens_per_s")


class State:
    """An observer that keeps the last refusals, and reads the books when somebody asks.

    Parameters
    ----------
    core : returns the core that is in force: a new configuration or shared state may bring another.
    about : further facts, read at each look: name of the policy, whether the gateway drains.
    replica_names : by id.
    reaches : whether this gateway itself reaches a replica: the books of a shared state that is away do not know.

    Attributes
    ----------
    shadows : returns what policies that watch would have done, by tenant.
    accounts : returns the keys of a store of accounts and today's use; empty where there is none.
    """

    def __init__(
        self, core: Callable[[], GatewayCore], now_s: Callable[[], float], *,
        about: Callable[[], Mapping[str, Any]] = dict, replica_names: Callable[[], Mapping[int, str]] = dict,
        reaches: Callable[[int], bool] = lambda _: True,
    ) -> None:
        self._core = core
        self._now_s = now_s
        self._about = about
        self._replica_names = replica_names
        self._reaches = reaches
        self._refusals: deque[RequestLog] = deque(maxlen=_KEPT)
        self._own_limit: Counter[str] = Counter()
        self.shadows: Callable[[], list[dict[str, Any]]] = list
        self.accounts: Callable[[], Awaitable[Mapping[str, Any]]] = _none
        self._ended: Counter[tuple[str, Ended]] = Counter()

    def ended(self, log: RequestLog) -> None:
        """See `sim.live.observability.observer.Observer`."""
        self._ended[log.entitlement, log.outcome] += 1
        if log.outcome is Ended.REFUSED and log.reason in _OWN_LIMITS and log.service_class in _PROTECTED:
            pool = self._core().pool
            self._own_limit[log.entitlement] += pool.all_in_flight < pool.capacity.slots
        if log.outcome in (Ended.REFUSED, Ended.EVICTED, Ended.FAILED):
            self._refusals.append(log)

    def read(self) -> dict[str, Any]:
        """Return everything; numbers that JSON cannot hold are null."""
        core, now_s = self._core(), self._now_s()
        pool = core.pool
        gauges = core.gauges(now_s)
        said = {(scope, name, metric): value for scope, name, metric, value in gauges}
        names = self._replica_names()
        return {
            **self._about(),
            "now_s": round(now_s, 3),
            "pool": {
                "capacity_slots": pool.capacity.slots,
                "tokens_per_s": _finite(pool.capacity.tokens_per_s),
                "in_flight": pool.all_in_flight,
                "held": said["pool", "pool", "held"],
                "threshold": _finite(said.get(("pool", "pool", "threshold"))),
            },
            "entitlements": [self._entitlement(name, book, said) for name, book in pool.entitlements.items()],
            "replicas": [
                {
                    "name": names.get(book.replica_id, str(book.replica_id)),
                    "ready": book.ready and self._reaches(book.replica_id),
                    "in_flight": book.in_flight,
                    "running": None if book.report is None else book.report.running,
                    "waiting": None if book.report is None else book.report.waiting,
                    "kv_used_fraction": None if book.report is None else _finite(book.report.kv_used_fraction),
                    "seen_ago_s": None if book.report is None else round(now_s - book.report.seen_at_s, 1),
                }
                for book in pool.replicas
            ],
            "shadows": self.shadows(),
            "budgets": [] if core.hierarchy is None else [
                {**one._asdict(), "remaining": one.remaining} for one in core.hierarchy.all_budgets(now_s)
            ],
            "groups": [] if core.hierarchy is None else list(_groups(core.hierarchy)),
            "refusals": [_refusal(log, now_s) for log in reversed(self._refusals)],
            "gauges": [[*gauge[:3], _finite(gauge.value)] for gauge in [*gauges, *_reports(pool.replicas)]],
        }

    def _entitlement(
        self, name: str, book: EntitlementLedger, said: Mapping[tuple[str, str, str], float]
    ) -> dict[str, Any]:
        spec = book.spec
        return {
            "name": name,
            "tenant": spec.tenant,
            "service_class": str(spec.service_class),
            "state": str(book.state),
            "in_flight": book.in_flight,
            "baseline_slots": _finite(spec.baseline.slots),
            "reserved_tokens": book.reserved_tokens,
            "admitted": book.admitted,
            "refused": book.refused,
            "refused_at_own_limit_while_idle": self._own_limit[name],
            **{f"ended_{how}": self._ended[name, how] for how in Ended},
            **{metric: _finite(said.get(("entitlement", name, metric))) for metric in _OF_ENTITLEMENT},
        }


async def _none() -> Mapping[str, Any]:
    return {}


def _groups(tree: Hierarchy) -> Iterator[dict[str, Any]]:
    """Yield how the groups of a tree are, each after the one that it is in."""
    below: dict[str | None, list[str]] = {}
    for node in tree.nodes():
        below.setdefault(tree.parent_of(node), []).append(node)
    to_do = below.get(None, [])[::-1]
    while to_do:
        node = to_do.pop()
        to_do += below.get(node, [])[::-1]
        if node.startswith("group/"):
            parent = tree.parent_of(node)
            yield {
                "name": node.removeprefix("group/"),
                "parent": None if parent is None else parent.removeprefix("group/"),
                "in_flight": tree.in_flight(node), "limit_slots": _finite(tree.limit_slots(node)),
                "members": len(below.get(node, ())),
            }  # fmt: skip


def _reports(books: Iterable[ReplicaLedger]) -> list[Gauge]:
    """Return what the replicas said of themselves, as gauges."""
    found: list[Gauge] = []
    for book in books:
        if book.report is not None:
            name = str(book.replica_id)
            found += [
                Gauge("replica", name, "running", book.report.running),
                Gauge("replica", name, "waiting", book.report.waiting),
                Gauge("replica", name, "kv_used_fraction", book.report.kv_used_fraction),
            ]
    return found


def _refusal(log: RequestLog, now_s: float) -> dict[str, Any]:
    return {
        "request_id": log.request_id,
        "client_request_id": log.client_request_id,
        "key_name": log.key_name,
        "entitlement": log.entitlement,
        "ago_s": round(now_s - log.finish_s, 1),
        "outcome": str(log.outcome),
        "reason": log.error if log.reason is None else str(log.reason),
        "http_status": log.http_status,
        "needed": _finite(log.needed),
        "available": _finite(log.available),
        "retry_after_s": _finite(log.retry_after_s),
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 6)
