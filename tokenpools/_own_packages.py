"""Sees to it that tokenpools finds its own packages, whatever lies in the working folder.

Their names are plain words (`policies`, `sim`, ...), and a script's folder comes first on Python's import path: a file
`policies.py` there would be found in their place. So they are looked up beside this package, before the path is asked.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

NAMES = ("policies", "scenarios", "sim", "workloads")
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120  (pathlib is slower to import)


class _OwnPackages:
    """Finds the packages of `NAMES` beside this one; see `importlib.abc.MetaPathFinder`."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [ROOT], target) if path is None and name in NAMES else None


_FINDER = _OwnPackages()


def install() -> None:
    """Look for the packages here from now on.

    Raises
    ------
    ImportError : something else was imported under one of the names before.
    """
    for name in NAMES:
        found = sys.modules.get(name)
        if found is not None and (other := _elsewhere(name, found)):
            raise ImportError(
                f"tokenpools has a package {name!r} of its own, and {other} was imported under that name before; "
                f"rename that file, or import tokenpools first",
                name=name,
            )
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def _elsewhere(name: str, module: ModuleType) -> str:
    """Return where a module is from, if it is not ours."""
    file = getattr(module, "__file__", None)
    places = [*getattr(module, "__path__", ()), *([os.path.dirname(file)] if file else ())]  # noqa: PTH120
    ours = os.path.realpath(os.path.join(ROOT, name))  # noqa: PTH118
    if any(os.path.realpath(place) == ours for place in places):
        return ""
    return str(file or next(iter(places), "a module without a file"))
