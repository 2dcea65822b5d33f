"""A heap whose keys may change."""

from __future__ import annotations

import heapq

from policies.native import mypyc_attr

Key = tuple[float, ...]


@mypyc_attr(allow_interpreted_subclasses=True)
class KeyedHeap:
    """Names by key, the least first; of equal keys the one that was put in first.

    Every change costs O(log n), spread over the changes. A change leaves the old entry behind; it is taken out when it
    comes to the top, and all are swept out when they are many.

    Attributes
    ----------
    keys : the names that are in it; to read only.
    """

    __slots__ = ("_came", "_entries", "keys")

    def __init__(self) -> None:
        self.keys: dict[str, tuple[Key, int, str]] = {}
        self._entries: list[tuple[Key, int, str]] = []
        self._came = 0

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, name: str) -> bool:
        return name in self.keys

    def names(self) -> list[str]:
        """Return the names, in the order they came."""
        return list(self.keys)

    def set(self, name: str, key: Key) -> None:
        """Put a name in, or change its key."""
        known = self.keys.get(name)
        if known is None:
            self._came += 1
            place = self._came
        elif known[0] == key:
            return
        else:
            place = known[1]
        self.keys[name] = entry = (key, place, name)
        entries = self._entries
        if len(entries) > 4 * len(self.keys) + 64:
            self._entries = list(self.keys.values())
            heapq.heapify(self._entries)
            return
        heapq.heappush(entries, entry)
        if known is not None:
            self._sweep()

    def change_least(self, key: Key) -> None:
        """Give the first, which `least` has just returned, another key."""
        _, place, name = self._entries[0]
        self.keys[name] = entry = (key, place, name)
        heapq.heapreplace(self._entries, entry)
        self._sweep()

    def remove(self, name: str) -> None:
        """Take a name out."""
        del self.keys[name]
        if self.keys:
            self._sweep()
        else:
            self._entries.clear()

    def least(self) -> tuple[Key, str]:
        """Return the least key and its name; there must be one."""
        key, _, name = self._entries[0]
        return key, name

    def _sweep(self) -> None:
        """Take old entries out of the top."""
        entries, keys = self._entries, self.keys
        entry = entries[0]
        while keys.get(entry[2]) != entry:
            heapq.heappop(entries)
            entry = entries[0]
