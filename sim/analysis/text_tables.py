"""Tables of text that fit a width: labels stay, and of the numbers those that matter most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

GAP = 2
_LEAST_LABEL = 7  # characters that a shortened label keeps
_FIRST_NUMBERS = 3


@dataclass(frozen=True, slots=True)
class TextTable:
    """Cells as text, with what is needed to choose among the columns.

    Attributes
    ----------
    heads, rows : one head a column; rows are as long as the heads.
    labels : how many leading columns say what a row is about. They are always shown, flush left.
    first : heads of the other columns in the order in which they are given room; those not named come after these.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    labels: int
    first: tuple[str, ...] = ()

    @property
    def widths(self) -> list[int]:
        """Characters that each column takes."""
        return [max(len(line[i]) for line in (self.heads, *self.rows)) for i in range(len(self.heads))]

    def fit(self, width: int | None, gap: int = GAP) -> TextTable:
        """Return the table with the columns that ``width`` characters hold; None holds all.

        Labels are shortened where the first three numbers would not be shown otherwise.
        """
        if width is None:
            return self
        widths = self.widths
        ranked = [self.heads.index(head) for head in self.first if head in self.heads]
        ranked += [i for i in range(self.labels, len(self.heads)) if i not in ranked]

        def takes(labels: Sequence[int], numbers: int) -> int:
            return sum(labels) + sum(widths[i] for i in ranked[:numbers]) + gap * (len(labels) + numbers - 1)

        whole = widths[: self.labels]
        shown = max((n for n in range(len(ranked) + 1) if takes(whole, n) <= width), default=0)
        if shown >= min(_FIRST_NUMBERS, len(ranked)) and takes(whole, shown) <= width:
            return self._only(ranked[:shown])
        short = [min(w, _LEAST_LABEL) for w in whole]
        most = min(_FIRST_NUMBERS, len(ranked))
        shown = max(shown, max((n for n in range(1, most + 1) if takes(short, n) <= width), default=min(1, most)))
        return self._only(ranked[:shown])._shortened(width, gap)

    def text(self, width: int | None = None) -> str:
        """Return the table as aligned lines, at most ``width`` characters long where that is possible."""
        table = self.fit(width)
        widths = table.widths
        lines = []
        for line in (table.heads, *table.rows):
            cells = [
                cell.ljust(w) if i < table.labels else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            ]
            lines.append((" " * GAP).join(cells).rstrip())
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])

    def _only(self, kept: Sequence[int]) -> TextTable:
        at = [*range(self.labels), *sorted(kept)]
        rows = tuple(tuple(row[i] for i in at) for row in self.rows)
        return replace(self, heads=tuple(self.heads[i] for i in at), rows=rows)

    def _shortened(self, width: int, gap: int) -> TextTable:
        """Return the table with labels cut, the longest first, until it fits or none can give more."""
        widths = self.widths
        over = sum(widths) + gap * (len(widths) - 1) - width
        while over > 0:
            i = max(range(self.labels), key=lambda i: widths[i], default=None)
            if i is None or widths[i] <= _LEAST_LABEL:
                break
            widths[i] -= 1
            over -= 1
        rows = tuple(tuple(_cut(cell, w) for cell, w in zip(row, widths, strict=True)) for row in self.rows)
        heads = tuple(_cut(cell, w) for cell, w in zip(self.heads, widths, strict=True))
        return replace(self, heads=heads, rows=rows)


def _cut(text: str, width: int) -> str:
    """Shorten a text in its middle: what tells names apart is at their ends."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"
