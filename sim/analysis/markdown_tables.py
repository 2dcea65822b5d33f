"""Tables as Markdown and CSV, and the marked places in documents where measured tables stand."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from sim.errors import InputError


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an aligned Markdown table, readable in a terminal too."""
    widths = [max(len(line[i]) for line in (heads, *rows)) for i in range(len(heads))]
    lines = [heads, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )


def as_csv(heads: Sequence[str], rows: Sequence[Sequence[str | int | float]]) -> str:
    """Return the rows as CSV."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([heads, *rows])
    return file.getvalue()


def block(text: str, name: str) -> str:
    """Return what stands between ``<!-- begin name -->`` and ``<!-- end name -->`` in a document.

    Raises
    ------
    InputError : the document has no such block.
    """
    return text[slice(*_edges(text, name))].strip("\n")


def with_block(text: str, name: str, content: str) -> str:
    """Return the document with the content of a block replaced."""
    start, stop = _edges(text, name)
    return f"{text[:start]}\n{content}\n{text[stop:]}"


def _edges(text: str, name: str) -> tuple[int, int]:
    opening, closing = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    start, stop = text.find(opening), text.find(closing)
    if start < 0 or stop < start:
        fix = f"put {opening.strip()} and {closing} on lines of their own"
        raise InputError("document", f"has no block {name!r}", fix)
    return start + len(opening), stop
