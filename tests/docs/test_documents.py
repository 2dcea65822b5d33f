"""What README and CONTRIBUTING show works as shown."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import yaml

from sim.experiments.run import run_scenario
from sim.scenario.load import parse_scenario

ROOT = Path(__file__).parents[2]


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text()
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    return ["\n".join(line.removeprefix(indent) for line in body.splitlines()) for indent, body in found]


def test_the_scenario_of_the_readme_runs() -> None:
    (text,) = blocks("README.md", "yaml")
    result = run_scenario(parse_scenario(yaml.safe_load(text), "README.md"))
    assert {row["policy"] for row in result.summary} == {"token-pool", "none", "rate-limit"}


def test_every_command_of_the_readme_exists() -> None:
    from sim.cli import tree

    named = set(re.findall(r"bin/tokenpools (\w[\w-]*)|`tokenpools (\w[\w-]*)", (ROOT / "README.md").read_text()))
    assert {a or b for a, b in named} <= set(tree().commands)


def test_the_policy_of_contributing_passes_its_own_test() -> None:
    test, parameters, policy = blocks("CONTRIBUTING.md", "python")
    header = (
        "from dataclasses import dataclass, field\nfrom typing import Literal\n"
        "from policies.api import ADMIT, Deny, Reason\nfrom policies.no_control import NoControlPolicy\n"
    )
    module = types.ModuleType("policies.at_most")
    sys.modules["policies.at_most"] = module
    try:
        exec(compile("\n".join([header, parameters, policy]), "CONTRIBUTING.md", "exec"), module.__dict__)
        space: dict[str, object] = {}
        exec(compile(test, "CONTRIBUTING.md", "exec"), space)
        space["test_the_third_is_refused"]()  # type: ignore[operator]
    finally:
        del sys.modules["policies.at_most"]


def test_links_lead_somewhere() -> None:
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for document in documents:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name} links {target}"


def test_every_policy_beside_its_source_names_sequences_that_there_are() -> None:
    from policies.registry import POLICIES

    rows = re.findall(r"^\| `([\w-]+)` \| [fsd] \|.*\| (-|`[^`]*`) \|$", (ROOT / "docs/policies.md").read_text(), re.M)
    assert sorted(kind for kind, _ in rows) == sorted(POLICIES)
    assert [kind for kind, named in rows if named == "-"] == ["none"]
    for kind, named in rows[1:]:
        file, _, words = named.strip("`").partition(" -k ")
        tests = re.findall(r"^def (test_\w+)", (ROOT / f"tests/policies/{file}.py").read_text(), re.M)
        for word in filter(None, words.split(", ")):
            assert any(word in test for test in tests), f"{kind}: no test of {file} has {word} in its name"
