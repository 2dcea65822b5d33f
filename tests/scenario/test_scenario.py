import json
import math
import subprocess
import sys

import pytest
from scenario.examples import EVERYTHING, INLINE_PROFILE, SHIPPED_PROFILE, changed, mapping

from policies.api import EntitlementSpec, Resources, ServiceClass
from policies.registry import POLICIES, ROUTERS
from sim.errors import ScenarioError
from sim.scenario.load import (
    expand,
    json_schema,
    load_scenario,
    parse_scenario,
    resolved,
    scenario_hash,
    shipped_scenarios,
)
from sim.scenario.profile import load_profile, shipped_profiles
from workloads.arrivals import Even, Poisson
from workloads.clients import Drop, Retry
from workloads.generate import WorkloadSpec
from workloads.lengths import Constant, Lognormal, Uniform
from workloads.registry import ARRIVALS, CLIENTS, LENGTHS
from workloads.trace import Trace

GIB = 2**30


def test_a_trace_may_be_a_file_beside_the_scenario(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.csv").write_text("time_s,prompt_tokens,output_tokens\n0,5,6\n1,7,8\n")
    (tmp_path / "here" / "mine.yaml").write_text(
        "version: 1\npool: {profile: dgx-spark-qwen3-8b-nvfp4, entitlements: [{name: a, service_class: spot}]}\n"
        "workload: [{entitlement: a, arrivals: {kind: trace, file: mine.csv,\n"
        "            columns: {time: time_s, prompt: prompt_tokens, output: output_tokens}}}]\npolicies: [none]\n"
    )
    monkeypatch.chdir(tmp_path)
    scenario = load_scenario("here/mine.yaml")
    assert scenario.workload[0].arrivals.file == "here/mine.csv"
    monkeypatch.chdir(tmp_path / "here")
    assert load_scenario("mine.yaml").workload[0].arrivals.file == "mine.csv"


@pytest.mark.parametrize("text", [SHIPPED_PROFILE, INLINE_PROFILE, EVERYTHING])
def test_a_resolved_scenario_loads_again_to_an_equal_one(text):
    scenario = parse_scenario(mapping(text), "x.yaml")
    plain = resolved(scenario)
    again = parse_scenario(json.loads(json.dumps(plain, allow_nan=False)), "elsewhere/y.yaml")
    assert again == scenario
    assert resolved(again) == plain
    assert scenario_hash(again) == scenario_hash(scenario)


def test_the_first_example_of_the_design_says_what_it_says():
    scenario = parse_scenario(mapping(SHIPPED_PROFILE), "x.yaml")
    assert [one.spec() for one in scenario.pool.entitlements] == [
        EntitlementSpec(
            name="guaranteed-a",
            tenant="guaranteed-a",
            service_class=ServiceClass.GUARANTEED,
            ttft_slo_s=1.2,
            baseline=Resources(slots=6),
        ),
        EntitlementSpec(name="spot-b", tenant="spot-b", service_class=ServiceClass.SPOT, limit=Resources(slots=10)),
    ]
    assert [one.spec() for one in scenario.workload] == [
        WorkloadSpec(
            name="guaranteed-a",
            entitlement="guaranteed-a",
            arrivals=Even(rate_per_s=0.75),
            prompt_tokens=Constant(value=64),
            output_tokens=Constant(value=64),
            client=Drop(),
        ),
        WorkloadSpec(
            name="spot-b",
            entitlement="spot-b",
            arrivals=Trace(file="azure-llm-2023/conv", scale=0.2),
            client=Retry(max_attempts=3),
        ),
    ]
    assert [one.name for one in scenario.policies] == ["token-pool", "none", "rate-limit"]
    assert [type(one.params) for one in scenario.policies] == [
        POLICIES[kind].params for kind in ("token-pool", "none", "rate-limit")
    ]
    assert scenario.policies[2].params.requests_per_min == 60
    assert scenario.events[0].capacity.slots == 8
    assert [cell.scenario.seed for cell in expand(scenario)] == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_the_second_example_of_the_design_says_what_it_says():
    scenario = parse_scenario(mapping(INLINE_PROFILE), "x.yaml")
    profile, workload = scenario.pool.profile, scenario.workload[0].spec()
    assert (profile.max_num_seqs, profile.kv_blocks, profile.scheduling) == (256, 30000, "fcfs")
    assert profile.step_time.base_s == 0.006
    assert profile.step_time.per_context_token_s == 2e-8
    assert workload.arrivals == Poisson(rate_per_s=17)
    assert workload.requests == 100000
    assert workload.prompt_tokens == Lognormal(mean=512, cv=0.8)
    assert math.isinf(workload.until_s)


def test_what_is_left_out_or_short_gets_its_documented_meaning():
    scenario = parse_scenario(mapping(), "x.yaml")
    assert [one.name for one in scenario.workload] == ["talk", "batch", "batch#2", "spare"]
    assert [one.tenant for one in scenario.pool.entitlements] == ["acme", "batch", "spare"]
    assert scenario.pool.entitlements[0].spec().baseline == Resources(slots=6, tokens_per_s=90, kv_bytes=GIB)
    assert scenario.pool.entitlements[0].spec().until_s == 500
    assert isinstance(scenario.pool.router, ROUTERS["round-robin"].params)
    assert scenario.workload[0].max_output_tokens == Uniform(low=32, high=64)
    assert scenario.workload[0].requests == 1000
    assert [one.name for one in scenario.policies] == ["token-pool", "frozen", "none", "rate-limit"]
    restored = scenario.events[1].capacity
    assert (restored.slots, restored.kv_blocks) == (None, None)
    capacity = scenario.pool.capacity()
    assert capacity == (3, 48, 720.0, 3 * 4000 * 32 * 131072)
    shortest = parse_scenario(mapping(INLINE_PROFILE), "x.yaml")
    assert isinstance(shortest.pool.router, ROUTERS["least-outstanding-tokens"].params)
    assert (shortest.replications, shortest.timeline_interval_s, shortest.warmup_s) == (1, 1.0, 0.0)
    assert (shortest.pool.default_max_output_tokens, shortest.pool.scrape_interval_s) == (256, 1.0)


def test_an_unnamed_workload_gives_way_to_a_name_that_was_chosen():
    tree = changed(["workload", 3, "name"], "batch")
    assert [one.name for one in parse_scenario(tree, "x").workload] == ["talk", "batch#2", "batch#3", "batch"]


def test_every_registered_kind_is_in_the_schema_and_an_unknown_key_in_it_is_refused():
    text = json.dumps(json_schema())
    for registry in (ARRIVALS, LENGTHS, CLIENTS, POLICIES, ROUTERS):
        for kind in registry:
            assert f'"const": "{kind}"' in text
    for kind in POLICIES:
        tree = changed(["policies"], [{"kind": kind, "no_such_field": 1}])
        with pytest.raises(ScenarioError) as caught:
            parse_scenario(tree, "x.yaml")
        assert caught.value.args[1:3] == ("policies[0].no_such_field", "unknown field")


def test_every_field_of_the_schema_has_a_description_because_it_is_the_fix():
    bare = [
        f"{name}.{field}"
        for name, definition in json_schema()["$defs"].items()
        for field, schema in definition.get("properties", {}).items()
        if field != "kind" and not schema.get("description")
    ]
    assert bare == []


def test_the_hash_sees_every_number_but_not_how_it_is_written():
    base = scenario_hash(parse_scenario(mapping(), "x"))
    assert len(base) == 12
    assert set(base) <= set("0123456789abcdef")
    assert scenario_hash(parse_scenario(changed(["horizon_s"], 600.0), "y")) == base
    written_out = changed(["pool", "entitlements", 1, "tenant"], "batch")
    assert scenario_hash(parse_scenario(written_out, "x")) == base
    others = [changed(["seed"], 1), changed(["workload", 0, "arrivals", "rate_per_s"], 2.6), changed(["vary"], {})]
    assert len({base, *(scenario_hash(parse_scenario(one, "x")) for one in others)}) == 4


def test_expand_pairs_every_variant_with_every_policy_and_replication():
    cells = expand(parse_scenario(mapping(), "x"))
    assert len(cells) == 2 * 2 * 4 * 2
    assert [cell.index for cell in cells] == list(range(32))
    seen = {(*cell.variant.items(), cell.policy, cell.replication) for cell in cells}
    assert len(seen) == 32
    for cell in cells:
        assert cell.scenario.vary == {}
        assert [one.name for one in cell.scenario.policies] == [cell.policy]
        assert str(cell.scenario.pool.replicas) == cell.variant["pool.replicas"]
        if cell.policy == "frozen":
            assert cell.scenario.policies[0].params.alpha_debt == float(cell.variant["policies.frozen.alpha_debt"])
        parse_scenario(resolved(cell.scenario), "x")


def test_values_that_are_mappings_are_labelled_by_what_they_call_themselves():
    arrivals = [{"kind": "even", "rate_per_s": 1}, {"kind": "poisson", "rate_per_s": 1}]
    cells = expand(parse_scenario(changed(["vary"], {"workload.talk.arrivals": arrivals}), "x"))
    assert {cell.variant["workload.talk.arrivals"] for cell in cells} == {"even", "poisson"}
    rates = [{"kind": "even", "rate_per_s": 1}, {"kind": "even", "rate_per_s": 2.5}]
    cells = expand(parse_scenario(changed(["vary"], {"workload.talk.arrivals": rates}), "x"))
    assert [cell.variant["workload.talk.arrivals"] for cell in cells[::8]] == [
        "{kind: even, rate_per_s: 1}",
        "{kind: even, rate_per_s: 2.5}",
    ]


def test_baselines_that_never_hold_at_once_may_sum_to_more_than_the_pool():
    tree = mapping(INLINE_PROFILE)
    tree["pool"]["entitlements"] = [
        {"name": "a", "service_class": "guaranteed", "baseline": {"slots": 200}, "until_s": 30},
        {"name": "b", "service_class": "dedicated", "baseline": {"slots": 200}, "from_s": 30},
    ]
    parse_scenario(tree, "x")
    tree["pool"]["entitlements"][1]["from_s"] = 29
    with pytest.raises(ScenarioError, match=r"a, b sum to 400 slots at 29 s, the pool has 256; .* replicas to 2"):
        parse_scenario(tree, "x")


def test_a_profile_may_be_a_file_beside_the_scenario(tmp_path):
    profile = mapping(INLINE_PROFILE)["pool"]["profile"]
    del profile["block_tokens"]
    (tmp_path / "mine.yaml").write_text(json.dumps(profile))
    tree = changed(["pool", "profile"], "mine.yaml", INLINE_PROFILE)
    tree["vary"] = {"pool.profile": ["mine.yaml", profile | {"name": "slow"}]}
    (tmp_path / "scenario.yaml").write_text(json.dumps(tree))
    scenario = load_scenario(tmp_path / "scenario.yaml")
    assert (scenario.pool.profile.name, scenario.pool.profile.block_tokens) == ("mine", 16)
    assert [cell.variant["pool.profile"] for cell in expand(scenario)] == ["mine", "slow"]
    (tmp_path / "mine.yaml").write_text(json.dumps(profile | {"kv_block": 3}))
    with pytest.raises(ScenarioError) as caught:
        load_scenario(tmp_path / "scenario.yaml")
    file, *rest = caught.value.args
    assert file.endswith("mine.yaml")
    assert rest == ["kv_block", "unknown field", "did you mean kv_blocks?"]


@pytest.mark.parametrize("name", shipped_profiles())
def test_every_shipped_profile_loads_and_says_where_it_comes_from(name):
    profile = load_profile(name)
    assert profile.name == name
    assert profile.source


@pytest.mark.parametrize("name", shipped_scenarios())
def test_every_shipped_scenario_loads(name):
    assert expand(load_scenario(name))


def test_importing_the_loader_brings_in_no_heavy_library():
    heavy = "pandas", "matplotlib", "scipy", "simpy", "pyarrow"
    code = f"import sim.scenario.load, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_a_horizon_a_run_goes_on_until_every_request_has_ended():
    tree = mapping(INLINE_PROFILE)  # 100,000 requests
    tree.pop("horizon_s", None)
    assert parse_scenario(tree, "x.yaml").horizon_s is None
    del tree["workload"][0]["requests"]
    with pytest.raises(ScenarioError, match="horizon_s: missing, although workload"):
        parse_scenario(tree, "x.yaml")
