"""The calls that several cores behind one driver ask for, of which the driver hears the earliest."""

from __future__ import annotations

from collections.abc import Sequence

from policies.api import CallMeAt, Instruction

_NEVER_S = float("inf")


class Calls:
    """When each of several asks to be called.

    Attributes
    ----------
    due_s : by asker; infinity for not at all.
    """

    def __init__(self, askers: int) -> None:
        self.due_s = [_NEVER_S] * askers
        self._open_s = _NEVER_S

    def heard(self, asker: int, instructions: Sequence[Instruction]) -> list[Instruction]:
        """Keep one's wish to be called, and return what else it says."""
        said: list[Instruction] = []
        for step in instructions:
            if isinstance(step, CallMeAt):
                self.due_s[asker] = step.at_s
            else:
                said.append(step)
        return said

    def take(self, asker: int, now_s: float) -> bool:
        """Return whether one is to be called now; then it is asked for no more."""
        if now_s < self.due_s[asker]:
            return False
        self.due_s[asker] = _NEVER_S
        return True

    def next(self) -> tuple[CallMeAt, ...]:
        """Return the earliest call, for the driver to keep in place of the one before."""
        self._open_s = min(self.due_s)
        return (CallMeAt(self._open_s),) if self._open_s < _NEVER_S else ()

    def earlier(self) -> tuple[CallMeAt, ...]:
        """Return the earliest call where one, woken from a doze, now wants it before the one that the driver keeps."""
        return self.next() if min(self.due_s) < self._open_s else ()
