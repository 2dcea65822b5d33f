"""Which replica has probably which text in its cache, as a gateway can know it: by what it has sent where.

An approximate index after llm-d-router (commit ebab687, ``approximateprefix``): blocks of at least 64 tokens, a least
recently used list for each replica, filled when a request is sent and never told what the engine evicts. A block's
holders are one whole number with a bit for each replica, so that counting matches costs the same for 2 and for 256.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator

from policies.api import RequestView

LEAST_BLOCK_TOKENS = 64
"""llm-d hashes no smaller blocks, whatever the engine's are."""
LRU_BLOCKS = 31_250
"""Blocks remembered for each replica where it reports none of its own (llm-d)."""
MOST_PREFIX_TOKENS = 131_072
"""Of a longer prompt only so much is looked at (llm-d)."""


class PrefixIndex:
    """An approximate prefix tree over replicas.

    Parameters
    ----------
    block_tokens : tokens of a block.
    blocks_per_replica : how many blocks are remembered for each; the least recently sent are forgotten first.
    most_tokens : how much of a prompt is looked at.
    memory_s : after how long a block that was not sent again is forgotten; None: never.
    """

    def __init__(
        self, *, block_tokens: int = LEAST_BLOCK_TOKENS, blocks_per_replica: int = LRU_BLOCKS,
        most_tokens: int = MOST_PREFIX_TOKENS, memory_s: float | None = None,
    ) -> None:
        self.block_tokens = block_tokens
        self._most_blocks = blocks_per_replica
        self._most_tokens = most_tokens
        self._memory_s = memory_s
        self._holders: dict[Hashable, int] = {}
        self._held: dict[int, OrderedDict[Hashable, float]] = {}  # by replica: block, and when it was last sent
        self._sent: deque[tuple[float, int, Hashable]] = deque()

    def blocks_of(self, request: RequestView) -> list[Hashable]:
        """Return the names of a prompt's blocks, the last partial one included; none where its text is not known.

        A block that lies across the end of a line counts to the next one, as in an engine's cache.
        """
        if not request.prefix:
            return []
        size = self.block_tokens
        count = -(-min(request.prompt_tokens, self._most_tokens) // size)
        blocks: list[Hashable] = []
        for name, end_tokens in request.prefix:
            stop = min(count, end_tokens // size)
            blocks += [(name, place) for place in range(len(blocks), stop)]
        own = request.request_id
        blocks += [(own, place) for place in range(len(blocks), count)]
        return blocks

    def matches(self, blocks: list[Hashable]) -> list[tuple[int, int]]:
        """Return (how many of the blocks, the replicas that hold so many as bits), the most first.

        The walk ends at the first block that nobody holds; a replica that lacks one in between still counts the rest.
        """
        planes: list[int] = []  # bit r of plane p: bit p of how many blocks replica r holds
        for block in blocks:
            carry = self._holders.get(block, 0)
            if not carry:
                break
            for plane, bits in enumerate(planes):
                planes[plane], carry = bits ^ carry, bits & carry
                if not carry:
                    break
            else:
                planes.append(carry)
        everyone = 0
        for bits in planes:
            everyone |= bits
        return list(_by_count(planes, len(planes) - 1, everyone, 0)) if everyone else []

    def sent(self, blocks: list[Hashable], replica_id: int, now_s: float) -> None:
        """Take note that a prompt of these blocks was sent to a replica."""
        held = self._held.setdefault(replica_id, OrderedDict())
        bit, holders = 1 << replica_id, self._holders
        for block in blocks:
            if block in held:
                held.move_to_end(block)
            else:
                holders[block] = holders.get(block, 0) | bit
            held[block] = now_s
            if self._memory_s is not None:
                self._sent.append((now_s, replica_id, block))
        while len(held) > self._most_blocks:
            block, _ = held.popitem(last=False)
            self._drop(block, bit)

    def forget_old(self, now_s: float) -> None:
        """Forget what was sent longer ago than is remembered."""
        if self._memory_s is None:
            return
        oldest_s, sent = now_s - self._memory_s, self._sent
        while sent and sent[0][0] < oldest_s:
            at_s, replica_id, block = sent.popleft()
            held = self._held.get(replica_id)
            if held is not None and held.get(block) == at_s:  # not sent again since
                del held[block]
                self._drop(block, 1 << replica_id)

    def forget(self, replica_id: int) -> None:
        """Forget what a replica holds: it is gone, and its cache with it."""
        for block in self._held.pop(replica_id, ()):
            self._drop(block, 1 << replica_id)

    def known(self) -> tuple[int, ...]:
        """Return the replicas of which something is remembered."""
        return tuple(self._held)

    def blocks_held(self, replica_id: int) -> int:
        """Return how many blocks are remembered of a replica."""
        return len(self._held.get(replica_id, ()))

    def _drop(self, block: Hashable, bit: int) -> None:
        left = self._holders[block] & ~bit
        if left:
            self._holders[block] = left
        else:
            del self._holders[block]


def _by_count(planes: list[int], plane: int, among: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield (count, members) for the counts that occur, the largest first."""
    if plane < 0:
        yield count, among
        return
    for digit, some in ((1, among & planes[plane]), (0, among & ~planes[plane])):
        if some:
            yield from _by_count(planes, plane - 1, some, 2 * count + digit)


def members(bits: int) -> Iterator[int]:
    """Yield the numbers of the bits that are set, the lowest first."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest
