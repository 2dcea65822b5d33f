"""A heap whose keys may change."""

from __future__ import annotations

import heapq

Key = tuple[float, ...]


class KeyedHeap:
    """Names by key, the least first; equal keys go by name. Every change costs O(log n), spread over the changes.

    A change leaves the old entry behind; it is passed over when it comes to the top, and all are swept out when they
    are many.
    """

    __slots__ = ("_entries", "_keys")

    def __init__(self) -> None:
        self._keys: dict[str, Key] = {}
        self._entries: list[tuple[Key, str]] = []

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, name: str) -> bool:
        return name in self._keys

    def names(self) -> list[str]:
        """Return the names, in the order they came."""
        return list(self._keys)

    def set(self, name: str, key: Key) -> None:
        """Put a name in, or change its key."""
        if self._keys.get(name) == key:
            return
        self._keys[name] = key
        if len(self._entries) > 4 * len(self._keys) + 64:
            self._entries = [(each, one) for one, each in self._keys.items()]
            heapq.heapify(self._entries)
        else:
            heapq.heappush(self._entries, (key, name))

    def remove(self, name: str) -> None:
        """Take a name out."""
        del self._keys[name]
        if not self._keys:
            self._entries.clear()

    def least(self) -> tuple[Key, str]:
        """Return the least key and its name; there must be one."""
        entries, keys = self._entries, self._keys
        while keys.get(entries[0][1]) != entries[0][0]:
            heapq.heappop(entries)
        return entries[0]
