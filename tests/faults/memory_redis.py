"""A Redis of one's own, in memory and on the loop's time: the gateways' real script runs in it, with real faults.

`shared.lua` is run by Lua itself (lupa), against the commands of Redis that it uses, written out here. What a client
sends arrives later, in order, and is carried out even where the client has given up waiting meanwhile; a server that is
paused carries out what waits when it goes on; one that is killed has forgotten everything.
"""

from __future__ import annotations

import asyncio
import bisect
import random
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

from lupa import lua51
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from sim.live.gateway.settings import SharedState

SCRIPTS = {
    name: files("sim.live.shared_state").joinpath(name).read_text(encoding="utf-8")
    for name in ("shared.lua", "leases.lua")
}
Stream = list[tuple[int, int, list[str]]]


class Store:
    """The keys and the commands on them, as Redis has them."""

    def __init__(self, wall_us: Callable[[], int]) -> None:
        self.wall_us = wall_us
        self.keys: dict[str, Any] = {}
        self._lua = lua51.LuaRuntime(unpack_returned_tuples=True, register_eval=False)
        self._redis = self._lua.table_from({"call": self._call})
        self._scripts: dict[str, Any] = {}

    def run(self, script: str, keys: Sequence[str], arguments: Sequence[str]) -> Any:
        """Run one of the gateways' scripts, as EVALSHA does."""
        function = self._scripts.get(script)
        if function is None:
            body = SCRIPTS[script].split("\n", 1)[1]
            function = self._scripts[script] = self._lua.eval(f"function(redis, KEYS, ARGV)\n{body}\nend")
        try:
            answer = function(self._redis, self._lua.table_from(keys), self._lua.table_from(arguments))
        except lua51.LuaError as error:
            raise ResponseError(str(error)) from None
        return _answer(answer)

    def _call(self, command: str, *arguments: Any) -> Any:
        """Return what `redis.call` returns in Lua: false for nothing."""
        texts = [_text(each) for each in arguments]
        found = getattr(self, "do_" + command.lower())(*texts)
        if found is None:
            return False
        return self._lua.table_from(_nested(self._lua, found)) if isinstance(found, list | dict) else found

    def _of(self, key: str, kind: type, *, make: bool = False) -> Any:
        found = self.keys.get(key)
        if found is None:
            found = kind()
            if make:
                self.keys[key] = found
        elif type(found) is not kind:
            raise ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")
        return found

    def _drop_if_empty(self, key: str) -> None:
        if key in self.keys and not self.keys[key] and not isinstance(self.keys[key], list):
            del self.keys[key]

    def do_type(self, key: str) -> dict[str, str]:
        kinds = {dict: "hash", list: "stream", ScoreSet: "zset", str: "string"}
        return {"ok": kinds[type(self.keys[key])] if key in self.keys else "none"}

    def do_time(self) -> list[str]:
        now_us = self.wall_us()
        return [str(now_us // 1_000_000), str(now_us % 1_000_000)]

    def do_del(self, *keys: str) -> int:
        return sum(self.keys.pop(key, None) is not None for key in keys)

    def do_expire(self, key: str, seconds: str) -> int:  # nothing runs for a day
        return int(key in self.keys)

    def do_pexpire(self, key: str, milliseconds: str) -> int:
        return int(key in self.keys)

    def do_get(self, key: str) -> str | None:
        return self._of(key, str) or None

    def do_set(self, key: str, value: str, *options: str) -> dict[str, str]:
        self.keys[key] = value
        return {"ok": "OK"}

    def do_hget(self, key: str, field: str) -> str | None:
        return self._of(key, dict).get(field)  # type: ignore[no-any-return]

    def do_hmget(self, key: str, *fields: str) -> list[Any]:
        book = self._of(key, dict)
        return [book.get(field) for field in fields]

    def do_hset(self, key: str, *pairs: str) -> int:
        book = self._of(key, dict, make=True)
        fresh = len(set(pairs[::2]) - book.keys())
        book.update(zip(pairs[::2], pairs[1::2], strict=True))
        return fresh

    def do_hdel(self, key: str, *fields: str) -> int:
        book = self._of(key, dict)
        gone = sum(book.pop(field, None) is not None for field in fields)
        self._drop_if_empty(key)
        return gone

    def do_hexists(self, key: str, field: str) -> int:
        return int(field in self._of(key, dict))

    def do_hgetall(self, key: str) -> list[str]:
        return [each for pair in self._of(key, dict).items() for each in pair]

    def do_hincrby(self, key: str, field: str, by: str) -> int:
        book = self._of(key, dict, make=True)
        book[field] = str(int(book.get(field, "0")) + int(by))
        return int(book[field])

    def do_zadd(self, key: str, score: str, member: str) -> int:
        book = self._of(key, ScoreSet, make=True)
        fresh = member not in book
        book[member] = float(score)
        return int(fresh)

    def do_zrem(self, key: str, member: str) -> int:
        gone = self._of(key, ScoreSet).pop(member, None) is not None
        self._drop_if_empty(key)
        return int(gone)

    def do_zscore(self, key: str, member: str) -> str | None:
        found = self._of(key, ScoreSet).get(member)
        return None if found is None else f"{found:.17g}"

    def do_zcard(self, key: str) -> int:
        return len(self._of(key, ScoreSet))

    def do_zrangebyscore(self, key: str, least: str, most: str) -> list[str]:
        assert least == "-inf"
        limit = float(most.removeprefix("("))
        book = self._of(key, ScoreSet)
        inside = [(s, m) for m, s in book.items() if s < limit or (s == limit and not most.startswith("("))]
        return [member for _, member in sorted(inside)]

    def do_zcount(self, key: str, least: str, most: str) -> int:
        assert most == "+inf"
        return sum(score >= float(least) for score in self._of(key, ScoreSet).values())

    def do_xlen(self, key: str) -> int:
        return len(self._of(key, list))

    def do_xadd(self, key: str, number: str, *fields: str) -> str:
        stream: Stream = self._of(key, list, make=True)
        first, second = map(int, number.split("-"))
        if stream and (first, second) <= stream[-1][:2]:
            raise ResponseError("ERR The ID specified in XADD is equal or smaller than the target stream top item")
        stream.append((first, second, list(fields)))
        return number

    def do_xrange(self, key: str, least: str, most: str, *count: str) -> list[Any]:
        stream: Stream = self._of(key, list)
        low = 0 if least == "-" else bisect.bisect_left(stream, _id(least), key=lambda each: each[:2])
        high = len(stream) if most == "+" else bisect.bisect_right(stream, _id(most), key=lambda each: each[:2])
        found = stream[low:high]
        if count:
            found = found[: int(count[1])]
        return [[f"{first}-{second}", list(fields)] for first, second, fields in found]

    def do_xrevrange(self, key: str, most: str, least: str, *count: str) -> list[Any]:
        assert (most, least) == ("+", "-")
        return self.do_xrange(key, "-", "+")[::-1][: int(count[1])] if self._of(key, list) else []

    def do_xtrim(self, key: str, how: str, least: str) -> int:
        assert how == "MINID"
        stream: Stream = self._of(key, list)
        low = bisect.bisect_left(stream, _id(least), key=lambda each: each[:2])
        del stream[:low]
        return low


class ScoreSet(dict[str, float]):
    """A sorted set."""


def _id(text: str) -> tuple[int, int]:
    first, _, second = text.partition("-")
    return int(first), int(second or 0)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.17g}" if value != int(value) else str(int(value))
    return str(value)


def _nested(lua: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return value
    return [
        lua.table_from(_nested(lua, each)) if isinstance(each, list | dict) else (False if each is None else each)
        for each in value
    ]


def _answer(value: Any) -> Any:
    """Return what a client gets: numbers without their fraction, false as nothing, an array up to its first nil."""
    if lua51.lua_type(value) == "table":
        found = []
        index = 1
        while (each := value[index]) is not None:
            found.append(_answer(each))
            index += 1
        return found
    if value is True:
        return 1
    if value is False:
        return None
    return int(value) if isinstance(value, float) else value


class MemoryRedis:
    """A server that can be slow, paused, killed and cut off, and whose clock can be set.

    Parameters
    ----------
    rng : draws how long a message is under way.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, rng: random.Random) -> None:
        self.loop = loop
        self.rng = rng
        self.clock_off_us = 0
        self.up = True
        self.paused = False
        self.cut_off: set[str] = set()
        self.slow_s = 0.0005
        self.maxmemory_policy = "noeviction"
        self.store = Store(self._wall_us)
        self._generation = 0
        self._backlog: list[Callable[[], None]] = []
        self._waiting: dict[asyncio.Future[None], None] = {}  # in the order of their coming, unlike a set

    def _wall_us(self) -> int:
        return 1_700_000_000_000_000 + int(self.loop.time() * 1e6) + self.clock_off_us

    def kill(self) -> None:
        """Forget everything, and answer nobody until it is started."""
        self.up = False
        self._generation += 1
        self.store.keys.clear()
        self._backlog.clear()
        self._wake()

    def start(self) -> None:
        """Begin again, with nothing."""
        self.up = True

    def pause(self) -> None:
        """Answer nobody for now."""
        self.paused = True

    def resume(self) -> None:
        """Carry out what came meanwhile, and go on."""
        self.paused = False
        backlog, self._backlog = self._backlog, []
        for act in backlog:
            act()

    def _wake(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._waiting.clear()

    async def changed(self, timeout_s: float) -> None:
        """Wait until something was done here, for a while."""
        waiter: asyncio.Future[None] = self.loop.create_future()
        self._waiting[waiter] = None
        handle = self.loop.call_later(timeout_s, lambda: None if waiter.done() else waiter.set_result(None))
        try:
            await waiter
        finally:
            handle.cancel()
            self._waiting.pop(waiter, None)

    async def ask(self, client: MemoryClient, act: Callable[[], Any]) -> Any:
        """Carry something out when the message has arrived, and return the answer when it is back."""
        if not self.up or client.name in self.cut_off:
            await asyncio.sleep(0.001)
            raise RedisConnectionError("connection refused")
        answer: asyncio.Future[Any] = self.loop.create_future()
        generation = self._generation

        def arrive() -> None:
            if generation != self._generation or client.name in self.cut_off:
                fail()
            elif self.paused:
                self._backlog.append(carry_out)
            else:
                carry_out()

        def carry_out() -> None:
            try:
                found = act()
            except Exception as error:
                self._later(client, answer, None, error)
            else:
                self._later(client, answer, found, None)
            self._wake()

        def fail() -> None:
            if not answer.done():
                answer.set_exception(RedisConnectionError("connection lost"))

        client.arrives_s = max(client.arrives_s, self.loop.time() + self.rng.expovariate(1 / self.slow_s))
        self.loop.call_at(client.arrives_s, arrive)
        return await answer

    def _later(self, client: MemoryClient, answer: asyncio.Future[Any], found: Any, error: Exception | None) -> None:
        def back() -> None:
            if answer.done():
                return
            if client.name in self.cut_off:
                answer.set_exception(RedisConnectionError("connection lost"))
            elif error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(found)

        self.loop.call_later(self.rng.expovariate(1 / self.slow_s), back)


class MemoryClient:
    """As `sim.live.shared_state.log_client.LogClient`, to a `MemoryRedis`."""

    def __init__(self, server: MemoryRedis, settings: SharedState, name: str) -> None:
        self.server = server
        self.name = name
        self.arrives_s = 0.0
        self._ttl_us = int(settings.ttl_s * 1e6)
        prefix = f"tokenpools:{{{settings.pool}}}:"
        self._prefix = prefix
        self.keys = [prefix + each for each in ("events", "meta", "alive", "snapshot", f"sender:{name}", "views")]

    async def call(self, command: str, *arguments: str | int) -> list[Any]:
        texts = [command, self.name, str(self._ttl_us), *map(str, arguments)]
        return await self.server.ask(self, lambda: self.server.store.run("shared.lua", self.keys, texts))  # type: ignore[no-any-return]

    async def run(self, *arguments: str | int) -> list[Any]:
        texts, keys = [str(each) for each in arguments], [self._prefix + "leases"]
        return await self.server.ask(self, lambda: self.server.store.run("leases.lua", keys, texts))  # type: ignore[no-any-return]

    def _entries(self, seq: int) -> list[tuple[int, str]]:
        found = self.server.store.do_xrange(self.keys[0], f"{seq + 1}-0", "+", "COUNT", "1000")
        return [(_id(number)[0], fields[1] if len(fields) > 1 else "") for number, fields in found]

    async def entries_after(self, seq: int) -> list[tuple[int, str]]:
        return await self.server.ask(self, lambda: self._entries(seq))  # type: ignore[no-any-return]

    async def wait_for_entries(self, seq: int, block_s: float) -> list[tuple[int, str]]:
        until_s = self.server.loop.time() + block_s
        while True:
            found: list[tuple[int, str]] = await self.entries_after(seq)
            if found or self.server.loop.time() >= until_s:
                return found
            await self.server.changed(until_s - self.server.loop.time())

    async def evicts(self) -> str:
        policy = self.server.maxmemory_policy
        return policy if policy.startswith("allkeys-") else ""

    async def disconnect(self) -> None:
        pass

    async def close(self) -> None:
        pass
