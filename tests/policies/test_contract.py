"""What every registered policy must do. A policy added to the registry needs an example here, and is then tested."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path
from typing import Any

from parity.examples import EXAMPLES
from parity.tiny_world import Ask, TinyWorld

import policies
from policies.api import RequestView
from policies.no_control import NoControl
from policies.parts.estimates import Flat
from policies.registry import POLICIES, ROUTERS
from tokenpools.testing import PolicyContract, RouterContract, make_core


class TestPolicies(PolicyContract):
    examples = EXAMPLES

    def longest_wait_s(self, params: Any) -> float:
        # Its reserves are larger than this pool: the lower classes wait until they starve.
        return 125.0 if params.kind == "smg" else 0.0

    def refuses_oversize(self, params: Any) -> bool:
        return super().refuses_oversize(params) and not isinstance(getattr(params, "estimate", None), Flat)


class TestRouters(RouterContract):
    examples = {kind: entry.params() for kind, entry in ROUTERS.items()}  # noqa: RUF012


def test_none_serves_all_of_a_burst_that_fits_in_a_queue() -> None:
    world = TinyWorld(make_core(NoControl()), [Ask(0.01 * k, "spot", 8) for k in range(24)])
    world.run(60)
    assert len(world.waits_s("spot")) == 24
    assert world.waits_s("spot")[-1] < 5


def test_none_loses_where_one_tenant_floods_the_others() -> None:
    flood = [Ask(0.1 * k, "spot", 64) for k in range(400)] + [Ask(30.0, "dedicated", 8)]
    world = TinyWorld(make_core(NoControl()), flood)
    world.run(300)
    assert world.waits_s("dedicated")[-1] > 60


def test_every_registered_kind_has_an_example_and_is_named_by_its_dataclass() -> None:
    assert {params.kind for params in EXAMPLES.values()} == set(POLICIES)
    for registry in (POLICIES, ROUTERS):
        for kind, entry in registry.items():  # type: ignore[attr-defined]
            first = fields(entry.params)[0]
            assert (first.name, first.default) == ("kind", kind)
            assert all("description" in field.metadata for field in fields(entry.params)[1:])


def test_a_policy_cannot_see_how_long_an_answer_will_be() -> None:
    assert "output_tokens" not in RequestView._fields


def test_policies_import_nothing_that_knows_the_time_or_the_world() -> None:
    allowed = {
        "__future__", "bisect", "collections", "dataclasses", "enum", "heapq", "itertools", "math", "policies", "types",
        "typing", "zlib",
    }
    files = sorted(Path(policies.__file__).parent.rglob("*.py"))
    assert len(files) > 10
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            # native.py imports for type checkers alone, lazy_mapping.py what its users name when it is asked for.
            besides = {
                "snapshot.py": {"gc", "sys"}, "native.py": {"mypy_extensions"}, "lazy_mapping.py": {"importlib"},
            }.get(file.name, set())  # fmt: skip
            assert {name.split(".")[0] for name in names} <= allowed | besides, file.name
