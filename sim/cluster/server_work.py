"""What a server does to a request before its engine gets it."""

from __future__ import annotations

from collections import deque
from typing import Any

from sim.cluster.engine_request import NEVER_S, EngineRequest
from sim.scenario.profile import Profile


class ServerWork:
    """Handles requests, reads their prompts one after another, and hands each on after what else it takes.

    Handling is one at a time, or of all that are there at once, each at a share of the speed: so an event loop works,
    which does a step of each in turn. Then one that comes later holds up those that came before, and what is told the
    engine already is put off (`sim.cluster.engine_inbox.EngineInbox.put_off`). All take as long, so nobody overtakes.
    """

    def __init__(self, profile: Profile, engine: Any) -> None:
        self._engine = engine
        self._overhead_s = profile.request_overhead_s
        self._handling_s = profile.request_handling_s
        self._shared = profile.request_handling_shared
        self._per_prompt_token_s = profile.request_per_prompt_token_s
        self._per_running_s = profile.request_per_running_s
        self._done_s = -NEVER_S
        # Of those that are being handled: the request, what each has had when it is done, and what comes after.
        self._handled: deque[tuple[EngineRequest, float, float]] = deque()
        self._had_s = self._since_s = 0.0

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
        handled = self._handled
        handled.append((request, self._had_s + self._handling_s, more_s + self._overhead_s))
        leaves_s, had_s, done_s, left = now_s, self._had_s, self._done_s, len(handled)
        due_s: dict[EngineRequest, float] = {}
        for each, needs_s, then_s in handled:
            leaves_s += (needs_s - had_s) * left
            had_s = needs_s
            left -= 1
            done_s = max(done_s, leaves_s) + self._per_prompt_token_s * each.prompt_tokens
            due_s[each] = done_s + then_s
        at_s = due_s.pop(request)
        if due_s:
            self._engine.put_off(due_s)
        self._engine.submit(request, at_s)

    def _work_until(self, now_s: float) -> None:
        """Let go of whom it has handled by now."""
        handled = self._handled
        while handled:
            request, needs_s, _ = handled[0]
            leaves_s = self._since_s + (needs_s - self._had_s) * len(handled)
            if leaves_s > now_s:
                self._had_s += (now_s - self._since_s) / len(handled)
                break
            handled.popleft()
            self._since_s, self._had_s = leaves_s, needs_s
            self._done_s = max(self._done_s, leaves_s) + self._per_prompt_token_s * request.prompt_tokens
        if not handled:
            self._had_s = 0.0
        self._since_s = now_s
