"""What the asyncio driver does with instructions, by hand on a virtual loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from parity.virtual_loop import VirtualLoop

from policies.api import (
    Arrived,
    Cancelled,
    EntitlementSpec,
    Event,
    Evict,
    Failed,
    Finished,
    Forward,
    PoolCapacity,
    Progress,
    Refuse,
    RequestView,
    ServiceClass,
)
from policies.core import GatewayCore
from policies.no_control import NoControlPolicy
from policies.routing import LeastOutstandingTokensRouter
from sim.live.gateway.core_driver import AsyncGateway


class Upstream:
    def __init__(self) -> None:
        self.started: list[tuple[str, int]] = []
        self.aborted: list[str] = []

    def start(self, request: RequestView, forward: Forward, emit: Callable[[Event], None]) -> None:
        self.started.append((request.request_id, forward.replica_id))

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def progress(self) -> Iterable[Progress]:
        return ()


def gateway(retry_failed: bool = False) -> tuple[AsyncGateway, Upstream, list[Refuse | Evict | Failed]]:
    upstream, told = Upstream(), list[Refuse | Evict | Failed]()
    core = GatewayCore(
        entitlements=[EntitlementSpec(name="e", tenant="t", service_class=ServiceClass.SPOT)],
        capacity=PoolCapacity(2, 8), replica_ids=[0, 1], policy=NoControlPolicy(),
        router=LeastOutstandingTokensRouter(), retry_failed=retry_failed, max_context_tokens=100,
    )
    made = AsyncGateway(core, upstream, loop=VirtualLoop(), answer=told.append)
    made.start()
    return made, upstream, told


def asks(name: str, prompt_tokens: int = 8) -> Arrived:
    return Arrived(RequestView(name, "e", "t", prompt_tokens, 8))


def test_a_failure_is_told_once_no_other_replica_takes_the_request() -> None:
    made, upstream, told = gateway(retry_failed=True)
    made.send(asks("r"))
    made.send(Failed("r"))
    assert upstream.started == [("r", 0), ("r", 1)]
    assert told == []
    made.send(Failed("r", 3))
    assert told == [Failed("r", 3)]
    assert not made.core.pool.in_flight


def test_refusals_are_told_and_finished_requests_are_forgotten() -> None:
    made, upstream, told = gateway()
    made.send(asks("big", 1000))
    made.send(asks("r"))
    made.send(Finished("r", 8))
    made.send(Failed("r"))  # too late
    assert [type(each) for each in told] == [Refuse]
    assert upstream.started == [("r", 0)]
    assert made.core.late_events == 1
    assert not made.requests
    assert not made.running


def test_a_client_that_left_stops_the_upstream_and_hears_nothing() -> None:
    made, upstream, told = gateway()
    made.send(asks("r"))
    made.send(Cancelled("r", 2))
    assert upstream.aborted == ["r"]
    assert told == []
    assert not made.core.pool.in_flight


def test_what_other_gateways_requests_do_changes_the_books_alone() -> None:
    made, upstream, told = gateway()
    made.deliver(asks("theirs"), 0.0)
    made.deliver(asks("big", 1000), 0.0)
    assert upstream.started == []
    assert list(made.core.pool.in_flight) == ["theirs"]
    made.send(asks("r"))
    assert upstream.started == [("r", 1)]  # the other replica has one already
    made.deliver(Failed("theirs"), 0.0)
    assert told == []
