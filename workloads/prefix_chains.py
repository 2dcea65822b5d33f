"""Blocks of a trace that always follow each other, as one line of text: a prefix cache then works by such chains.

A trace names every block of a prompt, and a prompt of 12,000 tokens is two dozen of them; but most follow the same
block wherever they occur. Whether two may be one line is asked of all workloads of a run that replay the trace, since
those that have text in common must go on to name it alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workloads.prefixes import BlockPrefixes, Chosen
from workloads.requests import Ints, Prefix, Prefixes

_DEPTHS = 20
"""Bits for how deep a block lies in its prompt; names of blocks have as many."""


@dataclass(frozen=True, slots=True, eq=False)
class Chains:
    """The prefixes of `BlockPrefixes` with a line for each chain of blocks.

    Attributes
    ----------
    of_blocks : the same with a line for each block.
    first : shape (requests + 1,), where the chains of each request begin in the two that follow.
    heads : shape (chains,), the name of each chain: that of its first block, and its depth.
    ends : shape (chains,), tokens from the start of a prompt to the end of the chain.
    """

    of_blocks: BlockPrefixes
    first: Ints
    heads: list[int]
    ends: list[int]

    def of(self, index: int) -> Prefix:
        """See `workloads.requests.Prefixes`."""
        blocks = self.of_blocks
        start, stop = self.first[index], self.first[index + 1]
        base, prompt_tokens = blocks.names + (int(blocks.copy[index]) << 84), int(blocks.prompt_tokens[index])
        lines = []
        for head, end in zip(self.heads[start:stop], self.ends[start:stop], strict=True):
            if end >= prompt_tokens:
                lines.append((base + head, prompt_tokens))
                break
            lines.append((base + head, end))
        return tuple(lines)


def in_chains(prefixes: Sequence[Prefixes | None]) -> list[Prefixes | None]:
    """Return the prefixes of all workloads of a run with whole chains of blocks as lines, where traces name blocks."""
    found = [_blocks_of(one) for one in prefixes]
    by_names: dict[int, list[BlockPrefixes]] = {}
    for blocks in found:
        if blocks is not None:
            by_names.setdefault(blocks.names, []).append(blocks)
    chains: dict[int, Chains] = {}  # by identity: parts of one workload share theirs
    for group in by_names.values():
        apart = list({id(blocks): blocks for blocks in group}.values())
        if len({(blocks.factor, blocks.blocks.block_tokens) for blocks in apart}) == 1:
            chains.update(zip(map(id, apart), _chains(apart), strict=True))
    return [one if one is None else _with(one, chains) for one in prefixes]


def _blocks_of(prefixes: Prefixes | None) -> BlockPrefixes | None:
    while isinstance(prefixes, Chosen):
        prefixes = prefixes.others
    return prefixes if isinstance(prefixes, BlockPrefixes) else None


def _with(prefixes: Prefixes, chains: dict[int, Chains]) -> Prefixes:
    if isinstance(prefixes, Chosen):
        return Chosen(_with(prefixes.others, chains), prefixes.chosen)
    return chains.get(id(prefixes), prefixes)


def _chains(group: Sequence[BlockPrefixes]) -> list[Chains]:
    """Return each with a line for each chain; all name the same text by the same names."""
    ids = np.concatenate([one.blocks.ids for one in group])
    sizes = np.concatenate([np.diff(one.blocks.ends, prepend=0) for one in group])
    starts = np.cumsum(sizes) - sizes
    depth = np.arange(len(ids)) - np.repeat(starts, sizes)
    begins = _begins(ids, depth)
    # A chain ends before the next begins, or with its request.
    last = np.flatnonzero(np.append(begins[1:], True)[: len(begins)])
    tokens = group[0].blocks.block_tokens * group[0].factor
    ends = np.rint(tokens * (depth[last] + 1)).astype(np.int64).tolist()
    at = np.flatnonzero(begins)
    heads = [(name << _DEPTHS) + below for name, below in zip(ids[at].tolist(), depth[at].tolist(), strict=True)]
    first = np.searchsorted(at, np.append(starts, len(ids)))
    made, row = [], 0
    for one in group:
        made.append(Chains(one, first[row : row + len(one.blocks.ends) + 1], heads, ends))
        row += len(one.blocks.ends)
    return made


def _begins(ids: Ints, depth: Ints) -> NDArray[np.bool_]:
    """Return where a chain begins: at a block that has not always the same before it, or not always follows it."""
    _, names = np.unique(ids, return_inverse=True)
    _, nodes = np.unique((names.astype(np.int64) << _DEPTHS) + depth, return_inverse=True)
    inner = np.flatnonzero(depth)
    before, after = nodes[inner - 1], nodes[inner]
    count = int(nodes.max()) + 1 if len(nodes) else 0
    follows = _only(after, before, count)  # the one node before each, -1 where there are several
    leads = _only(before, after, count)
    begins = np.ones(len(ids), dtype=np.bool_)
    begins[inner] = (follows[after] < 0) | (leads[before] < 0)
    return begins


def _only(nodes: Ints, partners: Ints, count: int) -> Ints:
    """Return the partner that each node always has; -1 for those that have several, or none."""
    least, most = np.full(count, np.iinfo(np.int64).max), np.full(count, -1)
    np.minimum.at(least, nodes, partners)
    np.maximum.at(most, nodes, partners)
    return np.where(least == most, most, -1)
