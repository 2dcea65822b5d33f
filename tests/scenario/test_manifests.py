from __future__ import annotations

from pathlib import Path

import pytest

from sim.errors import ScenarioError
from sim.scenario.load import load_scenario, resolved
from sim.scenario.manifests import pool_from_manifests

POOL = """
apiVersion: inference.example.com/v1
kind: TokenPool
metadata: {name: qwen, namespace: ml, labels: {team: a}}
spec:
  model: nvidia/Qwen3-8B-NVFP4
  backendRef: {name: dgx-spark-qwen3-8b-nvfp4}
  scaling: {minReplicas: 2, maxReplicas: 2}
"""
CHAT = """
apiVersion: inference.example.com/v1
kind: TokenEntitlement
metadata: {name: chat}
spec:
  tenantId: acme
  poolRef: {name: qwen}
  qos: {serviceClass: elastic, sloTargetMs: 500}
  resources: {tokensPerSecond: 90, kvCacheGiB: 4, concurrency: 6}
  limits: {concurrency: 12}
status: {phase: Bound}
"""
SPARE = """
apiVersion: inference.example.com/v1
kind: TokenEntitlement
metadata: {name: spare}
spec:
  tenantId: acme
  poolRef: {name: qwen}
  qos: {serviceClass: spot}
  resources: {concurrency: 10}
"""
SCENARIO = """
version: 1
horizon_s: 10
pool: {manifests: pool.yaml}
workload:
  - {entitlement: chat, arrivals: {kind: even, rate_per_s: 1}, prompt_tokens: 10, output_tokens: 10}
policies: [token-pool]
"""


def written(folder: Path, *documents: str) -> Path:
    path = folder / "pool.yaml"
    path.write_text("---".join(documents), encoding="utf-8")
    return path


def refusal(folder: Path, *documents: str) -> str:
    with pytest.raises(ScenarioError) as caught:
        pool_from_manifests(written(folder, *documents), "pool.yaml")
    return str(caught.value)


def test_several_documents_make_one_pool(tmp_path: Path) -> None:
    written(tmp_path, POOL, CHAT, SPARE, "\n")
    scenario = tmp_path / "s.yaml"
    scenario.write_text(SCENARIO)
    loaded = load_scenario(scenario)
    pool = loaded.pool
    chat, spare = (one.spec() for one in pool.entitlements)
    assert (pool.replicas, pool.profile.name, pool.autoscaler.kind) == (2, "dgx-spark-qwen3-8b-nvfp4", "none")
    assert (chat.name, chat.tenant, chat.service_class, chat.ttft_slo_s) == ("chat", "acme", "elastic", 0.5)
    assert (chat.baseline.tokens_per_s, chat.baseline.kv_bytes, chat.baseline.slots) == (90, 4 * 2**30, 6)
    assert (chat.limit.slots, spare.limit.slots, spare.baseline.slots) == (12, 10, None)
    assert load_scenario(scenario, overrides=["seed=0"]) == loaded
    assert "manifests" not in resolved(loaded)["pool"]  # what a result keeps needs no other file


def test_bounds_that_differ_bring_the_autoscaler_and_what_stands_beside_wins(tmp_path: Path) -> None:
    written(tmp_path, POOL.replace("maxReplicas: 2", "maxReplicas: 5"), CHAT)
    scenario = tmp_path / "s.yaml"
    scenario.write_text(SCENARIO)
    scaler = load_scenario(scenario).pool.autoscaler
    assert (scaler.kind, scaler.min_replicas, scaler.max_replicas) == ("capacity", 2, 5)
    scenario.write_text(SCENARIO.replace("pool.yaml}", "pool.yaml, replicas: 3, autoscaler: none}"))
    pool = load_scenario(scenario).pool
    assert (pool.replicas, pool.autoscaler.kind) == (3, "none")


def test_a_list_as_kubectl_prints_it(tmp_path: Path) -> None:
    def item(document: str) -> str:
        lines = document.strip().splitlines()
        return "\n".join(["  - " + lines[0], *("    " + line for line in lines[1:])])

    path = written(tmp_path, "\n".join(["", "apiVersion: v1", "kind: List", "items:", item(POOL), item(CHAT)]))
    assert [one["name"] for one in pool_from_manifests(path, "pool.yaml")["entitlements"]] == ["chat"]


BAD = [
    ([POOL.replace("TokenPool", "TokenPol"), CHAT],
     "pool.yaml: document 1, line 2 (TokenPol qwen): kind: unknown kind 'TokenPol'; did you mean TokenPool?"),
    ([POOL, CHAT.replace("kind: TokenEntitlement\n", "")],
     "pool.yaml: document 2, line 9 (chat): kind: missing; give one of: TokenPool, TokenEntitlement"),
    ([POOL, CHAT.replace("name: qwen", "name: qwn")],
     "pool.yaml: document 2, line 9 (TokenEntitlement chat): spec.poolRef.name: unknown pool 'qwn'; "
     "did you mean qwen?"),
    ([POOL, CHAT.replace("elastic", "elastc")],
     "pool.yaml: document 2, line 9 (TokenEntitlement chat): spec.qos.serviceClass: input should be 'dedicated', "
     "'guaranteed', 'elastic', 'spot' or 'preemptible', got 'elastc'; did you mean elastic?"),
    ([POOL, CHAT.replace("tokensPerSecond", "tokensPerSec")],
     "pool.yaml: document 2, line 9 (TokenEntitlement chat): spec.resources.tokensPerSec: unknown field; "
     "did you mean tokensPerSecond?"),
    ([POOL, CHAT.replace("kvCacheGiB: 4", "kvCacheGiB: 4Gi")],
     "pool.yaml: document 2, line 9 (TokenEntitlement chat): spec.resources.kvCacheGiB: input should be a number, "
     "got '4Gi'; give a plain number, without a unit"),
    ([POOL, CHAT.replace("sloTargetMs: 500", "sloTargetMs: -5")],
     "pool.yaml: document 2, line 9 (TokenEntitlement chat): spec.qos.sloTargetMs: input should be greater than 0, "
     "got -5; give milliseconds as a plain number, e.g. 500"),
    ([POOL, CHAT.replace("tenantId: acme\n", "\n")],
     "pool.yaml: document 2, line 9 (TokenEntitlement chat): spec.tenantId: missing; give the tenant's name"),
    ([POOL.replace("maxReplicas: 2", "maxReplicas: 1"), CHAT],
     "pool.yaml: document 1, line 2 (TokenPool qwen): spec.scaling.maxReplicas: 1 is below minReplicas (2); "
     "give at least 2"),
    ([POOL, CHAT, CHAT],
     "pool.yaml: document 3, line 20 (TokenEntitlement chat): metadata.name: a second TokenEntitlement of this name; "
     "rename or remove one"),
    ([CHAT], "pool.yaml: no TokenPool; keep exactly one in the file, with its TokenEntitlements"),
    ([POOL, POOL.replace("name: qwen,", "name: two,"), CHAT],
     "pool.yaml: 2 TokenPools (qwen, two); keep exactly one in the file, with its TokenEntitlements"),
    ([POOL], "pool.yaml: no TokenEntitlement for pool qwen; add at least one"),
    ([POOL, SPARE.rstrip() + "\n  limits: {concurrency: 3}\n"],
     "pool.yaml: document 2, line 9 (TokenEntitlement spare): spec.limits: given beside resources, which are the "
     "limits of a spot one; keep one of the two"),
    ([POOL, "\njust text\n"], "pool.yaml: document 2, line 9: holds 'just text'; give a Kubernetes object"),
    ([POOL, CHAT.replace("metadata: {name: chat}", "metadata: {}")],
     "pool.yaml: document 2, line 9 (TokenEntitlement): metadata.name: missing; give the object's name"),
]  # fmt: skip


@pytest.mark.parametrize(("documents", "message"), BAD)
def test_what_an_operator_gets_wrong_is_named(tmp_path: Path, documents: list[str], message: str) -> None:
    assert refusal(tmp_path, *documents) == message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("pool.yaml}", "gone.yaml}", "gone.yaml: no such file"),
        ("pool.yaml}", "3}", "pool.manifests: holds 3; give the path of a YAML file"),
        ("pool.yaml}", "pool.yaml, entitlements: []}", "pool.entitlements: given beside manifests; keep one"),
    ],
)
def test_a_scenario_that_names_manifests_wrongly(tmp_path: Path, old: str, new: str, message: str) -> None:
    written(tmp_path, POOL, CHAT)
    scenario = tmp_path / "s.yaml"
    scenario.write_text(SCENARIO.replace(old, new))
    with pytest.raises(ScenarioError) as caught:
        load_scenario(scenario)
    assert message in str(caught.value)


def test_baselines_over_the_pool_are_refused_unless_it_may_be_oversubscribed(tmp_path: Path) -> None:
    large = CHAT.replace("concurrency: 6", "concurrency: 40").replace("concurrency: 12", "concurrency: 40")
    written(tmp_path, POOL, large)
    scenario = tmp_path / "s.yaml"
    scenario.write_text(SCENARIO)
    with pytest.raises(ScenarioError, match="the baselines of chat sum to 40 slots at 0 s, the pool has 32"):
        load_scenario(scenario)
    scenario.write_text(SCENARIO.replace("pool.yaml}", "pool.yaml, oversubscribed: true}"))
    assert load_scenario(scenario).pool.oversubscribed
