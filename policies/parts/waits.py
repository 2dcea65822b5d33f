"""What every policy that queues can be told.

Apart from `policies.parts.queueing`, which mypyc compiles: settings stay plain Python.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

REQUESTS = {"gt": 0, "description": "give how many requests may wait, e.g. 5000"}
TIMEOUT = {"gt": 0, "description": "give how long a request may wait, in seconds, e.g. 60, or null for no limit"}
TIMEOUT_STATUS = {"description": "give the status of who waited too long: 408, 429 or 504"}
TICK = {"gt": 0, "description": "give seconds between looks at the queues, e.g. 1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """What every policy that queues can be told; the defaults are llm-d's."""

    kind: str = ""
    queue_requests: int = field(default=5000, metadata=REQUESTS)
    queue_tokens: int | None = field(
        default=None, metadata={"gt": 0, "description": "give prompt tokens that may wait, e.g. 200000; left out, any"}
    )
    timeout_s: float | None = field(default=60.0, metadata=TIMEOUT)
    timeout_status: Literal[408, 429, 504] = field(default=408, metadata=TIMEOUT_STATUS)
    occupancy: float = field(
        default=1.0,
        metadata={"gt": 0, "description": "give the share of the replicas' slots and KV cache to fill, e.g. 1.0"},
    )
    tick_s: float = field(default=1.0, metadata=TICK)
