"""One attempt of a request, as the simulated world keeps it: what becomes a row of the records."""

from __future__ import annotations

from typing import Final

from policies.native import mypyc_attr
from sim.cluster.engine_request import NEVER_S, WAITING, EngineRequest
from sim.records.schema import Outcome

NAN: Final = float("nan")
_OPEN: Final = Outcome.WAITING


@mypyc_attr(allow_interpreted_subclasses=True, acyclic=True)
class Attempt(EngineRequest):
    """An attempt on its way through client, gateway and replica, where it is the engine's request as well.

    Its attributes are those of `sim.records.attempt_table.Recordable`; ``outcome`` is WAITING while it is open.
    """

    __slots__ = (
        "arrival_s",
        "asked_tokens",
        "delivered_tokens",
        "final",
        "finish_s",
        "first_arrival_s",
        "first_token_s",
        "forwarded_s",
        "http_status",
        "number",
        "outcome",
        "reason",
        "replica",
        "request_id",
        "retry_after_s",
        "workload",
    )

    def __init__(
        self,
        request_id: str,
        number: int,
        workload: int,
        priority: int,
        arrival_s: float,
        first_arrival_s: float,
        prompt_tokens: int,
        output_tokens: int,
        asked_tokens: int,
    ) -> None:
        # EngineRequest.__init__, written out: one call less for every request.
        self.prompt_tokens = self.target_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.priority = priority
        self.submitted_s = 0.0
        self.state = WAITING
        self.order = self.computed_tokens = self.outputs = self.base_clock = self.preemptions = 0
        self.ticket = self.cached_tokens = -1
        self.due_s = NEVER_S
        self.prefix = None
        self.adapter = ""
        self.aborted = self.transferred = False
        # An answer shorter than the limit that was asked for, or without one, ends by a stop token.
        self.stops = asked_tokens > output_tokens or not asked_tokens
        self.request_id = request_id
        self.number = number
        self.workload = workload
        self.arrival_s = arrival_s
        self.first_arrival_s = first_arrival_s
        self.asked_tokens = asked_tokens
        self.delivered_tokens = 0
        self.forwarded_s = self.first_token_s = self.finish_s = self.retry_after_s = NAN
        self.replica = -1
        self.outcome = _OPEN
        self.reason = ""
        self.http_status = 0
        self.final = True

    def numbers(self) -> tuple[
        float, float, float, float, float, float, int, int, int, int, int, int, int, int, int, int, bool
    ]:
        """Return `sim.records.attempt_table.NUMBERS`; compiled, each takes longer where it is asked for by its name."""
        return (
            self.arrival_s, self.first_arrival_s, self.forwarded_s, self.first_token_s, self.finish_s,
            self.retry_after_s, self.workload, self.prompt_tokens, self.asked_tokens, self.delivered_tokens,
            self.cached_tokens, self.number, self.replica, self.outcome, self.http_status, self.preemptions, self.final,
        )  # fmt: skip
