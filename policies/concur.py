"""Admission by agent: so many agents at a time, a number that follows how full and how useful the KV cache is.

An agent that is let in keeps its place from call to call, so that its text stays in a cache; one more that does not fit
waits with its first call. While the KV cache is nearly empty the number grows by ``add``; when it is full and prefixes
are found no longer, which is thrashing, it is multiplied by ``keep``. Whoever is then over it is paused at its next
call, never in the middle of one, and comes back before anybody new.

Source: CONCUR, arXiv 2601.22705, from reports on it (the numbers are of one that read it whole). Not found there: how
often the number is looked at and where it begins. [choice: 1 s, 8] A gateway does not see that an agent has ended, so
the place of one that was silent for ``idle_s`` is free. [choice]
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.api import Chance, EntitlementSpec, Gauge, InFlight, PoolLedger, RequestView
from policies.parts.idle import refuse_idle
from policies.parts.lines import Waiting
from policies.parts.queueing import QueueingPolicy
from policies.parts.waits import Waits

_EVERYTHING = 10**9
_SHARE = {"ge": 0, "le": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Concur(Waits):
    """So many agents at a time, found by additive increase and multiplicative decrease on the KV cache (CONCUR).

    An agent is a session; a request without one is an agent of one call. Replicas' reports say how full the KV cache
    is, finished requests which share of their prompts was found there.
    """

    kind: Literal["concur"] = "concur"
    agents: int = field(default=8, metadata={"ge": 1, "description": "give the agents to begin with, e.g. 8"})
    add: float = field(default=2.0, metadata={"gt": 0, "description": "give agents to add while there is room, e.g. 2"})
    keep: float = field(default=0.5, metadata={"gt": 0, "lt": 1, "description": "give what thrashing leaves, e.g. 0.5"})
    room_below: float = field(
        default=0.2, metadata={**_SHARE, "description": "give the KV share in use below which there is room, e.g. 0.2"}
    )
    full_above: float = field(
        default=0.5, metadata={**_SHARE, "description": "give the KV share in use above which it may thrash, e.g. 0.5"}
    )
    hits_below: float = field(
        default=0.2,
        metadata={**_SHARE, "description": "give the share of prompts found below which it thrashes, e.g. 0.2"},
    )
    idle_s: float = field(
        default=60.0, metadata={"gt": 0, "description": "give seconds after which a silent agent's place is free, 60"}
    )

    def __post_init__(self) -> None:
        refuse_idle(self, "occupancy", "the number of agents alone decides how much is let in", "give agents")


class ConcurPolicy(QueueingPolicy):
    """See `policies.parts.queueing.QueueingPolicy`. The replicas' room does not matter, only the number of agents."""

    wants_reports = True
    wants_sessions = True

    def __init__(
        self, params: Concur, *, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None,  # noqa: ARG002
        chance: Chance,  # noqa: ARG002
    ) -> None:
        super().__init__(params, kv_bytes_per_token, _EVERYTHING)
        self._params = params
        self._most = float(params.agents)
        self._active: dict[str, float] = {}  # agents with a place, and when they were last heard of
        self._running: dict[str, int] = {}  # calls in flight of each
        self._paused: OrderedDict[str, None] = OrderedDict()
        # Calls that wait, by agent: of those with a place, of paused ones, of new ones.
        self._calls: dict[str, OrderedDict[str, Waiting]] = {}
        self._new: OrderedDict[str, None] = OrderedDict()
        self._placed: OrderedDict[str, None] = OrderedDict()
        self._prompt_tokens = self._cached_tokens = 0
        self._hits = 1.0

    @property
    def agents_allowed(self) -> int:
        """How many agents may have a place now."""
        return max(1, math.floor(self._most))

    @staticmethod
    def _agent(request: RequestView) -> str:
        return request.session or request.request_id

    def flow_of(self, request: RequestView) -> str:
        """Return its agent."""
        return self._agent(request)

    def _keeps(self, agent: str) -> bool:
        """Whether an agent with a place goes on: one that has no call in flight is paused while there are too many."""
        return agent in self._active and (len(self._active) <= self.agents_allowed or bool(self._running.get(agent)))

    def may_start(self, request: RequestView, need_tokens: int, pool: PoolLedger, now_s: float) -> bool:  # noqa: ARG002
        """Whether its agent has a place, or there is one for it."""
        agent = self._agent(request)
        if not pool.capacity.ready_replicas:
            return False
        return self._keeps(agent) if agent in self._active else len(self._active) < self.agents_allowed

    def joined(self, item: Waiting, now_s: float) -> None:  # noqa: ARG002
        """Put a call behind those of its agent; one that has a place and may not go on gives it up."""
        agent = item.flow
        self._calls.setdefault(agent, OrderedDict())[item.request.request_id] = item
        if self._keeps(agent):
            self._placed[agent] = None
        elif agent in self._active:
            del self._active[agent]
            self._paused[agent] = None
        elif agent not in self._paused:
            self._new[agent] = None

    def left(self, item: Waiting, now_s: float) -> None:  # noqa: ARG002
        """Take a call out; an agent without any waits no longer."""
        item.gone = True
        calls = self._calls[item.flow]
        del calls[item.request.request_id]
        if not calls:
            del self._calls[item.flow]
            for queue in (self._placed, self._paused, self._new):
                queue.pop(item.flow, None)

    def next(self, pool: PoolLedger, now_s: float) -> Waiting | None:  # noqa: ARG002
        """Return a call of an agent with a place; else, while there are places, of a paused one, then of a new one."""
        queues = [self._placed]
        if len(self._active) < self.agents_allowed:
            queues += [self._paused, self._new]
        for queue in queues:
            if queue:
                return next(iter(self._calls[next(iter(queue))].values()))
        return None

    def on_admitted(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Give its agent a place; what else waits of it may go, too."""
        super().on_admitted(flight, pool, now_s)
        agent = self._agent(flight.request)
        self._active[agent] = now_s
        self._running[agent] = self._running.get(agent, 0) + 1
        for queue in (self._paused, self._new):
            queue.pop(agent, None)
        if agent in self._calls:
            self._placed[agent] = None
        self.taken(flight)

    def on_ended(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:
        """Count what was found in a cache; the place stays, but of a request that stands alone."""
        super().on_ended(flight, pool, now_s)
        agent = self._agent(flight.request)
        self._prompt_tokens += flight.request.prompt_tokens
        self._cached_tokens += flight.cached_tokens
        self._running[agent] -= 1
        if not self._running[agent]:
            del self._running[agent]
        if agent in self._active:
            if flight.request.session:
                self._active[agent] = now_s
            elif agent not in self._running:
                del self._active[agent]

    def on_tick(self, pool: PoolLedger, now_s: float) -> None:
        """Move the number, and free the places of who was silent too long."""
        params = self._params
        if self._prompt_tokens:
            self._hits = self._cached_tokens / self._prompt_tokens
            self._prompt_tokens = self._cached_tokens = 0
        used = [book.report.kv_used_fraction for book in pool.replicas if book.ready and book.report is not None]
        mean = math.fsum(used) / len(used) if used else 0.0
        if mean < params.room_below:
            self._most += params.add
        elif mean > params.full_above and self._hits < params.hits_below:
            self._most = max(1.0, math.floor(params.keep * self._most))
        oldest_s = now_s - params.idle_s
        for agent in [one for one, heard_s in self._active.items() if heard_s < oldest_s and one not in self._running]:
            if agent not in self._calls:
                del self._active[agent]

    def gauges(self, pool: PoolLedger, now_s: float) -> Iterable[Gauge]:
        """Return how many agents have a place, may have one, and are paused."""
        yield from super().gauges(pool, now_s)
        yield Gauge("pool", "pool", "agents", len(self._active))
        yield Gauge("pool", "pool", "agents_allowed", self.agents_allowed)
        yield Gauge("pool", "pool", "agents_paused", len(self._paused))
