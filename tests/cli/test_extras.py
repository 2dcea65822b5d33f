"""Every command works with the core alone, or says in one line which extra it needs and how to install it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from experiments.small import TREE
from typer.core import TyperGroup

from sim.cli import tree
from sim.extras import EXTRA_OF, how_to_install, missing

ROOT = Path(__file__).parents[2]
NOT_FOR_COMMANDS = {"all", "dev", "docs", "fuzz", "lab", "notebooks", "testing"}
MODEL = {
    "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256,
}  # fmt: skip
TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:15:{second}.6805900,374,44\n" for second in range(46, 59)
)

# What each command is asked, and the extra that it needs.
WORKS = "the core is enough"
FAILS = "the core is enough, and what is asked is not there"
ASKED = {
    "run s.yaml --out r2 --replications 2 --jobs 2": WORKS,
    "plot r --out plots": WORKS,
    "validate s.yaml": WORKS,
    "list arrivals": WORKS,
    "schema": WORKS,
    "schema gateway": WORKS,
    "schema profile": WORKS,
    "init mine.yaml": WORKS,
    "sweep s.yaml --out w --replications 2": WORKS,
    "metrics r": WORKS,
    "explain r nobody": FAILS,
    "shadow r": FAILS,
    "ui .": WORKS,
    "export mlflow r": "mlflow",
    "shadow --log t.csv s.yaml": FAILS,
    "reference --out pages": WORKS,
    "trace inspect t.csv": WORKS,
    "trace convert t.csv --out t2.csv": WORKS,
    "trace fetch": WORKS,
    "calibrate model config.json --gpu H100-SXM": WORKS,
    "reproduce --out r": FAILS,
    "tournament --out t": "stats",
    "run tournament --out t": "stats",
    "sweep s.yaml --out u --until ttft_p99_s:5%": "stats",
    "sweep s.yaml --out u --executor dask": "dask",
    "sweep s.yaml --out u --executor ray": "ray",
    "plan s.yaml --out p --replications 3": "stats",
    "advise s.yaml --out v --policy none": "stats",
    "units s.yaml": WORKS,
    "compare r r": "stats",
    "report r": "report",
    "trace fetch azure-llm-2023": "traces",
    "calibrate kernels . --layers 2 --kv-blocks 100": FAILS,
    "calibrate records t.csv --kv-blocks 100": "stats",
    "calibrate sweep t.csv --kv-blocks 100": "stats",
    "calibrate endpoint --base-url http://127.0.0.1:9": "stats",
    "trace convert t.csv --fit": "stats",
    "hardware-check --data .": "stats",
    "validate-profile nothing t.csv": FAILS,
    "profiles llama H100": WORKS,
    "calibrate aiconfigurator llama H100": "aiconfigurator",
    "serve g.yaml": "live",
    "mock-server": "live",
    "ext-proc e.yaml --check": "envoy",
    "operator": "operator",
    "key chat": WORKS,
    "key make chat": WORKS,
    "key create ci --store a.db": WORKS,
    "key rotate ci --store a.db": WORKS,
    "key expire ci --store a.db": WORKS,
    "key disable ci --store a.db": WORKS,
    "key enable ci --store a.db": WORKS,
    "key budget key/ci --budget 5/day --store a.db": WORKS,
    "key list --store a.db": WORKS,
    "key usage --store a.db": WORKS,
    "key audit --store a.db": WORKS,
    "key list --store nothing.db": FAILS,
    "parity nothing.jsonl": FAILS,
    "replay s.yaml --base-url http://127.0.0.1:9 --out l": "live",
}

# One process asks them all: what an extra brings is never imported, so no command can profit from another's imports.
_RUN = """
import contextlib, io, json, pathlib, sys
for name in {names!r}: sys.modules[name] = None
from sim.cli import main
main_of = lambda line: (sys.argv.__setitem__(slice(None), ["tokenpools", *line.split()]), main())
found = {{}}
for line in {lines!r}:
    out, err, code = io.StringIO(), io.StringIO(), 0
    before = sorted(map(str, pathlib.Path().rglob("*")))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main_of(line)
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException as error:
            code = repr(error)
    wrote = sorted(map(str, pathlib.Path().rglob("*"))) != before
    found[line] = dict(code=code, out=out.getvalue(), err=err.getvalue(), wrote=wrote)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("bare")
    (folder / "s.yaml").write_text(yaml.safe_dump(TREE))
    (folder / "t.csv").write_text(TRACE)
    (folder / "config.json").write_text(json.dumps(MODEL))
    lines = ["run s.yaml --out r --replications 2", *ASKED]
    code = _RUN.format(names=sorted(EXTRA_OF), lines=lines)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("line", ASKED)
def test_each_command_works_or_names_its_extra(line: str, answers: dict[str, dict[str, Any]]) -> None:
    given, extra = answers[line], ASKED[line]
    if extra in (WORKS, FAILS):
        assert given["code"] == (0 if extra == WORKS else 2), given
        assert "needs the extra" not in given["err"]
        return
    assert given["code"] == 2, given
    assert given["out"] == ""
    assert given["err"].count("\n") == 1
    assert f"needs the extra '{extra}'" in given["err"]
    assert re.search(rf"install it with: .*\[{extra}\]", given["err"])
    assert not given["wrote"]


def test_every_command_is_asked() -> None:
    def leaves(group: TyperGroup, prefix: str = "") -> list[str]:
        found = []
        for name, one in group.commands.items():
            found += leaves(one, f"{prefix}{name} ") if isinstance(one, TyperGroup) else [f"{prefix}{name}"]
        return found

    for name in leaves(tree()):
        assert any(f"{line} ".startswith(f"{name} ") for line in ASKED), name


def test_every_extra_is_named_by_a_module_and_brings_it() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRA_OF.values()) == set(extras) - NOT_FOR_COMMANDS
    brought = packages_distributions()
    for module, extra in EXTRA_OF.items():
        asked = {re.split(r"[\[>;= ]", one)[0].lower() for one in extras[extra]}
        asked |= {"dask"} if "distributed" in asked else set()
        own = {name.lower().replace("_", "-") for name in brought.get(module, [module])}
        assert any(name.startswith(tuple(asked)) for name in own), (module, extra)


def test_a_module_of_no_extra_is_no_extra() -> None:
    assert missing(ModuleNotFoundError("x", name="mine.deep")) is None
    said = missing(ModuleNotFoundError("x", name="scipy.stats"))
    assert said is not None
    assert "'stats'" in said[0]


def test_the_advice_is_for_this_environment() -> None:
    assert f"{ROOT}[live]" in how_to_install("live")
