"""What watches a gateway: Prometheus, alerts, Grafana and the Helm chart, by their own tools where they are here."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from sim.live.gateway.config_file import load_config, make_core, parse_config

jsonschema = pytest.importorskip("jsonschema")

DEPLOY = Path(__file__).parents[2] / "deploy"
OBSERVE, CHART = DEPLOY / "observe", DEPLOY / "helm" / "tokenpools"
PROMTOOL, HELM = shutil.which("promtool"), shutil.which("helm")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def run(*command: str | None, folder: Path = OBSERVE) -> None:
    done = subprocess.run([str(word) for word in command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool (Debian's package prometheus has it)")
def test_prometheus_takes_its_configuration_and_the_alerts_fire_when_they_should(tmp_path: Path) -> None:
    run(PROMTOOL, "check", "rules", "alerts.yaml")
    run(PROMTOOL, "test", "rules", "alerts-test.yaml")
    text = (OBSERVE / "prometheus.yaml").read_text()
    token = tmp_path / "token"
    token.write_text("t")
    text = text.replace("/etc/prometheus/alerts.yaml", str(OBSERVE / "alerts.yaml"))
    (tmp_path / "prometheus.yaml").write_text(text.replace("/secrets/metrics.token", str(token)))
    run(PROMTOOL, "check", "config", str(tmp_path / "prometheus.yaml"))


def test_every_alert_says_what_it_is_and_how_urgent() -> None:
    rules = read(OBSERVE / "alerts.yaml")["groups"][0]["rules"]
    names = [one["alert"] for one in rules if "alert" in one]
    assert len(names) == len(set(names)) >= 8
    for one in rules:
        if "alert" in one:
            assert one["labels"]["severity"] in ("page", "ticket", "info")
            assert one["annotations"]["summary"]
    tests = read(OBSERVE / "alerts-test.yaml")["tests"]
    tested = {one["alertname"] for test in tests for one in test["alert_rule_test"]}
    assert set(names) - tested == {"TokenpoolsSloBurnSlow", "TokenpoolsGatewayDown"}


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


def rendered(name: str) -> list[Any]:
    """Return a template's objects as helm makes them with everything turned on, by its few functions."""
    values = read(CHART / "values.yaml") | {"image": f"tokenpools@sha256:{'0' * 64}", "envSecret": "keys"}

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


@pytest.mark.skipif(HELM is None, reason="needs helm")
def test_helm_makes_objects_of_the_chart() -> None:
    image = f"tokenpools@sha256:{'0' * 64}"
    run(HELM, "lint", ".", "--set", f"image={image}", folder=CHART)
    run(HELM, "template", "x", ".", "--set", f"image={image}", "--set", "monitor.enabled=true", folder=CHART)
