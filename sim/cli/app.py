"""The application object, and what commands share: exit codes, how errors are shown, the options of a scenario."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO, TypeVar

import typer
from typer.models import CommandInfo

from sim.cli import completion
from sim.cli.help_pages import ABOUT, EVIDENCE, JUDGING, LIVE, SCENARIOS, TRAFFIC, Command, Group
from sim.errors import RunError, TokenpoolsError

if TYPE_CHECKING:
    from sim.scenario.load import Scenario

__all__ = ["ABOUT", "EVIDENCE", "JUDGING", "LIVE", "SCENARIOS", "TRAFFIC", "app", "command", "group", "load", "main"]

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

Function = TypeVar("Function", bound=Callable[..., Any])

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def command(name: str | None = None, *, panel: str = "", of: typer.Typer = app) -> Callable[[Function], Function]:
    """Return what makes a function a command, under a heading of the help page."""
    return of.command(name, cls=Command, rich_help_panel=panel or None)


def group(name: str, *, panel: str, cls: type[Group] = Group, about: str) -> typer.Typer:
    """Return a group of commands, added to the application."""
    made = typer.Typer(cls=cls, no_args_is_help=True, rich_markup_mode="rich", help=about)
    app.add_typer(made, name=name, rich_help_panel=panel)
    return made


def _show_version(wanted: bool) -> None:
    if wanted:
        from sim.records.provenance import version_line

        typer.echo(version_line())
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show version and commit, and stop."),
    ] = False,
) -> None:
    """Decide who gets how much of the GPUs in multi-tenant LLM inference, and who is turned away."""


_WARNED: set[str] = set()


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,
) -> None:
    """Show what is for the user as this command shows errors, once, and the rest as Python does."""
    if issubclass(category, UserWarning):
        text = str(message)
        if text.startswith("Glyph ") and "missing from font" in text:  # one for each character and drawing
            text = "names have characters that the figures' font (DejaVu Sans) does not have; boxes stand for them"
        if text not in _WARNED:
            _WARNED.add(text)
            typer.echo(f"warning: {text}", err=True)
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def main() -> None:
    """Run the command: results on stdout, all else on stderr; exit code 0 done, 1 failed run, 2 bad input."""
    _start_light()
    warnings.showwarning = _warn
    if "_TOKENPOOLS_COMPLETE" in os.environ:
        completion.answer(tree())
    try:
        code = tree(sys.argv[1:2]).main(prog_name="tokenpools", standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        _stop("interrupted; nothing was written", INTERRUPTED)
    except typer.TyperException as error:
        error.show()  # type: ignore[attr-defined]  # of every error that a command line can make
        sys.exit(BAD_INPUT)
    except TokenpoolsError as error:
        _stop(f"error: {error}", BAD_INPUT)
    except RunError as error:
        _stop(f"error: {error}", FAILED)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of stdout has gone; there is nobody to tell
        sys.exit(FAILED)
    except (OSError, UnicodeError) as error:
        if not {"--install-completion", "--show-completion"} & set(sys.argv):
            raise
        _stop(f"error: {completion.not_installed(error)}", BAD_INPUT)
    if code == INTERRUPTED:  # typer turns Ctrl-C into an exit code
        _stop("interrupted; nothing was written", INTERRUPTED)
    if code:
        sys.exit(code)


def tree(first: Sequence[str] = ()) -> Group:
    """Return the commands as a tree of objects.

    Parameters
    ----------
    first : the first word of a command line. Where it names a command, that alone is made: all of them take a tenth of
        a second, which a short run would feel.
    """
    some = copy(app)
    some.registered_commands = [one for one in app.registered_commands if _name(one) in first]
    some.registered_groups = [one for one in app.registered_groups if one.name in first]
    made = typer.main.get_command(some if some.registered_commands or some.registered_groups else app)
    assert isinstance(made, Group)
    return made


def _name(one: CommandInfo) -> str:
    return str(one.name or getattr(one.callback, "__name__", ""))


def _start_light() -> None:
    """Take a third off the time until a run begins, which for a small scenario is most of it."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # nothing here multiplies matrices
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # looking for some means reading every installed package


def _stop(message: str, code: int) -> None:
    typer.echo(message, err=True)
    sys.exit(code)


# --------------------------------------------------------------------------------------------------------------------
# Arguments and options that several commands have


def above_zero(value: float | None) -> float | None:
    """Refuse zero and less: a check for an option."""
    if value is not None and not value > 0:
        raise typer.BadParameter(f"{value:g} is not above 0.")
    return value


ScenarioRef = Annotated[
    str,
    typer.Argument(
        metavar="SCENARIO", help="A path, or the name of a shipped one.", autocompletion=completion.scenarios
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Set a field by its dotted path.", autocompletion=completion.set_paths
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Use another seed.")]
Replications = Annotated[int | None, typer.Option("--replications", help="Repeat with other draws.")]
Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy", metavar="NAME", help="Run these policies only.", autocompletion=completion.policies
    ),
]  # fmt: skip
Jobs = Annotated[int, typer.Option("--jobs", min=1, help="Processes to run cells in.")]
RunOut = Annotated[
    Path | None, typer.Option("--out", help="Result folder; without it results/<scenario>-<hash>.")
]  # fmt: skip
Progress = Annotated[
    bool | None,
    typer.Option("--progress/--no-progress", help="Progress on stderr; without it, if that is a terminal."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the result that is there.")]
Wide = Annotated[bool, typer.Option("--wide", help="Show every column, however wide the table gets.")]
ResultFolder = Annotated[Path, typer.Argument(metavar="RESULT", help="A result folder.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print the table as CSV.")]
ExecutorKind = Annotated[
    Literal["loky", "dask", "ray"],
    typer.Option("--executor", help="What spreads the cells; dask and ray are extras."),
]
Address = Annotated[
    str | None,
    typer.Option("--address", "--scheduler", metavar="ADDRESS", help="A running Dask scheduler or Ray cluster."),
]


def load(ref: str, overrides: Sequence[str] | None, seed: int | None, replications: int | None) -> Scenario:
    """Return the scenario that the shared options ask for."""
    from sim.scenario.load import load_scenario

    extra = [*(overrides or ())]
    if seed is not None:
        extra.append(f"seed={seed}")
    if replications is not None:
        extra.append(f"replications={replications}")
    return load_scenario(ref, overrides=extra)
