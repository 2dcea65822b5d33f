"""The documentation as a site: ``make docs``. Reference and tutorials are generated at build time.

With ``-W`` a dead link ends the build, and so does a notebook's cell that fails: notebooks are run, and their outputs
are part of their pages. ``NOTEBOOKS=off`` leaves them out of a quick build.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

project = "tokenpools"
extensions = ["myst_nb"]
nb_execution_mode = os.environ.get("NOTEBOOKS", "cache")
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True
html_theme = "furo"
html_title = "tokenpools"
exclude_patterns = ["conf.py"]
myst_heading_anchors = 3
# Pages from elsewhere have headings of their own levels.
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]

HERE = Path(__file__).parent
GENERATED = HERE / "generated"  # ignored by git


def setup(app: Any) -> None:
    """Tell Sphinx when to call us."""
    app.connect("builder-inited", _generate)
    app.connect("source-read", _with_other_pages)
    app.connect("source-read", _without_links_out)


def _generate(_: Any) -> None:
    from sim.cli import tree
    from sim.reference.reference import pages

    GENERATED.mkdir(exist_ok=True)
    for name, text in pages(tree()).items():
        _write(f"reference-{name}", text.lstrip())
    for path in sorted((HERE.parent / "notebooks").glob("*.md")):
        _write(f"tutorial-{path.name}", path.read_text(encoding="utf-8"))
    for path in sorted((HERE.parent / "notebooks").glob("*.py")):  # what they import
        _write(path.name, path.read_text(encoding="utf-8"))


def _write(name: str, text: str) -> None:
    """Leave a page that has not changed alone: Sphinx builds by date."""
    path = GENERATED / name
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def _with_other_pages(_: Any, name: str, source: list[str]) -> None:
    """Put every page that the index names nowhere where it says so: a new one needs no edit there."""
    if name == "index":
        stems = [path.stem for path in sorted(HERE.glob("*.md")) if path.stem != name]
        others = [stem for stem in stems if not re.search(rf"^{stem}$", source[0], re.MULTILINE)]
        source[0] = re.sub(r"^% every page .*$", "\n".join(others), source[0], flags=re.MULTILINE)


def _without_links_out(_: Any, __: str, source: list[str]) -> None:
    """Turn links that leave docs/ into plain text: the site does not hold what they lead to."""
    source[0] = re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", source[0])
