"""What every engine hears: messages that take effect at the boundary of an iteration, in the order they came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from policies.native import mypyc_attr
from sim.cluster.discipline import WaitingQueue
from sim.cluster.engine_request import DECODE, ENDED, NEVER_S, PREFILL, EngineRequest
from sim.cluster.waiting import FcfsQueue

SUBMIT: Final = 0
ABORT: Final = 1
SLOTS: Final = 2
KV_BLOCKS: Final = 3
SLOWDOWN: Final = 4
"""Kinds of messages in an engine's inbox."""

R = TypeVar("R", bound=EngineRequest)


@mypyc_attr(allow_interpreted_subclasses=True)
class EngineInbox(Generic[R]):
    """The messages to an engine. What an engine does with one, and whether it is woken for it, is its own affair."""

    __slots__ = ("_arm", "_inbox", "_waiting", "wake_s")

    _arm: Callable[[float], None]
    _inbox: list[tuple[float, int, Any]]
    _waiting: FcfsQueue[Any] | WaitingQueue  # compiled, the class named first is called without a look-up
    wake_s: float

    def runs(self, request: R) -> bool:
        """Return whether the request holds a slot."""
        return request.state in (PREFILL, DECODE)

    def abort(self, request: R, now_s: float) -> None:
        """Drop a request: it emits nothing more, and its slot and blocks are free at the next boundary."""
        if request.state != ENDED and not request.aborted:
            request.aborted = True
            self._message(now_s, ABORT, request)

    def set_slots(self, slots: int, now_s: float) -> None:
        """Change the number of sequences that may run; those running go on, as with vLLM's max_num_active_seqs."""
        self._message(now_s, SLOTS, slots)

    def set_kv_blocks(self, blocks: int, now_s: float) -> None:
        """Change the KV blocks; requests are preempted until what is in use fits."""
        self._message(now_s, KV_BLOCKS, blocks)

    def set_slowdown(self, factor: float, now_s: float) -> None:
        """Make every iteration take ``factor`` times as long; of several stages, every one planned from now on."""
        self._message(now_s, SLOWDOWN, factor)

    def reschedule(self, due_s: dict[Any, float]) -> None:
        """Let requests that are on their way, and were told the engine already, come at another time than it was told.

        It may so be woken for nothing, which it is used to.
        """
        inbox = self._inbox
        sooner_s = NEVER_S
        for i, (told_s, kind, arg) in enumerate(inbox):
            if kind == SUBMIT and arg in due_s:
                at_s = due_s[arg]
                if at_s < told_s:
                    sooner_s = min(sooner_s, at_s)
                arg.submitted_s = at_s
                inbox[i] = (at_s, kind, arg)
        if sooner_s < NEVER_S:
            self._read_sooner(sooner_s)

    def _read_sooner(self, at_s: float) -> None:
        """See to it that a message that comes sooner than was told is read in time."""
        raise NotImplementedError

    def _message(self, now_s: float, kind: int, arg: Any) -> None:
        """Put a message into the inbox, and see to it that it is read in time."""
        raise NotImplementedError

    def _apply(self, kind: int, arg: Any) -> None:
        """Carry out a message other than a submission."""
        raise NotImplementedError

    def _wake(self, at_s: float) -> None:
        self.wake_s = at_s
        self._arm(at_s)

    def _read_inbox(self, until_s: float, *, inclusive: bool = False) -> None:
        read = 0
        for at_s, kind, arg in self._inbox:
            if at_s > until_s or (at_s == until_s and not inclusive):
                break
            read += 1
            if kind == SUBMIT:
                self._waiting.push(arg)
            else:
                self._apply(kind, arg)
        self._inbox = self._inbox[read:]

    def _apply_settings(self) -> None:
        """Carry out, of what is unread, what outlives a crash."""
        for _, kind, arg in self._inbox:
            if kind not in (SUBMIT, ABORT):
                self._apply(kind, arg)
