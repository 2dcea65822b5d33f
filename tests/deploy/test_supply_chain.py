"""Where what is deployed comes from, and what it may do: locks with hashes, images by digest, manifests."""

from __future__ import annotations

import copy
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import ValidationError

client = pytest.importorskip("kubernetes.client")

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
LOCKS = {"requirements.lock": 100, "deploy/requirements.lock": 40, "deploy/build.lock": 3}


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted(KUBERNETES.glob("*.yaml")):
        if file.name != "kustomization.yaml":
            for document in yaml.safe_load_all(file.read_text()):
                yield file.name, document


DOCUMENTS = list(documents())
PODS = [one["spec"]["template"]["spec"] for _, one in DOCUMENTS if "template" in one.get("spec", {})]
CONTAINERS = [one for pod in PODS for kind in ("initContainers", "containers") for one in pod.get(kind, ())]

# ---------------------------------------------------------------------------------------------------------------- locks


def locked(text: str) -> dict[str, tuple[str, list[str]]]:
    """Return the version and the hashes of each package of a lock."""
    found = {}
    for entry in re.split(r"\n(?=\S)", text.replace("\\\n", " ").strip()):
        requirement, *hashes = entry.split("--hash=")
        parsed = Requirement(requirement.strip())
        (version,) = parsed.specifier
        assert version.operator == "=="
        found[canonicalize_name(parsed.name)] = version.version, [one.strip() for one in hashes]
    return found


CONSTRAINED = {
    canonicalize_name(name): version
    for name, _, version in (line.partition("==") for line in (ROOT / "constraints.txt").read_text().split())
}


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_of_a_lock_has_the_version_of_the_constraints_and_hashes(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text  # whose index it comes from is the installer's business
    found = locked(text)
    assert len(found) >= LOCKS[name]
    for package, (version, hashes) in found.items():
        assert hashes, package
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes), package
        assert CONSTRAINED.get(package, version) == version, f"{package}: make lock"


def test_the_locks_hold_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def wanted(*extras: str) -> set[str]:
        asked = [*project["dependencies"], *(one for name in extras for one in project["optional-dependencies"][name])]
        names = {canonicalize_name(Requirement(one).name) for one in asked}
        return names - {"tokenpools"}

    in_image = wanted("live", "kubernetes", "otel", "envoy", "operator")
    assert in_image <= set(locked((DEPLOY / "requirements.lock").read_text()))
    assert wanted(*project["optional-dependencies"]) <= set(locked((ROOT / "requirements.lock").read_text()))
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"--output-file {name}" in makefile for name in LOCKS)


# --------------------------------------------------------------------------------------------------------------- images


def checker() -> Any:
    spec = importlib.util.spec_from_file_location("check_images", DEPLOY / "check_images.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DIGEST = "sha256:" + "5e" * 32


def test_no_image_floats() -> None:
    """As shipped, none can be run by accident: no digest is invented here, and no tag would do."""
    check = checker()
    images = dict(check.images_of(KUBERNETES))
    assert len(images) == len(CONTAINERS)
    assert len(check.floating(images)) == len(images)  # each asks for a digest
    assert all("@sha256:GIVE-THE-DIGEST" in image for image in images.values())
    compose = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())["services"]
    assert compose["redis"]["image"].startswith("${REDIS_IMAGE:?")
    assert compose["gateway"]["build"]["args"]["PYTHON_IMAGE"].startswith("${PYTHON_IMAGE:?")
    assert set(check.VARIABLES) == {"REDIS_IMAGE", "PYTHON_IMAGE"}


@pytest.mark.parametrize(
    ("image", "floats"),
    [
        ("redis", True), ("redis:7", True), ("redis:latest", True), ("redis@sha256:abc", True), ("", True),
        (f"redis@{DIGEST}", False), (f"registry.example.com:5000/a/redis:7@{DIGEST}", False),
        (f"redis@{DIGEST}\n", True), ("redis@sha256:" + "G" * 64, True),
    ],
)  # fmt: skip
def test_an_image_is_named_by_digest_or_refused(image: str, floats: bool) -> None:
    assert bool(checker().floating({"here": image})) is floats


def test_a_kustomization_with_digests_passes(tmp_path: Path) -> None:
    for file in KUBERNETES.iterdir():
        (tmp_path / file.name).write_text(file.read_text().replace("sha256:GIVE-THE-DIGEST", DIGEST))
    assert checker().floating(dict(checker().images_of(tmp_path))) == []


def test_every_image_is_ours_or_redis() -> None:
    assert {one["image"] for one in CONTAINERS} == {"tokenpools", "redis"}


# --------------------------------------------------------------------------------------------- what containers may do


@pytest.mark.parametrize("container", CONTAINERS, ids=lambda one: one["name"])
def test_a_container_may_do_what_it_must_and_no_more(container: dict[str, Any]) -> None:
    allowed = container["securityContext"]
    assert allowed["allowPrivilegeEscalation"] is False
    assert allowed["readOnlyRootFilesystem"] is True
    assert allowed["capabilities"] == {"drop": ["ALL"]}
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert "memory" in container["resources"]["limits"]
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        if kind in container:
            probe = container[kind]
            assert 1 < probe["timeoutSeconds"] <= probe.get("periodSeconds", 10), kind
            assert probe["failureThreshold"] >= 2


@pytest.mark.parametrize("pod", PODS, ids=lambda one: one["containers"][0]["name"])
def test_a_pod_is_nobody_special(pod: dict[str, Any]) -> None:
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod.get("serviceAccountName") or pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)


def test_a_live_gateway_is_not_killed_before_it_is_taken_out() -> None:
    (gateway,) = (one for one in CONTAINERS if one["name"] == "gateway")
    ready, live = gateway["readinessProbe"], gateway["livenessProbe"]
    assert ready["periodSeconds"] * ready["failureThreshold"] < live["periodSeconds"] * live["failureThreshold"]


def test_networks_and_disruptions_of_the_gateway_are_bounded() -> None:
    labels = {"app": "tokenpools-gateway"}
    of = {(one["kind"], one["metadata"]["name"]): one.get("spec", {}) for _, one in DOCUMENTS}
    policy = of["NetworkPolicy", "tokenpools-gateway"]
    assert policy["podSelector"] == {"matchLabels": labels}
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    ports = {(one["protocol"], one["port"]) for rule in policy["egress"] for one in rule["ports"]}
    assert ports == {("TCP", 8000), ("TCP", 6379), ("UDP", 53), ("TCP", 53), ("TCP", 443), ("TCP", 6443)}
    budget = of["PodDisruptionBudget", "tokenpools-gateway"]
    assert budget["selector"] == {"matchLabels": labels}
    assert 0 < budget["minAvailable"] < of["Deployment", "tokenpools-gateway"]["replicas"]


# ------------------------------------------------------------------------------------------------------------- schemas


def wrong(document: dict[str, Any]) -> list[str]:
    """Return where the Kubernetes client's model of an object has another field, or wants another value."""
    try:
        getattr(client, f"V1{document['kind']}").model_validate(document)
    except ValidationError as error:
        return [".".join(map(str, one["loc"])) for one in error.errors()]
    return []


@pytest.mark.parametrize(("file", "document"), DOCUMENTS, ids=[f"{f}-{d['kind']}" for f, d in DOCUMENTS])
def test_every_field_is_one_of_the_api(file: str, document: dict[str, Any]) -> None:
    if document["apiVersion"].startswith("inference.example.com"):
        pytest.skip("ours: tests/deploy/test_deploy.py holds them against the definitions")
    assert wrong(document) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("spec", "replicas"), "2", "replicas"),
        (("spec", "template", "spec", "contaners"), [], "contaners"),
        (("spec", "template", "spec", "containers", 0, "livenessProbe", "timeoutSecond"), 1, "timeoutSecond"),
        (("spec", "template", "spec", "containers", 0, "ports"), {}, "ports"),
        (("spec", "template", "spec", "shareProcessNamespace"), "yes", "share"),
    ],
)
def test_a_misspelt_field_is_found(path: tuple[Any, ...], value: Any, said: str) -> None:
    document = copy.deepcopy(next(one for _, one in DOCUMENTS if one["kind"] == "Deployment"))
    place: Any = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert any(said in line for line in wrong(document))
