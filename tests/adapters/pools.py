"""A small pool for tests of adapters, and the check that nothing of it leaks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policies.core import GatewayCore
from sim.judging.parity import Parity, check_parity

PROFILE = {
    "step_time": {"kind": "linear", "base_s": 0.006, "per_decode_sequence_s": 1.0e-4},
    "max_num_seqs": 4, "max_num_batched_tokens": 2048, "kv_blocks": 400, "block_tokens": 16,
}  # fmt: skip
ENTITLEMENTS = (
    {"name": "chat", "tenant": "acme", "service_class": "guaranteed", "ttft_slo_s": 1.2, "baseline": {"slots": 3}},
    {"name": "filler", "tenant": "third", "service_class": "preemptible"},
    {"name": "batch", "tenant": "other", "service_class": "spot", "limit": {"slots": 1}},
    {"name": "two-a", "tenant": "two", "service_class": "elastic", "baseline": {"slots": 1}},
    {"name": "two-b", "tenant": "two", "service_class": "spot"},
)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def config(policy: Any = "token-pool", /, pool: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Return the configuration of a gate, checked at every event."""
    return {
        "version": 1, "policy": policy, "check_invariants": {"every_events": 1, "on_violation": "stop"},
        "pool": {"profile": PROFILE, "entitlements": list(ENTITLEMENTS), **(pool or {})}, **more,
    }  # fmt: skip


def assert_empty(gate: Any) -> None:
    """Check that every book is back at zero."""
    core: GatewayCore = gate.core
    assert len(gate) == 0
    assert not core.pool.in_flight
    assert not core.held
    for book in core.pool.entitlements.values():
        assert (book.in_flight, book.reserved_tokens) == (0, 0), book
    for replica in core.pool.replicas:
        assert (replica.in_flight, replica.outstanding_tokens) == (0, 0), replica


def worked(gate: Any, entitlement: str) -> float:
    """Return the tokens that an entitlement was charged for."""
    tokens: float = gate.core.pool.entitlements[entitlement].worked_tokens
    return tokens


def parity(file: Path) -> Parity:
    """Return what a fresh core says to a recording; all of it must be the same."""
    found = check_parity(file)
    assert found.differing == 0, found.different
    return found
