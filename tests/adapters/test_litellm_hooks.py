"""The hooks for LiteLLM by hand, without LiteLLM; ``make litellm`` tries them in its proxy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adapters.pools import assert_empty, config, parity
from policies.core import GatewayCore
from sim.adapters.admission.errors import AdmissionError
from sim.adapters.litellm.hooks import CONFIG_VARIABLE, Hooks, StreamCutError
from sim.errors import TokenpoolsError

BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "x" * 40}], "max_tokens": 8}
WHO = {"key_alias": "k", "team_id": "acme", "org_id": "all"}


class Refused(Exception):  # noqa: N818
    def __init__(self, error: AdmissionError) -> None:
        self.error = error
        self.status_code = error.status


class Proxy:
    """As much of LiteLLM's proxy as calls the hooks."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.hooks = Hooks(given, answer=Refused)

    @property
    def core(self) -> GatewayCore:
        return self.hooks.admissions.core

    def __len__(self) -> int:
        return len(self.hooks.admissions)

    async def ask(self, who: dict[str, Any] = WHO, call_type: str = "acompletion", **body: Any) -> dict[str, Any]:
        data = {**BODY, "metadata": {}, **body}
        return await self.hooks.async_pre_call_hook(SimpleNamespace(**who), None, data, call_type)

    async def done(self, data: dict[str, Any], **usage: int) -> None:
        await self.hooks.async_post_call_success_hook(data, None, {"usage": usage})

    async def failed(self, data: dict[str, Any], status: int) -> None:
        error = RuntimeError()
        error.status_code = status  # type: ignore[attr-defined]
        await self.hooks.async_post_call_failure_hook(data, error, None)

    def streamed(self, data: dict[str, Any], chunks: AsyncIterator[Any]) -> AsyncIterator[Any]:
        return self.hooks.async_post_call_streaming_iterator_hook(None, chunks, data)

    def worked(self, name: str = "chat") -> float:
        return self.core.pool.entitlements[name].worked_tokens


def with_proxy(what: Callable[[Proxy], Awaitable[None]], **more: Any) -> None:
    async def go() -> None:
        proxy = Proxy(config(tenants={"team:acme": "chat", "key:special": "batch", "org:small": "filler"}, **more))
        await what(proxy)
        await asyncio.sleep(0)
        assert_empty(proxy)
        assert not proxy.hooks._entries
        proxy.hooks.admissions.close()

    asyncio.run(go())


async def words(count: int, usage: Any = None, error: BaseException | None = None) -> AsyncIterator[Any]:
    for number in range(count):
        await asyncio.sleep(0)
        delta = SimpleNamespace(content=f"w{number}")
        yield SimpleNamespace(choices=[SimpleNamespace(delta=delta)], usage=None)
    if error is not None:
        raise error
    if usage is not None:
        yield SimpleNamespace(choices=[], usage=SimpleNamespace(model_dump=lambda: usage))


def test_answers_in_one_piece() -> None:
    async def go(proxy: Proxy) -> None:
        data = await proxy.ask()
        assert len(proxy) == 1
        await proxy.done(data, prompt_tokens=12, completion_tokens=3)
        await proxy.done(data, prompt_tokens=12, completion_tokens=3)
        await proxy.failed(data, 500)
        assert proxy.worked() == 15
        await proxy.failed(await proxy.ask(), 500)
        await proxy.failed(await proxy.ask(), 400)
        assert proxy.worked() == 15
        await proxy.failed({**BODY}, 500)
        embedded = await proxy.ask(call_type="aembedding", input="x" * 4)
        await proxy.done(embedded, prompt_tokens=2)
        assert proxy.worked() == 17
        assert await proxy.ask(call_type="acreate_file") == {**BODY, "metadata": {}}

    with_proxy(go)


def test_noughts_in_place_of_a_usage_are_none() -> None:
    async def go(proxy: Proxy) -> None:
        await proxy.done(await proxy.ask(), prompt_tokens=0, completion_tokens=0, total_tokens=0)
        assert proxy.worked() == 14 + 8
        nothing = {"prompt_tokens": 0, "completion_tokens": 0}
        async for _ in proxy.streamed(await proxy.ask(stream=True), words(3, nothing)):
            pass
        assert proxy.worked() == 14 + 8 + 14 + 3

    with_proxy(go)


def test_streams_are_settled_however_they_end() -> None:
    async def go(proxy: Proxy) -> None:
        async for _ in proxy.streamed(await proxy.ask(stream=True), words(4)):
            pass
        assert proxy.worked() == 18
        data = await proxy.ask(stream=True)
        await proxy.done(data, prompt_tokens=1)  # LiteLLM may call it; the stream goes on
        async for _ in proxy.streamed(data, words(2, {"prompt_tokens": 7, "completion_tokens": 6})):
            pass
        assert proxy.worked() == 31
        left = proxy.streamed(await proxy.ask(stream=True), words(4))
        await anext(left)
        await left.aclose()  # type: ignore[attr-defined]
        assert proxy.worked() == 46
        broken = proxy.streamed(await proxy.ask(stream=True), words(1, error=ConnectionResetError()))
        await anext(broken)
        with pytest.raises(ConnectionResetError):
            await anext(broken)
        assert proxy.worked() == 61
        assert [chunk async for chunk in proxy.streamed({}, words(2))]

    with_proxy(go)


def test_a_request_that_no_hook_hears_of_again_is_settled_with_its_task() -> None:
    async def go(proxy: Proxy) -> None:
        await asyncio.create_task(proxy.ask())
        await asyncio.sleep(0)
        assert len(proxy) == 0
        assert proxy.worked() == 14

    with_proxy(go)


def test_an_evicted_stream_ends_with_the_reason() -> None:
    async def go(proxy: Proxy) -> None:
        small = {"org_id": "small"}
        streams = [proxy.streamed(await proxy.ask(small, stream=True), words(9)) for _ in range(4)]
        for stream in streams:
            await anext(stream)
        data = await proxy.ask()
        ended = await asyncio.gather(*(anext(stream) for stream in streams), return_exceptions=True)
        (evicted,) = (one for one in ended if isinstance(one, StreamCutError))
        assert (evicted.status_code, evicted.headers["x-tokenpools-reason"]) == (503, "preempted")
        await proxy.done(data, completion_tokens=1)
        for stream in streams:
            await stream.aclose()  # type: ignore[attr-defined]

    with_proxy(go)


def test_whose_a_request_is() -> None:
    async def go(proxy: Proxy) -> None:
        for who, name in (
            (WHO, "chat"), ({**WHO, "key_alias": "special"}, "batch"),
            ({"org_id": "small", "team_id": "new"}, "filler"),
        ):  # fmt: skip
            await proxy.done(await proxy.ask(who), prompt_tokens=1, completion_tokens=1)
            assert proxy.worked(name) > 0
        for who in ({}, {"team_id": "chat"}, {"key_alias": "acme"}, {"team_id": "org:small"}, {"team_id": None}):
            with pytest.raises(Refused) as caught:
                await proxy.ask(who)
            assert caught.value.status_code == 403

    with_proxy(go)


def test_a_refusal_carries_when_to_come_back() -> None:
    async def go(proxy: Proxy) -> None:
        special = {"key_alias": "special"}
        data = await proxy.ask(special)
        with pytest.raises(Refused) as caught:
            await proxy.ask(special)
        assert caught.value.status_code == 429
        assert "retry-after" in caught.value.error.headers
        await proxy.done(data)

    with_proxy(go)


def test_a_client_cannot_name_the_request_of_another() -> None:
    async def go(proxy: Proxy) -> None:
        first = await proxy.ask()
        name = first["metadata"]["tokenpools_request"]
        second = await proxy.ask(metadata={"tokenpools_request": name}, litellm_metadata={"tokenpools_request": name})
        await proxy.failed(second, 500)
        assert len(proxy) == 1
        await proxy.done(first, prompt_tokens=1, completion_tokens=1)
        assert proxy.worked() == 2

    with_proxy(go)


def slots_and_tokens(proxy: Proxy) -> tuple[int, int, int | None]:
    """Return slots, prompt tokens and limit of the one request that is there."""
    (flight,) = proxy.core.pool.in_flight.values()
    request = flight.request
    return request.sequences, request.prompt_tokens, request.max_output_tokens


MANY = {"model": "m", "prompt": ["a b", "c d"], "max_tokens": 5}
CHEATS: list[tuple[dict[str, Any], str, tuple[int, int | None]]] = [
    ({**BODY, "n": 3}, "acompletion", (3, 24)),
    ({**BODY, "n": 2, "max_completion_tokens": 9}, "acompletion", (2, 18)),  # the larger of two limits
    (MANY, "atext_completion", (2, 10)),
    ({"model": "m", "prompt": [[1, 2]], "max_tokens": 5, "best_of": 2}, "text_completion", (2, 10)),
    (BODY | {"extra_body": {"n": 3, "max_tokens": 50}}, "acompletion", (3, 150)),  # LiteLLM merges it over the rest
    (BODY | {"proxy_server_request": {"body": BODY}, "n": 2}, "acompletion", (1, 8)),  # LiteLLM's own, not the client's
    ({"model": "m", "input": ["a", "b", "c"]}, "aembedding", (3, 0)),
    ({"model": "m", "query": "q", "documents": ["a", "b"]}, "rerank", (2, 0)),
    ({"model": "m", "input": "a", "max_output_tokens": 7}, "aresponses", (1, 7)),
    ({"model": "m", "file": ("a.wav", b"x" * 32_000)}, "transcription", (1, None)),
    ({"contents": [{"parts": [{"text": "a"}]}]}, "agenerate_content", (1, None)),
    ({"anything": "x" * 400}, "pass_through_endpoint", (1, None)),
    ({"anything": 1}, "a_type_that_nobody_knows_yet", (1, None)),
]  # fmt: skip


@pytest.mark.parametrize(("body", "call_type", "expected"), CHEATS)
def test_whatever_path_it_takes_it_is_asked_for_what_it_takes(
    body: dict[str, Any], call_type: str, expected: tuple[int, int | None]
) -> None:
    async def whole(proxy: Proxy) -> None:
        data = dict(body)
        await proxy.hooks.async_pre_call_hook(SimpleNamespace(**WHO), None, data, call_type)
        slots, prompt, most = slots_and_tokens(proxy)
        assert (slots, most) == expected
        assert prompt >= (100 if call_type in ("transcription", "pass_through_endpoint") else 1)
        await proxy.done(data)

    with_proxy(whole)


def test_files_and_lists_pass() -> None:
    async def go(proxy: Proxy) -> None:
        for call_type in ("acreate_file", "alist_batches", "aget_responses", "list_mcp_tools", "avector_store_create"):
            data = {"model": "m"}
            assert await proxy.hooks.async_pre_call_hook(SimpleNamespace(), None, data, call_type) == {"model": "m"}

    with_proxy(go)


PASSED = "pass_through_endpoint"


def test_what_cannot_be_watched_pays_for_all_that_it_reserved() -> None:
    async def go(proxy: Proxy) -> None:
        async def call() -> None:
            await proxy.hooks.async_pre_call_hook(SimpleNamespace(**WHO), None, {"x": "y" * 40}, PASSED)

        await asyncio.create_task(call())
        await asyncio.sleep(0)
        assert len(proxy) == 0
        assert proxy.worked() == 10 + proxy.core.default_max_output_tokens

    with_proxy(go)


@pytest.mark.parametrize("wrong", [
    {"n": "5"}, {"n": -1}, {"n": 10_000}, {"max_tokens": "many"}, {"max_tokens": -5}, {"messages": "text"},
    {"extra_body": {"n": "5"}}, {"kv_transfer_params": {"a": 1}}, {"priority": -3},
])  # fmt: skip
def test_what_makes_no_sense_is_400_and_no_replicas(wrong: dict[str, Any]) -> None:
    async def go(proxy: Proxy) -> None:
        with pytest.raises(Refused) as caught:
            await proxy.hooks.async_pre_call_hook(SimpleNamespace(**WHO), None, BODY | wrong, "acompletion")
        assert caught.value.status_code == 400

    with_proxy(go)


def test_a_recording_gives_the_same_verdicts_again(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"

    async def go(proxy: Proxy) -> None:
        for number in range(30):
            who = ({"org_id": "small"}, WHO, {"key_alias": "special"})[number % 3]
            data = await proxy.ask(who, stream=number % 2 == 0)
            if number % 2:
                await (proxy.failed(data, 500) if number % 5 == 0 else proxy.done(data, completion_tokens=number))
            else:
                async for _ in proxy.streamed(data, words(number % 7)):
                    pass

    with_proxy(go, recording=str(file))
    assert parity(file).verdicts == {"forward": 30}


def test_without_a_configuration_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    from tokenpools.litellm import Handler, handler

    # LiteLLM calls only what it finds in the class itself.
    assert {name for name in vars(Hooks) if name.startswith("async_")} <= vars(Handler).keys()

    async def go() -> None:
        with pytest.raises(TokenpoolsError, match=CONFIG_VARIABLE):
            await handler.async_pre_call_hook(SimpleNamespace(), None, {}, "acompletion")

    asyncio.run(go())
