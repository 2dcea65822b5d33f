"""Chains of blocks name the same text in common as the blocks do, in fewer lines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from workloads.formats.rows import Blocks
from workloads.prefix_chains import Chains, in_chains
from workloads.prefixes import BlockPrefixes, Chosen, name_space
from workloads.requests import Prefix

rows = st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=8)


def prefixes(ids: list[list[int]], *, shorter: int = 0, factor: float = 1.0) -> BlockPrefixes:
    """Return prompts of 10 tokens a block, the last ``shorter`` tokens of each left out."""
    ends = np.cumsum([len(row) for row in ids])
    blocks = Blocks(np.array([name for row in ids for name in row], np.int64), ends, 10)
    lengths = np.array([max(1, 10 * len(row) - shorter) for row in ids])
    return BlockPrefixes(name_space("trace"), blocks, np.arange(len(ids)) % 2, lengths, factor)


def in_common(one: Prefix, other: Prefix) -> int:
    """Return the tokens that two prompts share, as a cache finds them."""
    tokens = 0
    for (name, end), (others_name, others_end) in zip(one, other, strict=False):
        if name != others_name:
            break
        tokens = min(end, others_end)
        if end != others_end:
            break
    return tokens


@given(ids=rows, other_ids=rows, shorter=st.integers(0, 15))
def test_every_pair_has_the_same_text_in_common(ids: list[list[int]], other_ids: list[list[int]], shorter: int) -> None:
    apart = [prefixes(ids, shorter=shorter), prefixes(other_ids)]
    together = in_chains(apart)
    blocks = [one.of(i) for one in apart for i in range(len(one.blocks.ends))]
    chains = [
        made.of(i) for made in together if isinstance(made, Chains) for i in range(len(made.of_blocks.blocks.ends))
    ]
    assert len(blocks) == len(chains)
    assert all(len(chain) <= len(block) for block, chain in zip(blocks, chains, strict=True))
    assert [chain[-1:] and chain[-1][1] for chain in chains] == [block[-1:] and block[-1][1] for block in blocks]
    for i in range(len(blocks)):
        for j in range(i):
            assert in_common(chains[i], chains[j]) == in_common(blocks[i], blocks[j])


def test_what_never_parts_is_one_line_unless_another_workload_parts_there() -> None:
    (alone,) = in_chains([prefixes([[5, 6, 7], [5, 6, 7, 8]])])
    assert alone is not None
    assert [len(alone.of(i)) for i in (0, 1)] == [1, 1]
    first, _ = in_chains([prefixes([[5, 6, 7], [5, 6, 7, 8]]), prefixes([[5, 9]])])
    assert first is not None
    assert [len(first.of(i)) for i in (0, 1)] == [2, 2]


def test_parts_of_a_workload_share_their_chains_and_scaled_blocks_stay_apart() -> None:
    whole = prefixes([[5, 6], [5, 6], [5, 7]])
    kept, nothing = in_chains([Chosen(whole, np.array([2, 0])), None])
    assert kept is not None
    assert nothing is None
    assert kept.of(1) == in_chains([whole])[0].of(0)  # type: ignore[union-attr]
    scaled = replace(whole, factor=0.5)
    assert in_chains([whole, scaled]) == [whole, scaled]
