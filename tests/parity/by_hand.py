"""A core driven by hand: what a test says happens, when, and what the core answers."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

from policies.api import (
    Arrived,
    CallMeAt,
    Demote,
    EntitlementSpec,
    Event,
    Evict,
    Finished,
    FirstToken,
    Forward,
    Hold,
    Instruction,
    PoolCapacity,
    Refuse,
    ReplicaReport,
    RequestView,
    Resources,
    ServiceClass,
    Tick,
)
from policies.core import GatewayCore
from policies.registry import POLICIES
from policies.routing import LeastOutstandingTokensRouter

A = EntitlementSpec(name="a", tenant="x", service_class=ServiceClass.GUARANTEED, ttft_slo_s=1.0)
B = EntitlementSpec(name="b", tenant="y", service_class=ServiceClass.ELASTIC, ttft_slo_s=10.0)
C = EntitlementSpec(name="c", tenant="y", service_class=ServiceClass.SPOT)
P = EntitlementSpec(name="p", tenant="z", service_class=ServiceClass.PREEMPTIBLE)


def promised(name: str, slots: float | None = None, tokens_per_s: float | None = None, **more: Any) -> EntitlementSpec:
    """Return an entitlement with a baseline."""
    given = {"tenant": name, "service_class": ServiceClass.GUARANTEED, **more}
    return EntitlementSpec(name=name, baseline=Resources(tokens_per_s, None, slots), **given)


class Hand:
    """Keeps the time and the ticks. What the core said is in ``said``, one (time, text) for each verdict."""

    def __init__(
        self, params: Any, specs: Sequence[EntitlementSpec] = (A, B, C), *, slots: int = 4, replicas: int = 1,
        kv_tokens: float | None = None,
    ) -> None:
        policy = POLICIES[params.kind].build(
            params, entitlements=specs, kv_bytes_per_token=1.0, chance=random.Random(1)
        )
        self.policy: Any = policy
        self.core = GatewayCore(
            entitlements=specs, capacity=PoolCapacity(replicas, slots, None, kv_tokens), replica_ids=range(replicas),
            policy=policy, router=LeastOutstandingTokensRouter(),
        )
        self.said: list[tuple[float, str]] = []
        self.refusals: list[Refuse] = []
        self._tick_s = float("inf")
        self._hear(0.0, self.core.start(0.0))

    def ask(self, at_s: float, name: str, prompt: int = 100, most: int | None = 100, **more: Any) -> str:
        """Let a request arrive; its entitlement is the first letter of its name."""
        return self._tell(at_s, Arrived(RequestView(name, name[0], "t", prompt, most, **more)))

    def at(self, name: str) -> int:
        """Return the replica that has a request."""
        return self.core.pool.in_flight[name].replica_id

    def first(self, at_s: float, name: str) -> str:
        """Let its first token come."""
        return self._tell(at_s, FirstToken(name))

    def end(self, at_s: float, name: str, output: int = 100, cached: int = 0) -> str:
        """Let it finish, after a first token."""
        self._tell(at_s, FirstToken(name))
        return self._tell(at_s, Finished(name, output, cached))

    def report(self, at_s: float, waiting: int, kv: float, replica: int = 0) -> str:
        """Let a replica report."""
        return self._tell(at_s, ReplicaReport(replica, at_s, 0, waiting, kv))

    def wait(self, until_s: float) -> str:
        """Let time pass; return what the ticks brought."""
        texts = []
        while self._tick_s <= until_s:
            at_s, self._tick_s = self._tick_s, float("inf")
            texts.append(self._hear(at_s, self.core.handle(Tick(), at_s)))
        return " ".join(text for text in texts if text)

    def _tell(self, at_s: float, event: Event) -> str:
        self.wait(at_s)
        return self._hear(at_s, self.core.handle(event, at_s))

    def _hear(self, at_s: float, instructions: Iterable[Instruction]) -> str:
        texts: list[str] = []
        for step in instructions:
            if isinstance(step, Forward) and f"{step.request_id}:held" in texts:  # held for no time at all
                texts.remove(f"{step.request_id}:held")
            if isinstance(step, CallMeAt):
                self._tick_s = step.at_s
                continue
            texts.append(_text(step))
            self.said.append((at_s, texts[-1]))
            if isinstance(step, Refuse):
                self.refusals.append(step)
        return " ".join(texts)


def _text(step: Instruction) -> str:
    match step:
        case Forward(name):
            return f"{name}:in"
        case Hold(name):
            return f"{name}:held"
        case Demote(name, priority):
            return f"{name}:demoted={priority}"
        case Evict(name):
            return f"{name}:evicted"
        case Refuse(name, reason, status, None):
            return f"{name}:{reason}/{status}/never"
        case Refuse(name, reason, status, retry_s):
            return f"{name}:{reason}/{status}/{retry_s:g}"
    raise AssertionError(step)
