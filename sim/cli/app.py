"""The application object, and what commands share: exit codes, how errors are shown, the options of a scenario."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

import click

from sim.errors import RunError, TokenpoolsError

if TYPE_CHECKING:
    from sim.scenario.load import Scenario

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="tokenpools")
def app() -> None:
    """Decide who gets how much of the GPUs in multi-tenant LLM inference, and who is turned away."""


def _warn(
    message: Warning | str, category: type[Warning], filename: str, lineno: int,
    file: TextIO | None = None, line: str | None = None,  # noqa: ARG001
) -> None:
    """Show what is for the user as this command shows errors, and the rest as Python does."""
    if issubclass(category, UserWarning):
        click.echo(f"warning: {message}", err=True)
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def main() -> None:
    """Run the command: results on stdout, all else on stderr; exit code 0 done, 1 failed run, 2 bad input."""
    _start_light()
    warnings.showwarning = _warn
    try:
        app.main(standalone_mode=False)
    except click.exceptions.Abort:
        _stop("interrupted; nothing was written", INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(BAD_INPUT)
    except TokenpoolsError as error:
        _stop(f"error: {error}", BAD_INPUT)
    except RunError as error:
        _stop(f"error: {error}", FAILED)
    except KeyboardInterrupt:
        _stop("interrupted; nothing was written", INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of stdout has gone; there is nobody to tell
        sys.exit(FAILED)


def _start_light() -> None:
    """Take a third off the time until a run begins, which for a small scenario is most of it."""
    gc.disable()  # imports make many objects and no garbage; `run` turns it on again
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # nothing here multiplies matrices
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # looking for some means reading every installed package


def _stop(message: str, code: int) -> None:
    click.echo(message, err=True)
    sys.exit(code)


def scenario_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command its SCENARIO and what changes it."""
    for option in (
        click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Set a field by its dotted path."),
        click.option("--seed", type=int, help="Use another seed."),
        click.option("--replications", type=int, help="Repeat with other draws."),
        click.argument("scenario"),
    ):
        command = option(command)
    return command


def load(ref: str, overrides: Sequence[str], seed: int | None, replications: int | None) -> Scenario:
    """Return the scenario that `scenario_options` ask for."""
    from sim.scenario.load import load_scenario

    extra = [*overrides]
    if seed is not None:
        extra.append(f"seed={seed}")
    if replications is not None:
        extra.append(f"replications={replications}")
    return load_scenario(ref, overrides=extra)
