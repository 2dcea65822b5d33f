"""A bound on what is in flight and on what waits, whoever asks: what engines and routers do against overload.

vLLM's ``--max-num-queued-reqs`` and ``--max-num-queued-tokens`` (PR 49445), Dynamo's busy thresholds and llm-d's
concurrency detector (100 requests an endpoint) are this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.api import Chance, Deny, EntitlementSpec, PoolLedger, RequestView
from policies.parts.lines import Line, Waiting
from policies.parts.queueing import QueueingPolicy
from policies.parts.waits import Waits


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap(Waits):
    """Bounds what is in flight and what waits, first come first served; over it, refuses.

    Up to ``max_in_flight_per_replica`` the engines queue, whether it fits there or not; left null, only what fits is
    let in. ``status`` is 429, 503 (vLLM) or 529 (Dynamo, Anthropic): overload is not the tenant's fault.
    """

    kind: Literal["cap"] = "cap"
    max_in_flight_per_replica: int | None = field(
        default=100,
        metadata={"gt": 0, "description": "give requests in flight for each ready replica, e.g. 100, or null"},
    )
    queue_requests: int = field(
        default=100, metadata={"ge": 0, "description": "give how many may wait, e.g. 100, 0 for none"}
    )
    status: Literal[429, 503, 529] = field(default=429, metadata={"description": "give 429, 503 or 529"})


class CapPolicy(QueueingPolicy):
    """See `policies.parts.queueing.QueueingPolicy`: one queue for all, and no account of tenants."""

    def __init__(
        self, params: Cap, *, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None,  # noqa: ARG002
        chance: Chance,  # noqa: ARG002
    ) -> None:
        super().__init__(params, kv_bytes_per_token, params.max_in_flight_per_replica)
        self._status = params.status
        self._line = Line()

    def refusal(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Deny | None:
        """Return the queue's refusal, with the status that was asked for."""
        refusal = super().refusal(request, max_output_tokens, pool, now_s)
        return None if refusal is None else refusal._replace(status=self._status)

    def joined(self, item: Waiting, now_s: float) -> None:  # noqa: ARG002
        """See `QueueingPolicy`."""
        self._line.push(item)

    def next(self, pool: PoolLedger, now_s: float) -> Waiting | None:  # noqa: ARG002
        """Return the first come, if it fits."""
        item = self._line.head()
        return item if self.room.fits(item.need_tokens, pool, item.request.sequences) else None

    def left(self, item: Waiting, now_s: float) -> None:  # noqa: ARG002
        """See `QueueingPolicy`."""
        self._line.drop(item)
