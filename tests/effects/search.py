"""For every field of a scenario, a change of it that changes what its run shows: looked for, and checked again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from effects.bases import bases
from effects.fields import Path as Steps
from effects.fields import Place, others, places, with_value
from effects.hints import HINTS
from effects.observe import attempt, shown
from sim.scenario.load import parse_scenario

WITNESSES = Path(__file__).with_name("witnesses.json")
_PLACES = 4
"""How often a field is tried in one scenario."""


class Witness(NamedTuple):
    """A change that shows: in which scenario, where (steps joined by dots) and to what value."""

    base: str
    path: str
    value: Any

    @property
    def steps(self) -> Steps:
        """Where it is."""
        return tuple(int(step) if step.isdigit() else step for step in self.path.split("."))


class Nothing(NamedTuple):
    """No change was found that shows: how many were refused, and how many were taken and showed nothing."""

    refused: int
    same: int


class Search:
    """The scenarios, what each shows as it is, and where in them each field stands."""

    def __init__(self, folder: Path, names: Iterable[str] | None = None) -> None:
        made = bases(folder)
        self.trees = {name: made[name] for name in (made if names is None else names)}
        self.roots = {name: parse_scenario(tree, name) for name, tree in self.trees.items()}
        self._shown: dict[str, str] = {}
        self.places: dict[str, list[tuple[str, Place]]] = {}
        for name, root in self.roots.items():
            for place in places(root):
                self.places.setdefault(place.key, []).append((name, place))

    def shown(self, base: str) -> str:
        """Return what a scenario shows as it is."""
        if base not in self._shown:
            self._shown[base] = shown(self.roots[base])
        return self._shown[base]

    def changes(self, base: str, path: Steps, value: Any) -> bool | None:
        """Return whether another value shows; None where it is refused."""
        try:
            tree = with_value(self.trees[base], self.roots[base], path, value)
        except (KeyError, AttributeError, TypeError, IndexError):
            return None
        found = attempt(tree)
        return None if found is None else found != self.shown(base)

    def witness(self, key: str, most: int = 120) -> Witness | Nothing:
        """Return the first change of a field that shows."""
        refused = same = 0
        if key in HINTS:
            found = Witness(*HINTS[key])
            if self.changes(found.base, found.steps, found.value):
                return found
        tried: dict[str, int] = {}
        stands = self.places.get(key, [])
        often = {name: sum(one == name for one, _ in stands) for name, _ in stands}
        for base, place in sorted(stands, key=lambda one: (often[one[0]], one[0] == "rich")):
            if tried.get(base, 0) >= _PLACES:
                continue
            tried[base] = tried.get(base, 0) + 1
            for value in others(place):
                changed = self.changes(base, place.path, value)
                if changed:
                    return Witness(base, ".".join(map(str, place.path)), value)
                refused, same = refused + (changed is None), same + (changed is False)
                if refused + same >= most:
                    return Nothing(refused, same)
        return Nothing(refused, same)


def kept() -> dict[str, Witness]:
    """Return the changes that were found."""
    return {key: Witness(*found) for key, found in json.loads(WITNESSES.read_text(encoding="utf-8")).items()}


def keep(found: Mapping[str, Witness]) -> None:
    """Write them down, one a line."""
    lines = [f"{json.dumps(key)}: {json.dumps(list(one))}" for key, one in sorted(found.items())]
    WITNESSES.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
