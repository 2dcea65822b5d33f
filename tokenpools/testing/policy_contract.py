"""The contract of policies: what each must do whatever it decides, told to a gateway core at random."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies import snapshot
from policies.api import (
    Adopted,
    Arrived,
    CallMeAt,
    Cancelled,
    CapacityChanged,
    Dozing,
    EntitlementSpec,
    Evict,
    Failed,
    Finished,
    FirstToken,
    Forward,
    Hold,
    Instruction,
    PoolCapacity,
    Progress,
    Reason,
    Refuse,
    ReplicaReport,
    RequestView,
    Resources,
    ServiceClass,
    Tick,
)
from policies.core import GatewayCore
from policies.hierarchy import Hierarchy, HierarchySpec
from sim.scenario import plugins
from tokenpools.testing.contract import Contract

SPECS = [
    EntitlementSpec(
        name=service_class.value, tenant="t", service_class=service_class, ttft_slo_s=1.0 + number,
        baseline=Resources(20.0, 4000.0, 2) if number < 3 else Resources(),
        limit=Resources(20.0, 4000.0, 4) if number == 3 else Resources(),
        from_s=5.0 if number == 1 else 0.0, until_s=40.0 if number == 2 else float("inf"),
    )
    for number, service_class in enumerate(ServiceClass)
]
steps = st.lists(
    st.tuples(
        st.sampled_from(["arrive"] * 6 + ["first", "progress", "finish", "fail", "cancel", "wait", "capacity"]),
        st.integers(0, 40),
        st.integers(1, 200),
    ),
    max_size=80,
)


def make_core(
    params: Any, specs: Sequence[EntitlementSpec] = SPECS, *, slots: int = 6, replicas: int = 2,
    router: Any = "least-outstanding-tokens", tokens_per_s: float | None = 100.0, kv_bytes: float | None = 20_000.0,
    kv_bytes_per_token: float | None = 16.0, seed: int = 1, max_context_tokens: int | None = None,
    above: HierarchySpec | None = None,
) -> GatewayCore:
    """Return a gateway core of a small pool that asks a policy.

    Parameters
    ----------
    params : an object of the policy's class.
    router : the name of a router of tokenpools, or an object of a router's class.
    slots, tokens_per_s, kv_bytes : of the whole pool.
    above : limits and budgets above the entitlements.
    """
    params = plugins.named_object("policies", params)
    policy = plugins.POLICY_KINDS[params.kind].build(
        params, entitlements=specs, kv_bytes_per_token=kv_bytes_per_token, chance=random.Random(seed)
    )
    named = plugins.ROUTER_KINDS[router].params() if isinstance(router, str) else router
    chosen: Any = plugins.named_object("routers", named)
    return GatewayCore(
        entitlements=specs, capacity=PoolCapacity(replicas, slots, tokens_per_s, kv_bytes), replica_ids=range(replicas),
        policy=policy, router=plugins.ROUTER_KINDS[chosen.kind].build(chosen), max_context_tokens=max_context_tokens,
        hierarchy=None if above is None else Hierarchy(above, specs, kv_bytes_per_token),
    )


class Auditor:
    """Drives a core at random, as a world that never breaks the rules, and keeps books of its own."""

    def __init__(self, core: GatewayCore) -> None:
        self.core, self.now_s, self.call_at_s = core, 0.0, float("inf")
        self.offered: list[str] = []
        self.flying: dict[str, int] = {}
        self.held: set[str] = set()
        self.admitted = self.refused = self.withdrawn = 0
        self.said: list[Instruction] = []
        self._obey(core.start(0.0))

    def step(self, what: str, which: int, amount: int) -> None:
        """Do one of the things that `steps` draws, and look at the books."""
        if self.core.wants_reports and what != "cancel":
            for book in self.core.pool.replicas:
                waiting = max(0, book.in_flight - 3)
                kv_used = 0.1 * which % 1
                self._send(ReplicaReport(book.replica_id, self.now_s, book.in_flight - waiting, waiting, kv_used))
        known = sorted(self.flying) + sorted(self.held)
        if what == "arrive":
            name = f"r{len(self.offered)}"
            self.offered.append(name)
            entitlement = SPECS[which % len(SPECS)].name
            most = None if amount % 7 == 0 else amount
            self._send(Arrived(RequestView(name, entitlement, "t", 1 + which, most)))
        elif what == "wait":
            self._wait(self.now_s + amount / 20)
        elif what == "capacity":
            ready = ((), (0,), (1,), (0, 1))[which % 4]
            self._send(CapacityChanged(PoolCapacity(len(ready), 3 * len(ready), 100.0, 20_000.0), ready))
        elif known:
            self._about(what, known[which % len(known)], amount)
        self.audit()

    def adopt(self, which: int, credited: bool) -> None:
        """Bring a request that runs already."""
        name = f"r{len(self.offered)}"
        self.offered.append(name)
        request = RequestView(name, SPECS[which].name, "t", 1 + which, None)
        self.flying[name] = 0
        self.admitted += 1
        self._send(Adopted(request, which, 50, self.now_s - 1, credited, 3 if credited else 0))
        self.audit()

    def end(self, order: random.Random) -> None:
        """End all that is in flight or held."""
        while known := sorted(self.flying) + sorted(self.held):
            self._about(order.choice(["finish", "fail", "cancel"]), order.choice(known), order.randint(0, 50))
            self._wait(self.now_s + order.random())
            self.audit()

    def audit(self) -> None:
        """Hold the books against what was seen."""
        core = self.core
        books = core.pool.entitlements.values()
        assert len(self.offered) == self.admitted + self.refused + len(self.held) + self.withdrawn
        assert sum(book.admitted for book in books) == self.admitted
        assert sum(book.refused for book in books) == self.refused
        assert core.withdrawn == self.withdrawn
        assert set(core.pool.in_flight) == set(self.flying)
        for book in books:
            mine = [flight for flight in core.pool.in_flight.values() if flight.ledger is book]
            assert book.in_flight == len(mine)
            assert book.reserved_tokens == sum(flight.reserved_tokens for flight in mine)
        for replica in core.pool.replicas:
            there = [flight for flight in core.pool.in_flight.values() if flight.replica_id == replica.replica_id]
            assert replica.in_flight == len(there)
            assert replica.outstanding_tokens == sum(flight.reserved_tokens for flight in there)
        for spec in SPECS:
            allowance = core.allowance(spec.name, self.now_s)
            assert core.allowance(spec.name, self.now_s) == allowance
            assert all(m.remaining <= m.limit and m.reset_s >= 0 for m in allowance if m is not None)

    def _about(self, what: str, name: str, amount: int) -> None:
        if name in self.held:
            if what == "cancel":
                self.held.remove(name)
                self.withdrawn += 1
                self._send(Cancelled(name))
            return
        seen = min(self.flying[name] + amount // 4, self.core.pool.in_flight[name].max_output_tokens)
        if what == "first":
            self._send(FirstToken(name))
        elif what == "progress":
            self.flying[name] = seen
            self._send(Progress(name, seen))
        else:
            del self.flying[name]
            self._send({"finish": Finished, "fail": Failed, "cancel": Cancelled}[what](name, seen))

    def _wait(self, until_s: float) -> None:
        while self.call_at_s <= until_s:
            self.now_s, self.call_at_s = self.call_at_s, float("inf")
            self._send(Tick())
        self.now_s = until_s

    def _send(self, event: Any) -> None:
        worked = {name: book.worked_tokens for name, book in self.core.pool.entitlements.items()}
        self._obey(self.core.handle(event, self.now_s))
        for name, book in self.core.pool.entitlements.items():
            assert book.worked_tokens >= worked[name]

    def _obey(self, instructions: Any) -> None:
        for each in instructions:
            self.said.append(each)
            if isinstance(each, Forward):
                assert each.request_id not in self.flying
                assert self.core.pool.replicas[each.replica_id].ready
                self.held.discard(each.request_id)
                self.flying[each.request_id] = 0
                self.admitted += 1
            elif isinstance(each, Hold):
                self.held.add(each.request_id)
            elif isinstance(each, Refuse):
                self.held.discard(each.request_id)
                self.refused += 1
                assert each.needed > each.available or each.reason is Reason.LOW_PRIORITY
                assert each.retry_after_s is None or each.retry_after_s > 0
            elif isinstance(each, Evict):
                del self.flying[each.request_id]
            elif isinstance(each, CallMeAt):
                dozes = isinstance(self.core.policy, Dozing)  # it may be woken before the call that is open
                assert each.at_s > self.now_s
                assert self.call_at_s == float("inf") or (dozes and each.at_s < self.call_at_s), "one call at a time"
                self.call_at_s = each.at_s


def _settings(examples: int) -> settings:
    # Classes outside inherit these tests: hypothesis wants to know that this is meant.
    return settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.differing_executors])


class PolicyContract(Contract):
    """The suite of policies: objects of the policy's class are its examples."""

    def longest_wait_s(self, params: Any) -> float:  # noqa: ARG002
        """Return how long an idle pool may let a request wait under a policy, in seconds."""
        return 0.0

    def core(self, params: Any, specs: Sequence[EntitlementSpec] = SPECS) -> GatewayCore:
        """Return the core of a small pool under a policy; a suite may put something above it."""
        return make_core(params, specs)

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Give every test the examples, and some those that claim something."""
        super().pytest_generate_tests(metafunc)
        if "refusing" in metafunc.fixturenames:
            every = self.found_examples(metafunc.config)
            found = {name: params for name, params in every.items() if self.refuses_oversize(params)}
            metafunc.parametrize("refusing", list(found.values()), ids=list(found))

    def refuses_oversize(self, params: Any) -> bool:
        """Return whether a policy claims that it tells what can never fit."""
        named: Any = plugins.named_object("policies", params)
        return plugins.POLICY_KINDS[named.kind].traits.refuses_oversize

    @_settings(40)
    @given(steps=steps, order=st.integers(0, 2**32))
    def test_books_balance_on_every_path_and_close_at_nothing(self, params: Any, steps: list[Any], order: int) -> None:
        """The books stay right on every path, and nothing is left that would count against later requests."""
        auditor = Auditor(self.core(params))
        for step in steps:
            auditor.step(*step)
        auditor.end(random.Random(order))
        assert not auditor.core.pool.in_flight
        assert auditor.core.late_events == 0
        # Nothing is left behind that would count against whoever comes later.
        auditor.step("capacity", 3, 1)
        auditor.step("wait", 0, 4_000)
        for book in auditor.core.pool.entitlements.values():
            assert (book.in_flight, book.reserved_tokens) == (0, 0)
        for which, spec in enumerate(SPECS):
            if spec.until_s > auditor.now_s:
                auditor.step("arrive", which, 10)
                if wait_s := self.longest_wait_s(params):
                    auditor.step("wait", 0, math.ceil(20 * wait_s))
                last = next(each for each in reversed(auditor.said) if not isinstance(each, CallMeAt))
                assert isinstance(last, Forward), spec.name

    @_settings(25)
    @given(steps=steps, adopted=st.lists(st.tuples(st.integers(0, 79), st.integers(0, 4), st.booleans()), max_size=8))
    def test_what_runs_already_is_booked_unasked_and_leaves_nothing_behind(
        self, params: Any, steps: list[Any], adopted: list[tuple[int, int, bool]]
    ) -> None:
        """Requests that run already are booked without being judged, and end like all others."""
        auditor = Auditor(self.core(params))
        for number, step in enumerate(steps):
            for position, which, credited in adopted:
                if position == number:
                    auditor.adopt(which, credited)
            auditor.step(*step)
        auditor.end(random.Random(1))
        assert not auditor.core.pool.in_flight
        for book in auditor.core.pool.entitlements.values():
            assert (book.in_flight, book.reserved_tokens) == (0, 0)
        assert all((book.in_flight, book.outstanding_tokens) == (0, 0) for book in auditor.core.pool.replicas)

    @_settings(25)
    @given(steps=steps, shuffled=st.permutations(SPECS))
    def test_same_seed_same_decisions_in_whatever_order_entitlements_are_listed(
        self, params: Any, steps: list[Any], shuffled: list[EntitlementSpec]
    ) -> None:
        """The same seed gives the same decisions, whatever the order of the entitlements."""
        said = []
        for specs in (SPECS, SPECS, shuffled):
            auditor = Auditor(self.core(params, specs))
            for step in steps:
                auditor.step(*step)
            said.append((auditor.said, auditor.core.gauges(auditor.now_s)))
        assert said[0] == said[1] == said[2]

    @_settings(25)
    @given(before=steps, after=steps)
    def test_a_core_restored_from_a_snapshot_goes_on_identically(
        self, params: Any, before: list[Any], after: list[Any]
    ) -> None:
        """A core that was written down and restored goes on identically."""
        auditor = Auditor(self.core(params))
        for step in before:
            auditor.step(*step)
        text = json.dumps(snapshot.take(auditor.core), allow_nan=False)
        twin = copy.copy(auditor)
        twin.offered, twin.flying, twin.held = list(auditor.offered), dict(auditor.flying), set(auditor.held)
        twin.said = list(auditor.said)
        twin.core = snapshot.restore(json.loads(text), chance=random.Random)
        assert json.dumps(snapshot.take(twin.core), allow_nan=False) == text
        for each in (auditor, twin):
            for step in after:
                each.step(*step)
            each.end(random.Random(1))
        assert twin.said == auditor.said
        assert twin.core.gauges(twin.now_s) == auditor.core.gauges(auditor.now_s)
        assert snapshot.take(twin.core) == snapshot.take(auditor.core)

    def test_judging_changes_nothing(self, params: Any) -> None:
        """`decide` and `gauges` have no side effect."""
        core = self.core(params)
        core.start(0.0)
        for number in range(12):
            core.handle(Arrived(RequestView(f"r{number}", "spot", "t", 10, 50)), 0.0)
        view = RequestView("x", "spot", "t", 10, 50)
        verdicts = [core._policy.decide(view, 50, core.pool, 1.0) for _ in range(5)]
        assert len({(type(each), getattr(each, "reason", None)) for each in verdicts}) == 1
        assert list(core.gauges(1.0)) == list(core.gauges(1.0))

    def test_what_can_never_fit_is_told_so(self, refusing: Any) -> None:
        """What could never be let in is refused for good, unless the policy claims otherwise."""
        core = self.core(refusing)
        core.start(0.0)
        (refusal,) = core.handle(Arrived(RequestView("x", "dedicated", "t", 10, 100_000)), 0.0)
        told = isinstance(refusal, Refuse) and (refusal.reason, refusal.retry_after_s) == (Reason.TOO_LARGE, None)
        assert told, f"{refusal}: deny with Reason.TOO_LARGE and retry_after_s=None, or claim no refuses_oversize"

    def test_who_honours_retry_after_gets_in_where_nobody_else_comes(self, params: Any) -> None:
        """Who waits as long as Retry-After says gets in at last."""
        core = self.core(params)
        core.start(0.0)
        now_s, number = 0.0, 0
        while True:
            *_, answer = core.handle(Arrived(RequestView(f"r{number}", "dedicated", "t", 10, 50)), now_s)
            if isinstance(answer, Refuse) or number == 200:
                break
            core.handle(Finished(f"r{number}", 50), now_s)
            number += 1
            now_s += 0.002
        for attempt in range(2, 30):
            if isinstance(answer, Forward):
                break
            assert isinstance(answer, Refuse)
            assert answer.retry_after_s is not None
            now_s += answer.retry_after_s
            *_, answer = core.handle(Arrived(RequestView(f"again{attempt}", "dedicated", "t", 10, 50, attempt)), now_s)
        assert isinstance(answer, Forward)
