"""Policies, routers, arrival laws and clients from outside."""

from __future__ import annotations

import json
import random
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from experiments.small import TREE, digest
from scenario.plugged import Write, modules

import tokenpools
from policies import snapshot
from sim.errors import RunError, ScenarioError, TokenpoolsError
from sim.experiments.cells import cell_key
from sim.experiments.executors import Executor
from sim.experiments.run import run_cell, run_scenario
from sim.experiments.select import with_policies
from sim.experiments.sweep import sweep
from sim.live.gateway.config_file import parse_config
from sim.live.gateway.core_from_config import core_of_head, make_core, recorded_head
from sim.scenario import plugins
from sim.scenario.catalogue import entries
from sim.scenario.load import Scenario, expand, json_schema, load_scenario, parse_scenario, resolved
from sim.studies.tournament_policies import check_names, policy_settings

__all__ = ["modules"]

HALVES = "fair_halves.policy:FairHalves"


def scenario(*policies: Any, **changes: Any) -> Scenario:
    return parse_scenario(TREE | {"policies": list(policies)} | changes, "mine.yaml")


def refused(*policies: Any, **changes: Any) -> str:
    with pytest.raises(TokenpoolsError) as error:
        scenario(*policies, **changes)
    assert "\n" not in str(error.value)
    return str(error.value)


# --------------------------------------------------------------------------------------------------------------------
# Naming them


def test_a_policy_named_by_module_and_class_is_as_good_as_any(modules: Write) -> None:
    modules("outside")
    found = scenario({"kind": "outside:Mine", "most": 3}, "none")
    assert [one.name for one in found.policies] == ["mine", "none"]
    assert resolved(found)["policies"][0] == {"name": "mine", "kind": "outside:Mine", "most": 3}
    assert parse_scenario(resolved(found), "again.yaml") == found
    assert refused({"kind": "outside:Mine", "most": 0}) == (
        "mine.yaml: policies[0].most: input should be greater than 0, got 0; give requests in flight, e.g. 8"
    )
    assert refused({"kind": "outside:Mine", "mots": 1}).endswith("unknown field; did you mean most?")
    assert "outside:Mine" in json.dumps(json_schema())
    result = run_scenario(found)
    assert result.manifest["plugins"][0]["class"] == "outside:Mine"
    assert sum(row["refused"] for row in result.summary if row["policy"] == "mine") > 0


def test_a_policy_that_a_package_announces_goes_by_its_name(modules: Write) -> None:
    modules("outside", mine="outside:Mine")
    found = scenario("mine", {"name": "tight", "kind": "mine", "most": 1})
    assert resolved(found)["policies"][0] == {"name": "mine", "kind": "mine", "most": 2}
    assert ("mine", "Lets a few in (outside 1.0)") in entries("policies")
    assert with_policies(scenario("none"), ["mine"]).policies[0].params.most == 2
    check_names(["mine", "vtc"])
    with pytest.raises(TokenpoolsError, match="did you mean mine"):
        check_names(["mien"])


def test_whatever_is_not_announced_stays_unknown(modules: Write) -> None:
    modules("outside", mine="outside:Mine")
    assert refused("nobody").startswith("mine.yaml: policies[0]: unknown kind 'nobody'; give one of: ")


def test_a_run_without_plug_ins_reads_no_entry_points(modules: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(**_: Any) -> None:
        raise AssertionError("entry points were read")

    monkeypatch.setattr(metadata, "entry_points", never)
    run_cell(expand(scenario("token-pool"))[0])
    load_scenario("arena-27")


def test_objects_and_classes_of_a_program_run(modules: Write, tmp_path: Path) -> None:
    modules("outside")
    from outside import Mine  # type: ignore[import-not-found]

    results = tokenpools.run(TREE, tmp_path / "o", policies=[Mine(most=1), Mine, "none"][::2])
    assert results.manifest["scenario"]["policies"][0] == {"name": "mine", "kind": "outside:Mine", "most": 1}
    tokenpools.register(Mine, name="own-name")
    assert scenario("own-name").policies[0].params == Mine(kind="own-name")
    with pytest.raises(TokenpoolsError, match="is no class"):
        tokenpools.register(Mine())


def test_all_four_kinds_run_in_a_run_and_as_a_shadow(modules: Write) -> None:
    assert modules
    workload = [
        {**one, "arrivals": {"kind": "fair_halves.arrivals:OfficeHours"}, "client": "fair_halves.client:OnceMore"}
        for one in TREE["workload"]
    ]
    found = scenario(
        HALVES, workload=workload, pool=TREE["pool"] | {"router": "fair_halves.router:TwoChoices"},
        shadow=[{"name": "watching", "kind": HALVES, "share": 0.1}],
    )
    result = run_scenario(found)
    assert [row["group"] for row in result.manifest["plugins"]] == ["arrivals", "clients", "policies", "routers"]
    assert result.shadows is not None
    assert set(result.shadows.column("shadow").to_pylist()) == {"watching"}


def test_a_tournament_takes_them(modules: Write) -> None:
    assert modules
    base = load_scenario("tournament-noisy-neighbour")
    check_names([HALVES])
    assert [one.name for one in policy_settings(base, (HALVES, "vtc"))] == ["fair-halves", "vtc"]


# --------------------------------------------------------------------------------------------------------------------
# What is wrong with them

BAD = {
    "raises at import": ("1 / 0", "its module raises ZeroDivisionError: division by zero (outside.py, line 1); mend"),
    "needs what is not there": ("import nowhere_at_all", "its module needs nowhere_at_all, which is not installed"),
    "has no such class": ("x = 1", "module outside has no class Mine; give the name of a policy's class"),
    "is no class": ("Mine = 1", "module outside has something else than a class Mine"),
    "is no dataclass": ("class Mine: pass", "is no policy: it lacks a frozen dataclass; write @dataclass(frozen=True)"),
    "has no kind": (
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Mine:\n    most: int = 1",
        "it lacks a first field `kind` with a text for its default",
    ),
    "lacks its method": (
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Mine:\n    kind: str = 'mine'",
        "outside:Mine: is no policy: it lacks build(); needs build(), or decide()",
    ),
    "has a field of no type": (
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Mine:\n    kind: str = 'mine'\n"
        "    most: 'Nothing' = 1\n    def build(self, **_): ...",
        "its fields cannot be read (",
    ),
    "breaks when built": (
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Mine:\n    kind: str = 'mine'\n"
        "    def build(self, **_): return {}['x']",
        "build() raises KeyError: 'x' (outside.py, line 5); mend",
    ),
    "builds what is no policy": (
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Mine:\n    kind: str = 'mine'\n"
        "    def build(self, **_): return 7",
        "build() returns a int that lacks tick_s, wants_progress, wants_reports, decide, on_admitted",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_in_one_line(modules: Write, case: str) -> None:
    text, said = BAD[case]
    modules("outside", text)
    assert said in refused("outside:Mine"), refused("outside:Mine")
    scenario("none")  # nothing of it is left that would break others


def test_a_module_that_is_nowhere_is_named(modules: Write) -> None:
    assert modules
    assert refused("nowhere.at_all:Mine").endswith(
        "policies[0].kind: nowhere.at_all:Mine: there is no module nowhere; "
        "install it, or set PYTHONPATH to the folder it is in"
    )
    assert "is no module:Class" in refused(":Mine")


def test_a_name_that_is_taken_is_refused(modules: Write) -> None:
    modules("outside", mine="outside:Mine", token_pool="outside:Mine")
    modules("other")
    from other import Mine as Other  # type: ignore[import-not-found]
    from outside import Mine

    with pytest.raises(TokenpoolsError, match="its name 'vtc' is taken by a policy of tokenpools; give it another"):
        tokenpools.register(Mine, name="vtc")
    tokenpools.register(Mine)
    with pytest.raises(TokenpoolsError, match="other:Mine: its name 'mine' is taken by outside:Mine"):
        tokenpools.register(Other)
    assert ("token-pool", "cannot be used: the name is taken (outside 1.0)") in entries("policies")


def test_two_packages_of_one_name_are_both_named(modules: Write) -> None:
    modules("outside", mine="outside:Mine")
    modules("other", mine="other:Mine")
    assert "policy of other 1.0 and of outside 1.0; uninstall one, or name it other:Mine" in refused("mine")


def test_a_broken_one_does_not_keep_the_others_from_being_listed(modules: Write) -> None:
    modules("outside", "1 / 0", mine="outside:Mine")
    listed = dict(entries("policies"))
    assert listed["mine"].startswith("cannot be used: its module raises ZeroDivisionError")
    assert "token-pool" in listed


def test_one_that_breaks_in_a_run_is_named_with_its_line(modules: Write, tmp_path: Path) -> None:
    modules("outside", tokenpools_policy("raise KeyError(request.tenant)"))
    found = scenario("outside:Mine")
    with pytest.raises(RunError, match=r"^outside:Mine raises KeyError: '\w+' \(outside.py, line \d+\)$"):
        run_scenario(found)
    result = sweep(found, tmp_path / "s")
    assert "outside:Mine raises KeyError" in result.errors[0]


def tokenpools_policy(body: str) -> str:
    from scenario.plugged import POLICY

    head, _, _ = POLICY.partition("        wanted = ")
    return f"{head}        {body}\n"


# --------------------------------------------------------------------------------------------------------------------
# Results, workers, gateways


def test_a_change_of_the_source_is_another_cell(modules: Write) -> None:
    file = modules("outside")
    cell, plain = expand(scenario("outside:Mine", "none"))[0], expand(scenario("none"))[0]
    before, beside = cell_key(cell, "code"), cell_key(plain, "code")
    file.write_text(file.read_text() + "# a comment\n")
    plugins._source_hash.cache_clear()
    assert cell_key(cell, "code") != before
    assert cell_key(plain, "code") == beside


@pytest.mark.parametrize("kind", ["loky", pytest.param("dask", marks=pytest.mark.filterwarnings("ignore"))])
def test_workers_run_them(modules: Write, tmp_path: Path, kind: str) -> None:
    assert modules
    if kind == "dask":
        pytest.importorskip("distributed")
    found = scenario(HALVES, replications=2)
    sweep(found, tmp_path / "here")
    there = sweep(found, tmp_path / "there", executor=Executor(kind=kind, jobs=2))
    assert there.errors == []
    assert digest(tmp_path / "there") == digest(tmp_path / "here")


def test_a_worker_that_cannot_import_it_says_so(modules: Write, tmp_path: Path) -> None:
    file = modules("only_here")
    found = scenario("only_here:Mine", replications=2)
    for each in (file, *file.parent.glob("__pycache__/only_here.*")):
        each.unlink()
    result = sweep(found, tmp_path / "s", executor=Executor(jobs=2))
    assert result.errors[0].endswith(
        "a worker cannot import only_here; install it where the workers run, or set PYTHONPATH"
    )


def test_a_gateway_serves_with_them_and_loads_none_that_a_network_names(modules: Write) -> None:
    modules("outside")
    config = parse_config({
        "version": 1, "pool": TREE["pool"], "policy": {"kind": "outside:Mine", "most": 1},
        "upstreams": [{"name": "a", "base_url": "http://127.0.0.1:1"}],
        "keys": [{"name": "k", "entitlement": "chat", "sha256": "0" * 64}],
    }, "serve.yaml")  # fmt: skip
    core = make_core(config)
    assert type(core.policy).__name__ == "MinePolicy"
    head = json.loads(json.dumps(recorded_head(config)))
    assert type(core_of_head(head, "head", may_import=False).policy) is type(core.policy)
    head["policy"]["kind"] = "other_module:Mine"
    with pytest.raises(TokenpoolsError, match="other_module:Mine: is not loaded here"):
        core_of_head(head, "head", may_import=False)


def test_a_snapshot_holds_what_was_loaded_and_nothing_else(modules: Write) -> None:
    from tokenpools.testing import make_core as small_core

    modules("outside")
    from outside import Mine

    core = small_core(Mine())
    core.start(0.0)
    data = json.loads(json.dumps(snapshot.take(core)))
    again = snapshot.restore(data, chance=random.Random)
    assert type(again.policy) is type(core.policy)
    text = json.dumps(data).replace("outside:MinePolicy", "pathlib:Path")
    with pytest.raises(snapshot.SnapshotError, match="expected a type of a module of"):
        snapshot.restore(json.loads(text))


def test_a_scenario_file_says_where(modules: Write) -> None:
    assert modules
    with pytest.raises(ScenarioError) as error:
        scenario("none", pool=TREE["pool"] | {"router": "nowhere:R"})
    assert str(error.value).startswith("mine.yaml: pool.router.kind: nowhere:R: there is no module nowhere;")
