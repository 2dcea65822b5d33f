"""The generated reference knows everything that is registered."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import click
import pytest

import sim.cli_experiments  # registers its commands
from policies.registry import POLICIES
from sim.cli import app
from sim.reference import pages
from workloads.registry import ARRIVALS, CLIENTS, LENGTHS

assert sim.cli_experiments


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    return pages(app)


def test_every_registered_kind_and_field_is_in_it(found: dict[str, str]) -> None:
    policies: dict[str, Any] = {kind: entry.params for kind, entry in POLICIES.items()}
    for page, kinds in (("policies.md", policies), ("workloads.md", {**ARRIVALS, **LENGTHS, **CLIENTS})):
        for kind, params in kinds.items():
            assert f"\n## {kind}\n" in found[page]
            for field in dataclasses.fields(params):
                assert field.name == "kind" or f"| `{field.name}`" in found[page], (kind, field.name)


def test_every_command_is_in_it(found: dict[str, str]) -> None:
    for name, command in app.commands.items():
        assert f"## tokenpools {name}\n" in found["commands.md"]
        for sub in command.commands if isinstance(command, click.Group) else ():
            assert f"## tokenpools {name} {sub}\n" in found["commands.md"]


def test_tables_are_whole(found: dict[str, str]) -> None:
    for text in found.values():
        lines = text.splitlines()
        for before, line in pairwise(lines):
            if before.startswith("|") and line.startswith("|"):
                assert before.replace("\\|", "").count("|") == line.replace("\\|", "").count("|"), line
