"""What a scenario's ``vary`` may be but a grid: a list of combinations, or draws."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, JsonValue, Tag

from sim.scenario.vary import MOST_CELLS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Numbers between two ends."""

    low: float = field(metadata={"description": "give the least value, e.g. 0.5"})
    high: float = field(metadata={"description": "give the greatest value, e.g. 8"})
    scale: Literal["linear", "log"] = field(
        default="linear", metadata={"description": "give log where a doubling matters as much at either end"}
    )
    whole: bool = field(default=False, metadata={"description": "give true for whole numbers only"})

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}; give low < high")
        if self.scale == "log" and not self.low > 0:
            raise ValueError(f"low {self.low:g} has no logarithm; give low > 0, or scale: linear")
        if self.whole and math.ceil(self.low) > math.floor(self.high):
            raise ValueError(f"no whole number lies between {self.low:g} and {self.high:g}; widen the range")

    def at(self, u: float) -> float | int:
        """Return the value at the share ``u`` of [0, 1) of the range."""
        low, high = self.low, self.high
        if self.whole:  # each whole number has the same share, on the scale
            low, high = math.ceil(low) - 0.5 * (self.scale == "linear"), math.floor(high) + 0.5
        value = low * (high / low) ** u if self.scale == "log" else low + u * (high - low)
        if self.whole:
            return min(math.floor(self.high), max(math.ceil(self.low), round(value)))
        return float(f"{value:.{_DIGITS}g}")


def _shape(value: Any) -> str:
    return "range" if isinstance(value, dict | Range) else "values"


Choice = Annotated[
    Annotated[Range, Tag("range")] | Annotated[tuple[JsonValue, ...], Tag("values")], Discriminator(_shape)
]
Over = dict[str, Choice]
_OVER = {"min_length": 1, "description": "give paths and what to draw from, e.g. {pool.replicas: [1, 2, 4]}"}
_CELLS = {"gt": 0, "le": MOST_CELLS, "description": "give the number of combinations to draw, e.g. 50"}
_SEED = {"ge": 0, "description": "give the seed of the draws, e.g. 1; it has nothing to do with the scenario's"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """These combinations and no others."""

    kind: Literal["list"] = "list"
    cells: tuple[dict[str, JsonValue], ...] = field(
        metadata={
            "min_length": 1,
            "max_length": MOST_CELLS,
            "description": "give combinations, e.g. [{pool.replicas: 2, seed: 1}]",
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomDraws:
    """Independent draws."""

    kind: Literal["random"] = "random"
    cells: int = field(metadata=_CELLS)
    seed: int = field(default=0, metadata=_SEED)
    over: Over = field(metadata=_OVER)

    def shares(self) -> NDArray[np.float64]:
        """Return a number in [0, 1) for each cell and path."""
        import numpy as np

        return np.random.default_rng(self.seed).random((self.cells, len(self.over)))


@dataclass(frozen=True, slots=True, kw_only=True)
class LatinHypercube:
    """Draws that cut every path's range into as many strata as there are cells, and meet each stratum once.

    References
    ----------
    M. D. McKay, R. J. Beckman, W. J. Conover, "A comparison of three methods for selecting values of input variables",
    Technometrics 21, 1979.
    """

    kind: Literal["latin-hypercube"] = "latin-hypercube"
    cells: int = field(metadata=_CELLS)
    seed: int = field(default=0, metadata=_SEED)
    over: Over = field(metadata=_OVER)

    def shares(self) -> NDArray[np.float64]:
        """Return a number in [0, 1) for each cell and path."""
        import numpy as np
        from scipy.stats import qmc

        drawn = qmc.LatinHypercube(d=len(self.over), rng=np.random.default_rng(self.seed)).random(self.cells)
        return np.asarray(drawn, dtype=np.float64)
