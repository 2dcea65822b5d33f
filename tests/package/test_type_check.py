"""mypy passes over some libraries; nothing of ours may be checked against one of those, where it would see no fault."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
FOLLOW = {
    pattern: override["follow_imports"]
    for override in SETTINGS["overrides"] if "follow_imports" in override for pattern in override["module"]
}  # fmt: skip


def passed_over(name: str) -> bool:
    """Return whether mypy reads nothing of a module: its own entry decides, or the longest of those with a star."""
    stars = [pattern for pattern in FOLLOW if pattern.endswith(".*") and f"{name}.".startswith(pattern[:-1])]
    return FOLLOW.get(name, FOLLOW[max(stars, key=len)] if stars else "normal") == "skip"


def test_mypy_reads_whatever_is_imported_here() -> None:
    found: dict[str, Path] = {}
    for package in SETTINGS["packages"]:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= dict.fromkeys((each.name for each in node.names), path)
                elif isinstance(node, ast.ImportFrom) and node.module is not None:
                    found[node.module] = path
    assert {"kubernetes.client.exceptions", "mlflow"} <= found.keys()
    assert not {name: path for name, path in found.items() if passed_over(name)}, "take it from pyproject.toml's list"


def test_what_is_passed_over_is_known() -> None:
    assert passed_over("sqlalchemy")
    assert passed_over("mlflow.gateway.providers")
    assert not passed_over("mlflow")
    assert not passed_over("mlflow.entities.run")
    assert not passed_over("sim.api")
