from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from live.gate import Answer, Gate, config, free_port, gateway, secret
from live.stand_in import StandIn, running

from sim.errors import ScenarioError
from sim.live.gateway.config_file import json_schema, load_config, parse_config
from sim.live.gateway.core_from_config import make_core
from sim.live.gateway.settings import Estimate, Limits, Timeouts, Tokenize, Tokenizer
from sim.live.gateway.settings_from_config import make_settings

MANIFESTS = """
apiVersion: tokenpools.example/v1
kind: TokenPool
metadata: {name: pool}
spec: {model: tiny, scaling: {minReplicas: 1, maxReplicas: 1}}
---
apiVersion: tokenpools.example/v1
kind: TokenEntitlement
metadata: {name: chat}
spec:
  tenantId: acme
  poolRef: {name: pool}
  qos: {serviceClass: guaranteed, sloTargetMs: 500}
  resources: {concurrency: 4}
"""


def given(**changed: Any) -> dict[str, Any]:
    return config([StandIn(port=1)], **changed)


def test_pool_and_policy_are_those_of_scenarios() -> None:
    read = parse_config(given(policy={"kind": "rate-limit", "requests_per_min": 6}), "c.yaml")
    assert read.pool.replicas == 1
    core = make_core(read)
    assert sorted(core.pool.entitlements) == ["batch", "chat", "chat-spot", "filler"]
    assert core.allowance("chat", 0.0).requests is not None
    settings = make_settings(read)
    assert settings.capacity_of(3).slots == 48
    assert settings.upstreams[0].base_url == "http://127.0.0.1:1"


def test_manifests_are_a_pool_here_too(tmp_path: Path) -> None:
    (tmp_path / "pool.yaml").write_text(MANIFESTS)
    mapping = given()
    profile = mapping["pool"]["profile"]
    mapping["pool"] = {"manifests": "pool.yaml", "profile": profile}
    mapping["keys"] = mapping["keys"][:1]
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(mapping))
    read = load_config(tmp_path / "serve.yaml")
    assert [(one.name, one.tenant) for one in read.pool.entitlements] == [("chat", "acme")]


UPSTREAM = {"name": "a", "base_url": "http://127.0.0.1:1"}


@pytest.mark.parametrize(("changed", "said"), [
    ({"upstream": []}, "upstream: unknown field; did you mean upstreams?"),
    ({"upstreams": []}, "upstreams: has 0 elements, at least 1 needed"),
    ({"upstreams": [{"name": "a", "base_url": "127.0.0.1:80"}]}, "upstreams[0].base_url: '127.0.0.1:80' is no address"),
    ({"upstreams": [{"name": "a", "base_url": "http://h/v1"}]}, "upstreams[0].base_url: ends with /v1"),
    ({"upstreams": [{"name": "a", "base_url": "http://u:p@h"}]}, "upstreams[0].base_url: holds a password"),
    ({"upstreams": [UPSTREAM, UPSTREAM]}, "upstreams: 2 are called 'a'"),
    ({"upstreams": [{**UPSTREAM, "api_key_env": "sk-123"}]}, "upstreams[0].api_key_env: is no name of a variable"),
    ({"keys": []}, "keys: there are none"),
    ({"keys": [{"name": "k", "entitlement": "chatt", "sha256": "0" * 64}]},
     "keys[0].entitlement: unknown entitlement 'chatt'; did you mean chat?"),
    ({"keys": [{"name": "k", "entitlement": "chat", "sha256": "tp-plain"}]}, "keys[0].sha256"),
    ({"keys": [{"name": n, "entitlement": "chat", "sha256": "0" * 64} for n in "ab"]}, "keys[1].sha256: is that of a"),
    ({"policy": "token-pol"}, "did you mean token-pool?"),
    ({"policy": {"kind": "rate-limit"}}, "limits nothing"),
    ({"listen": {"port": "80"}}, "listen.port: input should be a whole number, got '80'"),
    ({"listen": {"port": 70000}}, "listen.port: input should be less than or equal to 65535"),
    ({"prompt_tokens": "guess"}, "unknown kind 'guess'"),
    ({"prompt_tokens": {"kind": "tokenizer"}}, "prompt_tokens.file: missing"),
    ({"limits": {"body_byte": 5}}, "limits.body_byte: unknown field; did you mean body_bytes?"),
    ({"timeouts": {"idle_s": 0}}, "timeouts.idle_s: input should be greater than 0"),
    ({"paths": [{"path": "speech"}]}, "paths[0].path: "),
    ({"pool": {"replicas": 3}}, "pool.replicas: 3, but there are 1 upstreams"),
    ({"state": "rediss:/user:hunter2@host"},
     "state: input should be text that matches '^(rediss?|unix)://', got 'rediss:/user:***@host'"),
    ({"version": 2}, "version"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_refusal_says_where_what_and_how_to_mend_it(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_config({**given(**{k: v for k, v in changed.items() if k in ("pool", "timeouts")}), **{
            k: v for k, v in changed.items() if k not in ("pool", "timeouts")
        }}, "c.yaml")
    assert said in str(caught.value)
    assert str(caught.value).startswith("c.yaml: ")


def test_an_upstreams_key_comes_from_the_environment_or_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    read = parse_config(given(upstreams=[{**UPSTREAM, "api_key_env": "A_TEST_KEY"}]), "c.yaml")
    monkeypatch.delenv("A_TEST_KEY", raising=False)
    with pytest.raises(ScenarioError, match="A_TEST_KEY is not set"):
        make_settings(read, "c.yaml")
    monkeypatch.setenv("A_TEST_KEY", "sk-hidden")
    assert make_settings(read).upstreams[0].api_key == "sk-hidden"
    assert "sk-hidden" not in repr(make_settings(read))


def test_every_field_says_what_to_give() -> None:
    schema = json_schema()
    for name, field in schema["properties"].items():
        assert "description" in field, name
    for name in ("Upstream", "ApiKey", "Listen"):
        for inner, field in schema["$defs"][name]["properties"].items():
            assert "description" in field, (name, inner)
    for kind in (Limits, Timeouts, Estimate, Tokenize, Tokenizer):
        assert all("description" in one.metadata for one in fields(kind) if one.name != "kind"), kind


def tokenpools(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sim", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_makes_keys_checks_configurations_and_serves_until_it_is_told(tmp_path: Path) -> None:
    made = tokenpools("key", "mobile", "--entitlement", "chat")
    key, line = made.stdout.splitlines()
    assert tokenpools("key", " ").stderr == "error: NAME: is empty; give the client's name, e.g. chat-production\n"
    bad = tmp_path / "bad.yaml"
    bad.write_text("version: 1\n")
    refused = tokenpools("serve", str(bad), "--check")
    assert (refused.returncode, "pool: missing" in refused.stderr) == (2, True)
    with running() as stand_in:
        mapping = config([stand_in], records=str(tmp_path / "records"))
        mapping["keys"] = [yaml.safe_load(line)[0]]
        mapping["listen"] = {"port": free_port()}
        good = tmp_path / "good.yaml"
        good.write_text(yaml.safe_dump(mapping))
        checked = tokenpools("serve", str(good), "--check")
        assert (checked.returncode, checked.stdout) == (0, f"{good}: good; 1 upstreams, 1 keys\n")
        process = subprocess.Popen(
            [sys.executable, "-m", "sim", "serve", str(good)], stderr=subprocess.PIPE, text=True, env={**os.environ}
        )
        try:
            gate = Gate(None, None, mapping["listen"]["port"])  # type: ignore[arg-type]
            _until_ready(gate)
            found: list[Answer] = []
            asked = {"stream": True, "max_tokens": 10, "stand_in": {"gap_s": 0.1}}
            headers = {"authorization": f"Bearer {key}"}
            thread = threading.Thread(target=lambda: found.append(gate.ask(key=None, headers=headers, **asked)))
            thread.start()
            while not stand_in.running:
                time.sleep(0.005)
            process.send_signal(signal.SIGTERM)
            thread.join(10)
            assert len(found[0].events) == 10
            assert process.wait(10) == 0
        finally:
            process.kill()
            told = process.communicate()[1]
        assert key not in told
    assert len(list((tmp_path / "records").glob("*.parquet"))) == 1


def _until_ready(gate: Gate) -> None:
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        try:
            if gate.ask(path="/readyz", method="GET", key=None).status == 200:
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the gateway did not become ready")


def test_the_description_that_is_served_is_json() -> None:
    with running() as stand_in, gateway(stand_in) as gate:
        served = json.loads(gate.ask(path="/openapi.json", method="GET", key=None).body)
        assert served["openapi"].startswith("3.1")
        assert secret("chat") not in json.dumps(served)
