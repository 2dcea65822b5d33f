"""What would have let a request in: questions put to copies of the gateway core, one question each."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from policies.api import Arrived, Finished, Forward, RequestView, Tick
from policies.core import GatewayCore
from policies.snapshot import restore

WAITS_S = (1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0, 60.0, 120.0)
"""How long a what-if waits."""


def what_ifs(copy: object, request: RequestView, max_output_tokens: int, now_s: float) -> Iterator[str]:
    """Yield sentences about what would have let the request in, each found on a fresh copy of the core."""
    yield _by_asking_less(copy, request, max_output_tokens, now_s)
    yield _by_waiting(copy, request, now_s)
    yield from _by_ends(copy, request, now_s)
    others = [
        name for name in _copy(copy).pool.entitlements
        if name != request.entitlement and _let_in(copy, request._replace(entitlement=name), now_s)
    ]  # fmt: skip
    if others:
        yield f"under another entitlement: {', '.join(others)} would have been let in"
    else:
        yield "under no other entitlement"


def _by_asking_less(copy: object, request: RequestView, max_output_tokens: int, now_s: float) -> str:
    low, high = 0, max_output_tokens  # let in with `low` (if above 0), not with `high`
    if not _let_in(copy, request._replace(max_output_tokens=1), now_s):
        return "no smaller max_tokens would have helped"
    low = 1
    while high - low > 1:
        middle = (low + high) // 2
        if _let_in(copy, request._replace(max_output_tokens=middle), now_s):
            low = middle
        else:
            high = middle
    return f"with max_tokens of at most {low:,} instead of {max_output_tokens:,}"


def _by_waiting(copy: object, request: RequestView, now_s: float) -> str:
    for wait_s in WAITS_S:
        core = _copy(copy)
        tick_s = core._policy.tick_s
        if tick_s is not None:
            for k in range(1, int(min(wait_s / tick_s, 1000.0)) + 1):
                core.handle(Tick(), now_s + k * tick_s)
        if _forwards(core, request, now_s + wait_s):
            return f"{wait_s:g} s later, if nobody else had come and nothing ended before"
    return f"not by waiting up to {WAITS_S[-1]:g} s while nothing ends"


def _by_ends(copy: object, request: RequestView, now_s: float) -> Iterator[str]:
    """Yield how many requests would have had to end first: of its own entitlement, and of anybody."""
    for own in (True, False):
        running = [
            flight for flight in _copy(copy).pool.in_flight.values()
            if not own or flight.request.entitlement == request.entitlement
        ]  # fmt: skip
        whose = f"of the {len(running)} in flight" + (" of its own" if own else "")
        if not running:
            continue
        if not _let_in_after(copy, request, running, len(running), now_s):
            yield f"not even with all {whose} ended"
            continue
        low, high = 0, len(running)  # let in after `high` ends, not after `low`
        while high - low > 1:
            middle = (low + high) // 2
            if _let_in_after(copy, request, running, middle, now_s):
                high = middle
            else:
                low = middle
        yield f"with the {f'{high} ' if high > 1 else ''}longest running {whose} ended"


def _let_in_after(copy: object, request: RequestView, running: Sequence[Any], ends: int, now_s: float) -> bool:
    core = _copy(copy)
    for flight in running[:ends]:
        if flight.request.request_id in core.pool.in_flight:
            core.handle(Finished(flight.request.request_id, max(1, flight.output_tokens)), now_s)
    return _forwards(core, request, now_s)


def _let_in(copy: object, request: RequestView, now_s: float) -> bool:
    return _forwards(_copy(copy), request, now_s)


def _copy(copy: object) -> GatewayCore:
    return restore(copy, chance=random.Random)


def _forwards(core: GatewayCore, request: RequestView, now_s: float) -> bool:
    said = core.handle(Arrived(request), now_s)
    return any(isinstance(step, Forward) and step.request_id == request.request_id for step in said)
