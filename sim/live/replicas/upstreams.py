"""The replicas: OpenAI-compatible servers, asked through one pool of connections, looked at for health and load.

A replica is ready while its /health answers. One that cannot be reached is taken out at once and looked at again; every
change tells the core, with the capacity that the ready ones provide.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from policies.api import CapacityChanged, Event, PoolCapacity, ReplicaReport
from sim.json_text import is_text
from sim.live.gateway.descriptors import exhausted
from sim.live.gateway.headers import bearer_header
from sim.live.gateway.settings import Timeouts, UpstreamAddress
from sim.live.replicas.engine_metrics import read_gauges
from sim.live.replicas.http_client import HttpClient, UpstreamError

LOG = logging.getLogger("tokenpools.upstreams")

_FAILURES_TO_LEAVE = 3
"""A server with much to do may miss one or two looks; one that refuses connections is out at once. [choice]"""
_SCRAPE_S = 5.0
_KEEP_S = 4.0
"""An idle connection is closed here before the server does it: uvicorn, and so vLLM, waits 5 s. A request that is sent
while the server closes is lost."""
_MOST_METRICS_BYTES = 8 * 2**20


class OutOfDescriptorsError(Exception):
    """The process could open no connection; that is no upstream's fault."""


@dataclass(slots=True, eq=False)
class Replica:
    """One upstream and how it is.

    Attributes
    ----------
    models : what it says it serves.
    max_model_tokens : the longest context of each model, where it says so.
    failures : looks at its health in a row that failed.
    tells_usage : whether its streams can tell the usage so far with each event: vLLM's can.
    """

    replica_id: int
    address: UpstreamAddress
    ready: bool = False
    models: dict[str, int | None] = field(default_factory=dict)
    failures: int = 0
    tells_usage: bool = False

    def url(self, raw_path: str) -> str:
        """Return where a path is."""
        return self.address.base_url + raw_path


class Upstreams:
    """All replicas of the pool. Begin with `open`; every method belongs to one loop.

    Parameters
    ----------
    capacity_of : what so many ready replicas provide.
    emit : told of changes of capacity and of the replicas' metrics.
    scrape_every_s : between two looks at the replicas' metrics; None for never.
    """

    def __init__(
        self, addresses: Iterable[UpstreamAddress], *, timeouts: Timeouts, capacity_of: Callable[[int], PoolCapacity],
        emit: Callable[[Event], None], now_s: Callable[[], float], scrape_every_s: float | None,
    ) -> None:
        self._timeouts = timeouts
        self._capacity_of = capacity_of
        self._emit = emit
        self._now_s = now_s
        self._scrape_every_s = scrape_every_s
        self._client: HttpClient | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._looks: dict[int, asyncio.Event] = {}
        self._told: tuple[tuple[int, ...], int | None] | None = None
        self._slots: int | None = None
        self.replicas = {number: Replica(number, address) for number, address in enumerate(addresses)}

    @property
    def client(self) -> HttpClient:
        """What asks them."""
        assert self._client is not None, "Upstreams.open comes first"
        return self._client

    async def open(self) -> None:
        """Look at every replica once, and from then on in the background."""
        self._client = HttpClient(connect_s=self._timeouts.connect_s, keep_s=_KEEP_S)
        await asyncio.gather(*(self._look(replica) for replica in self.replicas.values()))
        self._tell()
        for replica in self.replicas.values():
            self._watch(replica)

    async def close(self) -> None:
        """Stop looking, and close all connections."""
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.close()

    def add(self, replica_id: int, address: UpstreamAddress) -> None:
        """Take a replica in; it is ready once its health says so."""
        self.replicas[replica_id] = replica = Replica(replica_id, address)
        self._watch(replica)

    def remove(self, replica_id: int) -> None:
        """Send nothing more to a replica. What it has goes on."""
        if self.replicas.pop(replica_id, None) is not None:
            self._tasks.pop(replica_id).cancel()
            del self._looks[replica_id]
            self._tell()

    def unreachable(self, replica_id: int) -> None:
        """Take out a replica that refused a connection, until its health answers again."""
        replica = self.replicas.get(replica_id)
        if replica is not None and replica.ready:
            LOG.warning("upstream %s refuses connections; nothing is sent there until it answers", replica.address.name)
            replica.ready = False
            replica.failures = _FAILURES_TO_LEAVE
            self._tell()
            self._looks[replica_id].set()

    def ready(self) -> list[Replica]:
        """Return the replicas that take requests."""
        return [replica for replica in self.replicas.values() if replica.ready]

    def models(self) -> set[str]:
        """Return what the replicas serve; empty where none says."""
        return {name for replica in self.replicas.values() for name in replica.models}

    async def post(self, path: str, body: dict[str, Any], timeout_s: float) -> Any:
        """Ask some ready replica and return its JSON answer, None where there is none."""
        for replica in self.ready():
            try:
                answer = await self._fetch(replica, path, timeout_s, body)
            except OutOfDescriptorsError:
                return None
            return None if answer is None else json_object(answer)
        return None

    # ----------------------------------------------------------------------------------------------------------------

    def _watch(self, replica: Replica) -> None:
        self._looks[replica.replica_id] = asyncio.Event()
        self._tasks[replica.replica_id] = asyncio.get_running_loop().create_task(self._attend(replica))

    async def _attend(self, replica: Replica) -> None:
        """Look at one replica for as long as it is one."""
        loop = asyncio.get_running_loop()
        now = self._looks[replica.replica_id]
        next_scrape_s = loop.time()
        every_s = self._timeouts.health_every_s
        while True:
            wait_s = every_s if self._scrape_every_s is None else min(every_s, self._scrape_every_s)
            try:
                await asyncio.wait_for(now.wait(), wait_s)
                now.clear()
                await asyncio.sleep(min(0.1, every_s))
            except TimeoutError:
                pass
            try:
                await self._look(replica)
                self._tell()
                if replica.ready and self._scrape_every_s is not None and loop.time() >= next_scrape_s:
                    next_scrape_s = loop.time() + self._scrape_every_s
                    await self._scrape(replica)
            except Exception:  # looking on must not end because one look went wrong
                LOG.exception("looking at upstream %s failed", replica.address.name)

    async def _look(self, replica: Replica) -> None:
        """Ask for its health; three failures in a row take it out, one success takes it in.

        Where this process can open no connection, nothing is known of it, and it stays what it was.
        """
        try:
            await self._look_once(replica)
        except OutOfDescriptorsError:
            LOG.warning("no descriptors are left to look at upstream %s; it stays what it was", replica.address.name)

    async def _look_once(self, replica: Replica) -> None:
        answer = await self._fetch(replica, "/health", self._timeouts.health_s)
        if answer is None:
            replica.failures += 1
            if replica.ready and replica.failures >= _FAILURES_TO_LEAVE:
                LOG.warning("upstream %s is not healthy; nothing is sent there until it is", replica.address.name)
                replica.ready = False
            elif not replica.ready and replica.failures == 1:  # it was never there; said once
                LOG.warning("upstream %s does not answer; nothing is sent there until it does", replica.address.name)
            return
        replica.failures = 0
        if not replica.ready or not replica.models:
            await self._learn_models(replica)
        if not replica.ready:
            LOG.info("upstream %s is ready", replica.address.name)
            replica.ready = True

    async def _learn_models(self, replica: Replica) -> None:
        answer = json_object(await self._fetch(replica, "/v1/models", self._timeouts.health_s) or b"")
        cards = None if answer is None else answer.get("data")
        if isinstance(cards, list):
            replica.tells_usage = any(isinstance(card, dict) and card.get("owned_by") == "vllm" for card in cards)
            replica.models = {
                card["id"]: card.get("max_model_len") for card in cards
                if isinstance(card, dict) and isinstance(card.get("id"), str) and is_text(card["id"])
            }  # fmt: skip

    async def _scrape(self, replica: Replica) -> None:
        try:
            text = await self._fetch(replica, "/metrics", _SCRAPE_S)
        except OutOfDescriptorsError:
            return
        values = None if text is None else read_gauges(text.decode(errors="replace"))
        if values is not None:
            self._emit(ReplicaReport(replica.replica_id, self._now_s(), int(values[0]), int(values[1]), values[2]))

    async def _fetch(
        self, replica: Replica, path: str, timeout_s: float, body: dict[str, Any] | None = None
    ) -> bytes | None:
        """Return the body of an answer below 500 (health: below 400), None for anything else."""
        headers = bearer_header(replica.address.api_key)
        data = b"" if body is None else json.dumps(body).encode()
        if body is not None:
            headers.append((b"content-type", b"application/json"))
        try:
            async with asyncio.timeout(timeout_s):
                async with await self.client.request(
                    "GET" if body is None else "POST", replica.url(path), headers=headers, body=data
                ) as answer:
                    content = await answer.content.read(_MOST_METRICS_BYTES)
                    return content if answer.status < (500 if path == "/health" else 400) else None
        except (UpstreamError, OSError, TimeoutError, ValueError) as error:
            if exhausted(error):
                raise OutOfDescriptorsError from error
            return None

    def _tell(self) -> None:
        """Tell the core who is ready, if that has changed."""
        ready = tuple(sorted(replica.replica_id for replica in self.replicas.values() if replica.ready))
        if (ready, self._slots) != self._told:
            self._told = ready, self._slots
            self._emit(CapacityChanged(self._capacity_of(len(ready)).limited_to(self._slots), ready))

    def recount(self, capacity_of: Callable[[int], PoolCapacity]) -> None:
        """Take so many ready replicas to provide something else, and tell the core."""
        self._capacity_of = capacity_of
        self._told = None
        self._tell()

    def set_slots(self, slots: int | None) -> None:
        """Take the pool to have at most so many slots, whatever its replicas provide; None for what they provide."""
        self._slots = slots
        self._tell()


def json_object(text: bytes) -> dict[str, Any] | None:
    """Return the object that an answer holds in JSON, None where it holds none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
