"""What a scenario varies: a grid, a list, random draws or a Latin hypercube over any of its fields.

A plain mapping of paths to values is a grid, every combination of them; a mapping with a ``kind`` is one of `SAMPLES`.
Drawn numbers are rounded to six significant digits, so that a label says all there is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, GetCoreSchemaHandler, GetJsonSchemaHandler, JsonValue, Tag
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from sim.errors import ScenarioError
from sim.scenario.overrides import labels_of
from sim.scenario.yaml_file import join

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Setting = tuple[str, Any, str]
"""A path, the value it has in a cell and that value's label."""

MOST_CELLS = 10_000
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


Sample = RandomDraws | LatinHypercube
SAMPLES: Mapping[str, type] = {"list": Listed, "random": RandomDraws, "latin-hypercube": LatinHypercube}
Grid = Mapping[str, Sequence[Any]]
Vary = Grid | Listed | Sample


@dataclass(frozen=True, slots=True, eq=False)
class Varied:
    """Marks the field that holds a grid or one of `SAMPLES`."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return a union: what has a ``kind`` that is text is a sample."""
        choices: dict[Any, CoreSchema] = {kind: handler.generate_schema(one) for kind, one in SAMPLES.items()}
        choices["grid"] = handler.generate_schema(dict[str, tuple[JsonValue, ...]])
        return core_schema.tagged_union_schema(choices, discriminator=_kind)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the union's schema."""
        return handler(schema)


def _kind(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if isinstance(kind, str) else "grid"


def combinations(vary: Vary, file: str) -> list[tuple[Setting, ...]]:
    """Return the settings of every cell; of a grid with its first path slowest.

    Raises
    ------
    ScenarioError : nothing to vary, too much, or the same twice.
    """
    if isinstance(vary, Listed):
        return _listed(vary, file)
    if isinstance(vary, RandomDraws | LatinHypercube):
        return _drawn(vary, file)
    columns = []
    cells = 1
    for path, values in vary.items():
        columns.append([(path, *one) for one in _labelled(values, join("vary", path), file)])
        cells *= len(values)
        if cells > MOST_CELLS:
            raise ScenarioError(file, "vary", f"more than {MOST_CELLS} combinations", "vary less in one scenario")
    return list(itertools.product(*columns))


def varied_paths(vary: Mapping[str, Any]) -> list[str]:
    """Return the paths that a resolved ``vary`` sets."""
    if not isinstance(vary.get("kind"), str):
        return list(vary)
    found = vary["over"] if "over" in vary else itertools.chain.from_iterable(vary["cells"])
    return list(dict.fromkeys(found))


def keeping(vary: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """Return a resolved ``vary`` that sets these of its paths only."""
    kept = list(paths)
    if not kept:
        return {}
    if not isinstance(vary.get("kind"), str):
        return {path: vary[path] for path in kept}
    if "over" in vary:
        return {**vary, "over": {path: vary["over"][path] for path in kept}}
    cells = [{path: cell[path] for path in cell if path in kept} for cell in vary["cells"]]
    return {**vary, "cells": [cell for i, cell in enumerate(cells) if cell not in cells[:i]]}


def with_profiles(vary: Mapping[str, Any], load: Callable[[object], object]) -> dict[str, Any]:
    """Return a ``vary`` as it was written, with each profile that it names put in place by ``load``."""
    path = "pool.profile"

    def each(parent: Any) -> Any:
        if isinstance(parent, dict) and isinstance(parent.get(path), list):
            return {**parent, path: [load(one) for one in parent[path]]}
        return parent

    changed = each(dict(vary))
    if isinstance(vary.get("kind"), str):
        if isinstance(vary.get("over"), dict):
            changed["over"] = each(vary["over"])
        if isinstance(vary.get("cells"), list):
            cells = vary["cells"]
            changed["cells"] = [
                {**cell, path: load(cell[path])} if isinstance(cell, dict) and path in cell else cell for cell in cells
            ]
    return dict(changed)


def _labelled(values: Sequence[Any], place: str, file: str) -> list[tuple[Any, str]]:
    if not values:
        raise ScenarioError(file, place, "no values", "give at least one, or leave the path out")
    labels = labels_of(values)
    if len(set(labels)) < len(labels):
        raise ScenarioError(file, place, "the same value twice", "keep one of the two")
    return list(zip(values, labels, strict=True))


def _listed(vary: Listed, file: str) -> list[tuple[Setting, ...]]:
    paths = list(vary.cells[0])
    for index, cell in enumerate(vary.cells):
        if set(cell) != set(paths) or not cell:
            fix = "give every cell the same paths, so that the results have the same columns"
            raise ScenarioError(file, f"vary.cells[{index}]", "sets other paths than the first", fix)
    labels: dict[str, list[str]] = {}
    for path in paths:
        distinct: list[Any] = []
        for cell in vary.cells:
            if cell[path] not in distinct:
                distinct.append(cell[path])
        named = dict(enumerate(labels_of(distinct)))
        labels[path] = [named[distinct.index(cell[path])] for cell in vary.cells]
    cells = [tuple((path, cell[path], labels[path][i]) for path in paths) for i, cell in enumerate(vary.cells)]
    seen: set[tuple[str, ...]] = set()
    for index, one in enumerate(cells):
        key = tuple(label for _, _, label in one)
        if key in seen:
            raise ScenarioError(file, f"vary.cells[{index}]", "the same cell twice", "keep one of the two")
        seen.add(key)
    return cells


def _drawn(vary: Sample, file: str) -> list[tuple[Setting, ...]]:
    choices = {
        path: _labelled(over, join("vary.over", path), file)
        for path, over in vary.over.items()
        if isinstance(over, tuple)
    }
    cells: dict[tuple[str, ...], tuple[Setting, ...]] = {}
    for shares in vary.shares().tolist():
        cell: list[Setting] = []
        for u, (path, over) in zip(shares, vary.over.items(), strict=True):
            if isinstance(over, Range):
                value = over.at(u)
                cell.append((path, value, str(value)))
            else:
                cell.append((path, *choices[path][int(u * len(over))]))
        cells.setdefault(tuple(label for _, _, label in cell), tuple(cell))  # few values may be drawn twice: run once
    return list(cells.values())
