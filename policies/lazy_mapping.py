"""A mapping whose values are imported when they are asked for: kinds by name, most of which no run needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, Generic, TypeVar

Place = TypeVar("Place")
Found = TypeVar("Found", covariant=True)


class LazyMapping(Mapping[str, Found], Generic[Place, Found]):
    """What is registered, by kind or field, each found from its place when it is asked for.

    To import all of the modules that they are in takes a tenth of a second.
    """

    def __init__(self, places: Mapping[str, Place], find: Callable[[Place], Found]) -> None:
        self._places = places
        self._find = find
        self._found: dict[str, Found] = {}

    def __getitem__(self, name: str) -> Found:
        if name not in self._found:
            self._found[name] = self._find(self._places[name])
        return self._found[name]

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def imported(place: str) -> Any:
    """Return what ``module:name`` is."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
