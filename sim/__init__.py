"""The testbed: scenarios in, records and figures out. Its four names for notebooks and scripts are in `sim.api`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.api import Results, load_scenario, run, sweep

__all__ = ["Results", "load_scenario", "run", "sweep"]


def __getattr__(name: str) -> Any:
    """Import the library when one of its names is asked for: the command must start without it."""
    if name in __all__:
        from sim import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
