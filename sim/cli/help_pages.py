"""Commands and groups of this application: grouped help, plain where nobody looks, and a word for a missing extra."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand, TyperGroup

from sim.errors import InputError

if TYPE_CHECKING:
    from typer import Context


# The headings of `tokenpools --help`, in its order.
SCENARIOS, EVIDENCE, JUDGING = "Scenarios and runs", "Evidence", "Judge a result"
TRAFFIC, LIVE, ABOUT = "Traffic and profiles", "In front of real servers", "About tokenpools"
PANELS = (SCENARIOS, EVIDENCE, JUDGING, TRAFFIC, LIVE, ABOUT)
_SHORT = 400  # characters of a command's first sentence: none is cut


class Command(TyperCommand):
    """A command that says which extra it lacks, in one line."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Raises
        ------
        InputError : a library of an extra is not installed.
        """
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            from sim.extras import missing

            words = missing(error)
            if words is None:  # not an extra's: a mistake of ours or of a plug-in
                raise
            raise InputError(ctx.command_path, *words) from None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the help page with rich on a terminal, and as plain text elsewhere."""
        _format_help(self, ctx, formatter, super().format_help)


class Group(TyperGroup):
    """A group whose help page lists its commands under their headings."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the help page with rich on a terminal, and as plain text elsewhere."""
        _format_help(self, ctx, formatter, super().format_help)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands under the headings that they were given, for plain text."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            one = self.get_command(ctx, name)
            if one is not None and not one.hidden:
                panels.setdefault(_panel(one) or "Commands", []).append((name, one.get_short_help_str(_SHORT)))
        width = max((len(name) for rows in panels.values() for name, _ in rows), default=0)
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl([(f"{name:<{width}}", text) for name, text in rows])

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands by heading, and under each in the order in which they were made."""
        place = {panel: i for i, panel in enumerate(PANELS)}
        return sorted(super().list_commands(ctx), key=lambda name: place.get(_panel(self.commands[name]), len(place)))


def _panel(command: Any) -> str:
    return str(getattr(command, "rich_help_panel", None) or "")


def _format_help(page: TyperCommand | TyperGroup, ctx: Context, formatter: Any, rich: Any) -> None:
    if sys.stdout.isatty():
        rich(ctx, formatter)
        return
    mode, page.rich_markup_mode = page.rich_markup_mode, None  # typer's own page without rich, and without its import
    try:
        rich(ctx, formatter)
    finally:
        page.rich_markup_mode = mode
