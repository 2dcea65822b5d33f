"""What policies that watch a gateway would have done: counted, and in the log where they would turn somebody away."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from policies.shadow import Opinion
from sim.live.observability.prometheus import MOST_LABELS, Labels

LOG = logging.getLogger("tokenpools.shadow")

_IN = ("forward", "demote")


class ShadowTally(Collector):
    """Counts opinions; `policies.shadow` tells of each when its attempt has ended."""

    def __init__(self, most_labels: int = MOST_LABELS) -> None:
        self._tenants = Labels(most_labels)
        self._counts: Counter[tuple[str, str, str, str, str]] = Counter()

    def __call__(self, opinion: Opinion) -> None:
        """Take note of one."""
        acting = "in" if opinion.acting in _IN else opinion.acting
        would = "in" if opinion.verdict in _IN else opinion.verdict
        tenant = self._tenants.of(opinion.tenant)
        self._counts[opinion.shadow, tenant, acting, would, opinion.reason] += 1
        if acting == "in" and would in ("refuse", "evict"):
            LOG.info("%s would %s %s", opinion.shadow, would, opinion.request_id, extra={"fields": {
                "shadow": opinion.shadow, "would": would, "reason": opinion.reason, "request_id": opinion.request_id,
                "tenant": opinion.tenant, "entitlement": opinion.entitlement, "needed": opinion.needed,
                "available": opinion.available, "retry_after_s": opinion.retry_after_s,
            }})  # fmt: skip

    def collect(self) -> Iterator[Metric]:
        """Return the counter."""
        family = CounterMetricFamily(
            "tokenpools_shadow_attempts", "Attempts by what became of them and what a shadow would have done.",
            labels=["shadow", "tenant", "acting", "would", "reason"],
        )  # fmt: skip
        for labels, number in sorted(self._counts.items()):
            family.add_metric(list(labels), number)
        yield family

    def rows(self) -> list[dict[str, Any]]:
        """Return, for each shadow and tenant, how many attempts there were and how many it would have turned away."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for (shadow, tenant, acting, would, reason), number in sorted(self._counts.items()):
            row = found.setdefault((shadow, tenant), {
                "shadow": shadow, "tenant": tenant, "attempts": 0, "would_refuse": 0, "of_these_served": 0,
                "would_let_in": 0, "reasons": {},
            })  # fmt: skip
            row["attempts"] += number
            if would in ("refuse", "evict"):
                row["would_refuse"] += number
                row["of_these_served"] += number if acting == "in" else 0
                row["reasons"][reason] = row["reasons"].get(reason, 0) + number
            elif acting == "refuse":
                row["would_let_in"] += number
        return list(found.values())
