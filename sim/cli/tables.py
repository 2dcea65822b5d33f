"""Tables on stdout: drawn by rich on a terminal, aligned text elsewhere, and never wider than there is room."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from sim.analysis.text_tables import TextTable

_NARROWEST = 20


def width() -> int:
    """Return the columns there are: the terminal's, or ``COLUMNS``, or 80."""
    return max(_NARROWEST, shutil.get_terminal_size((80, 24)).columns)


def show(table: TextTable, *, wide: bool = False) -> None:
    """Print a table; with ``wide`` all of its columns, else those that fit."""
    room = None if wide else width()
    if not sys.stdout.isatty():
        typer.echo(table.text(room))
        return
    fitted = table.fit(room)
    made = _table()
    for i, head in enumerate(fitted.heads):
        made.add_column(head, justify="left" if i < table.labels else "right", no_wrap=True)
    for row in fitted.rows:
        made.add_row(*row)
    out = len(table.heads) - len(fitted.heads)
    _print(made, room if room is not None else max(width(), sum(fitted.widths) + 2 * len(fitted.heads)))
    if out:
        typer.echo(f"{out} more columns with --wide")


def show_summary(rows: Sequence[Mapping[str, str | int | float]], *, wide: bool = False) -> None:
    """Print the summary of a result."""
    from sim.analysis.summary import summary_table

    table = summary_table(rows)
    if table is None:
        typer.echo("no requests")
    else:
        show(table, wide=wide)


def show_rows(rows: Sequence[tuple[str, str]]) -> None:
    """Print names with a line about each; on a terminal long lines go on below themselves."""
    room = max((len(name) for name, _ in rows), default=0)
    if not sys.stdout.isatty():
        for name, text in rows:
            typer.echo(f"{name:<{room}}  {text}".rstrip())
        return
    made = _table(heads=False)
    made.add_column(no_wrap=True, max_width=max(12, width() // 2))
    made.add_column(overflow="fold")
    for row in rows:
        made.add_row(*row)
    _print(made, width())


def show_markdown(text: str) -> None:
    """Print text with Markdown tables; on a terminal their cells wrap."""
    if not sys.stdout.isatty():
        typer.echo(text)
        return
    for part in text.split("\n\n"):
        lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in part.splitlines()]
        if not part.startswith("|") or len(lines) < 2:
            typer.echo(part)
            continue
        made = _table()
        for head in lines[0]:
            made.add_column(head, overflow="fold")
        for row in lines[2:]:
            made.add_row(*(cell.strip("*") for cell in row))
        _print(made, width())


def _table(heads: bool = True) -> Any:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, show_header=heads, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def _print(made: Any, columns: int) -> None:
    from rich.console import Console

    Console(width=columns, highlight=False, markup=False, emoji=False).print(made)
