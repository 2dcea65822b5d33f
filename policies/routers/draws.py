"""Numbers that look random, from a state that a snapshot can hold: routers are built without a source of chance."""

from __future__ import annotations

_MASK = (1 << 64) - 1


class Draws:
    """SplitMix64 (Steele, Lea, Flood 2014): one multiplication chain a number, the same on every machine."""

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def below(self, count: int) -> int:
        """Return one of 0 .. count - 1, each as likely."""
        self._state = state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        return ((state ^ (state >> 31)) * count) >> 64
