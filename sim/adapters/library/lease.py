"""What the holder of a place in the pool has in hand, but for how its block is entered and left."""

from __future__ import annotations

from typing import Any

from sim.adapters.admission.errors import EvictedError
from sim.adapters.admission.requests import Admissions, Entry


class BaseLease:
    """A place in the pool, from admission to settlement; settled once, and by the gate if its holder drops it."""

    __slots__ = ("__weakref__", "_admissions", "_entry")

    def __init__(self, admissions: Admissions, entry: Entry) -> None:
        self._admissions = admissions
        self._entry = entry

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

    def _first_token(self) -> None:
        self._check()
        self._admissions.first_token(self._entry)

    def _progress(self, output_tokens: int) -> None:
        self._check()
        self._admissions.progress_to(self._entry, output_tokens)

    def _left(self, error: BaseException | None) -> None:
        """Settle what the block left open."""
        if error is None:
            self._admissions.finish(self._entry)
        elif isinstance(error, Exception):
            self._admissions.fail(self._entry)
        else:  # the task was cancelled, the generator closed, or the process is told to end
            self._admissions.cancel(self._entry, sent=True)

    def _check(self) -> None:
        if self._entry.error is not None:
            raise self._entry.error

    def __repr__(self) -> str:
        entry = self._entry
        state = "open" if entry.open else "evicted" if self.is_evicted else "settled"
        return f"<{type(self).__name__} {entry.request_id} of {entry.entitlement}: {state}>"


Usage = Any
"""A usage, or an answer that has one: mapping or object of OpenAI's or Anthropic's API; None where there is none."""
