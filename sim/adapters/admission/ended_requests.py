"""What became of requests, read off the events of the core: so doors have the observers of our own gateway.

A recorder, told of every event with what the core said; a door without observers has none, and pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from policies.api import (
    Arrived,
    Cancelled,
    Event,
    Evict,
    Failed,
    Finished,
    FirstToken,
    Forward,
    Instruction,
    Progress,
    Reason,
    Refuse,
    RequestView,
    ServiceClass,
)
from sim.live.gateway.error_responses import ended, refusal
from sim.live.observability.observer import NEVER_S, Ended, Observer, RequestLog

_LEFT, _BAD_GATEWAY = 499, 502


@dataclass(slots=True)
class _Life:
    request: RequestView
    arrival_s: float
    forwarded_s: float = NEVER_S
    first_token_s: float = NEVER_S
    replica: int | None = None
    tries: int = 0
    output_tokens: int = 0


class EndedRequests:
    """A recorder that tells observers of each request of this process once, when it has ended.

    Parameters
    ----------
    class_of : of an entitlement; None where there is no such entitlement any more.
    """

    def __init__(self, class_of: Callable[[str], ServiceClass | None], observers: Collection[Observer]) -> None:
        self._class_of = class_of
        self._observers = observers
        self._lives: dict[str, _Life] = {}
        self.prefix = ""

    def __call__(self, now_s: float, event: Event, instructions: Sequence[Instruction]) -> None:
        """See `sim.live.observability.observer.Recorder`."""
        kind = type(event)
        if kind is Arrived:
            request = event.request  # type: ignore[union-attr]
            if request.request_id.startswith(self.prefix):  # of a state that is shared, others' come too
                self._lives[request.request_id] = _Life(request, now_s)
        elif kind is FirstToken or kind is Progress:
            self._seen(event, now_s)
        for said in instructions:
            if type(said) is Forward:
                self._forwarded(said, now_s)
            elif type(said) is Refuse:
                problem = refusal(said)
                self._end(
                    said.request_id, now_s, Ended.REFUSED, problem.status, reason=said.reason, error=problem.code,
                    needed=said.needed, available=said.available, retry_after_s=said.retry_after_s,
                )
            elif type(said) is Evict:
                problem = ended(said.reason)
                self._end(said.request_id, now_s, Ended.EVICTED, problem.status, reason=said.reason, error=problem.code)
        if kind is Finished:
            self._finished(event, now_s)  # type: ignore[arg-type]
        elif kind is Cancelled:
            self._seen(event, now_s)
            self._end(event.request_id, now_s, Ended.CANCELLED, _LEFT, error="client_left")  # type: ignore[union-attr]
        elif kind is Failed and not any(
            type(said) is Forward and said.request_id == event.request_id  # type: ignore[union-attr]
            for said in instructions
        ):
            self._seen(event, now_s)
            self._end(event.request_id, now_s, Ended.FAILED, _BAD_GATEWAY, error="upstream_failed")  # type: ignore[union-attr]

    def _seen(self, event: Any, now_s: float) -> None:
        life = self._lives.get(event.request_id)
        if life is None:
            return
        if type(event) is FirstToken:
            life.first_token_s = now_s
        else:
            life.output_tokens = max(life.output_tokens, event.output_tokens)

    def _forwarded(self, said: Forward, now_s: float) -> None:
        life = self._lives.get(said.request_id)
        if life is not None:
            life.tries += 1
            life.replica = said.replica_id
            if life.tries == 1:
                life.forwarded_s = now_s

    def _finished(self, event: Finished, now_s: float) -> None:
        life = self._lives.get(event.request_id)
        if life is not None:
            life.output_tokens = event.output_tokens
            self._end(
                event.request_id, now_s, Ended.FINISHED, 200, counted=event.prompt_tokens, cached=event.cached_tokens
            )

    def _end(
        self, request_id: str, now_s: float, outcome: Ended, http_status: int, *, reason: Reason | None = None,
        error: str = "", needed: float = 0.0, available: float = 0.0, retry_after_s: float | None = None,
        counted: int | None = None, cached: int = 0,
    ) -> None:
        life = self._lives.pop(request_id, None)
        if life is None:
            return
        request = life.request
        log = RequestLog(
            request_id=request_id, client_request_id="", key_name="", tenant=request.tenant,
            entitlement=request.entitlement, service_class=self._class_of(request.entitlement), endpoint="", model="",
            stream=life.first_token_s == life.first_token_s, attempt=request.attempt,
            prompt_tokens=request.prompt_tokens, counted_prompt_tokens=counted,
            max_output_tokens=request.max_output_tokens, output_tokens=life.output_tokens, cached_tokens=cached,
            arrival_s=life.arrival_s, forwarded_s=life.forwarded_s, first_token_s=life.first_token_s,
            finish_s=now_s, replica=life.replica, tries=life.tries, outcome=outcome, reason=reason, needed=needed,
            available=available, http_status=http_status, retry_after_s=retry_after_s, error=error,
        )  # fmt: skip
        for observer in self._observers:
            observer.ended(log)
