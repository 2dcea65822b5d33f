"""KV blocks: how many are in use, and how many the decoding batch takes with every iteration.

A sequence with S computed tokens takes a new block in an iteration that begins with S a multiple of the block size.
Counting decoding sequences by (iteration number - S) modulo the block size makes the demand of any iteration one
look-up: the sequences counted at that iteration's own residue.
"""

from __future__ import annotations

from typing import Final

_sum: Final = sum  # as in `sim.cluster.agenda`


def blocks_of(tokens: int, block_tokens: int) -> int:
    """Return the blocks that hold ``tokens``."""
    return -(-tokens // block_tokens)


class KvCache:
    """The books of one replica's KV cache, in blocks.

    ``growing[i]`` counts the decoding sequences that take a block in iterations numbered i modulo the block size.
    """

    __slots__ = ("block_tokens", "growing", "total_blocks", "used_blocks")

    def __init__(self, total_blocks: int, block_tokens: int) -> None:
        self.total_blocks = total_blocks
        self.block_tokens = block_tokens
        self.clear()

    def clear(self) -> None:
        """Forget all sequences."""
        self.used_blocks = 0
        self.growing = [0] * self.block_tokens

    def growth(self, iteration: int, run: int) -> int:
        """Return the blocks that ``run`` iterations from ``iteration`` on take."""
        growing = self.growing
        block_tokens = self.block_tokens
        if run == 1:
            return growing[iteration % block_tokens]
        cycles = run // block_tokens
        rest = run - cycles * block_tokens
        blocks = cycles * _sum(growing) if cycles else 0
        if rest:
            start = iteration % block_tokens
            stop = start + rest
            blocks += _sum(growing[start:stop])
            if stop > block_tokens:
                blocks += _sum(growing[: stop - block_tokens])
        return blocks

    def run_that_fits(self, iteration: int, run: int, sequences: int) -> int:
        """Return the most iterations, up to ``run``, for which there are blocks enough."""
        free_blocks = self.total_blocks - self.used_blocks
        if sequences * blocks_of(run, self.block_tokens) <= free_blocks:
            return run
        cycles = free_blocks // sequences
        fits = cycles * self.block_tokens
        left = free_blocks - cycles * sequences
        while fits < run:
            left -= self.growing[(iteration + fits) % self.block_tokens]
            if left < 0:
                break
            fits += 1
        return min(fits, run)
