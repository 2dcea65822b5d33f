"""What watches a gateway: Prometheus, alerts, Grafana and the Helm chart, by their own tools where they are here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from sim.live.gateway.config_file import load_config, parse_config
from sim.live.gateway.core_from_config import make_core

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
OBSERVE, CHART = DEPLOY / "observe", DEPLOY / "helm" / "tokenpools"
PROMTOOL, COMPOSE = shutil.which("promtool"), shutil.which("docker-compose")
HELM = Path(os.environ.get("TOKENPOOLS_HELM") or ROOT / "build" / "helm" / "bin" / "python")
IMAGE = f"tokenpools@sha256:{'0' * 64}"


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def run(*command: str | None, folder: Path = OBSERVE, **env: str) -> subprocess.CompletedProcess[str]:
    words, environment = [str(word) for word in command], os.environ | env
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, env=environment, timeout=120)


def check(*command: str | None, folder: Path = OBSERVE) -> None:
    done = run(*command, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool (Debian's package prometheus has it)")
def test_prometheus_takes_its_configuration_and_the_alerts_fire_when_they_should(tmp_path: Path) -> None:
    check(PROMTOOL, "check", "rules", "alerts.yaml")
    check(PROMTOOL, "test", "rules", "alerts-test.yaml")
    text = (OBSERVE / "prometheus.yaml").read_text()
    token = tmp_path / "token"
    token.write_text("t")
    text = text.replace("/etc/prometheus/alerts.yaml", str(OBSERVE / "alerts.yaml"))
    (tmp_path / "prometheus.yaml").write_text(text.replace("/secrets/metrics.token", str(token)))
    check(PROMTOOL, "check", "config", str(tmp_path / "prometheus.yaml"))


def test_every_alert_says_what_it_is_and_how_urgent() -> None:
    rules = read(OBSERVE / "alerts.yaml")["groups"][0]["rules"]
    names = [one["alert"] for one in rules if "alert" in one]
    assert len(names) == len(set(names)) >= 8
    for one in rules:
        if "alert" in one:
            assert one["labels"]["severity"] in ("page", "ticket", "info")
            assert one["annotations"]["summary"]
    tests = [one for test in read(OBSERVE / "alerts-test.yaml")["tests"] for one in test["alert_rule_test"]]
    assert {one["alertname"] for one in tests if one["exp_alerts"]} == set(names)
    assert {one["alertname"] for one in tests if not one["exp_alerts"]} == set(names)


def test_the_profile_observe_mounts_what_is_here_and_reads_what_the_gateway_shows() -> None:
    services = read(DEPLOY / "compose" / "compose.yaml")["services"]
    watching = {name: one for name, one in services.items() if one.get("profiles") == ["observe"]}
    assert set(watching) == {"prometheus", "grafana"}
    inside: dict[str, str] = {}
    for one in watching.values():
        for volume in one["volumes"]:
            source, place = volume.split(":")[:2]
            if source.startswith(".."):
                assert (DEPLOY / "compose" / source).exists(), source
                inside[place] = source
    (scrape,) = read(OBSERVE / "prometheus.yaml")["scrape_configs"]
    assert read(OBSERVE / "prometheus.yaml")["rule_files"][0] in inside
    config = load_config(DEPLOY / "compose" / "gateway.yaml")
    assert config.admin is not None
    assert scrape["dns_sd_configs"][0]["port"] == config.admin.port
    assert scrape["dns_sd_configs"][0]["names"][0] in services
    assert scrape["scheme"] == "https"  # pages that leave the machine are shown as the API is
    assert config.listen.tls is not None
    assert scrape["authorization"]["credentials_file"] in {v.split(":")[1] for v in watching["prometheus"]["volumes"]}
    (provider,) = read(OBSERVE / "grafana" / "provisioning" / "dashboards" / "tokenpools.yaml")["providers"]
    dashboards = inside[provider["options"]["path"]]
    assert (DEPLOY / "compose" / dashboards / "tokenpools-gateway.json").exists()
    (source,) = read(OBSERVE / "grafana" / "provisioning" / "datasources" / "prometheus.yaml")["datasources"]
    assert source["url"].split("//")[1].split(":")[0] in services


@pytest.mark.skipif(COMPOSE is None, reason="needs docker-compose (Debian's package of that name)")
def test_compose_itself_takes_its_file_and_wants_images_by_digest(tmp_path: Path) -> None:
    shutil.copytree(DEPLOY / "compose", tmp_path / "compose", ignore=shutil.ignore_patterns("secrets", "tls"))
    (tmp_path / "compose" / "secrets").mkdir()
    (tmp_path / "compose" / "secrets" / "secrets.env").touch()
    folder, file = tmp_path / "compose", tmp_path / "compose" / "compose.yaml"
    images = {f"{name}_IMAGE": f"x@sha256:{'0' * 64}" for name in ("PYTHON", "REDIS")}
    done = run(COMPOSE, "--profile", "observe", "config", folder=folder, **images)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert set(services) == {"redis", "gateway", "prometheus", "grafana"}
    assert services["redis"]["image"] == images["REDIS_IMAGE"]
    done = run(COMPOSE, "config", folder=folder, **(images | {"REDIS_IMAGE": ""}))
    assert done.returncode != 0
    assert "give redis by digest" in done.stderr
    file.write_text(file.read_text().replace("read_only: true", "read_onyl: true"))
    done = run(COMPOSE, "config", folder=folder, **images)
    assert done.returncode != 0
    assert "read_onyl" in done.stderr


# -------------------------------------------------------------------------------------------------------------- Helm


def test_the_charts_values_fit_their_schema_and_serve() -> None:
    values, schema = read(CHART / "values.yaml"), json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    assert list(jsonschema.Draft7Validator(schema).iter_errors(values)) == []
    assert make_core(parse_config(values["config"], "values.yaml")).pool.capacity.ready_replicas == 1
    for changed in ({"image": "tokenpools:latest"}, {"replicas": 0}, {"more": 1}, {"monitor": {"enabled": "yes"}},
                    {"config": {"version": 2}}):  # fmt: skip
        assert list(jsonschema.Draft7Validator(schema).iter_errors({**values, **changed})), changed


def test_templates_name_values_that_there_are_and_close_what_they_open() -> None:
    values = read(CHART / "values.yaml")
    for template in (CHART / "templates").glob("*.yaml"):
        text = template.read_text()
        for path in re.findall(r"\.Values\.([\w.]+)", text):
            place = values
            for key in path.split("."):
                if path == "config.state":  # what may be given besides
                    break
                assert key in place, f"{template.name}: {path}"
                place = place[key]
        assert len(re.findall(r"\{\{-? (?:if|range|with) ", text)) == len(re.findall(r"\{\{-? end \}\}", text))
    assert (CHART / "alerts.yaml").read_text() == (OBSERVE / "alerts.yaml").read_text()


def rendered(name: str, storage: str = "") -> list[Any]:
    """Return a template's objects as helm makes them with everything turned on, by its few functions."""
    values = read(CHART / "values.yaml") | {"image": IMAGE, "envSecret": "keys"}
    values["accounts"]["storageClass"] = storage

    def value(found: re.Match[str]) -> str:
        words = found[1].strip(" -").split()
        if words[0] in ("if", "end", "fail", "else"):
            return ""
        if words[0] == ".Files.Get":
            text = (CHART / words[1].strip('"')).read_text()
        else:
            place: Any = {"Release": {"Name": "x"}, "Values": values}
            for key in words[-3 if "|" not in words else words.index("|") - 1].strip(".").split(".") if (
                words[0] == "toYaml"
            ) else words[0].strip(".").split("."):  # fmt: skip
                place = place[key]
            text = yaml.safe_dump(place).rstrip() if words[0] == "toYaml" else str(place)
        if "sha256sum" in words:
            return "0" * 64
        for how in ("indent", "nindent"):
            if how in words:
                spaces = " " * int(words[words.index(how) + 1])
                text = ("\n" if how == "nindent" else "") + "\n".join(spaces + line for line in text.splitlines())
        return text

    text = (CHART / "templates" / name).read_text()
    return list(yaml.safe_load_all(re.sub(r"\{\{-?(.*?)-?\}\}", value, text)))


def test_the_templates_make_objects_that_fit_together() -> None:
    config, workload, service = rendered("gateway.yaml")
    assert [one["kind"] for one in (config, workload, service)] == ["ConfigMap", "StatefulSet", "Service"]
    served = parse_config(yaml.safe_load(config["data"]["gateway.yaml"]), "gateway.yaml")
    pod = workload["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert served.admin is not None
    assert ports == {"http": served.listen.port, "admin": served.admin.port}
    assert {one["targetPort"] for one in service["spec"]["ports"]} == set(ports)
    claims = [one["metadata"]["name"] for one in workload["spec"]["volumeClaimTemplates"]]
    volumes = {one["name"] for one in pod["volumes"]} | set(claims)
    assert {one["name"] for one in container["volumeMounts"]} == volumes
    assert served.accounts is not None
    assert any(served.accounts.store.startswith(f"{one['mountPath']}/") for one in container["volumeMounts"])
    assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert pod["terminationGracePeriodSeconds"] > served.timeouts.drain_s + served.timeouts.drain_notice_s
    monitor, rule = rendered("monitor.yaml")
    assert monitor["spec"]["endpoints"][0]["port"] in ports
    assert rule["spec"] == read(OBSERVE / "alerts.yaml")


def helms(*values: dict[str, Any]) -> Any:
    """Return what Helm itself says of the chart with these values."""
    command = [str(HELM), str(Path(__file__).with_name("helm_says.py")), str(CHART)]
    lines = "".join(json.dumps(one) + "\n" for one in values)
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not HELM.exists(), reason="needs Helm's library (make helm), or its Python in TOKENPOOLS_HELM")
def test_helm_itself_takes_the_chart_and_refuses_values_that_cannot_serve() -> None:
    everything = {"image": IMAGE, "monitor": {"enabled": True}, "envSecret": "keys", "accounts": {"storageClass": "x"}}
    found = helms(
        {"image": IMAGE}, everything, {"image": IMAGE, "config": {"admin": None}}, {}, {"image": IMAGE, "replicas": 2},
        {"image": "tokenpools:latest"}, {"image": IMAGE, "replicas": 0}, {"image": IMAGE, "monitors": {}},
    )  # fmt: skip
    assert found["lint"]["errors"] == []
    # 1 is information: it recommends an icon.
    assert max(message["severity"] for message in found["lint"]["messages"]) <= 1, found["lint"]
    plain, full, pageless, *refused = found["made"]
    assert [list(yaml.safe_load_all(full[name])) for name in ("gateway.yaml", "monitor.yaml")] == [
        rendered("gateway.yaml", storage="x"), rendered("monitor.yaml", storage="x")
    ]
    assert plain["monitor.yaml"].strip() == ""
    config, workload, service = yaml.safe_load_all(pageless["gateway.yaml"])
    assert parse_config(yaml.safe_load(config["data"]["gateway.yaml"]), "gateway.yaml").admin is None
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    assert [one["name"] for one in container["ports"]] == ["http"]
    assert "envFrom" not in container
    assert [one["name"] for one in service["spec"]["ports"]] == ["https"]
    said = [one["error"] for one in refused]
    assert "give it by digest" in said[0]
    assert "config.state" in said[1]
    assert ["/image" in said[2], "/replicas" in said[3], "monitors" in said[4]] == [True] * 3, said
