"""Errors a user can act on. Each says where, what was found and how to mend it; the command prints it in one line.

Arguments are positional on purpose: SimPy and process pools rebuild exceptions from ``args``.
"""

from __future__ import annotations

_LONGEST_PLACE = 300
_LONGEST_PROBLEM = 800
_LONGEST_FIX = 600
"""Characters of what a file may have had a say in: names, keys, anchors. [choice]"""


def shortened(text: str, most: int) -> str:
    """Return a text without its middle where it is longer than ``most`` characters."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-(most // 2 - 5) :]}"


class TokenpoolsError(Exception):
    """Anything that is the input's fault. The command answers with exit code 2."""


class ScenarioError(TokenpoolsError):
    """A scenario that cannot be run: ``file: field: problem; fix``."""

    def __init__(self, file: str, field: str, problem: str, fix: str) -> None:
        super().__init__(file, field, problem, fix)

    def __str__(self) -> str:
        """Return the one line that is shown."""
        file, field, problem, fix = self.args
        file, field = (shortened(str(one), _LONGEST_PLACE) for one in (file, field))
        problem, fix = shortened(str(problem), _LONGEST_PROBLEM), shortened(str(fix), _LONGEST_FIX)
        place = f"{file}: {field}" if field else f"{file}"
        return f"{place}: {problem}; {fix}" if fix else f"{place}: {problem}"


class InputError(TokenpoolsError):
    """Any other bad input (an option, a result folder, a trace file): ``place: problem; fix``."""

    def __init__(self, place: str, problem: str, fix: str) -> None:
        super().__init__(place, problem, fix)

    def __str__(self) -> str:
        """Return the one line that is shown."""
        place, problem, fix = self.args
        place = shortened(str(place), _LONGEST_PLACE)
        problem, fix = shortened(str(problem), _LONGEST_PROBLEM), shortened(str(fix), _LONGEST_FIX)
        return f"{place}: {problem}; {fix}" if fix else f"{place}: {problem}"


class RunError(Exception):
    """A run that broke although its input was good. The command answers with exit code 1."""
