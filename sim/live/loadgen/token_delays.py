"""How long iterations take by tokens that come late: by their least late ones.

Whatever lies between a server's iteration and the clock of its client (a busy machine, a full buffer, a process that
waits for its turn) makes tokens late and none early. So the tokens of a stream that came least late tell the
iterations, and the others nothing; as one-way delays tell the skew of two clocks.

References
----------
S. B. Moon, P. Skelly, D. Towsley, "Estimation and Removal of Clock Skew from Network Delay Measurements", INFOCOM 1999.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_PUNCTUAL = 0.005  # of an iteration: lateness below it is none
_ROUNDS = 4


class Pace(NamedTuple):
    """Duration of a stream's iterations, and with which of its tokens (half a one, maybe) they end on average."""

    iteration_s: float
    token: float


def pace(token_s: Sequence[float], first: int, stop: int) -> Pace | None:
    """Return the pace of tokens ``first`` to before ``stop``, by the least late of their first and their last third.

    Iterations that grow evenly take at the middle between those two what they take on average between them. None for
    fewer than four tokens.
    """
    third = (stop - first) // 3
    if third < 1:  # also where the first of a batch ended before the last of it began
        return None
    iteration_s = (token_s[stop - 1] - token_s[first]) / (stop - 1 - first)
    a = b = -1
    for _ in range(_ROUNDS):
        ends = (
            _least_late(token_s, range(first, first + third), iteration_s),
            _least_late(token_s, range(stop - third, stop), iteration_s),
        )
        if ends == (a, b):
            break
        a, b = ends
        iteration_s = (token_s[b] - token_s[a]) / (b - a)
    return Pace(iteration_s, (a + 1 + b) / 2)


def longer_iteration_s(token_s: Sequence[float], which: int, iteration_s: float, around: int) -> float:
    """Return how long the iteration that ended with token ``which`` took among others of ``iteration_s``.

    ``around`` tokens on both sides of its beginning are looked at, and of those that came punctually the nearest are
    taken.
    """
    nearest_first = range(which - 1, max(-1, which - 1 - around), -1)
    before = _least_late(token_s, nearest_first, iteration_s)
    after = _least_late(token_s, range(which, min(len(token_s), which + around)), iteration_s)
    return token_s[after] - token_s[before] - (after - before - 1) * iteration_s


def _least_late(token_s: Sequence[float], tokens: range, iteration_s: float) -> int:
    """Return the least late of tokens by a pace; of those that are as good as punctual, the first."""
    late_s = [token_s[i] - i * iteration_s for i in tokens]
    enough_s = min(late_s) + _PUNCTUAL * iteration_s
    return next(i for i, late in zip(tokens, late_s, strict=True) if late <= enough_s)
