"""The core's invariants while a gateway serves: a recorder that looks on, logs, counts, and stops it if told to.

See `policies.invariants` for what is checked. It hears every event after the core has
handled it, before anything is carried out.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from policies.api import Event, Instruction
from policies.core import GatewayCore
from policies.invariants import INVARIANTS, Checker, Violation
from policies.sharing import Peers
from sim.live.gateway.settings import CheckInvariants

LOG = logging.getLogger("tokenpools.invariants")

_MOST_LOGGED = 100
"""A fault that stays would fill the log; the metric goes on counting. [choice]"""


class InvariantWatch(Collector):
    """Looks on at the core of one gateway.

    Parameters
    ----------
    core : returns the core, which a changeover or a shared log may replace.
    stop : called at the first violation where the settings say so.
    peers : returns what the core's books hold of other gateways.

    Attributes
    ----------
    first : the first violation; None as long as there was none.
    stopped : whether it has stopped the gateway.
    """

    def __init__(
        self, settings: CheckInvariants, core: Callable[[], GatewayCore], stop: Callable[[], None],
        peers: Callable[[], Peers | None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._core = core
        self._stop = stop
        self._peers = peers
        self._counts: Counter[str] = Counter(dict.fromkeys(INVARIANTS, 0))
        self.checker = Checker(self._broken, every_events=settings.every_events)
        self.first: Violation | None = None
        self.stopped = False
        self._failed = False

    def __call__(self, now_s: float, event: Event, instructions: Sequence[Instruction]) -> None:
        """See `sim.live.observability.observer.Recorder`."""
        if self._failed:
            return
        try:
            self.checker.peers = self._peers()
            self.checker.after(self._core(), event, now_s, instructions)
        except Exception:  # whoever looks on must not break what is looked at
            self._failed = True
            LOG.exception("the checker failed; the core is not checked any more")

    def _broken(self, violation: Violation) -> None:
        self._counts[violation.invariant] += 1
        if self.checker.violations <= _MOST_LOGGED:
            LOG.error("%s", violation)
        if self.first is None:
            self.first = violation
            if self._settings.on_violation == "stop":
                LOG.error("stopping: what is in flight may finish")
                self.stopped = True
                self._stop()

    def collect(self) -> Iterator[Metric]:
        """Return how often each invariant was broken, and how many events were checked."""
        broken = CounterMetricFamily(
            "tokenpools_invariant_violations", "Invariants of the core that did not hold.", labels=["invariant"]
        )
        for name, number in self._counts.items():
            broken.add_metric([name], number)
        yield broken
        yield CounterMetricFamily(
            "tokenpools_invariant_events", "Events after which the core was checked.", value=self.checker.events
        )
