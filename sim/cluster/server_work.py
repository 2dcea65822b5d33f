"""What a server does to a request before its engine gets it."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from sim.cluster.engine_request import NEVER_S, EngineRequest
from sim.scenario.profile import Profile

GATHERS_S: Final = 0.002
READ_TOGETHER: Final = 32
"""How long a reader of prompts waits for more after the first, and how many it reads at once (vLLM's
`AsyncMicrobatchTokenizer`)."""

Unread = tuple[float, EngineRequest, float]
"""When a request has been handled, the request, and what comes after its prompt is read."""


class ServerWork:
    """Handles requests, reads their prompts, and hands each on after what else it takes.

    One at a time; or all that are there at once, each at a share of the speed: so an event loop works, which does a
    step of each in turn, and beside it prompts that wait together are read together. Then one that comes later holds
    up those that came before, and what is told the engine already is told anew
    (`sim.cluster.engine_inbox.EngineInbox.reschedule`). All take as long to handle, so nobody overtakes.
    """

    def __init__(self, profile: Profile, engine: Any) -> None:
        self._engine = engine
        self._overhead_s = profile.request_overhead_s
        self._handling_s = profile.request_handling_s
        self._shared = profile.request_handling_shared
        self._per_prompt_token_s = profile.request_per_prompt_token_s
        self._per_running_s = profile.request_per_running_s
        self._done_s = -NEVER_S  # with what is read, or, one at a time, handled and read
        # Of those that are being handled: the request, what each has had when it is done, and what comes after.
        self._handled: deque[tuple[EngineRequest, float, float]] = deque()
        self._had_s = self._since_s = 0.0
        self._unread: list[Unread] = []

    @property
    def takes_time(self) -> bool:
        """Whether it does anything at all."""
        return bool(self._overhead_s or self._handling_s or self._per_prompt_token_s or self._per_running_s)

    def submit(self, request: EngineRequest, now_s: float) -> None:
        """Take a request, and tell the engine when it will have it."""
        more_s = 0.0
        if self._per_running_s:  # the server hands on what all of them make
            more_s = self._per_running_s * (self._engine.running_count + self._engine.waiting_count)
        if self._shared:
            self._share(request, now_s, more_s)
            return
        if self._handling_s or self._per_prompt_token_s:  # one at a time
            now_s = max(self._done_s, now_s) + self._handling_s + self._per_prompt_token_s * request.prompt_tokens
            self._done_s = now_s
        self._engine.submit(request, now_s + more_s + self._overhead_s)

    def _share(self, request: EngineRequest, now_s: float, more_s: float) -> None:
        self._work_until(now_s)
        self._handled.append((request, self._had_s + self._handling_s, more_s + self._overhead_s))
        due_s: dict[EngineRequest, float] = {}
        self._read(self._unread + self._leaving(now_s), NEVER_S, due_s)
        at_s = due_s.pop(request)
        if due_s:
            self._engine.reschedule(due_s)
        self._engine.submit(request, at_s)

    def _leaving(self, now_s: float) -> list[Unread]:
        """Return when those that are being handled will be, if nobody else comes."""
        leaves_s, had_s, left = now_s, self._had_s, len(self._handled)
        leaving: list[Unread] = []
        for request, needs_s, then_s in self._handled:
            leaves_s += (needs_s - had_s) * left
            had_s = needs_s
            left -= 1
            leaving.append((leaves_s, request, then_s))
        return leaving

    def _work_until(self, now_s: float) -> None:
        """Let go of whom it has handled by now, and of whom it has begun to read."""
        handled = self._handled
        while handled:
            request, needs_s, then_s = handled[0]
            leaves_s = self._since_s + (needs_s - self._had_s) * len(handled)
            if leaves_s > now_s:
                self._had_s += (now_s - self._since_s) / len(handled)
                break
            handled.popleft()
            self._since_s, self._had_s = leaves_s, needs_s
            self._unread.append((leaves_s, request, then_s))
        if not handled:
            self._had_s = 0.0
        self._since_s = now_s
        if self._unread:
            begun, self._done_s = self._read(self._unread, now_s, {})
            self._unread = self._unread[begun:]

    def _read(self, unread: list[Unread], until_s: float, due_s: dict[EngineRequest, float]) -> tuple[int, float]:
        """Read what begins by a moment, and note when each goes on; returns how many, and when the last is read."""
        done_s, begun = self._done_s, 0
        per_token_s = self._per_prompt_token_s
        gathers_s = GATHERS_S if per_token_s else 0.0
        while begun < len(unread):
            begins_s = max(done_s, unread[begun][0])
            last, tokens = begun, 0
            while last < len(unread) and last < begun + READ_TOGETHER and unread[last][0] <= begins_s + gathers_s:
                tokens += unread[last][1].prompt_tokens
                last += 1
            full = last == begun + READ_TOGETHER
            begins_s = max(begins_s, unread[last - 1][0]) if full else begins_s + gathers_s
            if begins_s > until_s:
                break
            done_s = begins_s + per_token_s * tokens
            for _, request, then_s in unread[begun:last]:
                due_s[request] = done_s + then_s
            begun = last
        return begun, done_s
