"""What predictive pools decide, request by request, and that each part does what its field says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from parity.tiny_world import Ask, TinyWorld, make_core

from policies.api import (
    Arrived,
    EntitlementSpec,
    Evict,
    Finished,
    FirstToken,
    Forward,
    Hold,
    Progress,
    Reason,
    Refuse,
    RequestView,
    Resources,
    Tick,
)
from policies.api import ServiceClass as Class
from policies.core import GatewayCore
from policies.predictive_pool.params import PredictivePool

CHAT = EntitlementSpec(
    name="chat", tenant="chat", service_class=Class.GUARANTEED, ttft_slo_s=2.0, baseline=Resources(slots=2)
)
DOCS = EntitlementSpec(
    name="docs", tenant="docs", service_class=Class.ELASTIC, ttft_slo_s=10.0, baseline=Resources(slots=2)
)
SPOT = EntitlementSpec(name="spot", tenant="spot", service_class=Class.SPOT)
FILLER = EntitlementSpec(name="filler", tenant="filler", service_class=Class.PREEMPTIBLE)
SPECS = (CHAT, DOCS, SPOT, FILLER)


class Desk:
    """A core and the few events that these tests tell it."""

    def __init__(self, *, slots: int = 2, specs: Any = SPECS, kv_tokens: float | None = None, **fields: Any) -> None:
        self.core: GatewayCore = make_core(
            PredictivePool(**fields), specs, slots=slots, kv_bytes=kv_tokens, kv_bytes_per_token=1.0
        )
        self.core.start(0.0)

    def ask(self, name: str, who: str, now_s: float, most: int = 100, prompt: int = 10, attempt: int = 1) -> Any:
        return self.core.handle(Arrived(RequestView(name, who, who, prompt, most, attempt)), now_s)

    def end(self, name: str, now_s: float, tokens: int = 10, cached: int = 0) -> Any:
        self.core.handle(FirstToken(name), now_s)
        return self.core.handle(Finished(name, tokens, cached), now_s)

    def teach(self, who: str, took_s: float, tokens: int = 10, times: int = 5) -> float:
        """Serve some requests of so many seconds each, one after the other; return when the last ended."""
        now_s = 0.0
        for number in range(times):
            assert isinstance(self.ask(f"{who}-taught-{number}", who, now_s)[0], Forward)
            self.core.handle(FirstToken(f"{who}-taught-{number}"), now_s + 0.01)
            now_s += took_s
            self.core.handle(Finished(f"{who}-taught-{number}", tokens), now_s)
        return now_s


def forwarded(said: Any) -> list[str]:
    return [step.request_id for step in said if isinstance(step, Forward)]


def test_promises_go_first_by_class_and_then_by_deadline_and_what_goes_beyond_them_after() -> None:
    desk = Desk(slots=1)
    desk.ask("running", "spot", 0.0)
    for name, who in (("s", "spot"), ("d", "docs"), ("f", "filler"), ("c", "chat")):
        assert isinstance(desk.ask(name, who, 0.1)[0], Hold)
    order = []
    running = "running"
    for number in range(4):
        (running,) = forwarded(desk.end(running, 0.2 + 0.1 * number))
        order.append(running)
    assert order == ["c", "d", "s", "f"]


def test_what_can_still_meet_its_objective_waits_and_what_cannot_is_refused_at_once() -> None:
    desk = Desk(slots=1)
    now_s = desk.teach("spot", 1.0)
    desk.ask("running", "spot", now_s)
    assert isinstance(desk.ask("first", "chat", now_s)[0], Hold)  # 1 s to the next slot, objective 2 s
    second = desk.ask("second", "chat", now_s)[0]  # behind it 2 s, and the first token takes a while
    assert isinstance(second, Refuse)
    assert second.reason is Reason.SLO
    assert second.needed > second.available == 2.0
    assert second.retry_after_s == 2.0
    assert isinstance(Desk(slots=1, hold=False).ask("x", "chat", 0.0)[0], Forward)


def test_who_waited_until_it_must_be_late_is_refused_then() -> None:
    desk = Desk(slots=1)
    desk.ask("running", "spot", 0.0)
    assert isinstance(desk.ask("c", "chat", 0.0)[0], Hold)
    assert not [step for step in desk.core.handle(Tick(), 1.9) if isinstance(step, Refuse)]
    (late,) = [step for step in desk.core.handle(Tick(), 2.25) if isinstance(step, Refuse)]
    assert (late.request_id, late.reason) == ("c", Reason.SLO)


def test_without_holding_what_finds_no_room_is_refused() -> None:
    desk = Desk(slots=1, hold=False)
    desk.ask("running", "spot", 0.0)
    refusal = desk.ask("c", "chat", 0.0)[0]
    assert isinstance(refusal, Refuse)
    assert refusal.reason is Reason.POOL_FULL


def test_kv_cache_is_reserved_for_the_answer_that_is_likely() -> None:
    for reserve, most in (("predicted", 4), ("max-tokens", 2)):
        desk = Desk(slots=100, kv_tokens=400.0, overbook=0.0, reserve=reserve)
        now_s = desk.teach("docs", 0.1, tokens=90)
        # 10 prompt + 90 likely: four fit into 400; at 10 + 190, two.
        said = [desk.ask(f"r{number}", "docs", now_s, most=190)[0] for number in range(6)]
        assert sum(isinstance(step, Forward) for step in said) == most, reserve


def test_what_outlives_its_guess_is_charged_for_more_at_the_next_tick() -> None:
    desk = Desk(slots=100, kv_tokens=400.0, overbook=0.0)
    now_s = desk.teach("docs", 0.1, tokens=90)
    desk.ask("long", "docs", now_s, most=380)
    desk.core.handle(Progress("long", 200), now_s + 0.1)
    desk.core.handle(Tick(), now_s + 0.25)
    # 10 + 1.25 * 200 = 260 are reserved now: one of 100 fits beside it, and no second.
    said = [desk.ask(f"r{number}", "docs", now_s + 0.3, most=190)[0] for number in range(2)]
    assert [type(step) for step in said] == [Forward, Hold]


def test_sheddable_classes_may_overbook_the_cache_and_are_ended_for_a_promise() -> None:
    desk = Desk(slots=4, kv_tokens=400.0, overbook=0.5, headroom=None)
    now_s = desk.teach("filler", 0.1, tokens=90)
    said = [desk.ask(f"f{number}", "filler", now_s, most=90)[0] for number in range(6)]
    assert sum(isinstance(step, Forward) for step in said) == 4  # slots bind
    assert isinstance(desk.ask("d", "docs", now_s, most=90)[0], Hold)  # ten seconds are time enough
    said = desk.core.handle(Tick(), now_s + 9.5)
    assert [type(step) for step in said if isinstance(step, Evict | Forward)] == [Evict, Forward]
    assert forwarded(said) == ["d"]
    lazy = Desk(slots=1, take_back=False)
    lazy.ask("f", "filler", 0.0)
    lazy.ask("c", "chat", 0.0)
    assert not [step for step in lazy.core.handle(Tick(), 1.5) if isinstance(step, Evict)]


def test_idle_slots_of_a_dedicated_entitlement_are_lent_only_to_what_is_taken_back_at_once() -> None:
    own = replace(CHAT, name="own", service_class=Class.DEDICATED, baseline=Resources(slots=1))
    desk = Desk(slots=1, specs=(own, SPOT, FILLER))
    assert isinstance(desk.ask("s", "spot", 0.0)[0], Hold)
    assert isinstance(desk.ask("f", "filler", 0.0)[0], Hold)  # behind whoever waits
    desk = Desk(slots=1, specs=(own, SPOT, FILLER))
    assert isinstance(desk.ask("f", "filler", 0.0)[0], Forward)
    said = desk.ask("o", "own", 0.1)
    assert [step.request_id for step in said if isinstance(step, Evict)] == ["f"]
    assert forwarded(said) == ["o"]


def test_cached_tokens_count_for_what_they_cost() -> None:
    promise = replace(DOCS, baseline=Resources(tokens_per_s=100.0))
    left = {}
    for weight in (0.0, 1.0):
        desk = Desk(specs=(promise,), cached_weight=weight)
        desk.ask("r", "docs", 0.0, prompt=400)
        desk.end("r", 0.0, tokens=100, cached=300)
        gauges = {gauge.metric: gauge.value for gauge in desk.core.gauges(0.0) if gauge.name == "docs"}
        left[weight] = gauges["promise_left_tokens"]
    assert left == {0.0: 1000.0 - 200.0, 1.0: 1000.0 - 500.0}


def flood(**fields: Any) -> TinyWorld:
    """Let chat ask for twice what there is, and spot for a little."""
    chat = replace(CHAT, baseline=Resources(slots=4))
    asks = [Ask(0.25 * k, "chat", 24) for k in range(240)] + [Ask(2.0 * k, "spot", 24) for k in range(30)]
    world = TinyWorld(make_core(PredictivePool(**fields), (chat, SPOT), slots=4), sorted(asks, key=lambda a: a.at_s))
    world.run(60.0)
    return world


def test_the_lowest_class_trickles_where_a_higher_one_takes_all() -> None:
    assert len(flood(trickle=0.1).waits_s("spot")) >= 8  # a tenth to a fifth of about 140
    assert len(flood(trickle=0.0).waits_s("spot")) <= 2


def test_who_was_refused_before_goes_behind_those_who_were_not() -> None:
    desk = Desk(slots=1)
    desk.ask("running", "spot", 0.0)
    desk.ask("again", "docs", 0.1, attempt=2)
    desk.ask("fresh", "docs", 0.2)
    assert forwarded(desk.end("running", 0.3)) == ["fresh"]


def test_keys_of_one_parent_share_one_part() -> None:
    keys = tuple(replace(SPOT, name=f"key-{number}", tenant="many") for number in range(3))
    for share_by, alone in (("tree", 3), ("entitlement", 2)):
        desk = Desk(slots=1, specs=(*keys, SPOT), share_by=share_by)
        desk.ask("running", "spot", 0.0)
        for number in range(6):
            desk.ask(f"s{number}", "spot", 0.1)
            desk.ask(f"k{number}", f"key-{number % 3}", 0.1)
        served, running = ["s"], "running"
        for number in range(6):
            (running,) = forwarded(desk.end(running, 1.0 + number))  # a second each, so that all cost the same
            served.append(running)
        assert sum(name.startswith("s") for name in served) == alone, (share_by, served)


def test_slots_are_kept_for_a_promise_whose_loans_come_back_too_slowly() -> None:
    for headroom, kept in ((1.0, True), (None, False)):
        desk = Desk(slots=3, headroom=headroom)
        now_s = desk.teach("chat", 20.0, times=3)  # answers of 20 s, one at a time
        desk.core.handle(Tick(), now_s)
        said = [desk.ask(f"s{number}", "spot", now_s)[0] for number in range(3)]
        assert isinstance(said[-1], Hold) is kept
        if kept:
            assert forwarded(desk.ask("c", "chat", now_s + 0.1)) == ["c"]


def test_whoever_is_next_inside_its_promise_is_not_refused_on_a_forecast() -> None:
    """A line that stood still an hour ago says nothing of the next slot, which may come back in time."""
    desk = Desk(slots=1)
    for number in range(3):  # chat waits 1.85 s each time, and has its first token a tenth of a second later
        at_s = 100.0 * number
        desk.ask(f"running-{number}", "spot", at_s)
        desk.core.handle(FirstToken(f"running-{number}"), at_s + 0.1)
        assert isinstance(desk.ask(f"waits-{number}", "chat", at_s)[0], Hold)
        assert forwarded(desk.end(f"running-{number}", at_s + 1.85)) == [f"waits-{number}"]
        desk.core.handle(FirstToken(f"waits-{number}"), at_s + 1.95)
        desk.end(f"waits-{number}", at_s + 2.0)
    desk.ask("again", "spot", 1000.0)
    desk.core.handle(FirstToken("again"), 1000.5)  # 0.16 s in the mean: 1.85 s and so much more would be too late
    assert isinstance(desk.ask("next", "chat", 1000.5)[0], Hold)
    (refused,) = [step for step in desk.ask("after", "chat", 1000.5) if isinstance(step, Refuse)]
    assert refused.reason is Reason.SLO
    assert forwarded(desk.end("again", 1000.6)) == ["next"]


def test_a_limit_of_its_own_holds_a_leaf_back_and_nobody_else() -> None:
    capped = replace(DOCS, limit=Resources(slots=2))
    desk = Desk(slots=4, specs=(CHAT, capped))
    assert [type(desk.ask(f"d{number}", "docs", 0.0)[0]) for number in range(3)] == [Forward, Forward, Hold]
    assert forwarded(desk.ask("c", "chat", 0.1)) == ["c"]
    assert forwarded(desk.end("d0", 0.2)) == ["d2"]


def test_a_full_replica_is_passed_over_for_one_with_a_free_slot_and_a_failure_may_go_anywhere() -> None:
    core = make_core(PredictivePool(), (SPOT,), slots=4, replicas=2, router="least-outstanding-tokens")
    core.start(0.0)
    placed = []
    for number, most in enumerate((1000, 10, 10, 10)):
        said = core.handle(Arrived(RequestView(f"r{number}", "spot", "spot", 10, most)), 0.0)
        placed += [step.replica_id for step in said if isinstance(step, Forward)]
    assert placed == [0, 1, 1, 0]  # by tokens alone the last would wait behind two others
    assert all(flight.only_at is None for flight in core.pool.in_flight.values())
