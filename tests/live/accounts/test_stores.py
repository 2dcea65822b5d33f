"""Stores of accounts: what they keep, what becomes of them when things go wrong, and that a kill loses nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live.accounts.killed import Kills
from live.gate import config
from live.shared_state.redis_server import BINARY, RedisServer
from live.stand_in import running

from policies.api import Arrived, EntitlementSpec, Finished, PoolCapacity, RequestView, ServiceClass
from policies.budgets import Balance, Budget, Calendar
from policies.core import GatewayCore
from policies.hierarchy import Hierarchy, HierarchySpec, Node, entitlement_id, group_id
from policies.no_control import NoControlPolicy
from policies.routing import RoundRobinRouter
from sim.errors import InputError
from sim.live.accounts.bookkeeper import Bookkeeper
from sim.live.accounts.keys import KeyAdmin
from sim.live.accounts.merge import merged
from sim.live.accounts.sqlite_store import SqliteStore
from sim.live.accounts.store import (
    AccountStore,
    DamagedStoreError,
    StoreError,
    Use,
    UseKey,
    open_store,
)
from sim.live.gateway.config_file import parse_config

Make = Callable[[], AccountStore]
DAY_S = 86_400.0
NODE = (group_id("org"), "tokens", "day")


@pytest.fixture(params=["sqlite", "redis"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Return what opens one and the same store again and again."""
    if request.param == "sqlite":
        yield lambda: open_store(str(tmp_path / "accounts.db"))
        return
    if BINARY is None:
        pytest.skip("needs redis-server")
    server = RedisServer(tmp_path).start()
    yield lambda: open_store(server.url)
    server.kill()


def test_a_store_keeps_everything(make: Make) -> None:
    store = make()
    admin = KeyAdmin(store, "me", lambda: 1000.0)
    secret = admin.create("ci", "chat", expires_s=2000.0, limit={"slots": 2}, budgets=[{"per": "day", "limit": 5}])
    assert secret.startswith("tp-")
    with pytest.raises(InputError, match="there is a key 'ci' already"):
        admin.create("ci", "chat")
    assert admin.rotate("ci", 60.0) != secret
    admin.set_budgets("group/org", [{"per": "month", "limit": 7, "unit": "money"}])
    admin.disable("ci")
    row = UseKey("2026-11-28", "ci", "chat", "m")
    store.write("one", {NODE: Balance(5, 12.5, 1.0, 2.0, 3.0)}, {row: Use(1, 2, 1, 3, 0.5)})
    store.write("one", {NODE: Balance(5, 13.5, 1.0, 2.0, 3.0)}, {row: Use(2, 4, 1, 3, 0.5)})
    store.write("two", {}, {row: Use(1, 1, 1, 1, 1.0)})
    again = make()
    (key,) = again.all_keys()
    assert (key.disabled, key.expires_s, key.old_until_s, key.limit) == (True, 2000.0, 1060.0, {"slots": 2})
    assert key.old_sha256 not in (None, key.sha256)
    assert again.budgets()["group/org"][0]["limit"] == 7
    assert again.balances() == {NODE: Balance(5, 13.5, 1.0, 2.0, 3.0)}
    assert again.use("2026-11-01", "2026-11-30") == {row: Use(3, 5, 2, 4, 1.5)}
    assert again.use("2026-11-28", "2026-11-28", "two") == {row: Use(1, 1, 1, 1, 1.0)}
    assert again.use("2026-11-29", "2026-11-30") == {}
    assert [one.action for one in again.audit(10)] == ["disable", "set budgets", "rotate", "create"]
    assert again.version() == 4
    assert secret not in repr(again.all_keys())
    for one in (store, again):
        one.close()


class World:
    """A core with a budget of 100 tokens a day, kept in a store."""

    def __init__(self, store: AccountStore, **how: Any) -> None:
        members = [EntitlementSpec(name="a", tenant="a", service_class=ServiceClass.SPOT)]
        budget = Budget(unit="tokens", per="day", limit=100.0, carry_over="unused")
        tree = HierarchySpec(nodes=(
            Node(node_id=NODE[0], budgets=(budget,)), Node(node_id=entitlement_id("a"), parent=NODE[0]),
        ), calendar=Calendar())  # fmt: skip
        self.core = GatewayCore(
            entitlements=members, capacity=PoolCapacity(1, 100), replica_ids=[0], policy=NoControlPolicy(),
            router=RoundRobinRouter(), hierarchy=Hierarchy(tree, members, None),
        )  # fmt: skip
        self.core.start(0.0)
        self.loop_s = 0.0
        self.books = Bookkeeper(store, lambda: self.core, loop_s=lambda: self.loop_s, **how)
        self.books.begin()
        self.number = 0

    def serve(self, day: float, output_tokens: int, most: int = 40) -> str:
        """Let one request through, and return what was said."""
        self.number += 1
        self.loop_s += 2.0
        view = RequestView(f"r{self.number}", "a", "a", 10, most, key="k", wall_s=day * DAY_S)
        said = self.tell(Arrived(view))
        if said == "Forward":
            self.tell(Finished(f"r{self.number}", output_tokens))
        return said

    def tell(self, event: Any) -> str:
        instructions = self.core.handle(event, self.loop_s)
        self.books(self.loop_s, event, instructions)
        return type(instructions[-1]).__name__ if instructions else ""


def test_who_begins_again_goes_on_where_it_was_also_with_the_clock_set_back(make: Make) -> None:
    first = World(make())
    assert [first.serve(31.5, 30), first.serve(31.5, 30), first.serve(31.5, 30)] == ["Forward", "Forward", "Refuse"]
    second = World(make())
    assert second.serve(31.6, 30) == "Refuse"
    assert second.serve(32.1, 30) == "Forward"  # the next day, with 20 carried over
    third = World(make())
    assert third.serve(31.9, 30, most=90) == "Refuse"  # the clock is set back over midnight: the later day goes on
    assert third.core.hierarchy is not None
    (state,) = third.core.hierarchy.all_budgets(third.loop_s)
    assert (state.limit, state.used, state.resets_at_s) == (120, 40, 33 * DAY_S)
    used = make().use("1970-01-01", "1971-01-01")
    assert [(row.day, use.requests, use.output_tokens) for row, use in used.items()] == [
        ("1970-02-01", 2, 60), ("1970-02-02", 1, 30),
    ]  # fmt: skip


def test_who_shares_a_pool_takes_no_account_from_the_store_once_it_has_joined(make: Make) -> None:
    World(make()).serve(31.5, 30)
    joined = World(make(), restores=False)
    assert joined.core.hierarchy is not None
    assert joined.core.hierarchy.balances() == {}
    assert joined.core.hierarchy.journal == []


def test_a_locked_file_is_gone_on_without_and_written_once_it_is_free(tmp_path: Path) -> None:
    path = tmp_path / "accounts.db"
    world = World(SqliteStore(path))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("begin exclusive")
    assert world.serve(5, 30) == "Forward"
    status = world.books.status()
    assert world.books.is_away
    assert (status.unwritten, status.times_away) == (2, 1)  # the account and the row of use
    assert "locked" in status.why
    other.execute("rollback")
    assert world.serve(5, 20) == "Forward"
    assert not world.books.is_away
    world.loop_s += 2
    world.books.write()
    assert SqliteStore(path).balances()[NODE].used == 70
    (use,) = SqliteStore(path).use("0", "9").values()
    assert (use.requests, use.output_tokens) == (2, 50)


def test_a_full_disk_loses_nothing_once_there_is_room(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "accounts.db")
    world = World(store)
    (pages,) = store._db.execute("pragma page_count").fetchone()
    store._db.execute(f"pragma max_page_count = {pages}")
    lots = {UseKey(f"d{n}", "k" * 50, "e", "m"): Use(1, 1, 1, 1, 1.0) for n in range(500)}
    with pytest.raises(StoreError, match="full"):
        store.write("", {}, lots)
    assert store.use("0", "z") == {}  # all of it or nothing
    store._db.execute("pragma max_page_count = 100000")
    assert world.serve(5, 30) == "Forward"
    assert store.balances()[NODE].used == 40


def test_a_damaged_file_is_refused_in_one_line_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "accounts.db"
    store = SqliteStore(path)
    World(store).serve(5, 30)
    store.close()
    sound = path.read_bytes()
    for damaged in (b"no database at all", sound[:100] + b"\xff" * 4000 + sound[4100:]):
        path.write_bytes(damaged)
        for beside in ("-wal", "-shm"):
            Path(f"{path}{beside}").unlink(missing_ok=True)
        with pytest.raises(DamagedStoreError, match="damaged"):
            SqliteStore(path)
        assert path.read_bytes() == damaged


def test_one_gateway_has_a_file_to_itself_and_commands_may_use_it_beside(tmp_path: Path) -> None:
    path = tmp_path / "accounts.db"
    first, second = SqliteStore(path), SqliteStore(path)
    first.claim()
    with pytest.raises(InputError, match="another gateway"):
        second.claim()
    KeyAdmin(second, "me").create("ci", "chat")
    assert first.version() == 1
    first.close()
    second.claim()
    second.close()


def test_no_folder_and_no_file_are_refused(tmp_path: Path) -> None:
    for where in (tmp_path / "no" / "a.db", tmp_path):
        with pytest.raises(InputError):
            open_store(str(where))
    with pytest.raises(InputError, match="is empty"):
        open_store(" ")


@pytest.mark.skipif(BINARY is None, reason="needs redis-server")
def test_redis_away_over_a_reset_loses_and_doubles_nothing(server: RedisServer) -> None:
    world = World(open_store(server.url), writer="w")
    assert world.serve(5, 30) == "Forward"
    server.kill()
    assert world.serve(5, 30) == "Forward"
    assert world.books.is_away
    assert world.serve(5, 30) == "Refuse"  # the books go on in memory
    assert world.serve(6, 70, most=100) == "Forward"  # a new day begins meanwhile; 20 are carried over
    server.start()
    world.loop_s += 2
    world.books.write()
    assert not world.books.is_away, world.books.status()
    again = World(open_store(server.url), writer="x")
    assert again.core.hierarchy is not None
    assert again.core.hierarchy.balances()[NODE] == world.core.hierarchy.balances()[NODE]  # type: ignore[union-attr]
    assert again.serve(6, 30) == "Refuse"
    assert sum(use.requests for use in open_store(server.url).use("0", "9").values()) == 3


def test_killed_at_random_points_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    kills = Kills(str(tmp_path / "accounts.db"), 7)
    for _ in range(4):
        kills.once()
    assert kills.steps > 0


def test_gateways_that_share_a_pool_agree_on_what_a_store_adds(tmp_path: Path) -> None:
    pool = {"groups": [{"name": "acme"}]}
    entitlements = [{"name": "chat", "service_class": "spot", "parent": "acme"}]
    state = {"url": "redis://127.0.0.1:1/0"}
    with running() as stand_in:
        given = parse_config(config(
            [stand_in], pool=pool, entitlements=entitlements, state=state, accounts={"store": "redis://127.0.0.1:1/0"},
        ), "g.yaml")  # fmt: skip
        store = SqliteStore(tmp_path / "a.db")
        before = merged(given, store, "g.yaml")[0].settings.state_config
        assert merged(given, store, "g.yaml")[0].settings.state_config == before
        KeyAdmin(store, "me").set_budgets("group/acme", [{"per": "day", "limit": 5}])
        after, core = merged(given, store, "g.yaml")
        assert after.settings.state_config != before
        assert [one.limit for one in core.budgets("chat", "", 0.0)] == [5]
