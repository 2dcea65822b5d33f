"""A world of a few dozen lines that drives the core: slots, a queue behind them, and requests of a fixed speed."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from policies.api import (
    Arrived,
    CallMeAt,
    Cancelled,
    CapacityChanged,
    EntitlementSpec,
    Event,
    Evict,
    Failed,
    Finished,
    FirstToken,
    Forward,
    Instruction,
    PoolCapacity,
    Progress,
    Reason,
    Refuse,
    RequestView,
    Resources,
    ServiceClass,
    Tick,
)
from policies.core import GatewayCore
from policies.registry import POLICIES, ROUTERS

FIRST_TOKEN_S = 0.2
TOKEN_S = 1 / 16
Entry = tuple[float, Event, tuple[Instruction, ...]]


@dataclass(frozen=True)
class Ask:
    at_s: float
    entitlement: str
    output_tokens: int
    prompt_tokens: int = 32
    max_output_tokens: int | None = None
    cancel_at_s: float | None = None
    fails: bool = False


def spec(name: str, service_class: ServiceClass, slots: float | None = None, **more: Any) -> EntitlementSpec:
    """Return an entitlement that is promised slots, tokens/s (``rate``) and ``kv_bytes``, each where it is given."""
    baseline = Resources(more.pop("rate", None), more.pop("kv_bytes", None), slots)
    return EntitlementSpec(name=name, tenant="t", service_class=service_class, baseline=baseline, **more)


def make_core(
    params: object, specs: Sequence[EntitlementSpec], *, slots: int = 16, replicas: int = 1,
    router: str = "round-robin",
    tokens_per_s: float | None = None, kv_bytes: float | None = None, kv_bytes_per_token: float | None = None,
    seed: int = 1, max_context_tokens: int | None = None,
) -> GatewayCore:
    policy = POLICIES[params.kind].build(  # type: ignore[attr-defined]
        params, entitlements=specs, kv_bytes_per_token=kv_bytes_per_token, chance=random.Random(seed)
    )
    return GatewayCore(
        entitlements=specs, capacity=PoolCapacity(replicas, slots, tokens_per_s, kv_bytes), replica_ids=range(replicas),
        policy=policy, router=ROUTERS[router].build(ROUTERS[router].params()), max_context_tokens=max_context_tokens,
    )


class TinyWorld:
    def __init__(self, core: GatewayCore, asks: Iterable[Ask], capacities: Iterable[tuple[float, int]] = ()) -> None:
        self.core = core
        self.slots = core.pool.capacity.slots
        self.log: list[Entry] = []
        self.queue: list[str] = []
        self.begun: dict[str, float] = {}
        self.asks: dict[str, Ask] = {}
        self.peak_queue = 0
        self.first_token_s: dict[str, float] = {}
        self._agenda: list[tuple[float, int, str, str]] = []
        self._seq = 0
        for number, ask in enumerate(asks):
            self.asks[f"r{number}"] = ask
            self._plan(ask.at_s, "arrive", f"r{number}")
            if ask.cancel_at_s is not None:
                self._plan(ask.cancel_at_s, "cancel", f"r{number}")
        for at_s, slots in capacities:
            self._plan(at_s, "capacity", str(slots))

    def run(self, until_s: float) -> list[Entry]:
        self._obey(self.core.start(0.0))
        while self._agenda and self._agenda[0][0] <= until_s:
            now_s, _, what, name = heapq.heappop(self._agenda)
            getattr(self, "_" + what)(now_s, name)
            while self.queue and len(self.begun) < self.slots:
                ready = self.queue.pop(0)
                self.begun[ready] = now_s
                self._plan(now_s + FIRST_TOKEN_S, "first", ready)
                self._plan(now_s + FIRST_TOKEN_S + TOKEN_S * self.asks[ready].output_tokens, "end", ready)
            self.peak_queue = max(self.peak_queue, len(self.queue))
        return self.log

    def refusals(self, entitlement: str, reason: Reason | None = None, after_s: float = 0.0) -> int:
        return sum(
            isinstance(each, Refuse)
            and self.asks[each.request_id].entitlement == entitlement
            and (reason is None or each.reason is reason)
            for now_s, _, instructions in self.log
            for each in instructions
            if now_s >= after_s
        )

    def waits_s(self, entitlement: str) -> list[float]:
        return sorted(
            at_s - self.asks[name].at_s for name, at_s in self.first_token_s.items()
            if self.asks[name].entitlement == entitlement
        )

    def _plan(self, at_s: float, what: str, name: str) -> None:
        self._seq += 1
        heapq.heappush(self._agenda, (at_s, self._seq, what, name))

    def _tell(self, now_s: float, event: Event) -> None:
        instructions = tuple(self.core.handle(event, now_s))
        self.log.append((now_s, event, instructions))
        self._obey(instructions)

    def _obey(self, instructions: Iterable[Instruction]) -> None:
        for each in instructions:
            if isinstance(each, Forward):
                self.queue.append(each.request_id)
            elif isinstance(each, Evict):
                self._forget(each.request_id)
            elif isinstance(each, CallMeAt):
                self._call = str(self._seq)
                self._plan(each.at_s, "tick", self._call)

    def _forget(self, name: str) -> None:
        self.begun.pop(name, None)
        if name in self.queue:
            self.queue.remove(name)

    def _output_tokens(self, name: str, now_s: float) -> int:
        made = int((now_s - self.begun[name] - FIRST_TOKEN_S) / TOKEN_S) if name in self.begun else 0
        return max(0, min(made, self.asks[name].output_tokens))

    def _arrive(self, now_s: float, name: str) -> None:
        ask = self.asks[name]
        view = RequestView(name, ask.entitlement, "t", ask.prompt_tokens, ask.max_output_tokens or ask.output_tokens)
        self._tell(now_s, Arrived(view))

    def _first(self, now_s: float, name: str) -> None:
        if name in self.begun:
            self.first_token_s[name] = now_s
            self._tell(now_s, FirstToken(name))

    def _end(self, now_s: float, name: str) -> None:
        if name in self.begun:
            del self.begun[name]
            ask = self.asks[name]
            self._tell(now_s, Failed(name, ask.output_tokens // 2) if ask.fails else Finished(name, ask.output_tokens))

    def _cancel(self, now_s: float, name: str) -> None:
        output_tokens = self._output_tokens(name, now_s)
        self._forget(name)
        self._tell(now_s, Cancelled(name, output_tokens))

    def _capacity(self, now_s: float, slots: str) -> None:
        self.slots = int(slots)
        capacity = self.core.pool.capacity._replace(slots=self.slots, ready_replicas=1 if self.slots else 0)
        ready = tuple(replica.replica_id for replica in self.core.pool.replicas) if self.slots else ()
        self._tell(now_s, CapacityChanged(capacity, ready))

    def _tick(self, now_s: float, call: str) -> None:
        if call != self._call:  # another took its place
            return
        if self.core.wants_progress:
            for name in self.begun:
                self._tell(now_s, Progress(name, self._output_tokens(name, now_s)))
        self._tell(now_s, Tick())
