"""Gateway processes that share their state through a real redis-server, with what may befall either of them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import redis
from live.shared_state.redis_server import BINARY, RedisServer
from live.shared_state.shared_worker import SLOTS

from policies import snapshot
from policies.api import Adopted, Arrived, Cancelled, Evict, Instruction, Refuse
from policies.core import GatewayCore
from policies.wire import event_from, instruction_from

pytestmark = pytest.mark.skipif(BINARY is None, reason="needs redis-server")

WORKER = Path(__file__).with_name("shared_worker.py")
Said = dict[str, Any]


class Worker:
    def __init__(self, folder: Path, url: str, name: str, policy: str, options: dict[str, Any]) -> None:
        self.name = name
        self._out = folder / f"{name}.out"
        with self._out.open("wb") as out, (folder / f"{name}.err").open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, str(WORKER), url, name, policy, json.dumps(options)],
                stdout=out, stderr=err,
            )

    def said(self, what: str | None = None) -> list[Said]:
        lines = [json.loads(line) for line in self._out.read_text().splitlines()]
        return [line for line in lines if what in (None, line["what"])]

    def until(self, true: Callable[[], object], within_s: float = 60.0) -> None:
        deadline_s = time.monotonic() + within_s
        while not true():
            assert self.process.poll() is None, self.errors()
            assert time.monotonic() < deadline_s, self.errors()
            time.sleep(0.02)

    def joined(self) -> Worker:
        self.until(lambda: self.said("joined"))
        return self

    def end(self) -> Said:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGUSR1)  # it then says where it hangs
            time.sleep(1)
            self.process.kill()
            self.process.wait(5)
        assert self.process.returncode == 0, self.errors()
        assert "Traceback" not in self.errors(), self.errors()
        (state,) = self.said("state")
        return state

    def errors(self) -> str:
        return self._out.with_suffix(".err").read_text()[-4000:]


@pytest.fixture
def begin(tmp_path: Path, server: RedisServer) -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def begin(name: str, policy: str = "token-pool", **options: Any) -> Worker:
        workers.append(Worker(tmp_path, server.url, name, policy, options))
        return workers[-1]

    yield begin
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.send_signal(signal.SIGCONT)
            worker.process.kill()
            worker.process.wait(10)


class OneCore:
    """What one process decides that hears the whole log; written apart from `SharedLog`."""

    def __init__(self, url: str) -> None:
        client = redis.Redis.from_url(url, decode_responses=True)
        written = json.loads(str(client.hget("tokenpools:{test}:snapshot", "data")))
        self.core: GatewayCore = snapshot.restore(written["core"], chance=random.Random)
        self.owners: dict[str, str] = written["owners"]
        self.verdicts: dict[str, list[Instruction]] = {}
        self.digests: dict[int, str] = {written["seq"]: self._digest()}
        self.lost_us: dict[str, int] = {}
        self.last_us: dict[str, int] = {}
        self.most = 0
        self.adopted: set[str] = set()
        self.entries: Any = client.xrange("tokenpools:{test}:events", min=f"{written['seq'] + 1}-0")
        client.close()

    def run(self, states: list[Said]) -> OneCore:
        asked = {state["seq"] for state in states}
        for number, fields in self.entries:
            us, origin, _, _, text = fields["e"].split(" ", 4)
            data = json.loads(text)
            if data == ["gateway_lost"]:
                self.lost_us[origin] = int(us)
                for name in [name for name, owner in self.owners.items() if owner == origin]:
                    flight = self.core.pool.in_flight.get(name)
                    self._hear(Cancelled(name, flight.output_tokens if flight else 0), origin, int(us))
            else:
                self.last_us[origin] = int(us)
                self._hear(event_from(data), origin, int(us))
            self.most = max(self.most, len(self.core.pool.in_flight))
            if int(number.partition("-")[0]) in asked:
                self.digests[int(number.partition("-")[0])] = self._digest()
        return self

    def _hear(self, event: Any, origin: str, us: int) -> None:
        if isinstance(event, Arrived | Adopted):
            self.owners[event.request.request_id] = origin
            if isinstance(event, Adopted):
                self.adopted.add(event.request.request_id)
        try:
            said = self.core.handle(event, us / 1e6)
        except ValueError:
            return
        for step in said:
            if hasattr(step, "request_id"):
                self.verdicts.setdefault(step.request_id, []).append(step)
        for name in list(self.owners):
            if name not in self.core.pool.in_flight and name not in self.core.held:
                del self.owners[name]

    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(snapshot.take(self.core)).encode()).hexdigest()

    def agrees(self, worker: Worker) -> None:
        """All that a worker did is what this core said."""
        started = {line["id"]: line["replica"] for line in worker.said("start")}
        for name, replica in started.items():
            assert [step.replica_id for step in self.verdicts[name] if type(step).__name__ == "Forward"] == [replica]
        for line in worker.said("told"):
            end = instruction_from(line["how"]) if line["how"][0] != "failed" else None
            if isinstance(end, Refuse | Evict):
                assert end in self.verdicts[line["id"]]
        refused = [name for name, steps in self.verdicts.items() if any(isinstance(step, Refuse) for step in steps)]
        assert not set(started) & set(refused)


def peak(changes: Iterable[tuple[float, int]]) -> int:
    """Return the most that was there at one time; an end comes before a start at the same time."""
    return max(accumulate((change for _, change in sorted(changes)), initial=0))


def most_at_once(workers: list[Worker], died_s: dict[str, float], evicted: set[str]) -> int:
    """How many requests ran at the replicas at one time, over all gateways, by the machine's clock.

    Another gateway's request may begin a moment before an evicted one has stopped: that moment is not counted.
    """
    changes = []
    for worker in workers:
        open_ids = set()
        for line in worker.said():
            if line["what"] == "start":
                changes.append((line["t"], 1))
                open_ids.add(line["id"])
            elif line["what"] == "end":
                changes.append((line["t"] - 0.1 * (line["id"] in evicted), -1))
                open_ids.discard(line["id"])
        changes += [(died_s[worker.name], -1) for _ in open_ids]
    return peak(changes)


@pytest.mark.parametrize("policy", ["token-pool", "rate-limit"])
def test_gateways_decide_what_one_would_have_and_a_killed_one_gives_back_what_it_held(
    policy: str, begin: Callable[..., Worker], server: RedisServer
) -> None:
    workers = [begin(name, policy, timeout_s=5.0).joined() for name in ("g1", "g2", "g3")]
    time.sleep(1.5)
    workers[0].process.send_signal(signal.SIGKILL)
    died_s = time.monotonic()
    workers[0].process.wait(10)
    time.sleep(2.2)
    states = [worker.end() for worker in workers[1:]]
    one = OneCore(server.url).run(states)

    for worker in workers:
        one.agrees(worker)
        assert len(worker.said("start")) > 20
    for state in states:
        assert (state["requests"], state["away"]) == (0, 0)
        assert one.digests[state["seq"]] == state["digest"]
    if policy == "token-pool":
        evicted = {name for name, steps in one.verdicts.items() if any(isinstance(step, Evict) for step in steps)}
        assert evicted
        assert SLOTS <= one.most <= SLOTS + 6  # what is promised to gold enters a full pool
        assert most_at_once(workers, {"g1": died_s}, evicted) <= one.most
    assert not one.core.pool.in_flight
    # It was killed with requests in flight; they were given back within the ttl (1 s) of its last word.
    assert 0 < one.lost_us["g1"] - one.last_us["g1"] < 1.4e6


def test_a_newcomer_begins_with_a_snapshot_where_the_log_was_cut(
    begin: Callable[..., Worker], server: RedisServer
) -> None:
    first = begin("g1", snapshot_every=150, rate_per_s=200.0, timeout_s=5.0).joined()
    second = begin("g2", snapshot_every=150, timeout_s=5.0).joined()
    client = redis.Redis.from_url(server.url)
    first.until(lambda: int(client.hget("tokenpools:{test}:snapshot", "seq") or 0) > 600)
    assert client.xlen("tokenpools:{test}:events") < 600
    client.close()
    first.process.send_signal(signal.SIGKILL)  # the leader: another one leaves snapshots from then on
    third = begin("g3", snapshot_every=150, timeout_s=5.0).joined()
    time.sleep(1.5)
    states = [worker.end() for worker in (second, third)]
    one = OneCore(server.url).run(states)
    assert one.core.pool.first_tokens > 50
    for state in states:
        assert (state["requests"], state["away"]) == (0, 0)
        if state["seq"] in one.digests:
            assert one.digests[state["seq"]] == state["digest"]
    assert states[1]["seq"] in one.digests
    assert not one.core.pool.in_flight


def test_redis_killed_and_begun_again_leaves_nothing_behind(
    begin: Callable[..., Worker], server: RedisServer
) -> None:
    workers = [begin(name, timeout_s=1.0).joined() for name in ("g1", "g2")]
    time.sleep(1.0)
    gone_s = time.monotonic()
    server.kill()
    time.sleep(1.5)
    server.start()
    back_s = time.monotonic()
    time.sleep(2.0)
    states = [worker.end() for worker in workers]
    one = OneCore(server.url).run(states)
    for worker, state in zip(workers, states, strict=True):
        assert (state["requests"], state["running"], state["reachable"]) == (0, 0, True)
        assert state["away"] == 1
        assert one.digests[state["seq"]] == state["digest"]
        refused = [line for line in worker.said("told") if line["how"][2:3] == ["state_unavailable"]]
        assert refused
        assert all(gone_s < line["t"] < back_s + 1.5 for line in refused)
        began = [line for line in worker.said("start") if gone_s + 0.1 < line["t"] < back_s]
        assert {line["entitlement"] for line in began} == {"gold"}
        assert any(line["t"] > back_s + 1.5 for line in worker.said("start"))
    assert one.core.pool.first_tokens > 0
    assert one.adopted
    assert not one.core.pool.in_flight
    assert not one.core.held
    assert most_in_flight_of("gold", workers, gone_s + 0.1, back_s) <= 6
    for book in one.core.pool.entitlements.values():
        assert (book.in_flight, book.reserved_tokens) == (0, 0)


def most_in_flight_of(entitlement: str, workers: list[Worker], from_s: float, until_s: float) -> int:
    """The most that began between two times and ran at once."""
    changes = []
    for worker in workers:
        began = set()
        for line in worker.said():
            if line["what"] == "start" and line["entitlement"] == entitlement and from_s < line["t"] < until_s:
                began.add(line["id"])
                changes.append((line["t"], 1))
            elif line["what"] == "end" and line["id"] in began:
                changes.append((line["t"], -1))
    return peak(changes)


def test_a_redis_that_does_not_answer_is_waited_for_no_longer_than_said(
    begin: Callable[..., Worker], server: RedisServer
) -> None:
    workers = [begin(name, timeout_s=0.2).joined() for name in ("g1", "g2")]
    time.sleep(1.0)
    paused_s = time.monotonic()
    server.pause()
    time.sleep(1.2)
    server.resume()
    time.sleep(2.0)
    states = [worker.end() for worker in workers]
    one = OneCore(server.url).run(states)
    for worker, state in zip(workers, states, strict=True):
        assert (state["requests"], state["running"], state["reachable"]) == (0, 0, True)
        assert state["away"] >= 1
        assert one.digests[state["seq"]] == state["digest"]
        unavailable = [line for line in worker.said("told") if line["how"][2:3] == ["state_unavailable"]]
        assert unavailable[0]["t"] - paused_s < 0.6
    assert not one.core.pool.in_flight
    assert not one.core.held


def test_a_gateway_that_was_taken_for_dead_has_its_requests_booked_again(
    begin: Callable[..., Worker], server: RedisServer
) -> None:
    workers = [begin(name, ttl_s=0.6, timeout_s=2.0).joined() for name in ("g1", "g2")]
    time.sleep(1.0)
    os.kill(workers[0].process.pid, signal.SIGSTOP)
    time.sleep(1.2)
    os.kill(workers[0].process.pid, signal.SIGCONT)
    time.sleep(1.0)
    states = [worker.end() for worker in workers]
    one = OneCore(server.url).run(states)
    assert "g1" in one.lost_us
    for state in states:
        assert (state["requests"], state["running"]) == (0, 0)
        assert one.digests[state["seq"]] == state["digest"]
    assert workers[0].said("start")[-1]["t"] > workers[0].said("state")[0]["t"] - 1.5
    assert not one.core.pool.in_flight


def test_gateways_of_another_configuration_are_turned_away(begin: Callable[..., Worker], server: RedisServer) -> None:
    first = begin("g1").joined()
    other = begin("g2", config="other")
    assert other.process.wait(60) == 0
    assert "another configuration, key or version (same, here other)" in other.said("refused")[0]["why"]
    assert first.end()["away"] == 0


def test_whatever_befalls_redis_nothing_is_left_behind(begin: Callable[..., Worker], server: RedisServer) -> None:
    workers = [begin(name, ttl_s=0.8, timeout_s=0.2).joined() for name in ("g1", "g2", "g3")]
    rng = random.Random(4)
    for _ in range(5):
        time.sleep(rng.uniform(0.2, 0.6))
        if rng.random() < 0.5:
            server.kill()
            time.sleep(rng.uniform(0.0, 0.6))
            server.start()
        else:
            server.pause()
            time.sleep(rng.uniform(0.0, 1.0))
            server.resume()
    time.sleep(2.0)
    states = [worker.end() for worker in workers]
    one = OneCore(server.url).run(states)
    for worker, state in zip(workers, states, strict=True):
        assert (state["requests"], state["running"], state["reachable"]) == (0, 0, True)
        assert one.digests[state["seq"]] == state["digest"]
        assert not {line["id"] for line in worker.said("start")} ^ {line["id"] for line in worker.said("end")}
    assert not one.core.pool.in_flight
    assert not one.core.held
    for book in one.core.pool.entitlements.values():
        assert (book.in_flight, book.reserved_tokens) == (0, 0)
