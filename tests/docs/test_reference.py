"""The generated reference knows everything that is registered."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

import pytest
from typer.core import TyperGroup

from policies.registry import POLICIES
from sim.cli import tree
from sim.reference.reference import pages
from sim.reference.reference_types import in_words
from sim.scenario.load import shipped_scenarios
from sim.scenario.model import Scenario
from sim.scenario.profile import shipped_profiles
from sim.scenario.registered_types import OneOf
from workloads.registry import ARRIVALS, CLIENTS, LENGTHS
from workloads.trace import TRACES


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    return pages(tree())


def test_every_registered_kind_and_field_is_in_it(found: dict[str, str]) -> None:
    policies: dict[str, Any] = {kind: entry.params for kind, entry in POLICIES.items()}
    for page, kinds in (("policies.md", policies), ("workloads.md", {**ARRIVALS, **LENGTHS, **CLIENTS})):
        for kind, params in kinds.items():
            assert f"\n### {kind}\n" in found[page]
            for field in dataclasses.fields(params):
                assert field.name == "kind" or f"| `{field.name}`" in found[page], (kind, field.name)


def test_all_that_a_scenario_may_hold_has_a_section(found: dict[str, str]) -> None:
    """Whatever is added to the schema, at any depth, is in the reference without an edit there."""
    text = "".join(found.values())
    for key, definition in Scenario.model_json_schema()["$defs"].items():
        if "properties" not in definition:
            continue  # an enumeration
        fields = definition["properties"]
        title = fields.get("kind", {}).get("const") or key.rpartition("__")[2]
        assert re.search(rf"\n###? {re.escape(title)}\n", text), title
        for name in fields:
            assert name == "kind" or f"| `{name}`" in text, (title, name)


def test_what_is_shipped_has_a_line(found: dict[str, str]) -> None:
    for name in shipped_profiles():
        assert f"| `{name}`" in found["profiles.md"]
    for name in shipped_scenarios():
        assert f"\n## {name}\n" in found["scenarios.md"]
    for name in TRACES:
        assert f"| `{name}`" in found["workloads.md"]


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (float, "number"),
        (int | None, "whole number or null"),
        (tuple[str, ...], "list of text"),
        (tuple[float, float], "[number, number]"),
        (Mapping[str, float], "mapping of text to number"),
        (Literal["a", "b"], "`a`, `b`"),
        (Annotated[Any, OneOf({"x": int, "y": int})], "`x`, `y`"),
    ],
)
def test_types_are_said_in_words(annotation: Any, said: str) -> None:
    assert in_words(annotation) == said


def test_every_command_is_in_it(found: dict[str, str]) -> None:
    for name, command in tree().commands.items():
        assert f"## tokenpools {name}\n" in found["commands.md"]
        for sub in command.commands if isinstance(command, TyperGroup) else ():
            assert f"## tokenpools {name} {sub}\n" in found["commands.md"]


def test_tables_are_whole(found: dict[str, str]) -> None:
    for text in found.values():
        lines = text.splitlines()
        for before, line in pairwise(lines):
            if before.startswith("|") and line.startswith("|"):
                assert before.replace("\\|", "").count("|") == line.replace("\\|", "").count("|"), line
