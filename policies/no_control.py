"""No admission control: everything is let in, and queues where it is served."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from policies.api import ADMIT, Gauge, InFlight, PoolLedger, RequestView, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class NoControl:
    """Lets everything in."""

    kind: Literal["none"] = "none"


class NoControlPolicy:
    """See `policies.api.AdmissionPolicy`; remembers nothing."""

    tick_s: float | None = None
    wants_progress = False
    wants_reports = False

    def decide(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Verdict:  # noqa: ARG002
        """Let it in."""
        return ADMIT

    def on_admitted(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Nothing to charge."""

    def on_ended(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Nothing to settle."""

    def on_tick(self, pool: PoolLedger, now_s: float) -> None:
        """Nothing is metered."""

    def on_capacity(self, pool: PoolLedger, now_s: float) -> None:
        """Capacity does not matter."""

    def gauges(self, pool: PoolLedger, now_s: float) -> Iterable[Gauge]:  # noqa: ARG002
        """Nothing to show."""
        return ()
