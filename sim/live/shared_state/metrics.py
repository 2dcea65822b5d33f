"""What Prometheus is told of the state that gateways share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sim.live.shared_state.speaking_copy import Status


class SharedMetrics(Collector):
    """Reads the status when somebody asks."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Return every gauge and counter."""
        status = self._status()
        for name, text, value in (
            ("reachable", "Whether the shared state answers in time.", status.reachable),
            ("leader", "Whether this gateway speaks for the pool.", status.leads),
            ("gateways", "Gateways that share the pool.", status.gateways),
            ("evicts", "Whether Redis may throw away keys of the log when its memory is full.", bool(status.evicts)),
            ("outbox", "Events that wait to be sent.", status.waiting),
        ):
            yield GaugeMetricFamily(f"tokenpools_state_{name}", text, value=float(value))
        skipped = CounterMetricFamily(
            "tokenpools_state_entries_skipped", "Entries of the log that were left out.", labels=["why"]
        )
        for why, number in status.skipped.items():
            skipped.add_metric([why], number)
        yield skipped
        yield CounterMetricFamily(
            "tokenpools_state_healed", "Times that the log was begun anew from this gateway's copy.",
            value=status.healed,
        )
        yield CounterMetricFamily(
            "tokenpools_state_times_away", "Times that the shared state went out of reach.", value=status.times_away
        )
