"""The HTTP side of one mock replica: OpenAI's API, `/tokenize`, `/health` and vLLM's `/metrics`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web

from sim.mock_server.answers import DONE, Answer, error_body, usage
from sim.mock_server.metrics import ServerMetrics
from sim.mock_server.real_time import Generation, RealTimeReplica
from sim.mock_server.request_body import Asked, BadRequestError, asked_of, chat_prompt, parsed, prompts_of
from sim.mock_server.slots_file import SlotsFile
from sim.mock_server.tokens import digest, prefix_of
from sim.scenario.profile import Profile
from workloads.lengths import LengthLaw

_EMBEDDING_SIZE = 16
_MOST_BODY_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What is served.

    Attributes
    ----------
    answers : law of an answer's length where the client does not fix it; the same prompt gets the same one.
    speed : simulated seconds in a second.
    api_key : asked of everybody, where there is one.
    slots_file : says how many sequences run at once; what runs goes on when they are fewer.
    """

    profile: Profile
    model: str
    answers: LengthLaw
    speed: float = 1.0
    seed: int = 0
    api_key: str | None = None
    slots_file: Path | None = None


class MockServer:
    """One replica and its pages."""

    def __init__(self, settings: ServerSettings, replica_id: int = 0) -> None:
        profile = settings.profile
        self._settings = settings
        self._max_model_tokens = profile.max_model_tokens or profile.kv_blocks * profile.block_tokens
        self.replica = RealTimeReplica(profile, replica_id, speed=settings.speed)
        self.metrics = ServerMetrics(self.replica, profile, settings.model, speed=settings.speed)
        self._number = 0

    def application(self) -> web.Application:
        """Return the application to serve."""
        app = web.Application(client_max_size=_MOST_BODY_BYTES, middlewares=[self._checked])
        app.add_routes([
            web.post("/v1/chat/completions", partial(self._generate, chat=True)),
            web.post("/v1/completions", partial(self._generate, chat=False)),
            web.post("/v1/embeddings", self._embeddings),
            web.post("/tokenize", self._tokenize),
            web.get("/v1/models", self._models),
            web.get("/health", self._health),
            web.get("/ping", self._health),
            web.get("/version", self._version),
            web.get("/metrics", self._metrics_page),
        ])  # fmt: skip
        if self._settings.slots_file is not None:
            app.cleanup_ctx.append(self._followed)
        return app

    async def _followed(self, _: web.Application) -> AsyncIterator[None]:
        assert self._settings.slots_file is not None
        slots = SlotsFile(self._settings.slots_file, self._settings.profile.max_num_seqs, self.replica.set_slots)
        following = asyncio.get_running_loop().create_task(slots.follow())
        yield
        following.cancel()

    @web.middleware
    async def _checked(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        key = self._settings.api_key
        said = request.headers.get("Authorization")
        if key is not None and request.path.startswith("/v1") and said != f"Bearer {key}":
            return web.json_response(error_body("Invalid API key", 401), status=401)
        try:
            return await handler(request)
        except BadRequestError as error:
            return web.json_response(error_body(str(error), error.status), status=error.status)

    # ------------------------------------------------------------------------------------------------------ generate

    def _draw_tokens(self, prompt: list[int]) -> int:
        rng = np.random.default_rng([self._settings.seed, digest(prompt)])
        return int(self._settings.answers.draw(rng, 1)[0])

    async def _generate(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        asked = asked_of(
            parsed(await request.read()), chat=chat, model=self._settings.model,
            max_model_tokens=self._max_model_tokens, draw_tokens=self._draw_tokens,
        )  # fmt: skip
        self._number += 1
        work = _Work(self, asked, self._number)
        try:
            if asked.stream:
                return await self._streamed(request, work)
            await work.over.wait()
            return web.json_response(work.answer.whole())
        finally:
            work.leave()

    async def _streamed(self, request: web.Request, work: _Work) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        response.enable_chunked_encoding()
        begun = False
        while not work.told_all:
            if not work.events:
                work.more.clear()
                await work.more.wait()
            data, work.events = b"".join(work.events), []
            if not begun:  # as vLLM does: nothing before the first token
                await response.prepare(request)
                begun = True
            await response.write(data)
        await response.write((work.answer.last_usage(work.all_tokens) if work.asked.usage else b"") + DONE)
        await response.write_eof()
        return response

    async def _embeddings(self, request: web.Request) -> web.Response:
        """Compute the prompts, and answer with numbers that depend on nothing but the text."""
        fields = parsed(await request.read())
        prompts = prompts_of(fields.get("input"))
        fixed = {"prompt": prompts, "max_tokens": 1, "ignore_eos": True}
        asked = asked_of(
            {"model": fields.get("model", self._settings.model)} | fixed,
            chat=False, model=self._settings.model, max_model_tokens=self._max_model_tokens,
            draw_tokens=self._draw_tokens,
        )  # fmt: skip
        self._number += 1
        work = _Work(self, asked, self._number)
        try:
            await work.over.wait()
        finally:
            work.leave()
        data = []
        for index, prompt in enumerate(prompts):
            numbers = np.random.default_rng(digest(prompt)).standard_normal(_EMBEDDING_SIZE)
            vector = (numbers / np.linalg.norm(numbers)).tolist()
            data.append({"object": "embedding", "index": index, "embedding": vector})
        said = usage(sum(map(len, prompts)), 0)
        return web.json_response({"object": "list", "model": asked.model, "data": data, "usage": said})

    def submit(self, generation: Generation, prompt: list[int]) -> None:
        """Hand a sequence to the replica."""
        if self._settings.profile.prefix_caching:
            generation.prefix = prefix_of(prompt, self._settings.profile.block_tokens)
        self.replica.submit(generation)

    @property
    def each_token(self) -> bool:
        """Whether an event carries one token: not where several come of one iteration."""
        return self._settings.profile.speculation is None

    # --------------------------------------------------------------------------------------------------- other pages

    async def _tokenize(self, request: web.Request) -> web.Response:
        fields = parsed(await request.read())
        tokens = chat_prompt(fields) if "messages" in fields else prompts_of(fields.get("prompt"))[0]
        return web.json_response(
            {"count": len(tokens), "max_model_len": self._max_model_tokens, "tokens": tokens, "token_strs": None}
        )

    async def _models(self, _: web.Request) -> web.Response:
        card = {
            "id": self._settings.model, "object": "model", "created": int(time.time()), "owned_by": "vllm",
            "root": self._settings.model, "parent": None, "max_model_len": self._max_model_tokens,
        }  # fmt: skip
        return web.json_response({"object": "list", "data": [card]})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "tokenpools-mock"})

    async def _metrics_page(self, _: web.Request) -> web.Response:
        return web.Response(body=self.metrics.page(), headers={"content-type": "text/plain; version=0.0.4"})


class _Work:
    """The sequences of one request, and what is to be told of them.

    Attributes
    ----------
    over : set when all have ended.
    events, more : what a stream has to write, and set when there is something.
    all_tokens : output tokens so far, of all of them.
    """

    def __init__(self, server: MockServer, asked: Asked, number: int) -> None:
        self._server = server
        self.asked = asked
        self.answer = Answer(asked, number, int(time.time()))
        self.over, self.more = asyncio.Event(), asyncio.Event()
        self.events: list[bytes] = []
        self.all_tokens = 0
        self._made: list[Generation] = []
        self._told: list[int] = []
        self._left = len(asked.prompts) * asked.answers
        now_s = server.replica.now_s()
        for which, prompt in enumerate(asked.prompts):
            for _ in range(asked.answers):
                self._begin(f"{number}-{len(self._made)}", which, prompt, now_s)

    def _begin(self, name: str, which: int, prompt: list[int], now_s: float) -> None:
        index, length = len(self._made), self.asked.output_tokens[which]
        hear: Any = (lambda tokens: self._hear(index, tokens, length)) if self.asked.stream else None
        generation = Generation(
            name, len(prompt), length, length + 1 if self.asked.stops[which] else length, now_s=now_s,
            ended=lambda: self._end(index), hear=hear, priority=self.asked.priority,
        )  # fmt: skip
        self._made.append(generation)
        self._told.append(0)
        self._server.submit(generation, prompt)

    @property
    def told_all(self) -> bool:
        """Whether a stream has written all there is."""
        return self.over.is_set() and not self.events

    def _hear(self, index: int, tokens: int, length: int) -> None:
        told = self._told[index]
        if not told and self.asked.chat:
            self.events.append(self.answer.role(index))
        step = 1 if self._server.each_token else tokens - told
        for first in range(told, tokens, max(1, step)):
            stop = min(first + step, tokens)
            self.all_tokens += stop - first
            self.events.append(self.answer.piece(index, first, stop, self.all_tokens, last=stop == length))
        self._told[index] = tokens
        self.more.set()

    def _end(self, index: int) -> None:
        self._left -= 1
        self._server.metrics.ended(self._made[index], self.answer.reason(index))
        if not self._left:
            found = [one.cached_tokens for one in self._made]
            self.answer.cached_tokens = sum(found) if min(found) >= 0 else None
            self.over.set()
            self.more.set()

    def leave(self) -> None:
        """Abort what has not ended: the client has left."""
        if not self._left:
            return
        for generation in self._made:
            if generation.finish_s != generation.finish_s:  # NaN: it has not ended
                self._server.replica.abort(generation)
                self._server.metrics.ended(generation, "abort")
        self._left = 0
