"""What reading traces refuses."""

from __future__ import annotations

from collections.abc import Iterable


class TraceError(Exception):
    """A trace that cannot be used: ``file: row 12: problem; fix``.

    Arguments are positional, so that it survives pickling. ``row`` is the line as a text editor numbers it (the header
    is line 1), or the record's number from 1 in a file without lines, or None where the whole file is meant.
    """

    def __init__(self, file: str, row: int | None, problem: str, fix: str) -> None:
        super().__init__(file, row, problem, fix)

    def __str__(self) -> str:
        """Return the one line that is shown."""
        file, row, problem, fix = self.args
        place = file if row is None else f"{file}: row {row}"
        return f"{place}: {problem}; {fix}"


class BlockSizesError(ValueError):
    """Parts whose blocks have several sizes: which of them begin alike cannot be told from their names."""

    def __init__(self, sizes: Iterable[int]) -> None:
        super().__init__(sorted(sizes))

    def __str__(self) -> str:
        """Return what was found."""
        return f"blocks have {' and '.join(map(str, self.args[0]))} tokens"


class EmptyCutError(TraceError):
    """No row is in the part of the trace that was asked for."""
