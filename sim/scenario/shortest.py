"""The fewest fields of a tree of settings that say the same: what a person reads in a file that a program wrote."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Tree = dict[str, Any]
_Path = tuple[str, ...]
_EACH = "[]"


def shortest(tree: Mapping[str, Any], same: Callable[[Tree], bool]) -> Tree:
    """Return a tree without what need not be said, ``kind`` alone being written as its name.

    A field is left out where ``same`` says that the tree means the same without it: from all members of a list at once,
    so that they stay alike, or from those where it holds nothing.

    Parameters
    ----------
    same : whether a tree means what the whole one does; False too where it means nothing.
    """
    found = copy.deepcopy(dict(tree))
    for change in (_dropped, _without_empty, _named):
        for path in sorted(_paths(found), key=len, reverse=change is _without_empty):
            tried = copy.deepcopy(found)
            if change(tried, path) and same(tried):
                found = tried
    return found


def _paths(tree: Tree) -> Iterator[_Path]:
    """Yield the path of every field once, those above before those below."""
    seen: dict[_Path, None] = {}
    layer: list[tuple[Any, _Path]] = [(tree, ())]
    while layer:
        below: list[tuple[Any, _Path]] = []
        for one, path in layer:
            if isinstance(one, dict):
                below += [(each, (*path, key)) for key, each in one.items()]
                seen |= {(*path, key): None for key in one}
            elif isinstance(one, list):
                below += [(each, (*path, _EACH)) for each in one]
        layer = below
    yield from seen


def _holders(value: Any, path: _Path) -> Iterator[Tree]:
    """Yield every mapping that has the last field of a path."""
    if len(path) == 1:
        if isinstance(value, dict) and path[0] in value:
            yield value
    elif path[0] == _EACH:
        for one in value if isinstance(value, list) else ():
            yield from _holders(one, path[1:])
    elif isinstance(value, dict) and path[0] in value:
        yield from _holders(value[path[0]], path[1:])


def _dropped(tree: Tree, path: _Path) -> bool:
    holders = list(_holders(tree, path))
    for holder in holders:
        del holder[path[-1]]
    return bool(holders)


def _without_empty(tree: Tree, path: _Path) -> bool:
    holders = [one for one in _holders(tree, path) if one[path[-1]] in (None, {}, [])]
    for holder in holders:
        del holder[path[-1]]
    return bool(holders)


def _named(tree: Tree, path: _Path) -> bool:
    """Write a mapping of a kind and nothing else as the kind's name."""
    holders = list(_holders(tree, path))
    values = [one[path[-1]] for one in holders]
    alone = bool(holders) and all(isinstance(one, dict) and list(one) == ["kind"] for one in values)
    for holder in holders if alone else ():
        holder[path[-1]] = holder[path[-1]]["kind"]
    return alone
