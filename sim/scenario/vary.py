"""What a scenario varies: a grid, a list, random draws or a Latin hypercube over any of its fields.

A plain mapping of paths to values is a grid, every combination of them; a mapping with a ``kind`` is one of `SAMPLES`.
Drawn numbers are rounded to six significant digits, so that a label says all there is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, JsonValue, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from policies.lazy_mapping import LazyMapping, imported
from sim.errors import ScenarioError
from sim.scenario.overrides import labels_of
from sim.scenario.registered_types import Choice, reader_of
from sim.scenario.yaml_file import join

if TYPE_CHECKING:
    from sim.scenario.samples import LatinHypercube, Listed, RandomDraws

Setting = tuple[str, Any, str]
"""A path, the value it has in a cell and that value's label."""

MOST_CELLS = 10_000


SAMPLES: Mapping[str, type] = LazyMapping(
    {"list": "Listed", "random": "RandomDraws", "latin-hypercube": "LatinHypercube"},
    lambda name: imported(f"sim.scenario.samples:{name}"),
)
Grid = Mapping[str, Sequence[Any]]
Vary: TypeAlias = "Grid | Listed | RandomDraws | LatinHypercube"
_GRID = dict[str, tuple[JsonValue, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Varied:
    """Marks the field that holds a grid or one of `SAMPLES`."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return a union: what has a ``kind`` that is text is a sample."""
        choices: dict[Any, CoreSchema] = {kind: Choice(SAMPLES, kind).schema() for kind in SAMPLES}
        choices["grid"] = handler.generate_schema(_GRID)
        return core_schema.tagged_union_schema(choices, discriminator=_kind)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the union's schema."""
        choices: dict[Any, CoreSchema] = {kind: reader_of(one).core_schema for kind, one in SAMPLES.items()}
        choices["grid"] = TypeAdapter(_GRID).core_schema
        return handler(core_schema.tagged_union_schema(choices, discriminator=_kind))


def _kind(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if isinstance(kind, str) else "grid"


def combinations(vary: Vary, file: str) -> list[tuple[Setting, ...]]:
    """Return the settings of every cell; of a grid with its first path slowest.

    Raises
    ------
    ScenarioError : nothing to vary, too much, or the same twice.
    """
    if not isinstance(vary, Mapping):
        return _listed(vary, file) if vary.kind == "list" else _drawn(vary, file)
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


def _drawn(vary: RandomDraws | LatinHypercube, file: str) -> list[tuple[Setting, ...]]:
    choices = {
        path: _labelled(over, join("vary.over", path), file)
        for path, over in vary.over.items()
        if isinstance(over, tuple)
    }
    cells: dict[tuple[str, ...], tuple[Setting, ...]] = {}
    for shares in vary.shares().tolist():
        cell: list[Setting] = []
        for u, (path, over) in zip(shares, vary.over.items(), strict=True):
            if isinstance(over, tuple):
                cell.append((path, *choices[path][int(u * len(over))]))
            else:
                value = over.at(u)
                cell.append((path, value, str(value)))
        cells.setdefault(tuple(label for _, _, label in cell), tuple(cell))  # few values may be drawn twice: run once
    return list(cells.values())
