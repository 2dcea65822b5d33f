"""What other processes call: they import this package first, and with it find all others where they belong."""

from __future__ import annotations

import pickle
import signal
from typing import Any, NamedTuple


class Unloadable(NamedTuple):
    """A task that a worker could not read."""

    problem: str


def call(packed: bytes) -> Any:
    """Return what a pickled function makes of a pickled task, or why they could not be read here."""
    try:
        function, task = pickle.loads(packed)
    except ModuleNotFoundError as error:
        return Unloadable(f"a worker cannot import {error.name}; install it where the workers run, or set PYTHONPATH")
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Unloadable(f"a worker cannot read its task ({text}); give all the same code")
    return function(task)


def ignore_interrupts() -> None:
    """Leave Ctrl-C to the process that the user talks to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
