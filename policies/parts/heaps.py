"""A heap whose keys may change."""

from __future__ import annotations

import heapq

from policies.native import mypyc_attr

Key = tuple[float, ...]


@mypyc_attr(allow_interpreted_subclasses=True)
class KeyedHeap:
    """Names by key, the least first; of equal keys the one that was put in first.

    Every change costs O(log n), spread over the changes. A change leaves the old entry behind; it is passed over when
    it comes to the top, and all are swept out when they are many.

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
        if len(self._entries) > 4 * len(self.keys) + 64:
            self._entries = list(self.keys.values())
            heapq.heapify(self._entries)
        else:
            heapq.heappush(self._entries, entry)

    def change_least(self, key: Key) -> None:
        """Give the first, which `least` has just returned, another key."""
        _, place, name = self._entries[0]
        self.keys[name] = entry = (key, place, name)
        heapq.heapreplace(self._entries, entry)

    def remove(self, name: str) -> None:
        """Take a name out."""
        del self.keys[name]
        if not self.keys:
            self._entries.clear()

    def least(self) -> tuple[Key, str]:
        """Return the least key and its name; there must be one."""
        entries, keys = self._entries, self.keys
        while True:
            entry = entries[0]
            if keys.get(entry[2]) == entry:
                return entry[0], entry[2]
            heapq.heappop(entries)
