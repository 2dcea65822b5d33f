"""Measured times of a mixture of experts, by the tokens of an iteration and the experts that they touch.

Small batches touch few experts and read few weights, so the time hangs on both. Where the experts of a layer are
dealt out over ranks (expert parallelism), each rank holds its share of them and computes what the tokens of all ranks
send there: as many token-expert pairs as without, of fewer experts that more tokens touch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from sim.engine.interpolation import clamped, on_square
from sim.engine.work import touched_share

Row = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """Seconds of the experts of all layers in one iteration, on the rank that has most to do.

    Tokens choose ``per_token`` of ``count`` experts evenly and independently, so ``tokens`` of each rank touch
    ``count / ranks (1 - (1 - per_token / count)^(ranks tokens))`` of a rank's. ``busiest`` is how many times its even
    share of the tokens the busiest rank gets, which the others wait for.
    """

    count: int = field(metadata={"ge": 1, "description": "give the experts of a layer, e.g. 128"})
    per_token: int = field(metadata={"ge": 1, "description": "give how many a token uses, e.g. 8"})
    ranks: int = field(default=1, metadata={"ge": 1, "description": "give the ranks that share the experts, e.g. 2"})
    busiest: float = field(
        default=1.0, metadata={"ge": 1, "description": "give the busiest rank's tokens over the mean, e.g. 1.1"}
    )
    tokens: Row = field(metadata={"min_length": 2, "description": "give ascending numbers of tokens, at least two"})
    touched: Row = field(metadata={"min_length": 2, "description": "give ascending numbers of experts, at least two"})
    seconds: tuple[Row, ...] = field(
        metadata={"min_length": 2, "description": "give rows of seconds, by tokens and experts touched"}
    )

    def __post_init__(self) -> None:
        for name in ("tokens", "touched"):
            if any(a >= b for a, b in pairwise(getattr(self, name))):
                raise ValueError(f"{name} of experts does not ascend; sort it and leave each number once")
        if len(self.seconds) != len(self.tokens) or {len(row) for row in self.seconds} != {len(self.touched)}:
            raise ValueError("seconds of experts is not a row for each of tokens with a value for each of touched")
        if min(min(row) for row in self.seconds) <= 0:
            raise ValueError("seconds of experts holds a number that is not above 0; give measured values")
        if self.per_token > self.count:
            raise ValueError(f"{self.per_token} of {self.count} experts per token cannot be; give at most {self.count}")
        if self.ranks > self.count:
            raise ValueError(f"{self.ranks} ranks share {self.count} experts; give at most {self.count} ranks")

    def iteration_s(self, tokens: float) -> float:
        """Return the seconds of an iteration of ``tokens`` on each rank."""
        share = touched_share(self.per_token / self.count, self.ranks * tokens * self.busiest)
        touched = self.count / self.ranks * share
        pairs = tokens * self.busiest
        i, along = clamped(self.tokens, pairs)
        seconds = on_square(self.seconds, i, along, *clamped(self.touched, touched))
        last = self.tokens[-1]
        return seconds if pairs <= last else seconds * pairs / last
