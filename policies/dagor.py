"""An admission level that moves with queueing time: WeChat's DAGOR (arXiv 1806.04075).

Every request has a priority, its class first and then a hash of its user, and comes in if that is at most the level.
Each period the level moves by the histogram of what came: down until a share alpha less than last time would come in
where the pool is overloaded, else up until a share beta more would. Overloaded is a mean time to first token above
``threshold_s``, or, in a period without any, one that waits longer: DAGOR's 20 ms of queueing are below one iteration
of a large model.

A period ends after ``period_s`` or ``period_requests``, whichever is first; requests are counted when one of them is
let in. A gateway sees keys, not users: all requests of an entitlement have one hash, renewed every hour, of the number
that it got when it first came, so that a name is worth nothing. With few entitlements the level moves in large steps.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.api import ADMIT, Chance, Deny, EntitlementSpec, Gauge, InFlight, PoolLedger, Reason, RequestView, Verdict
from policies.no_control import NoControlPolicy
from policies.parts.orders import CLASS_RANK
from policies.parts.room import Room

_USERS = 128
_LEVELS = _USERS * len(CLASS_RANK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dagor:
    """An admission level over (class, hash of the entitlement) that moves with the time to first token (DAGOR)."""

    kind: Literal["dagor"] = "dagor"
    threshold_s: float = field(
        default=1.0, metadata={"gt": 0, "description": "give a mean TTFT in seconds that is overload, e.g. 1"}
    )
    period_s: float = field(default=1.0, metadata={"gt": 0, "description": "give seconds between moves, e.g. 1"})
    period_requests: int = field(
        default=2000, metadata={"gt": 0, "description": "give the requests after which it moves too, e.g. 2000"}
    )
    alpha: float = field(
        default=0.05, metadata={"gt": 0, "lt": 1, "description": "give the share less under overload, e.g. 0.05"}
    )
    beta: float = field(default=0.01, metadata={"gt": 0, "lt": 1, "description": "give the share more else, e.g. 0.01"})
    rotate_s: float = field(default=3600.0, metadata={"gt": 0, "description": "give seconds between new hashes, 3600"})


class DagorPolicy(NoControlPolicy):
    """See `policies.api.AdmissionPolicy`. The level is over classes times 128; all of them come in at first."""

    wants_progress = True

    def __init__(
        self, params: Dagor, *, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None,
        chance: Chance,  # noqa: ARG002
    ) -> None:
        self.tick_s: float | None = params.period_s
        self._params = params
        self._room = Room(kv_bytes_per_token, 1.0)
        self._classes = {
            spec.name: CLASS_RANK[spec.service_class] for spec in sorted(entitlements, key=lambda spec: spec.name)
        }
        self._level = _LEVELS - 1
        self._turn = -1
        self._numbers: dict[str, int] = {}
        self._keys: dict[str, int] = {}
        self._rotate(0.0)
        self._came = dict.fromkeys(self._classes, 0)
        self._seen = dict.fromkeys(self._classes, 0)
        self._seen_in_period = 0
        self._moved_s = 0.0
        self._waited_s = 0.0
        self._firsts = 0
        self._unstarted: dict[str, float] = {}

    def _rotate(self, now_s: float) -> None:
        turn = int(now_s // self._params.rotate_s)
        if turn != self._turn:
            self._turn = turn
            self._keys = {name: self._hashed(name) for name in self._numbers}

    def _hashed(self, name: str) -> int:
        number = zlib.crc32(f"{self._turn}/{self._numbers[name]}".encode())
        return self._classes[name] * _USERS + number % _USERS

    def decide(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Verdict:  # noqa: ARG002
        """Let it in if its priority is at most the level."""
        too_large = self._room.too_large(request, max_output_tokens, pool)
        if too_large is not None:
            return too_large
        name = request.entitlement
        if name not in self._numbers:
            self._numbers[name] = len(self._numbers)
            self._keys[name] = self._hashed(name)
        key = self._keys[name]
        if key <= self._level:
            return ADMIT
        return Deny(Reason.OVERLOADED, key, self._level, self._params.period_s)

    def on_admitted(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Wait for its first token, and end the period if enough have come."""
        if not flight.prompt_credited:
            self._unstarted[flight.request.request_id] = now_s
        name = flight.request.entitlement
        total = flight.ledger.admitted + flight.ledger.refused
        self._seen_in_period += total - self._seen[name]
        self._seen[name] = total
        if self._seen_in_period >= self._params.period_requests:
            self._move(pool, now_s)

    def on_ended(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Wait for it no longer."""
        self._unstarted.pop(flight.request.request_id, None)

    def on_first_token(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Take a sample."""
        self._unstarted.pop(flight.request.request_id, None)
        self._waited_s += max(0.0, now_s - flight.forwarded_s)
        self._firsts += 1

    def on_tick(self, pool: PoolLedger, now_s: float) -> None:
        """Move the level by what came in this period, unless that has just ended."""
        self._rotate(now_s)
        if now_s - self._moved_s >= self._params.period_s * (1 - 1e-9):
            self._move(pool, now_s)

    def _move(self, pool: PoolLedger, now_s: float) -> None:
        histogram: list[tuple[int, int]] = []
        for name, before in self._came.items():
            if name not in self._numbers:  # nothing of it came: what counts is that its class is there
                histogram.append((self._classes[name] * _USERS, 0))
                continue
            book = pool.entitlements[name]
            total = book.admitted + book.refused
            histogram.append((self._keys[name], total - before))
            self._came[name] = self._seen[name] = total
        self._moved_s, self._seen_in_period = now_s, 0
        histogram.sort()
        within = sum(count for key, count in histogram if key <= self._level)
        if self._overloaded(now_s):
            self._level = self._lowered(histogram, within)
        else:
            self._level = self._raised(histogram, within)
        self._waited_s, self._firsts = 0.0, 0

    def _overloaded(self, now_s: float) -> bool:
        """Whether first tokens took too long; in a period without any, whether the oldest that waits has."""
        if self._firsts:
            return self._waited_s / self._firsts > self._params.threshold_s
        oldest_s = next(iter(self._unstarted.values()), now_s)
        return now_s - oldest_s > self._params.threshold_s

    def _lowered(self, histogram: list[tuple[int, int]], within: int) -> int:
        """Shut out priorities, the least important first, until few enough are left; the most important stays."""
        left, level, lowest = within, self._level, histogram[0][0]
        for key, count in reversed(histogram):
            if key > self._level or key == lowest:
                continue
            if left <= (1 - self._params.alpha) * within:
                break
            left -= count
            level = key - 1
        return level

    def _raised(self, histogram: list[tuple[int, int]], within: int) -> int:
        """Let priorities in, the most important first, until enough come."""
        come = within
        for key, count in histogram:
            if key <= self._level:
                continue
            come += count
            if (come > within and come >= within * (1 + self._params.beta)) or key == histogram[-1][0]:
                return _LEVELS - 1 if key == histogram[-1][0] else key
        return _LEVELS - 1

    def on_capacity(self, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Take note of how large a request may be."""
        self._room.learn(pool)

    def gauges(self, pool: PoolLedger, now_s: float) -> Iterable[Gauge]:  # noqa: ARG002
        """Return the level, from 0 to 1."""
        yield Gauge("pool", "pool", "level", (self._level + 1) / _LEVELS)
