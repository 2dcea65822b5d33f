"""What deploy/ holds, as far as it can be checked without Docker and without a cluster."""

from __future__ import annotations

import copy
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from sim.cli import app as main
from sim.errors import ScenarioError
from sim.live.gateway.config_file import load_config
from sim.live.gateway.core_from_config import make_core
from sim.live.gateway.settings_from_config import make_settings
from sim.scenario.manifests import EntitlementManifest, PoolManifest, pool_from_manifests

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"


def documents(file: Path) -> list[Any]:
    return list(yaml.safe_load_all(file.read_text()))


def find(file: str, kind: str, name: str = "tokenpools-gateway") -> Any:
    (found,) = (
        one for one in documents(KUBERNETES / file) if (one["kind"], one["metadata"]["name"]) == (kind, name)
    )
    return found


SCHEMAS = {
    crd["spec"]["names"]["kind"]: crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for crd in documents(KUBERNETES / "crds.yaml")
}
OBJECTS = documents(KUBERNETES / "pool.yaml")


def complaints(manifest: Any) -> list[str]:
    # OpenAPI 3.0 has exclusiveMinimum as JSON schema's draft 4 does.
    validator = jsonschema.Draft4Validator(SCHEMAS[manifest["kind"]])
    return ["/".join(map(str, error.absolute_path)) for error in validator.iter_errors(manifest)]


@pytest.mark.parametrize("manifest", OBJECTS, ids=lambda one: one["metadata"]["name"])
def test_the_schemas_take_our_objects(manifest: Any) -> None:
    assert complaints(manifest) == []


@pytest.mark.parametrize(
    ("which", "path", "value", "said"),
    [
        (0, ("spec", "model"), "", "spec/model"),
        (0, ("spec", "scaling", "minReplicas"), 0, "spec/scaling/minReplicas"),
        (0, ("spec", "scaling", "maxReplicas"), "two", "spec/scaling/maxReplicas"),
        (0, ("spec", "scaling"), {"minReplicas": 1}, "spec/scaling"),
        (0, ("spec",), {}, "spec"),
        (1, ("spec", "qos", "serviceClass"), "gold", "spec/qos/serviceClass"),
        (1, ("spec", "qos", "sloTargetMs"), 0, "spec/qos/sloTargetMs"),
        (1, ("spec", "qos"), {}, "spec/qos"),
        (1, ("spec", "tenantId"), 7, "spec/tenantId"),
        (1, ("spec", "poolRef"), {}, "spec/poolRef"),
        (1, ("spec", "resources"), {"concurrency": -1}, "spec/resources/concurrency"),
        (1, ("spec", "resources"), {"kvCacheGiB": "4Gi"}, "spec/resources/kvCacheGiB"),
        (1, ("spec", "limits"), {"tokensPerSecond": True}, "spec/limits/tokensPerSecond"),
    ],
)
def test_what_the_schemas_refuse_the_gateway_refuses_too(
    which: int, path: tuple[str, ...], value: Any, said: str, tmp_path: Path
) -> None:
    objects = copy.deepcopy(OBJECTS)
    place = objects[which]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert said in {each[: len(said)] for each in complaints(objects[which])}
    file = tmp_path / "pool.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    with pytest.raises(ScenarioError):
        pool_from_manifests(file, "pool.yaml")


@pytest.mark.parametrize(("kind", "model"), [("TokenPool", PoolManifest), ("TokenEntitlement", EntitlementManifest)])
def test_the_schemas_have_the_fields_that_the_gateway_reads(kind: str, model: Any) -> None:
    def fields(schema: Any, definitions: Any) -> Any:
        for option in (schema, *schema.get("anyOf", ())):
            if "$ref" in option:
                return fields(definitions[option["$ref"].rpartition("/")[2]], definitions)
        return {name: fields(one, definitions) for name, one in schema.get("properties", {}).items()}

    ours = model.model_json_schema(by_alias=True)
    theirs = {name: one for name, one in fields(SCHEMAS[kind], {}).items() if name == "spec"}
    assert theirs["spec"] == fields(ours, ours["$defs"])["spec"]


@pytest.fixture
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", "p" * 43)
    monkeypatch.setenv("TOKENPOOLS_STATE_KEY", "k" * 43)


@pytest.mark.usefixtures("_secrets")
def test_the_gateway_of_the_cluster_serves_the_pool_that_is_applied(tmp_path: Path) -> None:
    written = find("gateway.yaml", "ConfigMap")["data"]["gateway.yaml"]
    (tmp_path / "objects.yaml").write_text(yaml.safe_dump(
        {"apiVersion": "v1", "kind": "List", "items": [one | {"status": {"x": 1}} for one in OBJECTS]}
    ))
    file = tmp_path / "gateway.yaml"
    file.write_text(written.replace("/pool/objects.yaml", str(tmp_path / "objects.yaml")))
    config = load_config(file)
    settings, core = make_settings(config), make_core(config)
    assert {one.name for one in config.pool.entitlements} == {"batch", "chat"}
    assert config.pool.autoscaler.max_replicas == len(settings.upstreams) == core.pool.capacity.ready_replicas
    assert settings.scaling is not None
    assert settings.state is not None
    assert settings.host == "0.0.0.0"

    deployment = find("gateway.yaml", "Deployment")["spec"]["template"]["spec"]
    gateway = deployment["containers"][0]
    ports = {one["name"]: one["containerPort"] for one in gateway["ports"]}
    assert ports["http"] == settings.port
    assert find("gateway.yaml", "Service")["spec"]["ports"][0]["targetPort"] in ports
    assert deployment["terminationGracePeriodSeconds"] > settings.timeouts.drain_s + settings.timeouts.drain_notice_s
    for container in (*deployment["containers"], *deployment["initContainers"]):
        for mount in container["volumeMounts"]:
            assert mount["name"] in {volume["name"] for volume in deployment["volumes"]}
    redis = find("redis.yaml", "Service", "tokenpools-redis")
    place, _, certificate = settings.state.url.partition("?ssl_ca_certs=")
    assert place == f"rediss://tokenpools@{redis['metadata']['name']}:{redis['spec']['ports'][0]['port']}/0"
    assert gateway["envFrom"] == [{"secretRef": {"name": "tokenpools-state"}}]
    (volume,) = (one for one in deployment["volumes"] if one["name"] == "redis")
    (mount,) = (one for one in gateway["volumeMounts"] if one["name"] == "redis")
    assert [f"{mount['mountPath']}/{item['path']}" for item in volume["secret"]["items"]] == [certificate]


def test_it_may_do_what_it_does_and_no_more() -> None:
    role, binding = find("rbac.yaml", "Role"), find("rbac.yaml", "RoleBinding")
    account = find("gateway.yaml", "Deployment")["spec"]["template"]["spec"]["serviceAccountName"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [one["name"] for one in binding["subjects"]] == [account] == [
        find("rbac.yaml", "ServiceAccount")["metadata"]["name"]
    ]
    scale = yaml.safe_load(find("gateway.yaml", "ConfigMap")["data"]["gateway.yaml"])["scaling"]
    (allowed,) = (rule for rule in role["rules"] if rule["apiGroups"] == ["apps"])
    assert allowed["resources"] == [f"{scale['resource']}s/scale"]
    assert allowed["resourceNames"] == [scale["name"]]
    assert "patch" in allowed["verbs"]
    (read,) = (rule for rule in role["rules"] if rule["apiGroups"] != ["apps"])
    crds = documents(KUBERNETES / "crds.yaml")
    assert read["apiGroups"] == [crds[0]["spec"]["group"]]
    assert set(read["resources"]) == {crd["spec"]["names"]["plural"] for crd in crds}
    assert not any("*" in rule["verbs"] for rule in role["rules"])


def test_kustomization_names_every_file() -> None:
    named = documents(KUBERNETES / "kustomization.yaml")[0]["resources"]
    assert sorted(named) == sorted(file.name for file in KUBERNETES.glob("*.yaml") if file.name != "kustomization.yaml")


def test_compose_serves_its_configuration() -> None:
    config = load_config(DEPLOY / "compose" / "gateway.yaml")
    assert make_core(config).pool.capacity.ready_replicas == 1
    services = documents(DEPLOY / "compose" / "compose.yaml")[0]["services"]
    command = services["gateway"]["command"]
    assert command[:2] == ["serve", services["gateway"]["volumes"][0].split(":")[1]]
    assert command[2:] == []
    assert config.state is not None
    place, _, certificate = config.state.url.partition("?ssl_ca_certs=")
    assert place.split("@")[1].split(":")[0] in services
    assert certificate in {volume.split(":")[1] for volume in services["gateway"]["volumes"]}
    assert services["gateway"]["env_file"] == "./secrets/secrets.env"
    assert (config.state.password_env, config.state.key_env) == ("REDIS_PASSWORD", "TOKENPOOLS_STATE_KEY")
    build = services["gateway"]["build"]
    assert ((DEPLOY / "compose" / build["context"]).resolve() / build["dockerfile"]).exists()
    shown = CliRunner().invoke(main, ["serve", "--help"])
    assert "--state" in shown.output


def test_the_image_is_made_of_what_is_here() -> None:
    text = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())
    steps = [(line.split()[0], line.split(None, 1)[1]) for line in text.splitlines() if line[:1].isupper()]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    copied = [word for step, words in steps if step == "COPY" and "--from" not in words for word in words.split()[:-1]]
    assert [words for step, words in steps if step == "FROM"] == ["${PYTHON_IMAGE} AS build", "${PYTHON_IMAGE}"]
    assert ("ARG", "PYTHON_IMAGE") in steps  # without a default
    assert all("--require-hashes" in part or "--no-index" in part for step, words in steps if step == "RUN"
               for part in words.split("&&") if "pip install" in part)  # fmt: skip
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied)
    assert all((ROOT / word).exists() for word in copied)
    assert set(packages) <= set(copied)
    assert set(project["project"]["license-files"]) | {project["project"]["readme"]} <= set(copied)
    words = {step: json.loads(words) for step, words in steps if step in ("ENTRYPOINT", "CMD")}
    assert words["ENTRYPOINT"][0] in project["project"]["scripts"]
    assert CliRunner().invoke(main, [words["CMD"][0], "--help"]).exit_code == 0
    assert any(step == "USER" and words != "root" for step, words in steps)
    check = next(words for step, words in steps if step == "HEALTHCHECK")
    compile(json.loads(check.partition("CMD ")[2])[-1], "HEALTHCHECK", "exec")
    for step, line in steps:
        if step == "RUN":
            shlex.split(line)
