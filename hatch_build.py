"""Build hook: a wheel and an sdist carry the commit that they were made from, as ``sim/_build.py``.

An editable install asks git when it runs; where there is no git, the file says nothing and ``commit`` is unknown.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PLACE = "sim/_build.py"


class CommitHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds ``sim/_build.py`` to what is built; the tree stays as it is."""

    PLUGIN_NAME = "custom"
    _folder: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """See hatchling's documentation of build hooks."""
        if version == "editable":
            return
        root = Path(self.root)
        if not (root / ".git").exists():  # an sdist has the file already; a bare tree has nothing to say
            return
        commit = commit_of(root)
        if commit is None:
            return
        self._folder = Path(tempfile.mkdtemp(prefix="tokenpools-build-"))
        made = self._folder / "_build.py"
        made.write_text(f'"""What this was built from."""\n\nCOMMIT = "{commit}"\n', encoding="utf-8")
        build_data["force_include"][str(made)] = PLACE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove what was made for the build."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def commit_of(root: Path) -> str | None:
    """Return the commit of a checkout, with ``-dirty`` after local changes; None where git cannot say."""

    def git(*command: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        head, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}-dirty" if changes else head
