"""Who has text in common with whom: what prefix caches and routers that know of them can use.

A request's tokens run through lines of text, each named by a number; see `workloads.requests.Prefix`. Names of
different traces and workloads differ, those of one trace agree between the workloads that replay it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workloads.requests import ENDLESS, Ints, Prefix, Prefixes

if TYPE_CHECKING:
    from workloads.formats.rows import Blocks


def name_space(text: str) -> int:
    """Return a number to add names below 2^96 to, so that they differ from those of any other text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) << 96


@dataclass(frozen=True, slots=True, eq=False)
class BlockPrefixes:
    """Prompts whose blocks a trace names.

    Attributes
    ----------
    names : added to the names of blocks.
    blocks : of each request.
    copy : which of several copies of the trace a request is of; copies have no text in common.
    prompt_tokens : where a prompt ends, and with it what is known of its text.
    factor : on the tokens of a block, as prompts were multiplied by it.
    """

    names: int
    blocks: Blocks
    copy: Ints
    prompt_tokens: Ints
    factor: float = 1.0

    def of(self, index: int) -> Prefix:
        """See `workloads.requests.Prefixes`."""
        start = int(self.blocks.ends[index - 1]) if index else 0
        ids = self.blocks.ids[start : int(self.blocks.ends[index])].tolist()
        tokens, prompt_tokens = self.blocks.block_tokens * self.factor, int(self.prompt_tokens[index])
        base = self.names + (int(self.copy[index]) << 84)
        lines = []
        for depth, name in enumerate(ids):
            end = round(tokens * (depth + 1))
            # The depth is part of the name, so that a block that a careless trace names at two places is two.
            lines.append((base + (name << 20) + depth, min(end, prompt_tokens)))
            if end >= prompt_tokens:
                break
        return tuple(lines)


@dataclass(frozen=True, slots=True, eq=False)
class ChainPrefixes:
    """Chains of requests each of which repeats what was said before it, behind a system prompt that all share.

    Attributes
    ----------
    names : added to all names.
    system_tokens : of the system prompt.
    chain : of each request.
    apart_from : from which token on a request has its text for itself: -1 where it goes on with its chain's.
    """

    names: int
    system_tokens: int
    chain: Ints
    apart_from: Ints

    def of(self, index: int) -> Prefix:
        """See `workloads.requests.Prefixes`."""
        apart_from = int(self.apart_from[index])
        own = self.names + (1 << 64) + index
        if 0 <= apart_from < self.system_tokens:
            return ((self.names, apart_from), (own, ENDLESS))
        lines = [(self.names, self.system_tokens)] if self.system_tokens else []
        if apart_from != self.system_tokens:
            lines.append((self.names + 1 + int(self.chain[index]), apart_from if apart_from >= 0 else ENDLESS))
        if apart_from >= 0:
            lines.append((own, ENDLESS))
        return tuple(lines)


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """Some of the requests of others: number ``chosen[i]`` of them is number i here."""

    others: Prefixes
    chosen: Ints

    def of(self, index: int) -> Prefix:
        """See `workloads.requests.Prefixes`."""
        return self.others.of(int(self.chosen[index]))


def every(others: Prefixes | None, start: int, step: int, count: int) -> Prefixes | None:
    """Return every ``step``-th of ``count`` requests from ``start`` on; None where nothing is known of them."""
    return None if others is None else Chosen(others, np.arange(start, count, step))
