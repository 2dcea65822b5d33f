"""The contracts of routers, arrival laws and clients."""

from __future__ import annotations

import copy
import json
import math
import random
from typing import Any

import numpy as np

from policies import snapshot
from policies.api import ReplicaLedger, RequestView
from policies.core import GatewayCore
from policies.no_control import NoControl
from sim.scenario import plugins
from tokenpools.testing.contract import Contract
from tokenpools.testing.policy_contract import Auditor, make_core

__all__ = ["ArrivalsContract", "ClientContract", "Contract", "RouterContract"]


class RouterContract(Contract):
    """The suite of routers: objects of the router's class are its examples."""

    def test_it_names_a_ready_replica_or_none(self, params: Any) -> None:
        """The replica is one of those handed over, and ready; None only where none is."""
        chance = random.Random(1)
        router = built_router(params)
        for number in range(500):
            replicas = [
                ReplicaLedger(i, chance.random() < 0.7, chance.randrange(8), chance.randrange(4000)) for i in range(4)
            ]
            before = repr(replicas)
            chosen = router.route(RequestView(f"r{number}", "a", "t", 10, 50), replicas)
            ready = {book.replica_id for book in replicas if book.ready}
            assert chosen in ready or (chosen is None and not ready), f"{chosen}, of the ready {sorted(ready)}"
            assert repr(replicas) == before, "it changes the books that it is shown"

    def test_the_same_history_gives_the_same_replicas(self, params: Any) -> None:
        """Nothing but what it is told decides."""
        assert self._history(params) == self._history(params)

    def test_a_core_restored_from_a_snapshot_goes_on_identically(self, params: Any) -> None:
        """Its memory can be written down."""
        chance = random.Random(2)
        todo = [(chance.choice(["arrive", "arrive", "finish"]), chance.randrange(40), 50) for _ in range(60)]
        auditor = Auditor(make_core(NoControl(), router=params))
        for step in todo:
            auditor.step(*step)
        twin = copy.copy(auditor)
        twin.offered, twin.flying, twin.held = list(auditor.offered), dict(auditor.flying), set(auditor.held)
        twin.said = list(auditor.said)
        twin.core = snapshot.restore(json.loads(json.dumps(snapshot.take(auditor.core))), chance=random.Random)
        assert isinstance(twin.core, GatewayCore)
        for each in (auditor, twin):
            for step in todo:
                each.step(*step)
        assert twin.said == auditor.said

    def _history(self, params: Any) -> list[int | None]:
        router = built_router(params)
        books = [ReplicaLedger(i, True, 0, 0) for i in range(3)]
        found = []
        for number in range(50):
            found.append(router.route(RequestView(f"r{number}", "a", "t", number % 7, 50), books))
            if found[-1] is not None:
                books[found[-1]].outstanding_tokens += 50 + number
        return found


def built_router(params: Any) -> Any:
    """Return a working router of an object of a router's class."""
    named: Any = plugins.named_object("routers", params)
    return plugins.ROUTER_KINDS[named.kind].build(named)


class ArrivalsContract(Contract):
    """The suite of arrival laws: objects of the law's class are its examples."""

    def test_times_are_sorted_and_within_the_window(self, params: Any) -> None:
        """Sorted, finite, in [from_s, until_s)."""
        for from_s, until_s in ((0.0, 60.0), (30.0, 45.0), (5.0, 5.0)):
            times_s = self._drawn(params, from_s, until_s)
            assert np.isfinite(times_s).all()
            assert (np.diff(times_s) >= 0).all()
            assert ((times_s >= from_s) & (times_s < until_s)).all()

    def test_the_same_stream_gives_the_same_times(self, params: Any) -> None:
        """Nothing but the stream that it is given decides."""
        assert np.array_equal(self._drawn(params, 0.0, 60.0), self._drawn(params, 0.0, 60.0))

    def test_a_limit_keeps_the_first(self, params: Any) -> None:
        """At most so many, and those that would have come first."""
        every = self._drawn(params, 0.0, 60.0)
        for limit in (0, 1, 7):
            assert np.array_equal(self._drawn(params, 0.0, 60.0, limit), every[:limit])

    def test_a_longer_window_moves_nobody(self, params: Any) -> None:
        """It adds arrivals at the end."""
        short = self._drawn(params, 0.0, 30.0)
        assert np.array_equal(self._drawn(params, 0.0, 60.0)[: len(short)], short)

    def test_it_can_be_a_key(self, params: Any) -> None:
        """Demands that were drawn are kept by the law that they were drawn from: equal laws are one."""
        assert hash(params) == hash(copy.deepcopy(params))
        assert params == copy.deepcopy(params)

    def _drawn(self, params: Any, from_s: float, until_s: float, limit: int | None = None) -> Any:
        return params.times_s(np.random.default_rng(7), from_s, until_s, limit)


class ClientContract(Contract):
    """The suite of clients: objects of the client's class are its examples."""

    def test_it_never_comes_back_in_the_past_and_gives_up_at_last(self, params: Any) -> None:
        """Each next attempt is not before the end of the last, and there is a last."""
        ends = (("refused", 429), ("refused", 503), ("refused", 400), ("evicted", 200), ("failed", 502))
        for outcome, status in ends:
            for retry_after_s in (None, 0.5, 30.0):
                now_s = 10.0
                for attempt in range(1, 10_001):
                    again_s = params.next_attempt_s(outcome, status, retry_after_s, attempt, now_s, random.Random(1))
                    if again_s is None:
                        break
                    assert math.isfinite(again_s)
                    assert again_s >= now_s
                    now_s = again_s
                else:
                    raise AssertionError(f"still there after 10,000 attempts of which each was {outcome}")

    def test_what_succeeded_is_not_tried_again(self, params: Any) -> None:
        """A client that got its answer goes."""
        assert params.next_attempt_s("finished", 200, None, 1, 5.0, random.Random(1)) is None

    def test_the_same_chance_gives_the_same_wait(self, params: Any) -> None:
        """Nothing but what it is told decides; without a chance there is no jitter."""
        for chance in (None, 1):
            found = {
                params.next_attempt_s("refused", 429, 2.0, 1, 5.0, None if chance is None else random.Random(chance))
                for _ in range(3)
            }
            assert len(found) == 1

    def test_it_can_be_a_key(self, params: Any) -> None:
        """Demands that were drawn are kept by the client that they were drawn for: equal ones are one."""
        assert hash(params) == hash(copy.deepcopy(params))
