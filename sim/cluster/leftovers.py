"""What prefix caching keeps of preempted requests: how much of its own KV a request finds when it is computed again.

vLLM appends freed blocks to a queue, the last of a sequence first, and takes blocks from the front of that queue; a
block that has not been taken yet still holds its tokens. So what is left of a sequence is always a prefix, and the
queue need not be kept block by block: it is enough to know at which position of all blocks ever appended a sequence
begins, and how far the taking has come. Blocks found again leave a hole, which the taking passes over.

Sharing between different requests is not modelled: a trace of lengths does not say who has a prefix in common.
"""

from __future__ import annotations

from bisect import insort


class Leftovers:
    """The queue of free blocks of one replica, seen from the requests that were preempted."""

    __slots__ = ("_appended", "_block_tokens", "_found", "_holes", "_kept", "_passed")

    def __init__(self, total_blocks: int, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self.clear(total_blocks)

    def clear(self, free_blocks: int) -> None:
        """Start over with blocks that hold nothing."""
        self._appended = free_blocks
        self._found = 0
        self._passed = 0
        self._holes: list[tuple[int, int]] = []
        self._kept: dict[object, tuple[int, int]] = {}

    def freed(self, blocks: int) -> None:
        """Append blocks that nobody will look for."""
        self._appended += blocks

    def preempted(self, request: object, computed_tokens: int, blocks: int) -> None:
        """Append the blocks of a request that will come back for those of its ``computed_tokens`` that are full."""
        self._appended += blocks
        self._kept[request] = (computed_tokens // self._block_tokens, self._appended)

    def dropped(self, request: object) -> None:
        """Forget a request that will not come back."""
        self._kept.pop(request, None)

    def find(self, request: object, tokens: int, free_blocks: int) -> int:
        """Return how many leading blocks of a request of ``tokens`` are still there, and take them off the queue.

        At least one token is left to compute. ``free_blocks`` is the length of the queue now.
        """
        full, end = self._kept.pop(request, (0, 0))
        front = self._front(free_blocks)
        blocks = min(full, end - front, (tokens - 1) // self._block_tokens)
        if blocks <= 0:
            return 0
        self._found += blocks
        insort(self._holes, (end - blocks, blocks))
        return blocks

    def _front(self, free_blocks: int) -> int:
        """Return the position of the next block to be taken: as many as are free lie behind it, holes apart."""
        front = self._appended - self._found - free_blocks + self._passed
        while self._holes and self._holes[0][0] <= front:
            _, blocks = self._holes.pop(0)
            self._passed += blocks
            front += blocks
        return front
