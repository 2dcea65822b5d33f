"""What Redis must grant: the broad line of the page is enough, and gateways send nothing that they do not need."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from live.shared_state.redis_server import BINARY, RedisServer
from redis.exceptions import NoPermissionError

from sim.live.accounts.redis_store import RedisStore
from sim.live.gateway.settings import SharedState
from sim.live.gateway.stored import Stored
from sim.live.shared_state.log_client import LeaseClient, LogClient
from sim.live.shared_state.response_owners import ResponseOwners

pytestmark = pytest.mark.skipif(BINARY is None, reason="needs redis-server")

PAGE = Path(__file__).parents[3] / "docs" / "live.md"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    found = RedisServer(tmp_path).start()
    yield found
    found.kill()


def line() -> list[str]:
    """Return the words of the page's ACL SETUSER, on one line or over several."""
    found = re.search(r"`ACL SETUSER ([^`]+)`", PAGE.read_text())
    assert found is not None
    return found[1].split()


async def everything(url: str, password: str) -> None:
    """Send all that a gateway sends, whatever of it a script calls."""
    settings = SharedState(url=url, pool="p", timeout_s=5.0)
    leases = LeaseClient(settings, password)
    _, version, *_ = await leases.run("read", 0)
    assert (await leases.run("write", 5000, version, 1, "data", "-", "one", 1_000_000, 1, "two"))[1] == 1
    assert (await leases.run("look", 5000, "one", 1_000_000))[1:] == [1, 1, 1]
    assert (await leases.run("read", 0))[4:6] == [1, "one"]
    assert await leases.evicts() == ""
    await leases.close()
    log = LogClient(settings, "one", password)
    await log.entries_after(0)
    await log.wait_for_entries(0, 0.01)
    await log.close()
    owners = ResponseOwners(settings, ["http://a:1"])
    await owners.close()
    own = ResponseOwners(SharedState(url=url, pool="p", timeout_s=5.0, stored_most=1), ["http://a:1"])
    for number in (1, 2):
        await own.add(f"resp_{number}", Stored("acme", 0, number))
    assert (await own.find("resp_2", "acme"), own.untold) == (Stored("acme", 0, 2), 0)
    await own.forget("resp_2", "acme")
    await own.close()


def test_the_broad_line_of_the_page_is_enough_and_reaches_no_other_key(server: RedisServer) -> None:
    words = line()
    user, password = words[0], next(word[1:] for word in words if word.startswith(">"))
    with redis.Redis(unix_socket_path=str(server.socket)) as admin:
        assert admin.execute_command("ACL", "SETUSER", *words) in (b"OK", True)
        url = f"unix://{user}:{password}@{server.socket}"
        asyncio.run(everything(url, password))
        store = RedisStore(url)
        assert store.all_keys() == []
        assert store.balances() == {}
        store.close()
        assert admin.acl_log() == []
        with redis.Redis(
            unix_socket_path=str(server.socket), username=user, password=password, driver_info=None
        ) as own:
            for forbidden in (
                lambda: own.set("others:x", "1"), lambda: own.flushall(), lambda: own.config_get("*"),
                lambda: own.acl_list(), lambda: own.publish("x", "y"), lambda: own.eval("return 1", 0),
            ):  # fmt: skip
                with pytest.raises(NoPermissionError):
                    forbidden()


def test_nobody_tells_the_name_of_its_library(server: RedisServer) -> None:
    url = server.url
    asyncio.run(everything(url, ""))
    store = RedisStore(url)
    store.all_keys()
    store.close()
    with redis.Redis(unix_socket_path=str(server.socket), driver_info=None) as admin:
        assert admin.info("errorstats") == {}  # before 7.2 Redis does not know CLIENT SETINFO
        assert not [name for name in admin.info("commandstats") if name.startswith("cmdstat_client")]
    with redis.Redis(unix_socket_path=str(server.socket)) as usual:  # what it would be without
        usual.ping()
        assert usual.info("errorstats") or "cmdstat_client|setinfo" in usual.info("commandstats")
