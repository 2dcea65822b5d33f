"""What becomes of a shared pool when somebody takes, alters or forges what Redis holds, or a gateway is half blind.

On virtual time, with the real script in a Redis in memory; what the real one does is in `test_replicated_core`.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from faults.shared_pool import SharedPool

from policies.api import Arrived, RequestView
from policies.wire import to_plain

PREFIX = "tokenpools:{test}:"
Keys = dict[str, Any]


@pytest.fixture
def pool() -> Iterator[SharedPool]:
    one = SharedPool()
    for name in ("a", "b"):
        one.join(name)
    one.run(1.0)
    yield one
    one.close()


def cut(stream: list[Any], keep: Callable[[int], bool]) -> None:
    stream[:] = [each for number, each in enumerate(stream) if keep(number)]


DAMAGE: dict[str, Callable[[Keys], object]] = {
    **{f"{key} is gone": lambda keys, key=key: keys.pop(PREFIX + key, None) for key in
       ("events", "meta", "alive", "snapshot", "views", "sender:a", "sender:b")},
    **{f"{key} is a string": lambda keys, key=key: keys.update({PREFIX + key: "x"}) for key in
       ("events", "meta", "alive", "snapshot", "views", "sender:a")},
    **{f"{field} of meta is gone": lambda keys, field=field: keys[PREFIX + "meta"].pop(field) for field in
       ("epoch", "origin_us", "last_us", "seq", "tick_due_us", "leader", "views")},
    **{f"{field} of meta is no number": lambda keys, field=field: keys[PREFIX + "meta"].update({field: "x"})
       for field in ("origin_us", "last_us", "seq", "tick_due_us")},
    "all is gone": lambda keys: keys.clear(),
    "half the entries are gone": lambda keys: cut(keys[PREFIX + "events"], lambda number: number % 2 == 0),
    "the last entries are gone": lambda keys: keys[PREFIX + "events"].__delitem__(slice(-5, None)),
    "the first entries are gone": lambda keys: keys[PREFIX + "events"].__delitem__(slice(0, 10)),
    "the log is empty": lambda keys: keys[PREFIX + "events"].clear(),
    "an entry of the far future": lambda keys: keys[PREFIX + "events"].append((10**9, 0, ["e", "x"])),
    "an entry between two": lambda keys: keys[PREFIX + "events"].append(
        (keys[PREFIX + "events"][-1][0], 5, ["e", "x"])
    ),
    "the snapshot's data is gone": lambda keys: keys[PREFIX + "snapshot"].pop("data"),
    "the snapshot's data is garbage": lambda keys: keys[PREFIX + "snapshot"].update(data="{"),
    "the snapshot's number is garbage": lambda keys: keys[PREFIX + "snapshot"].update(seq="x"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_whatever_is_taken_from_redis_the_pool_goes_on_and_newcomers_join(pool: SharedPool, name: str) -> None:
    pool.run(0.5, rate_per_s=20.0)
    DAMAGE[name](pool.server.store.keys)
    pool.run(0.5, rate_per_s=10.0)
    newcomer = pool.join("c")
    pool.run(2.0)
    assert newcomer.log.has_joined
    pool.serves()
    pool.settled()


BAD_ENTRIES = [
    "", "x", "x y", "1 a 5 - [\"tick\"]", "zz a 5 - [\"tick\"]", "1 a zz - [\"tick\"]", "9 a 1 - {}", "9 a 1 - [[[[",
    "9 a 1 - [\"configured\"]", "9 a 1 - [\"configured\",1,2]", "9 a 1 - [\"configured\",\"x\",{\"pool\":[]}]",
    "9 a 1 - [\"arrived\"]", "9 a 1 - " + "[" * 5000, "9 a 1 - \"gateway_lost\"", "-5 a 9 - [\"tick\"]",
]  # fmt: skip


@pytest.mark.parametrize("signed", [True, False])
def test_malformed_entries_are_left_out_counted_and_said(signed: bool, caplog: pytest.LogCaptureFixture) -> None:
    pool = SharedPool()
    for name in ("a", "b"):
        pool.join(name, **({} if signed else {"key": None}))
    pool.run(0.5, rate_per_s=10.0)
    for number, entry in enumerate(BAD_ENTRIES, 1):
        put(pool, entry)
        with caplog.at_level(logging.ERROR, "tokenpools.state"):
            pool.run(0.1, rate_per_s=10.0)
        for member in pool.members:
            assert sum(member.log.status().skipped.values()) == number, entry
            assert member.log.status().times_away == 0
    assert caplog.text.count("is left out") == 2 * len(BAD_ENTRIES)
    pool.serves()
    pool.settled()
    pool.close()


def put(pool: SharedPool, entry: str) -> None:
    """Append an entry as somebody who has Redis's password and not the pool's key."""
    keys = pool.server.store.keys
    number = int(keys[PREFIX + "meta"]["seq"]) + 1
    keys[PREFIX + "events"].append((number, 0, ["e", entry]))
    keys[PREFIX + "meta"]["seq"] = str(number)
    pool.server._wake()


def entries(pool: SharedPool) -> list[str]:
    return [fields[1] for _, _, fields in pool.server.store.keys[PREFIX + "events"]]


def test_who_has_redis_and_not_the_key_can_say_nothing(pool: SharedPool) -> None:
    """One command rewrote everybody's class: an entry that brings another pool."""
    us = entries(pool)[-1].split(" ")[0] if entries(pool) else "1000"
    core = pool.members[0].core
    arrived = json.dumps(to_plain(Arrived(RequestView("evil", "gold", "t", 1, 10_000))))
    for payload in (arrived, '["configured","other",{"pool":{"entitlements":[]}}]'):
        for signature in ("-", "0" * 32, "é", ""):
            put(pool, f"{us} a 999999 {signature} {payload}")
    pool.run(1.0)
    for member in pool.members:
        assert member.core is core or member is not pool.members[0]
        assert member.log.status().skipped["unsigned"] == 8
        assert "evil" not in member.core.pool.in_flight
    pool.serves()
    pool.settled()


def test_an_entry_that_was_there_before_is_not_heard_again(pool: SharedPool) -> None:
    pool.run(1.0, rate_per_s=20.0)
    pool.run(1.0)
    admitted = pool.members[0].core.pool.entitlements["spot"].admitted
    arrivals = [entry for entry in entries(pool) if '"arrived"' in entry]
    for entry in arrivals:
        put(pool, entry)
    pool.run(1.0)
    for member in pool.members:
        assert member.log.status().skipped["replayed"] == len(arrivals)
        assert member.core.pool.entitlements["spot"].admitted == admitted
    # Nor under another name, or in the log that begins next: the signature is of both.
    put(pool, arrivals[-1].replace(" a ", " b ").replace("a/", "a/x"))
    pool.server.kill()
    pool.server.start()
    pool.run(1.5)
    for entry in arrivals:
        put(pool, entry)
    pool.run(1.0)
    assert all(member.log.status().skipped["unsigned"] >= len(arrivals) for member in pool.members)
    pool.serves()
    pool.settled()


def test_a_gateway_that_is_said_to_be_lost_and_lives_takes_its_place_again(pool: SharedPool) -> None:
    pool.members[0].timers._rng.seed(3)
    names = [pool.members[0].ask("gold") for _ in range(3)]
    pool.run(0.03)
    put(pool, '2000000 a 0 - ["gateway_lost"]')
    pool.run(0.2)
    running = set(names) & pool.members[0].timers.running.keys()
    for member in pool.members:
        assert running <= member.core.pool.in_flight.keys()
    pool.settled()


def test_a_redis_that_is_set_back_is_not_believed(pool: SharedPool) -> None:
    pool.run(1.0, rate_per_s=20.0)
    old = copy.deepcopy(pool.server.store.keys)
    left = old[PREFIX + "meta"]["epoch"]
    pool.server.kill()
    pool.server.start()
    pool.run(2.0, rate_per_s=20.0)
    epochs = {member.log._epoch for member in pool.members}
    pool.server.store.keys = old
    pool.run(3.0, rate_per_s=5.0)
    assert {member.log._epoch for member in pool.members} != {left}
    assert len(epochs) == 1
    pool.serves()
    pool.settled()


def test_a_snapshot_that_somebody_else_wrote_is_not_taken_over(pool: SharedPool) -> None:
    pool.run(1.0, rate_per_s=20.0)
    kept = pool.server.store.keys[PREFIX + "snapshot"]
    kept["data"] = kept["data"].replace('"guaranteed"', '"preemptible"')
    newcomer = pool.join("c")
    pool.run(3.0, rate_per_s=5.0)
    assert newcomer.log.has_joined
    assert newcomer.log.status().skipped["unsigned"] == 1
    assert newcomer.core.pool.entitlements["gold"].spec.service_class.value == "guaranteed"
    pool.serves()
    pool.settled()


def test_another_key_is_another_configuration() -> None:
    from live.gate import config

    from sim.live.gateway.config_file import parse_config
    from sim.live.gateway.settings_from_config import make_settings

    def digest(monkey: pytest.MonkeyPatch, key: str) -> str:
        monkey.setenv("POOL_KEY", key)
        state = {"url": "redis://x", "key_env": "POOL_KEY"}
        written = config([], state=state) | {"upstreams": [{"name": "u", "base_url": "http://127.0.0.1:1"}]}
        settings = make_settings(parse_config(written, "serve.yaml"), "serve.yaml")
        assert settings.state_secrets.key == key.encode()
        assert key not in repr(settings)
        return settings.state_config

    with pytest.MonkeyPatch.context() as monkey:
        assert digest(monkey, "k" * 32) != digest(monkey, "j" * 32)
        with pytest.raises(Exception, match=r"state\.key_env: the variable POOL_KEY holds 5 bytes; give 32 random"):
            digest(monkey, "short")
        with pytest.raises(Exception, match=r"state\.key_env: the variable POOL_KEY is not set"):
            digest(monkey, "")


# --------------------------------------------------------------------------------------------------------------------
# Who sees the upstreams


HEAD = {"pool": {"entitlements": [{"name": "gold"}, {"name": "spot"}]}}


def test_a_gateway_that_died_is_lost_though_the_places_of_all_were(pool: SharedPool) -> None:
    first, other = pool.members
    first.ask("gold")
    pool.run(0.02)
    assert len(other.core.pool.in_flight) == 1
    first.kill()
    pool.server.store.keys.pop(PREFIX + "alive")
    pool.run(3.0)
    assert not other.core.pool.in_flight
    pool.settled()


def gone(pool: SharedPool) -> None:
    """All gateways end without a word."""
    for member in list(pool.members):
        member.kill()


def test_a_log_whose_gateways_are_gone_takes_the_configuration_of_who_comes(pool: SharedPool) -> None:
    gone(pool)
    other = pool.join("c", config="other", head=HEAD)
    pool.run(0.3)
    assert "another configuration" in other.log.status().why  # they may live: their places have not run out
    pool.run(3.0)
    pool.join("d", config="other", head=HEAD)
    pool.run(1.0)
    pool.serves()
    pool.settled()
    old = pool.join("e", config="same", head=HEAD)
    pool.run(1.0)
    assert "(other, here same)" in old.log.status().why
    old.kill()
    pool.run(0.5)


def test_a_log_whose_gateways_are_gone_turns_away_who_cannot_change_it(pool: SharedPool) -> None:
    gone(pool)
    pool.run(3.0)
    other = pool.join("c", config="other")
    pool.run(1.0)
    assert not other.log.status().reachable
    assert "(same, here other)" in other.log.status().why


def test_a_gateway_that_dies_before_it_has_changed_the_configuration_keeps_nobody_out(pool: SharedPool) -> None:
    gone(pool)
    pool.run(3.0)
    other = pool.join("c", config="other", head=HEAD)
    call = other.client.call

    async def dies(command: str, *arguments: Any) -> Any:
        if command == "configure":
            pool.server.cut_off.add("c")
        return await call(command, *arguments)

    other.client.call = dies  # type: ignore[method-assign]
    pool.run(0.5)
    assert not other.log.status().reachable
    other.kill()
    pool.join("d", config="other", head=HEAD)
    pool.run(4.0)
    pool.serves()


def test_a_leader_that_sees_no_upstream_does_not_stop_the_pool(pool: SharedPool) -> None:
    leader, other = pool.members
    assert leader.log.status().leads
    for member in pool.members:
        member.sees(0, 1)
    pool.run(0.5)
    leader.sees()
    pool.run(0.5)
    for member in pool.members:
        assert member.ready == [0, 1]
        assert member.core.pool.capacity.slots == 12
    pool.serves()
    other.sees(1)
    pool.run(0.5)
    assert leader.ready == other.ready == [1]
    assert leader.core.pool.capacity.slots == 6
    other.sees()
    pool.run(0.5)
    assert leader.ready == other.ready == []
    leader.sees(0)
    pool.run(0.5)
    assert leader.ready == other.ready == [0]
    leader.sees(0, 1)
    pool.run(0.5)
    pool.settled()


def test_what_a_lost_gateway_saw_counts_no_longer(pool: SharedPool) -> None:
    leader, other = pool.members
    leader.sees(0)
    other.sees(1)
    pool.run(0.5)
    assert other.ready == [0, 1]
    pool.server.cut_off.add(leader.name)
    pool.run(2.0)
    assert other.log.status().leads
    assert other.ready == [1]
    pool.server.cut_off.clear()
    pool.run(2.0)
    assert leader.ready == other.ready == [0, 1]
    pool.settled()


def test_the_slots_that_any_operator_says_hold_for_the_pool_and_the_last_word_counts(pool: SharedPool) -> None:
    leader, other = pool.members
    for member in pool.members:
        member.sees(0, 1)
    pool.run(0.5)
    other.sees(0, 1, slots=5)  # said to a gateway that does not lead
    pool.run(0.5)
    assert leader.core.pool.capacity.slots == other.core.pool.capacity.slots == 5
    leader.sees(0, 1, slots=8)
    pool.run(0.5)
    assert other.core.pool.capacity.slots == 8
    leader.sees(0, 1)
    pool.run(0.5)
    assert other.core.pool.capacity.slots == 12
    pool.settled()


def test_a_view_that_nobody_signed_counts_for_nothing(pool: SharedPool) -> None:
    for member in pool.members:
        member.sees(0, 1)
    pool.run(0.5)
    keys = pool.server.store.keys
    keys[PREFIX + "views"]["z"] = "- [[0,1,7],1,99999999]"
    keys[PREFIX + "alive"]["z"] = 1e15
    keys[PREFIX + "meta"]["views"] = "77"
    pool.run(1.5)
    assert all(member.ready == [0, 1] and member.core.pool.capacity.slots == 12 for member in pool.members)


def test_a_redis_that_throws_keys_away_is_complained_of_with_the_fix(caplog: pytest.LogCaptureFixture) -> None:
    pool = SharedPool()
    pool.server.maxmemory_policy = "allkeys-lru"
    with caplog.at_level(logging.ERROR, "tokenpools.state"):
        member = pool.join("a")
        pool.run(1.0)
    assert "CONFIG SET maxmemory-policy noeviction" in caplog.text
    assert member.log.status().evicts == "allkeys-lru"
    pool.close()
