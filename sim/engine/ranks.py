"""How a replica's engine is spread over data-parallel ranks; `sim.cluster.ranks` runs it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Score = Literal["in-flight", "waiting"]

_CAPTURED_TOKENS = 512
_LAST_BY_WAITING = (0, 19)

SNAPSHOT_S = 0.1
"""How old the router's counts may be: vLLM's coordinator publishes them at most ten times a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The ranks of one replica, each an engine with slots and a KV cache of its own.

    Attributes
    ----------
    count : how many there are.
    in_step : whether their iterations begin and end together, because the experts of a layer are shared over them.
    score : by what the replica's own router goes, see `rank_score`.
    experts_s : seconds of the experts that ranks in step share, by the tokens that each brings; where it is known, the
        part of an iteration's duration that depends on what others bring.
    captured_tokens : of the largest iteration that is a captured graph, to which all are padded alike.
    """

    count: int
    in_step: bool
    score: Score = "in-flight"
    experts_s: Callable[[float], float] | None = None
    captured_tokens: int = 0


def captured_tokens(max_num_seqs: int) -> int:
    """Return the tokens of the largest graph that vLLM captures for an engine (``VllmConfig``, 0.19 to 0.32)."""
    return min(2 * max_num_seqs, _CAPTURED_TOKENS)


@dataclass(slots=True)
class RankLoad:
    """What the router knows of a rank: its requests, and of its last report who waits, who runs and how full it is."""

    in_flight: int = 0
    waiting: int = 0
    running: int = 0
    kv_usage: float = 0.0


def rank_score(load: RankLoad, score: Score) -> float:
    """Return how loaded vLLM's internal router takes a rank to be; the least loaded gets the next request.

    "in-flight" is that of vLLM 0.32 (``v1/engine/core_client.py``): the rank's requests, and for each that waits up to
    three more where more than half of the KV cache is taken. "waiting" is that of versions up to 0.19: four for each
    that waits and one for each that runs.
    """
    if score == "waiting":
        return 4.0 * load.waiting + load.running
    pressed = 6.0 * max(0.0, load.kv_usage - 0.5) if load.waiting else 0.0
    return max(load.in_flight, load.waiting + load.running) + load.waiting * pressed


def rank_score_of(vllm: str) -> Score:
    """Return the score by which the router of a version of vLLM goes; of an unknown one, the newest."""
    numbers = re.findall(r"\d+", vllm)[:2]
    return "waiting" if len(numbers) == 2 and tuple(map(int, numbers)) <= _LAST_BY_WAITING else "in-flight"


def choose_rank(loads: Sequence[RankLoad], score: Score, first: int) -> int:
    """Return the rank of the least score; among equals the one that comes first from ``first`` on, going round."""
    count = len(loads)
    return min(range(count), key=lambda i: (rank_score(loads[i], score), (i - first) % count))
