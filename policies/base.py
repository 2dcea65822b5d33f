"""A policy with nothing to do, to build one on that does something."""

from __future__ import annotations

from collections.abc import Iterable

from policies.api import ADMIT, Gauge, InFlight, PoolLedger, RequestView, Verdict
from policies.native import mypyc_attr


@mypyc_attr(allow_interpreted_subclasses=True)
class PolicyBase:
    """Lets everything in and remembers nothing; see `policies.api.AdmissionPolicy` for what each method is for."""

    tick_s: float | None = None
    wants_progress: bool = False
    wants_reports: bool = False

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
