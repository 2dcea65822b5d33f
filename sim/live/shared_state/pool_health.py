"""Which replicas of a shared pool are ready: those that any living gateway sees, and who speaks for each.

A gateway that cannot reach the upstreams, while others can, must not take the pool away from them. So every gateway
says what it sees, and the pool has the union; the leader tells the core. A replica's metrics are told by the leader, or
by the first of those who see it where the leader does not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from policies.api import CapacityChanged, PoolCapacity
from policies.handover import part_of


class View(NamedTuple):
    """What one gateway sees: the replicas that are ready, and the slots that its operator said there are.

    ``slots_us`` is the log's time at which ``slots`` was said, 0 for never; None takes back what was said.
    """

    ready: tuple[int, ...] = ()
    slots: int | None = None
    slots_us: int = 0

    def text(self) -> str:
        """Return it as it stands in Redis."""
        return json.dumps([list(self.ready), self.slots, self.slots_us], separators=(",", ":"))


def view_from(text: str) -> View | None:
    """Return the view that a text holds; None where it holds none."""
    try:
        ready, slots, slots_us = json.loads(text)
        whole = [type(each) is int for each in (*ready, slots_us)]
        if not all(whole) or not (slots is None or type(slots) is int):
            return None
        return View(tuple(sorted(set(ready))), slots, slots_us)
    except (ValueError, TypeError, RecursionError):
        return None


def seen_by_any(views: Mapping[str, View]) -> tuple[tuple[int, ...], int | None]:
    """Return the replicas that are ready, and the slots that were said last."""
    ready = sorted({replica_id for view in views.values() for replica_id in view.ready})
    last = max(views.values(), key=lambda view: view.slots_us, default=View())
    return tuple(ready), last.slots if last.slots_us else None


def speaker(replica_id: int, views: Mapping[str, View], leader: str) -> str:
    """Return the gateway that tells of a replica's metrics; the leader where nobody sees it."""
    seeing = [name for name, view in views.items() if replica_id in view.ready]
    return leader if leader in seeing or not seeing else min(seeing)


class PoolHealth:
    """What one gateway sees and hears of the others.

    Parameters
    ----------
    whole : what the pool has with all its replicas.

    Attributes
    ----------
    version : of the others' views as they were last heard.
    """

    def __init__(self, name: str, whole: PoolCapacity) -> None:
        self._name = name
        self._own: View | None = None
        self._others: dict[str, View] = {}
        self.whole = whole
        self.version = "-1"

    @property
    def text(self) -> str:
        """What this gateway sees, as it stands in Redis; empty before it has looked."""
        return "" if self._own is None else self._own.text()

    @property
    def views(self) -> Mapping[str, View]:
        """What all see, by gateway."""
        return self._others if self._own is None else {**self._others, self._name: self._own}

    def saw(self, event: CapacityChanged, now_us: int) -> bool:
        """Take note of what this gateway sees; say whether that is news."""
        before = self._own
        _, slots, slots_us = before if before is not None else View()
        if event.ready_replicas:  # fewer slots than so many replicas have were set by an operator
            given = event.capacity.slots
            said = given if given < part_of(self.whole, len(event.ready_replicas)).slots else None
            if said != slots:
                slots, slots_us = said, max(1, now_us)
        self._own = View(tuple(sorted(event.ready_replicas)), slots, slots_us)
        return self._own != before

    def hear(self, version: str, texts: Mapping[str, str]) -> None:
        """Take in what the others see."""
        self.version = version
        found = {name: view_from(text) for name, text in texts.items() if name != self._name}
        self._others = {name: view for name, view in found.items() if view is not None}

    def now(self) -> CapacityChanged | None:
        """Return what the pool has; None where nobody has looked yet."""
        if not self.views:
            return None
        ready, slots = seen_by_any(self.views)
        return CapacityChanged(part_of(self.whole, len(ready), slots), ready)
