"""A live gateway whose router and policies know texts and sessions, and the same again from a recording."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from live.gate import Gate, config, gateway, shadowed
from live.stand_in import Behaviour, running

from policies import snapshot
from policies.api import Arrived, Finished, Forward, Hold
from policies.shadow import Opinion
from policies.wire import event_from, to_plain
from sim.judging.parity import check_parity
from sim.live.gateway.config_file import parse_config
from sim.live.gateway.core_from_config import core_of_head, recorded_head
from sim.live.gateway.prompt_text import session_name
from sim.live.observability.recording import Recording
from sim.mock_server.app import ServerSettings
from sim.mock_server.run import fine_loop, start, stop
from sim.scenario.profile import Profile
from workloads.lengths import Constant

CONVERSATIONS, TURNS = 8, 5
KEEPS = {
    "name": "keeps", "max_num_seqs": 16, "max_num_batched_tokens": 2048, "kv_blocks": 4000, "prefix_caching": True,
    "step_time": {"kind": "linear", "base_s": 0.002, "per_prefill_token_s": 1e-6},
}  # fmt: skip


@contextmanager
def mock_servers(count: int) -> Iterator[list[Any]]:
    """Run mock replicas with prefix caches on a thread of their own."""
    ready, over = threading.Event(), threading.Event()
    urls: list[str] = []

    async def serve() -> None:
        profile = Profile.model_validate_json(json.dumps(KEEPS))
        runners, found = await start(
            ServerSettings(profile=profile, model="tiny", answers=Constant(value=20)), replicas=count
        )
        urls.extend(found)
        ready.set()
        await asyncio.get_running_loop().run_in_executor(None, over.wait)
        await stop(runners)

    def work() -> None:
        with asyncio.Runner(loop_factory=fine_loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert ready.wait(20)
        yield [SimpleNamespace(base_url=url) for url in urls]
    finally:
        over.set()
        thread.join(20)


def words(chance: random.Random, count: int) -> str:
    return " ".join(f"{chance.choice(('sun', 'sea', 'day', 'red'))}{chance.randrange(1000)}" for _ in range(count))


def talk(gate: Gate, number: int, **more: Any) -> None:
    """Hold a conversation: each turn says again all that was said before."""
    chance = random.Random(number)
    messages = [{"role": "system", "content": words(chance, 150)}]
    for _ in range(TURNS):
        messages.append({"role": "user", "content": words(chance, 40)})
        body = {"model": "tiny", "messages": messages, "max_tokens": 20, **more}
        answer = gate.ask(body, path="/v1/chat/completions", headers={"x-tokenpools-session": f"talk {number}"})
        assert answer.status == 200, answer.body
        messages.append(answer.json["choices"][0]["message"])


def talks(gate: Gate, **more: Any) -> None:
    with ThreadPoolExecutor(CONVERSATIONS) as threads:
        list(threads.map(lambda number: talk(gate, number, **more), range(CONVERSATIONS)))
    gate.balanced()


def found_share(gate: Gate) -> float:
    """Return which share of all prompts the replicas say that they had."""
    ends = [event for _, event, _ in gate.events if isinstance(event, Finished)]
    assert len(ends) == CONVERSATIONS * TURNS
    return sum(end.cached_tokens for end in ends) / sum(end.prompt_tokens or 0 for end in ends)


def replicas_of_talks(gate: Gate) -> dict[int, set[int]]:
    """Return the replicas that each conversation was sent to."""
    talk_of: dict[str, int] = {}  # each begins with a block of its own
    found: dict[int, set[int]] = {}
    for _, event, said in gate.events:
        if isinstance(event, Arrived):
            talk_of[event.request.request_id] = event.request.prefix[0][0]
        for one in said:
            if isinstance(one, Forward):
                found.setdefault(talk_of[one.request_id], set()).add(one.replica_id)
    return found


def same_again(gate: Gate, servers: Sequence[Any], path: Path, **changed: Any) -> dict[str, int]:
    """Check that a fresh core says all of it again; return the verdicts."""
    head = recorded_head(parse_config(config(servers, **changed), "test.yaml"))
    recording = Recording(path, SimpleNamespace(started_s=gate.service.gateway.core.started_s), head)  # type: ignore[arg-type]
    for entry in gate.events:
        recording(*entry)
    recording.close()
    parity = check_parity(path)
    assert parity.differing == 0, parity.different
    taken_over(gate, head)
    return parity.verdicts


def taken_over(gate: Gate, head: dict[str, Any]) -> None:
    """Check that a gateway that shares the state says the same: by the log's text, and from a snapshot midway."""
    core = core_of_head(head, "test")
    core.start(gate.service.gateway.core.started_s)
    middle = len(gate.events) // 2
    for number, (now_s, event, said) in enumerate(gate.events):
        if number == middle:
            core = snapshot.restore(json.loads(json.dumps(snapshot.take(core))), chance=random.Random)
        told = event_from(json.loads(json.dumps(to_plain(event))))
        assert told == event
        assert [to_plain(one) for one in core.handle(told, now_s)] == [to_plain(one) for one in said]


def test_conversations_stay_where_their_text_is_and_are_found_there(tmp_path: Path) -> None:
    shares = {}
    for router in ("prefix-aware", "random"):
        with mock_servers(2) as servers, gateway(*servers, pool={"router": router}) as gate:
            talks(gate)
            shares[router] = found_share(gate)
            if router == "prefix-aware":
                stayed = replicas_of_talks(gate)
                assert len(stayed) == CONVERSATIONS
                assert all(len(replicas) == 1 for replicas in stayed.values()), stayed
                assert set().union(*stayed.values()) == {0, 1}
            else:
                assert not any(event.request.prefix for _, event, _ in gate.events if isinstance(event, Arrived))
            verdicts = same_again(gate, servers, tmp_path / router, pool={"router": router})
            assert verdicts == {"forward": CONVERSATIONS * TURNS}
    assert shares["prefix-aware"] > 0.6
    assert shares["prefix-aware"] > shares["random"] + 0.1, shares


def test_locality_is_what_dlpm_serves_by(tmp_path: Path) -> None:
    changed = {"policy": {"kind": "dlpm", "quantum": 1e6, "occupancy": 0.0625}}
    with mock_servers(2) as servers, gateway(*servers, **changed) as gate:  # type: ignore[arg-type]
        talks(gate)
        assert found_share(gate) > 0.6
        assert all(len(replicas) == 1 for replicas in replicas_of_talks(gate).values())
        assert any(isinstance(one, Hold) for _, _, said in gate.events for one in said)
        same_again(gate, servers, tmp_path / "events", **changed)


def test_an_agent_keeps_its_place_and_others_wait(tmp_path: Path) -> None:
    changed = {"policy": {"kind": "concur", "agents": 2, "add": 1e-9, "idle_s": 0.3, "queue_requests": 1000}}
    with mock_servers(2) as servers, gateway(*servers, **changed) as gate:  # type: ignore[arg-type]
        talks(gate)
        views = {event.request.request_id: event.request for _, event, _ in gate.events if isinstance(event, Arrived)}
        said = {session_name(f"talk {number}", "acme") for number in range(CONVERSATIONS)}
        assert {view.session for view in views.values()} == said
        assert not any(view.prefix for view in views.values())
        flying: dict[str, str] = {}
        most = 0
        for _, event, steps in gate.events:
            if isinstance(event, Finished):
                flying.pop(event.request_id, None)
            flying |= {one.request_id: views[one.request_id].session for one in steps if isinstance(one, Forward)}
            most = max(most, len(set(flying.values())))
        assert most == 2
        assert same_again(gate, servers, tmp_path / "events", **changed)["hold"] > 0


def test_a_body_names_the_session_where_no_header_does() -> None:
    with running(behaviour=Behaviour()) as stand_in, gateway(stand_in, policy="fairserve") as gate:
        gate.ask(user="ann")
        gate.ask(user="ann", headers={"x-session-id": "here"})
        gate.ask({"model": "tiny", "prompt": "a" * 600_000, "max_tokens": 1, "prompt_cache_key": "far"})  # read apart
        gate.balanced()
        found = [event.request.session for _, event, _ in gate.events if isinstance(event, Arrived)]
        assert found == [session_name(one, "acme") for one in ("ann", "here", "far")]
        seen = [dict(request.headers) for request in stand_in.seen if request.method == "POST"]
    assert [one.get("x-session-id") for one in seen] == [None, "here", None]


def test_the_gateways_own_header_goes_no_further_and_nobody_is_told_of_sessions_who_did_not_ask() -> None:
    with running(behaviour=Behaviour()) as stand_in, gateway(stand_in) as gate:
        gate.ask(user="ann", headers={"x-tokenpools-session": "x"})
        view = next(event.request for _, event, _ in gate.events if isinstance(event, Arrived))
        assert (view.session, view.prefix) == ("", ())
        assert all("x-tokenpools-session" not in map(str.lower, request.headers) for request in stand_in.seen)


def test_a_shadow_knows_texts_and_sessions_that_the_acting_policy_did_not_ask_for() -> None:
    shadows = [{"name": "agents", "kind": "concur", "agents": 1}, {"name": "longest", "kind": "dlpm"}]
    found: list[Opinion] = []
    with running(behaviour=Behaviour()) as stand_in, gateway(stand_in) as gate:
        shadowed(gate, config([stand_in], shadow=shadows), found.append)
        gate.service.recorders.remove(gate.check)
        gate.checker = None
        for session in ("first", "first", "second"):
            gate.ask(prompt="the same text " * 100, headers={"x-tokenpools-session": session})
        gate.balanced()
        views = [event.request for _, event, _ in gate.events if isinstance(event, Arrived)]
    # One agent has a place, and keeps it between its calls: were sessions unknown, the second call would wait, too.
    assert [one.verdict for one in found if one.shadow == "agents"] == ["forward", "forward", "hold"]
    assert [one.session for one in views] == [session_name(one, "acme") for one in ("first", "first", "second")]
    assert len({one.prefix for one in views}) == 1
    assert len(views[0].prefix) > 3


@pytest.mark.parametrize("salted", [True, False])
def test_tenants_share_names_of_texts_only_where_they_share_a_cache(salted: bool) -> None:
    changed = {"pool": {"router": "prefix-aware"}, "metering": {"cache_salt": salted}}
    with running(behaviour=Behaviour()) as stand_in, gateway(stand_in, **changed) as gate:  # type: ignore[arg-type]
        for key in ("chat", "batch"):
            gate.ask(prompt="the same text " * 100, key=key)
        gate.balanced()
        one, other = [event.request.prefix for _, event, _ in gate.events if isinstance(event, Arrived)]
    assert len(one) == len(other) > 3
    assert (one == other) is not salted


@pytest.mark.parametrize("size", [100, 100_000, 700_000])
def test_a_body_has_the_same_names_wherever_it_is_read(size: int) -> None:
    """On the loop, in a thread, in another process."""
    with running(behaviour=Behaviour()) as stand_in, gateway(stand_in, pool={"router": "prefix-aware"}) as gate:
        start_of_it = "begins alike " * 60
        gate.ask(prompt=start_of_it)
        gate.ask(prompt=start_of_it + "x" * size, max_tokens=1)
        gate.balanced()
        short, long = [event.request.prefix for _, event, _ in gate.events if isinstance(event, Arrived)]
    assert long[: len(short)] == short
    assert len(short) == 780 // 256


def chat(*contents: Any, **more: Any) -> bytes:
    return json.dumps(
        {"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": one} for one in contents], **more}
    ).encode()


PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)
HOSTILE = (
    chat([{"type": "image_url", "image_url": {"url": PIXEL}}] * 50), chat([{"type": "image_url", "image_url": 7}, "x"]),
    chat([{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 300_000}}]),
    chat([{"type": "text", "text": ["a", {"b": 1.5}, None, True]}]), chat(None), chat([]), chat(7),
    chat("\ud800" * 400),
    chat("a", user={"x": []}, metadata="m", prompt_cache_key=["k"], conversation=7), chat("a", user="u" * 200_000),
    chat("a", tools=[{"type": "function", "function": {"name": "f", "parameters": {"p": [1] * 5000}}}] * 20),
    chat("a", tools="t", documents=7, chat_template={"x": "y"}), chat(*["word " * 20_000] * 8),
    b'{"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": ' + b"[" * 900 + b"]" * 900 + b"}]}",
    b'{"model": "tiny", "messages": [], "max_tokens": 1}', b'{"model": "tiny", "messages": {"role": "x"}}',
)  # fmt: skip


def test_whatever_a_client_sends_it_is_answered_as_where_nobody_looks_at_texts() -> None:
    found = []
    for changed in ({}, {"pool": {"router": "prefix-aware"}, "policy": "fairserve"}):
        with running(behaviour=Behaviour()) as stand_in, gateway(stand_in, **changed) as gate:  # type: ignore[arg-type]
            answers = [gate.ask(body, path="/v1/chat/completions") for body in HOSTILE]
            found.append([(one.status, one.code if one.status >= 400 else "") for one in answers])
            gate.balanced()
            assert gate.ask().status == 200
    assert found[0] == found[1]
    assert {200, 400} <= {status for status, _ in found[0]}
    assert all(status in (200, 400, 429) for status, _ in found[0]), found[0]
