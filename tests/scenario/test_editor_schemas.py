"""What editors are told: the schemas in schemas/ are current, files that are shipped fit them and name them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "schemas"
FILES = {
    "scenario": sorted((ROOT / "scenarios").glob("*.yaml")),
    "profile": sorted((ROOT / "sim" / "profiles").glob("*.yaml")),
    "gateway": [ROOT / "deploy" / "compose" / "gateway.yaml"],
}  # fmt: skip
VALIDATORS = {
    kind: jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{kind}.json").read_text())) for kind in FILES
}


def complaints(kind: str, content: Any) -> list[str]:
    return [f"{list(error.absolute_path)}: {error.message[:200]}" for error in VALIDATORS[kind].iter_errors(content)]


@pytest.mark.parametrize("kind", FILES)
def test_a_schema_is_what_the_command_prints_and_has_an_id(kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sim", "schema", kind], capture_output=True, text=True, check=True, cwd=ROOT
    )
    kept = (SCHEMAS / f"{kind}.json").read_text()
    assert done.stdout == kept, f"tokenpools schema {kind} > schemas/{kind}.json"
    schema = json.loads(kept)
    assert schema["$id"] == f"urn:tokenpools:schema:{kind}"
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(("kind", "file"), [(kind, file) for kind, files in FILES.items() for file in files])
def test_every_shipped_file_fits_its_schema_and_names_it(kind: str, file: Path) -> None:
    text = file.read_text()
    assert complaints(kind, yaml.safe_load(text)) == []
    (named,) = re.findall(r"^# yaml-language-server: \$schema=(\S+)$", text, re.MULTILINE)
    assert (file.parent / named).resolve() == SCHEMAS / f"{kind}.json"


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("scenario", ["policies", 0], "token-pol"), ("scenario", ["horizon_s"], "90s"), ("scenario", ["sed"], 1),
        ("scenario", ["pool", "groups"], [{"nme": "a"}]), ("gateway", ["listen", "port"], 70_000),
        ("gateway", ["keys", 0, "sha256"], "tp-secret"), ("gateway", ["policy"], "token-pol"),
        ("gateway", ["shadow"], ["no-such"]), ("profile", ["max_num_seqs"], 0),
    ],
)  # fmt: skip
def test_what_is_wrong_is_wrong_to_the_schema_too(kind: str, path: list[Any], value: Any) -> None:
    content = yaml.safe_load(FILES[kind][0].read_text())
    place = content
    for step in path[:-1]:
        place = place[step]
    if isinstance(place, list):
        place[path[-1]] = value
    else:
        place[path[-1]] = value
    assert complaints(kind, content)


def test_shorthands_of_a_gateway_are_in_its_schema() -> None:
    content = yaml.safe_load(FILES["gateway"][0].read_text())
    for name, value in (
        ("state", "redis://127.0.0.1:6379/0"), ("check_invariants", True), ("prompt_tokens", "estimate"),
        ("scaling", "log"), ("policy", {"kind": "none", "name": "x"}), ("shadow", ["token-pool"]),
    ):  # fmt: skip
        assert complaints("gateway", {**content, name: value}) == [], name
