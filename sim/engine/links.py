"""What ranks of one engine tell each other in an iteration: collectives over the links between GPUs.

Tensor parallelism sums the activations of all ranks twice a layer (all-reduce); expert parallelism sends tokens to the
ranks that hold their experts and takes the results back (all-to-all), again once each a layer. Each collective takes
a time of its message's size, and nothing is computed meanwhile: vLLM overlaps none of it by default.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from sim.engine.interpolation import on_line, place

Knots = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)  # no slots: the time of a number of tokens is computed once and kept
class Links:
    """The collectives of one iteration, and how long one takes.

    A collective of m bytes takes ``latency_s + moved / bytes_per_s``, where the bytes that every rank moves are
    2 (n - 1) / n m for an all-reduce and (n - 1) m for an all-to-all whose m bytes each rank has (vLLM's default
    gathers all tokens at every rank). Where ``message_bytes`` and the seconds of an all-reduce or all-to-all are
    given, measured at this number of ranks, they are interpolated instead, and go on in proportion beyond the last. An
    all-to-all of which nothing is given takes half of an all-reduce of all ranks' messages, which is made of two such.
    """

    ranks: int = field(metadata={"ge": 2, "description": "give the GPUs that the collectives join, e.g. 2"})
    bytes_per_token: float = field(
        metadata={"gt": 0, "description": "give the bytes of one token's activations: hidden size x 2, e.g. 8192"}
    )
    all_reduces: int = field(
        default=0, metadata={"ge": 0, "description": "give the all-reduces of an iteration: 2 x layers, e.g. 64"}
    )
    all_to_alls: int = field(
        default=0, metadata={"ge": 0, "description": "give the all-to-alls of an iteration: 2 x layers with experts"}
    )
    latency_s: float = field(
        default=0.0, metadata={"ge": 0, "description": "give the seconds of a collective of no size, e.g. 1.0e-5"}
    )
    bytes_per_s: float | None = field(
        default=None,
        metadata={"gt": 0, "description": "give the bytes per second of a GPU's links, one way, e.g. 4.5e11"},
    )
    message_bytes: Knots = field(
        default=(), metadata={"description": "give ascending sizes of measured collectives, in bytes, at least two"}
    )
    all_reduce_s: Knots = field(
        default=(), metadata={"description": "give the measured seconds of an all-reduce of each size"}
    )
    all_to_all_s: Knots = field(
        default=(), metadata={"description": "give the measured seconds of an all-to-all of each size"}
    )
    scale: float = field(default=1.0, metadata={"gt": 0, "description": "give a factor on all of it, e.g. 1.0"})

    def __post_init__(self) -> None:
        if not self.all_reduces + self.all_to_alls:
            raise ValueError("neither all_reduces nor all_to_alls is given; give one, e.g. all_reduces: 64")
        sizes = self.message_bytes
        if sizes and (len(sizes) < 2 or sizes[0] <= 0 or any(a >= b for a, b in pairwise(sizes))):
            raise ValueError("message_bytes does not ascend from above 0; sort it and leave each number once")
        for name in ("all_reduce_s", "all_to_all_s"):
            found = getattr(self, name)
            if found and len(found) != len(sizes):
                raise ValueError(f"{name} has {len(found)} values for {len(sizes)} message_bytes; give one for each")
            if found and min(found) <= 0:
                raise ValueError(f"{name} holds a number that is not above 0; give measured seconds")
        if self.bytes_per_s is None and not self.all_reduce_s and (self.all_reduces or not self.all_to_all_s):
            raise ValueError("bytes_per_s is missing, and no all_reduce_s is given; give one of them, e.g. 4.5e11")

    def iteration_s(self, tokens: int) -> float:
        """Return the seconds of all collectives of an iteration of ``tokens`` on each rank."""
        known = self._known.get(tokens)
        if known is None:
            message_bytes, seconds = tokens * self.bytes_per_token, 0.0
            if self.all_reduces:
                seconds += self.all_reduces * self.reduce_s(message_bytes)
            if self.all_to_alls:
                seconds += self.all_to_alls * self.exchange_s(message_bytes)
            known = self._known[tokens] = self.scale * seconds
        return known

    def reduce_s(self, message_bytes: float) -> float:
        """Return the seconds of one all-reduce of a message."""
        if self.all_reduce_s:
            return self._measured_s(self.all_reduce_s, message_bytes)
        return self._moved_s(2 * (self.ranks - 1) / self.ranks * message_bytes)

    def exchange_s(self, message_bytes: float) -> float:
        """Return the seconds of one all-to-all in which every rank has a message."""
        if self.all_to_all_s:
            return self._measured_s(self.all_to_all_s, message_bytes)
        if self.all_reduce_s:
            return self._measured_s(self.all_reduce_s, self.ranks * message_bytes) / 2
        return self._moved_s((self.ranks - 1) * message_bytes)

    def _moved_s(self, moved_bytes: float) -> float:
        assert self.bytes_per_s is not None  # `__post_init__` saw to it
        return self.latency_s + moved_bytes / self.bytes_per_s

    def _measured_s(self, seconds: Knots, message_bytes: float) -> float:
        sizes = self.message_bytes
        if message_bytes <= sizes[0]:
            return seconds[0]
        if message_bytes >= sizes[-1]:
            return seconds[-1] * message_bytes / sizes[-1]
        return on_line(seconds, place(sizes, message_bytes))

    @cached_property
    def _known(self) -> dict[int, float]:
        return {}
