"""What can be done to the times and lengths of a trace. The three ways to change a rate differ: see `Trace`."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workloads.formats.rows import Rows
from workloads.requests import Floats, Ints

Flags = NDArray[np.bool_]
_NEARLY = 0.005  # of a bin


def jitter_within_bins(time_s: Floats, bin_s: float, rng: np.random.Generator) -> Floats:
    """Return times that were rounded down to a bin, each somewhere in its bin, in order.

    The count of every bin stays; inside it arrivals are as those of a Poisson process with that count. Rows of one bin
    keep their order, which the publisher's file gives.
    """
    # Mooncake's bins are a few milliseconds off at times.
    nearest_s = np.rint(time_s / bin_s) * bin_s
    base_s = np.where(np.abs(time_s - nearest_s) < _NEARLY * bin_s, nearest_s, time_s)
    # Sorting may pass a time to a neighbour in the same bin, but to none of another: bins do not overlap.
    return np.sort(base_s + rng.random(len(time_s)) * bin_s)


def is_rounded(time_s: Floats, bin_s: float) -> bool:
    """Return whether all times are multiples of ``bin_s`` or nearly so."""
    bins = (time_s - time_s[0]) / bin_s
    return bool(np.all(np.abs(bins - np.rint(bins)) < _NEARLY))


def redrawn(
    time_s: Floats, span_s: float, block_s: float, duration_s: float, rng: np.random.Generator, most: int
) -> tuple[Floats, Ints]:
    """Return times of blocks drawn with replacement, for ``duration_s``, and which row each came from.

    Blocks begin anywhere in [0, span_s - block_s), so that none is cut short; what is shorter than a block is one.

    References
    ----------
    H. R. Kuensch, "The jackknife and the bootstrap for general stationary observations", Annals of Statistics 17(3),
    1989 (moving block bootstrap).
    """
    block_s = min(block_s, span_s) if span_s > 0 else block_s
    blocks = math.ceil(duration_s / block_s)
    if blocks > most:
        raise ValueError(f"{blocks} blocks, more than {most}; make them longer")
    starts_s = rng.random(blocks) * max(0.0, span_s - block_s)
    first = np.searchsorted(time_s, starts_s)
    sizes = np.searchsorted(time_s, starts_s + block_s) - first
    if int(sizes.sum()) > most:
        raise ValueError(f"{int(sizes.sum())} requests, more than {most}; shorten the run")
    before = np.cumsum(sizes) - sizes
    rows = np.arange(int(sizes.sum())) + np.repeat(first - before, sizes)
    shift_s = np.arange(blocks) * block_s - starts_s
    at_s = time_s[rows] + np.repeat(shift_s, sizes)
    return np.maximum.accumulate(at_s), rows.astype(np.int64)  # rounding may bring block ends an ulp out of order


def superposed(time_s: Floats, span_s: float, copies: int, rng: np.random.Generator) -> tuple[Floats, Ints, Ints]:
    """Return the times of copies laid over each other, each but the first rotated by a random time within the span.

    With each time comes the row that it is of, and the copy.

    Counts of a window then have ``copies`` times the mean and the variance: the same index of dispersion, and a
    coefficient of variation smaller by the root of ``copies``.
    """
    shifts_s = np.concatenate(([0.0], rng.random(copies - 1) * span_s))
    length_s = np.nextafter(span_s, math.inf) if span_s > 0 else 1.0
    at_s = np.concatenate([(time_s + shift) % length_s for shift in shifts_s])
    order = np.argsort(at_s, kind="stable")
    copy, row = np.divmod(order, max(1, len(time_s)))
    return at_s[order], row, copy


def resized(tokens: Ints, factor: float, at_most: int | None) -> Ints:
    """Return lengths times a factor, to the nearest token, at least 1 and at most ``at_most``."""
    if factor != 1.0:
        tokens = np.maximum(np.rint(tokens * factor), 1).astype(np.int64)
    return tokens if at_most is None else np.minimum(tokens, at_most)


def groups_of(
    rows: Rows, by: Literal["skew", "prefix", "session"], groups: int, skew: float, rng: np.random.Generator
) -> Ints:
    """Return for each row the group that it is put in, group k with a probability in proportion to (k + 1)^-skew.

    By skew each row is drawn alone. By prefix or session all rows that share one go together: by the first
    block that tells prompts apart (one that most of them begin with, a system prompt, does not), or by the session.

    Raises
    ------
    ValueError
        If the trace has no prefixes or sessions.
    """
    weight = np.arange(1, groups + 1, dtype=np.float64) ** -skew
    share = np.cumsum(weight) / weight.sum()
    salt = int(rng.integers(2**63))
    if by == "skew":
        u = rng.random(len(rows))
    elif by == "session":
        if rows.session is None:
            raise ValueError("it has no sessions; use group_by: skew")
        own = np.array([_text_hash(name) for name in rows.session.names], dtype=np.uint64)
        u = _unit(own[rows.session.codes], salt)
    else:
        if rows.blocks is None:
            raise ValueError("it has no prefix blocks; use group_by: skew")
        u = _unit(_telling_block(rows).astype(np.uint64), salt)
    return np.searchsorted(share, u, side="right").clip(max=groups - 1).astype(np.int64)


def _telling_block(rows: Rows) -> Ints:
    """Return each row's first block, or its second where more than half of the rows share the first."""
    assert rows.blocks is not None
    starts, ends = rows.blocks.starts, rows.blocks.ends
    first = np.where(ends > starts, rows.blocks.ids[np.minimum(starts, len(rows.blocks.ids) - 1)], -1)
    values, counts = np.unique(first, return_counts=True)
    common = values[counts.argmax()] if counts.max() > len(rows) / 2 else None
    if common is None:
        return first
    further = (first == common) & (ends - starts > 1)
    return np.where(further, rows.blocks.ids[np.minimum(starts + 1, len(rows.blocks.ids) - 1)], first)


def _text_hash(text: str) -> int:
    """Return a number fixed by the text, in every process."""
    number = 0xCBF29CE484222325
    for byte in text.encode():
        number = (number ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return number


def _unit(numbers: NDArray[np.uint64], salt: int) -> Floats:
    """Return a number in [0, 1) for each number, as good as random (the finaliser of splitmix64)."""
    mixed = numbers + np.uint64(salt)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
