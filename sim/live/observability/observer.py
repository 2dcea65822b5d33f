"""What the gateway tells whoever looks on: metrics, logs, the admin page, records, decision parity.

An observer is called on the gateway's loop and must not block or raise. It never sees a key, a prompt or an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from policies.api import Event, Instruction, Reason, ServiceClass

NEVER_S = float("nan")
"""The time of what did not happen."""


class Ended(StrEnum):
    """How an attempt ended; the names are those of the records' outcomes."""

    FINISHED = "finished"
    REFUSED = "refused"
    EVICTED = "evicted"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(slots=True, kw_only=True)  # not frozen: thirty fields one by one through object.__setattr__ show
class RequestLog:
    """One attempt that has ended, with what was decided and measured. Nobody changes one.

    Times are the core's seconds, `NEVER_S` where the attempt never got there. What was turned away before it had an
    entitlement (no key, not JSON, too large) has empty ``tenant`` and ``entitlement`` and no ``service_class``.

    Attributes
    ----------
    request_id : the gateway's own, as in the ``x-request-id`` header of the answer.
    client_request_id : what the client called it, made printable and cut to 128 characters; empty for nothing.
    key_name : the name that the configuration gives the key; never the key.
    endpoint : the path.
    attempt : 1 for the first; as the client counts its retries.
    prompt_tokens : what was reserved for the prompt.
    counted_prompt_tokens : what the upstream's usage says the prompt was; None where it said nothing.
    max_output_tokens : what the client asked for, over all choices; None where it named no limit.
    output_tokens : what came back: the upstream's usage, or the events of the stream where it gave none.
    replica : where it went last; None where it went nowhere.
    tries : how many upstreams it was sent to.
    reason, needed, available : of a refusal or eviction, as in `policies.api.Refuse`.
    http_status : what the client was sent; 499 where it had gone before an answer began.
    error : a short code (``error.code`` of the body), empty where all went well.
    """

    request_id: str
    client_request_id: str
    key_name: str
    tenant: str
    entitlement: str
    service_class: ServiceClass | None
    endpoint: str
    model: str
    stream: bool
    attempt: int
    prompt_tokens: int
    counted_prompt_tokens: int | None
    max_output_tokens: int | None
    output_tokens: int
    cached_tokens: int
    arrival_s: float
    forwarded_s: float
    first_token_s: float
    finish_s: float
    replica: int | None
    tries: int
    outcome: Ended
    reason: Reason | None
    needed: float
    available: float
    http_status: int
    retry_after_s: float | None
    error: str


class Observer(Protocol):
    """Hears of every attempt once, when it has ended and the books hold it no longer."""

    def ended(self, log: RequestLog) -> None:
        """Take note of an attempt."""
        ...


class Recorder(Protocol):
    """Hears every event with its time and the core's instructions: fed to another core they give the same verdicts."""

    def __call__(self, now_s: float, event: Event, instructions: Sequence[Instruction]) -> None:
        """Take note of an event."""
        ...
