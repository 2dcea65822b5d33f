"""What Prometheus is told: counts and times of requests as they end, and the books of the core when it asks.

Names follow llm-d and vLLM where those have one. Labels take only values from the configuration, and of tenants and
models no more than a limit: what comes after is counted as "other". No key, request id or text is in a label.
"""

from __future__ import annotations

import math
from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from policies.api import EntitlementLedger, EntitlementSpec, PoolLedger, Reason, ReplicaLedger
from policies.core import GatewayCore
from sim.json_text import is_text
from sim.live.observability.observer import Ended, RequestLog

NAMESPACE = "tokenpools"
MOST_LABELS = 200
OTHER = "other"

_REFUSED: Mapping[Reason, str] = {
    Reason.POOL_FULL: "RejectedCapacity",
    Reason.NO_CAPACITY: "RejectedNoEndpoints",
    Reason.NOT_BOUND: "RejectedNotBound",
    Reason.CONCURRENCY: "RejectedConcurrency",
    Reason.REQUESTS: "RejectedRequests",
    Reason.TOKENS: "RejectedTokens",
    Reason.KV_CACHE: "RejectedKvCache",
    Reason.LOW_PRIORITY: "RejectedLowPriority",
    Reason.TOO_LARGE: "RejectedTooLarge",
    Reason.CONTEXT_LENGTH: "RejectedContextLength",
    Reason.BUDGET: "RejectedBudget",
    Reason.PARENT_LIMIT: "RejectedParentLimit",
}
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_WAITS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0)
_RETRIES = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
_TOKENS = (-10_000.0, -1000.0, -100.0, -10.0, -1.0, 0.0, 1.0, 10.0, 100.0, 1000.0, 10_000.0)
_GAUGES = {
    "debt": "Debt of an elastic entitlement: what it was short of, smoothed.",
    "burst": "How far an entitlement goes beyond its baseline, smoothed.",
    "weight": "Priority by which contended requests are let in.",
    "limit_slots": "Requests that may be in flight now.",
    "limit_tokens_per_s": "Tokens per second that may be used now.",
    "metered_tokens_per_s": "Tokens of work per second at the last tick.",
}
"""Gauges of policies by entitlement, as the timeline names them."""


class Metrics:
    """An observer that counts, with the registry that shows it.

    Attributes
    ----------
    registry : of this gateway alone.

    Parameters
    ----------
    models : those that are served; None where any name may be a label.
    reaches : whether this gateway itself reaches a replica: the books of a shared state that is away do not know.
    """

    def __init__(
        self, core: Callable[[], GatewayCore], now_s: Callable[[], float], *, most_labels: int = MOST_LABELS,
        models: Callable[[], Collection[str]] | None = None, reaches: Callable[[int], bool] = lambda _: True,
    ) -> None:
        self.registry = CollectorRegistry()
        self._known_models = models
        self._tenants, self._models = Labels(most_labels), Labels(most_labels)

        def counter(name: str, text: str, *labels: str) -> _Children[Counter]:
            return _Children(Counter(name, text, labels, namespace=NAMESPACE, registry=self.registry))

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> _Children[Histogram]:
            return _Children(
                Histogram(name, text, labels, namespace=NAMESPACE, registry=self.registry, buckets=buckets)
            )

        self._requests = counter(
            "requests", "Attempts that have ended, by how.", "tenant", "class", "model", "outcome"
        )
        self._settled = counter("settled_tokens", "Tokens charged for, by direction.", "tenant", "direction")
        self._waited = histogram(
            "queue_duration_seconds", "Time at the gateway before a request was sent on.", _WAITS, "class"
        )
        self._first_token = histogram(
            "time_to_first_token_seconds", "Time to the first token, the gateway's wait included.", _SECONDS, "tenant",
            "class",
        )
        self._core = core
        self._judged = counter("slo_attempts", "Attempts of tenants that have an objective.", "tenant", "class")
        self._missed = counter(
            "slo_missed", "Of these: late, refused, evicted or failed.", "tenant", "class"
        )
        self._duration = histogram("request_duration_seconds", "Time from arrival to end.", _SECONDS, "class")
        self._retry_after = histogram("retry_after_seconds", "What refused clients were told to wait.", _RETRIES)
        self._estimate_error = histogram(
            "estimate_error_tokens", "Prompt tokens reserved, less those that the upstream counted.", _TOKENS
        )
        self.registry.register(_Books(core, now_s, self._tenants, reaches))

    def ended(self, log: RequestLog) -> None:
        """See `sim.live.observability.observer.Observer`."""
        service_class = "" if log.service_class is None else str(log.service_class)
        tenant = self._tenants.of(log.tenant)
        self._requests.of(tenant, service_class, self._model_of(log.model), outcome(log)).inc()
        if log.forwarded_s == log.forwarded_s:
            self._waited.of(service_class).observe(max(0.0, log.forwarded_s - log.arrival_s))
            self._duration.of(service_class).observe(max(0.0, log.finish_s - log.arrival_s))
            self._settled.of(tenant, "output").inc(log.output_tokens)
            if log.output_tokens:
                self._settled.of(tenant, "prompt").inc(log.counted_prompt_tokens or log.prompt_tokens)
        if log.first_token_s == log.first_token_s:  # an answer in one piece has none
            self._first_token.of(tenant, service_class).observe(max(0.0, log.first_token_s - log.arrival_s))
        if log.counted_prompt_tokens is not None:
            self._estimate_error.of().observe(log.prompt_tokens - log.counted_prompt_tokens)
        if log.retry_after_s is not None:
            self._retry_after.of().observe(log.retry_after_s)
        self._judge(log, tenant, service_class)

    def _judge(self, log: RequestLog, tenant: str, service_class: str) -> None:
        """Count whether an objective was kept.

        An answer in one piece says nothing of it, nor one whose client left, nor a request that could never be served:
        nobody is to be woken by a client that asks for more than the context holds.
        """
        book = self._core().pool.entitlements.get(log.entitlement)
        slo_s = None if book is None else book.spec.ttft_slo_s
        has_first = log.first_token_s == log.first_token_s
        client_erred = 400 <= log.http_status < 500 and log.http_status != 429
        turned_away = log.outcome in (Ended.REFUSED, Ended.EVICTED, Ended.FAILED) and not client_erred
        if slo_s is None or not (has_first or turned_away):
            return
        self._judged.of(tenant, service_class).inc()
        if turned_away or log.first_token_s - log.arrival_s > slo_s:
            self._missed.of(tenant, service_class).inc()

    def _model_of(self, model: str) -> str:
        """Return the label for a model: one that is served, since everything else is what clients wrote."""
        if model and self._known_models is not None and model not in self._known_models():
            return OTHER
        return self._models.of(model)


def outcome(log: RequestLog) -> str:
    """Return how an attempt ended, in llm-d's words and those that entitlements need besides."""
    if log.outcome is Ended.FINISHED:
        return "Dispatched"
    if log.outcome is Ended.CANCELLED:
        return "EvictedContextCancelled"
    if log.outcome is Ended.EVICTED:
        return "EvictedPreempted" if log.reason is Reason.PREEMPTED else "EvictedOther"
    if log.outcome is Ended.REFUSED:
        if log.error == "queue_timeout":
            return "EvictedTTL"
        return "RejectedOther" if log.reason is None else _REFUSED.get(log.reason, "RejectedOther")
    # No key, no such model, no JSON: the gateway turned it away before its core heard of it.
    return "RejectedOther" if 400 <= log.http_status < 500 else "Failed"


M = TypeVar("M", Counter, Histogram)


class _Children(Generic[M]):
    """A metric whose children are kept by their labels: looking one up in the library costs more than counting."""

    def __init__(self, metric: M) -> None:
        self._metric: M = metric
        self._made: dict[tuple[str, ...], M] = {}

    def of(self, *labels: str) -> M:
        """Return the child with these labels; the metric itself where it has none."""
        found = self._made.get(labels)
        if found is None:
            found = self._made[labels] = self._metric.labels(*labels) if labels else self._metric
        return found


class Labels:
    """The first so many values; all others are one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def of(self, value: str) -> str:
        """Return the label for a value."""
        if value in self._known:
            return value
        if len(self._known) >= self._most or not is_text(value):
            return OTHER
        self._known.add(value)
        return value


class _Books(Collector):
    """The books of the core, read when somebody asks."""

    def __init__(
        self, core: Callable[[], GatewayCore], now_s: Callable[[], float], tenants: Labels,
        reaches: Callable[[int], bool],
    ) -> None:
        self._core = core
        self._now_s = now_s
        self._tenants = tenants
        self._reaches = reaches

    def collect(self) -> Iterator[Metric]:
        """Return every gauge."""
        core = self._core()
        pool = core.pool
        gauges = core.gauges(self._now_s())
        said = {(scope, name, metric): value for scope, name, metric, value in gauges}
        slots = pool.capacity.slots
        in_flight = pool.all_in_flight
        yield _one("capacity_slots", "Sequences that the ready replicas run at once.", slots)
        ready = {book.replica_id for book in pool.replicas if book.ready and self._reaches(book.replica_id)}
        yield _one("ready_replicas", "Replicas that take this gateway's requests.", len(ready))
        full = in_flight / slots if slots else 1.0
        yield _one("pool_saturation", "Requests in flight as a share of the slots.", full)
        yield _one("queue_size", "Requests held at the gateway.", said["pool", "pool", "held"])
        yield _one("queue_tokens", "Prompt tokens and max_tokens of those.", said["pool", "pool", "held_tokens"])
        if ("pool", "pool", "threshold") in said:
            yield _one("admission_threshold", "Least priority in flight.", said["pool", "pool", "threshold"])
        yield from self._entitlements(pool, said)
        yield from _replicas(pool.replicas, ready)

    def _entitlements(self, pool: PoolLedger, said: Mapping[tuple[str, str, str], float]) -> Iterator[Metric]:
        books = pool.entitlements
        to_come = Tally[str]()
        for flight in pool.in_flight.values():
            done = flight.output_tokens + (flight.request.prompt_tokens if flight.prompt_credited else 0)
            to_come[flight.ledger.spec.name] += max(0, flight.reserved_tokens - done)
        labels = ["entitlement", "tenant", "class"]
        by_ledger: dict[str, tuple[str, Callable[[EntitlementLedger], float]]] = {
            "inflight_requests": ("Requests in flight.", lambda book: book.in_flight),
            "inflight_tokens": ("Work still to come of those, at most.", lambda book: to_come[book.spec.name]),
            "reserved_tokens": ("Prompt tokens and max_tokens of those.", lambda book: book.reserved_tokens),
            "entitlement_bound": ("1 where the entitlement is served.", lambda book: book.state == "Bound"),
        }
        for name, (text, read) in by_ledger.items():
            family = GaugeMetricFamily(f"{NAMESPACE}_{name}", text, labels=labels)
            for book in books.values():
                family.add_metric(self._labels(book.spec), float(read(book)))
            yield family
        for metric, text in _GAUGES.items():
            name = {"metered_tokens_per_s": "entitlement_tokens_per_second"}.get(metric, metric)
            family = GaugeMetricFamily(f"{NAMESPACE}_{name}", text, labels=labels)
            for entitlement, book in books.items():
                value = said.get(("entitlement", entitlement, metric))
                if value is not None and math.isfinite(value):
                    family.add_metric(self._labels(book.spec), value)
            if family.samples:
                yield family

    def _labels(self, spec: EntitlementSpec) -> list[str]:
        return [spec.name, self._tenants.of(spec.tenant), str(spec.service_class)]


def _replicas(books: Iterable[ReplicaLedger], ready: Collection[int]) -> Iterator[Metric]:
    by_replica = {
        "replica_up": "1 where a replica takes this gateway's requests.",
        "replica_inflight_requests": "Requests that this gateway knows to be at a replica.",
        "replica_running_requests": "Requests that a replica says it runs.",
        "replica_waiting_requests": "Requests that a replica says wait there.",
        "replica_kv_used_ratio": "Share of a replica's KV cache in use, as it says.",
    }
    families = {
        name: GaugeMetricFamily(f"{NAMESPACE}_{name}", text, labels=["replica"])
        for name, text in by_replica.items()
    }
    for book in books:
        label = [str(book.replica_id)]
        families["replica_up"].add_metric(label, float(book.replica_id in ready))
        families["replica_inflight_requests"].add_metric(label, book.in_flight)
        if book.report is not None:
            families["replica_running_requests"].add_metric(label, book.report.running)
            families["replica_waiting_requests"].add_metric(label, book.report.waiting)
            families["replica_kv_used_ratio"].add_metric(label, book.report.kv_used_fraction)
    yield from families.values()


def _one(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{NAMESPACE}_{name}", text, value=value)
