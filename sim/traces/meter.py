"""A bar on stderr for downloads."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from tqdm import tqdm


class Meter:
    """Shows how far a download is, where somebody is looking: stderr is a terminal."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._name = ""

    def __enter__(self) -> Meter:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def __call__(self, name: str, have: int, total: int | None) -> None:
        """Hear how many bytes of a file there are."""
        if not sys.stderr.isatty():
            return
        if self._bar is None or name != self._name:
            if self._bar is not None:
                self._bar.close()
            bar: tqdm[Any] = tqdm(desc=name, total=total, unit="B", unit_scale=True, leave=False, file=sys.stderr)
            self._bar, self._name = bar, name
        self._bar.update(have - self._bar.n)
