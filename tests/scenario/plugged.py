"""Plug-ins for tests: modules in a folder on the import path, forgotten again afterwards."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from sim.scenario import plugins
from sim.scenario.registered_types import rebuild_models

HALVES = Path(__file__).parents[2] / "examples" / "fair-halves" / "src"
POLICY = """
from dataclasses import dataclass, field
from typing import Literal
from tokenpools.policies import ADMIT, Deny, PolicyBase, Reason

@dataclass(frozen=True, slots=True, kw_only=True)
class Mine:
    '''Lets a few in. And more.'''
    kind: Literal["mine"] = "mine"
    most: int = field(default=2, metadata={"gt": 0, "description": "give requests in flight, e.g. 8"})

    def build(self, *, entitlements, kv_bytes_per_token, chance):
        return MinePolicy(self)

class MinePolicy(PolicyBase):
    def __init__(self, params):
        self._most = params.most

    def decide(self, request, max_output_tokens, pool, now_s):
        wanted = pool.entitlements[request.entitlement].in_flight + 1
        return ADMIT if wanted <= self._most else Deny(Reason.CONCURRENCY, wanted, self._most, 1.0)
"""
Write = Callable[..., Path]


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Return a function that writes a module, by default `POLICY`, and what packages announce."""
    folder = tmp_path / "path"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.syspath_prepend(HALVES)
    before = set(sys.modules)
    plugins._announced.cache_clear()

    def write(name: str, text: str = POLICY, **announced: str) -> Path:
        (folder / f"{name}.py").write_text(dedent(text))
        if announced:
            info = folder / f"{name}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            lines = [f"{kind.replace('_', '-')} = {value}" for kind, value in announced.items()]
            (info / "entry_points.txt").write_text("\n".join(["[tokenpools.policies]", *lines]))
        return folder / f"{name}.py"

    yield write
    for kinds in plugins._KINDS.values():
        for kind in set(kinds) - set(kinds.built_in):
            kinds.forget(kind)
    plugins._LOADED.clear()
    plugins._announced.cache_clear()
    plugins._source_hash.cache_clear()
    for name in set(sys.modules) - before:
        file = str(getattr(sys.modules[name], "__file__", ""))
        if name.split(".")[0] == "fair_halves" or file.startswith(str(folder)):
            del sys.modules[name]
    rebuild_models()
