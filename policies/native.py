"""What mypyc reads in the source of a module that it may compile (`HOT` in ``hatch_build.py``): nothing to Python.

mypyc knows a decorator by its name, so nothing of it is needed when the program runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr as mypyc_attr
else:

    def mypyc_attr(**_: Any) -> Any:
        """Return the class as it is.

        Compiled, ``allow_interpreted_subclasses`` lets classes that are not compiled inherit from this one, and
        ``acyclic`` spares the garbage collector its objects, which must then never refer to themselves.
        """
        return lambda kind: kind
