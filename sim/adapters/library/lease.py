"""What the holder of a place in the pool has in hand, but for how its block is entered and left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from sim.adapters.admission.errors import EvictedError
from sim.adapters.admission.requests import Admissions, Entry

P = ParamSpec("P")
R = TypeVar("R")

Usage = Any
"""A usage, or an answer that has one: mapping or object of OpenAI's or Anthropic's API; None where there is none."""


class BaseLease:
    """A place in the pool, from admission to settlement; settled once, and by the gate if its holder drops it."""

    __slots__ = ("__weakref__", "_admissions", "_entry")

    def __init__(self, admissions: Admissions, entry: Entry) -> None:
        self._admissions = admissions
        self._entry = entry

    def _do(self, call: Callable[P, R], /, *args: P.args, **more: P.kwargs) -> R:
        """Call where nothing else touches the books."""
        return call(*args, **more)

    @property
    def request_id(self) -> str:
        """Its name in recordings and logs."""
        return self._entry.request_id

    @property
    def entitlement(self) -> str:
        """What it is served under."""
        return self._entry.entitlement

    @property
    def replica_id(self) -> int:
        """The replica to send it to, from 0 up."""
        replica_id = self._entry.replica_id
        return 0 if replica_id is None else replica_id

    @property
    def max_output_tokens(self) -> int:
        """What was reserved for its output: tell the replica where the client named no limit."""
        return self._entry.max_output_tokens

    @property
    def priority(self) -> int:
        """What to tell the engine, which a policy may have changed; lower goes first."""
        return self._entry.priority

    @property
    def is_open(self) -> bool:
        """Whether it is still to be settled."""
        return self._entry.open

    @property
    def is_evicted(self) -> bool:
        """Whether the core has taken the place back: the replica must stop working on it."""
        return isinstance(self._entry.error, EvictedError)

    def first_token(self) -> None:
        """Say that the first token of the answer is there.

        Raises
        ------
        EvictedError : the place was taken back.
        """
        self._check()
        self._do(self._admissions.first_token, self._entry)

    def progress(self, output_tokens: int) -> None:
        """Say how many tokens have come back so far, all in all.

        Raises
        ------
        EvictedError : the place was taken back.
        ValueError : it is no count.
        """
        self._check()
        self._do(self._admissions.progress_to, self._entry, output_tokens)

    def finish(self, usage: Usage = None) -> None:
        """Settle: the request was answered. A second time, and after an eviction, this does nothing."""
        self._do(self._admissions.finish, self._entry, usage)

    def fail(self) -> None:
        """Settle: the replica did not do it."""
        self._do(self._admissions.fail, self._entry)

    def retry(self) -> bool:
        """Say that the replica failed and the client has nothing yet.

        Returns whether another replica may be asked: ``replica_id`` is it, and the lease goes on. It needs
        ``on_failure: retry`` in the pool. If not, the lease is settled.
        """
        return self._do(self._admissions.retry, self._entry)

    def cancel(self, *, sent: bool = True, output_tokens: int | None = None) -> None:
        """Settle: nobody waits for the answer any more.

        Parameters
        ----------
        sent : whether a replica may have the request; if not, its prompt costs nothing.
        output_tokens : what was made of it; left out, what `progress` has said.
        """
        self._do(self._admissions.cancel, self._entry, sent=sent, output_tokens=output_tokens)

    def reject(self) -> None:
        """Settle: the replica refused it as its client's fault (400). It costs nothing and was no demand."""
        self._do(self._admissions.cancel, self._entry, sent=True, refused=True)

    def _left(self, error: BaseException | None) -> None:
        """Settle what the block left open."""
        if error is None:
            self.finish()
        elif isinstance(error, Exception):
            self.fail()
        else:  # the task was cancelled, the generator closed, or the process is told to end
            self.cancel()

    def _check(self) -> None:
        if self._entry.error is not None:
            raise self._entry.error

    def __repr__(self) -> str:
        entry = self._entry
        state = "open" if entry.open else "evicted" if self.is_evicted else "settled"
        return f"<{type(self).__name__} {entry.request_id} of {entry.entitlement}: {state}>"
