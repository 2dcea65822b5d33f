"""The operator before a stand-in for the API server: kopf's own watches, the Kubernetes client, the real kubectl."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from adapters.kube_api import KubeApi, kube_api
from sim.adapters.operator.cluster import Cluster
from sim.adapters.operator.handlers import Operator, operate
from sim.scenario.manifests import pool_from_manifests

kopf = pytest.importorskip("kopf")

LONG_S = 60.0
API = "inference.example.com/v1"
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def pool(name: str = "llama", least: int = 1, most: int = 4, **more: Any) -> Any:
    spec = {
        "model": "llama", "backendRef": {"name": "h100-llama-2-70b-tp8"},
        "scaling": {"minReplicas": least, "maxReplicas": most}, "workloadRef": {"kind": "StatefulSet", "name": "vllm"},
    }  # fmt: skip
    return {"apiVersion": API, "kind": "TokenPool", "metadata": {"name": name}, "spec": spec | more}


def entitlement(name: str, slots: float | None = None, service_class: str = "guaranteed", **more: Any) -> Any:
    spec = {"tenantId": "acme", "poolRef": {"name": "llama"}, "qos": {"serviceClass": service_class}} | more
    if slots is not None:
        spec["resources"] = {"concurrency": slots}
    return {"apiVersion": API, "kind": "TokenEntitlement", "metadata": {"name": name}, "spec": spec}


def workload(replicas: int = 1, ready: int = 1) -> tuple[Any, Any]:
    body = {
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "vllm"}, "spec": {"replicas": replicas},
    }  # fmt: skip
    return body, {"readyReplicas": ready}


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def api() -> Iterator[KubeApi]:
    with kube_api() as found:
        body, status = workload()
        found.put(body, status=status)
        yield found


@contextmanager
def operator(
    api: KubeApi, *, clock: Callable[[], datetime] | None = None, resync_s: float = 0.5, **how: Any
) -> Iterator[Any]:
    """Run one in a thread, on a loop of its own."""
    config = client.Configuration(host=f"http://127.0.0.1:{api.port}")
    made = Operator(Cluster(client.ApiClient(config)), clock=clock or Clock(), resync_s=resync_s)
    found: dict[str, Any] = {}
    ready = threading.Event()

    @kopf.on.login(registry=made.registry)  # type: ignore[untyped-decorator, unused-ignore]
    def login(**_: Any) -> Any:
        return kopf.ConnectionInfo(server=f"http://127.0.0.1:{api.port}", default_namespace="default")

    async def go() -> None:
        found["stop"], found["loop"], began = asyncio.Event(), asyncio.get_running_loop(), asyncio.Event()
        running = asyncio.ensure_future(operate(
            made, namespace="default", stop_flag=found["stop"], ready_flag=began,
            **({"peering": None, "priority": 1} | how),
        ))  # fmt: skip
        waiting = asyncio.ensure_future(began.wait())
        await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED)
        ready.set()
        await running

    thread = threading.Thread(target=lambda: asyncio.run(go()), daemon=True)
    thread.start()
    assert ready.wait(LONG_S)
    try:
        yield made
    finally:
        found["loop"].call_soon_threadsafe(found["stop"].set)
        thread.join(LONG_S)
        assert not thread.is_alive()


def until(says: Callable[[], bool]) -> None:
    """Wait for something that will be so."""
    deadline_s = time.monotonic() + LONG_S
    while not says():
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(0.02)


def phases(api: KubeApi) -> dict[str, str]:
    return {one["metadata"]["name"]: one.get("status", {}).get("phase", "") for one in api.all("tokenentitlements")}


def said(api: KubeApi) -> set[tuple[str, str]]:
    """Reason and object of every event of the cluster."""
    return {(one["reason"], one.get("regarding", one.get("involvedObject", {}))["name"]) for one in api.all("events")}


def pool_status(api: KubeApi) -> Any:
    return (api.get("tokenpools", "llama") or {}).get("status") or {}


def why(api: KubeApi) -> str:
    conditions = pool_status(api).get("conditions") or [{"reason": ""}]
    return str(conditions[0]["reason"])


def reason(api: KubeApi, name: str) -> str:
    one = api.get("tokenentitlements", name)
    assert one is not None
    return str(one["status"]["conditions"][0]["reason"])


def test_who_fits_is_bound_and_who_does_not_is_degraded_until_there_is_room(api: KubeApi, tmp_path: Path) -> None:
    for one in (pool(most=1), entitlement("chat", 50), entitlement("more", 25), entitlement("spare", None, "spot")):
        api.put(one)
    with operator(api):
        until(lambda: phases(api) == {"chat": "Bound", "more": "Degraded", "spare": "Bound"})
        assert {one["metadata"]["name"] for one in api.all("leases")} == {"tokenpools-chat"}
        lease = api.get("leases", "tokenpools-chat")
        assert lease is not None
        assert lease["metadata"]["annotations"][f"{API[:-3]}/concurrency"] == "50"
        until(lambda: pool_status(api).get("phase") == "Degraded")
        found = pool_status(api)
        assert found["entitlements"] == {"bound": 2, "total": 3}
        assert found["allocatable"]["concurrency"] == found["capacity"]["concurrency"] == 64
        body, status = workload(2, 2)
        api.put(pool(most=2))
        api.put(body, status=status)
        until(lambda: set(phases(api).values()) == {"Bound"})
        until(lambda: pool_status(api).get("phase") == "Ready")
        body, status = workload(2, 0)
        api.put(body, status=status)
        until(lambda: why(api) == "NoReadyReplica")
        assert set(phases(api).values()) == {"Bound"}, "a pool that shrinks takes no lease back"
        config = api.get("configmaps", "tokenpools-llama")
        assert config is not None
        file = tmp_path / "objects.yaml"
        file.write_text(config["data"]["objects.yaml"])
        made = pool_from_manifests(file, "objects.yaml")
        assert sorted(one["name"] for one in made["entitlements"]) == ["chat", "more", "spare"]
        until(lambda: {("LeaseBound", "chat"), ("DoesNotFit", "more")} <= said(api))


def test_the_workload_is_scaled_to_what_the_leases_need_and_no_further(api: KubeApi) -> None:
    for one in (pool(most=3), entitlement("chat", 50), entitlement("more", 75)):
        api.put(one)
    with operator(api):
        until(lambda: (api.get("statefulsets", "vllm") or {})["spec"]["replicas"] == 2)
        api.put(entitlement("most", 5000))
        until(lambda: (api.get("statefulsets", "vllm") or {})["spec"]["replicas"] == 3)
        body, status = workload(9, 3)
        api.put(body, status=status)
        until(lambda: (api.get("statefulsets", "vllm") or {})["spec"]["replicas"] == 3)


def test_an_entitlement_begins_and_expires(api: KubeApi) -> None:
    clock = Clock()
    times = {"notBefore": "2026-06-01T00:10:00Z", "notAfter": "2026-06-01T00:20:00Z"}
    for one in (pool(), entitlement("later", 10, validity=times)):
        api.put(one)
    with operator(api, clock=clock):
        until(lambda: phases(api) == {"later": "Pending"})
        assert reason(api, "later") == "NotYetValid"
        clock.now += timedelta(minutes=11)
        until(lambda: phases(api) == {"later": "Bound"})
        assert api.all("leases")
        clock.now += timedelta(minutes=10)
        until(lambda: phases(api) == {"later": "Expired"})
        until(lambda: not api.all("leases"))


def test_a_pool_deleted_while_entitlements_live_takes_their_leases_along(api: KubeApi) -> None:
    for one in (pool(), entitlement("chat", 10), entitlement("orphan", 1, poolRef={"name": "nowhere"})):
        api.put(one)
    with operator(api):
        until(lambda: phases(api) == {"chat": "Bound", "orphan": "Pending"})
        assert reason(api, "orphan") == "PoolMissing"
        until(lambda: bool((api.get("tokenpools", "llama") or {})["metadata"].get("finalizers")))
        api.delete("tokenpools", "llama")
        until(lambda: api.get("tokenpools", "llama") is None)
        until(lambda: phases(api)["chat"] == "Pending")
        until(lambda: not api.all("leases"))
        assert api.get("configmaps", "tokenpools-llama") is None, "what belongs to the pool is collected with it"
        api.put(pool())
        until(lambda: phases(api)["chat"] == "Bound")
        api.put(entitlement("orphan", 1))
        until(lambda: phases(api)["orphan"] == "Bound")
        api.delete("tokenentitlements", "chat")
        until(lambda: {one["metadata"]["name"] for one in api.all("leases")} == {"tokenpools-orphan"})


def test_conflicts_failures_and_a_forgotten_version_change_nothing(api: KubeApi) -> None:
    for one in (pool(), entitlement("chat", 10)):
        api.put(one)
    with operator(api):
        until(lambda: phases(api) == {"chat": "Bound"})
        api.forget()
        api.put(entitlement("after", 10))
        api.conflicts = 5
        until(lambda: phases(api).get("after") == "Bound")
        assert api.conflicts == 0
        api.failures = 3
        api.put(entitlement("again", 10))
        until(lambda: phases(api).get("again") == "Bound")


def test_another_operator_goes_on_where_one_has_ended(api: KubeApi) -> None:
    api.put(pool(most=1))
    api.put(entitlement("first", 50))
    with operator(api):
        until(lambda: phases(api) == {"first": "Bound"})
    before = (api.get("tokenentitlements", "first") or {})["status"]
    api.put(entitlement("dedicated", 25, "dedicated"))
    with operator(api):
        until(lambda: phases(api) == {"first": "Bound", "dedicated": "Degraded"})
        assert (api.get("tokenentitlements", "first") or {})["status"] == before, "who is Bound stays Bound"
        writes = len([one for one in api.requests if one[0] == "PATCH" and one[1].endswith("/status")])
        api.put(pool(most=1) | {"metadata": {"name": "llama", "labels": {"a": "b"}}})
        until(lambda: len(api.requests) > 0)
    assert writes < 20


def test_of_two_operators_one_works_and_the_other_takes_over(api: KubeApi) -> None:
    peering = {"apiVersion": "kopf.dev/v1", "kind": "KopfPeering", "metadata": {"name": "tokenpools"}}
    for one in (peering, pool(), entitlement("chat", 10)):
        api.put(one)
    with operator(api, peering="tokenpools", priority=1) as lower:
        until(lambda: phases(api) == {"chat": "Bound"})
        with operator(api, peering="tokenpools", priority=2) as higher:
            until(lambda: bool(higher._alive) and not lower._alive)
            api.put(entitlement("more", 10))
            until(lambda: phases(api)["more"] == "Bound")
            assert not lower._alive
        until(lambda: bool(lower._alive))
        api.put(entitlement("last", 10))
        until(lambda: phases(api)["last"] == "Bound")


def test_what_makes_no_sense_is_said_and_harms_nobody_else(api: KubeApi) -> None:
    api.put(pool())
    api.put(entitlement("good", 10))
    api.put(entitlement("bad", 10, qos={"serviceClass": "gold"}))
    with operator(api):
        until(lambda: phases(api) == {"good": "Bound", "bad": "Pending"})
        assert reason(api, "bad") == "Invalid"
        api.put(pool(backendRef={"name": "no-such-profile"}))
        until(lambda: why(api) == "Invalid")
        until(lambda: phases(api)["good"] == "Pending")
        assert reason(api, "good") == "PoolInvalid"


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_shows_the_columns(api: KubeApi, tmp_path: Path) -> None:
    for one in (pool(most=1), entitlement("chat", 50), entitlement("more", 25), entitlement("spare", None, "spot")):
        api.put(one)
    with operator(api):
        until(lambda: phases(api) == {"chat": "Bound", "more": "Degraded", "spare": "Bound"})
        until(lambda: pool_status(api).get("phase") == "Degraded")
    server = {"name": "x", "cluster": {"server": f"http://127.0.0.1:{api.port}"}}
    config = tmp_path / "config"
    config.write_text(yaml.safe_dump({
        "apiVersion": "v1", "kind": "Config", "clusters": [server], "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": ""}}],
    }))  # fmt: skip

    def kubectl(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["kubectl", f"--kubeconfig={config}", f"--cache-dir={tmp_path}", *words], capture_output=True,
            text=True, check=False, timeout=LONG_S, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        )  # fmt: skip

    def get(*what: str) -> list[list[str]]:
        done = kubectl("get", *what)
        assert done.returncode == 0, done.stderr
        return [line.split() for line in done.stdout.splitlines()]

    head, *rows = get("tokenentitlements")
    assert head == ["NAME", "POOL", "TENANT", "CLASS", "STATUS", "REASON", "SLOTS", "AGE"]
    assert [row[:6] for row in rows] == [
        ["chat", "llama", "acme", "guaranteed", "Bound", "LeaseBound"],
        ["more", "llama", "acme", "guaranteed", "Degraded", "DoesNotFit"],
        ["spare", "llama", "acme", "spot", "Bound", "LeaseBound"],
    ]
    head, row = get("tp")
    assert head == ["NAME", "MODEL", "STATUS", "MIN", "MAX", "READY", "BOUND", "AGE"]
    assert row[:7] == ["llama", "llama", "Degraded", "1", "1", "1", "2"]
    for spec, said in (
        ('{"tenantId": "other"}', "an entitlement stays its tenant's"),
        ('{"validity": {"notBefore": "2026-01-02T00:00:00Z", "notAfter": "2026-01-01T00:00:00Z"}}', "is not after"),
        ('{"qos": {"serviceClass": "gold"}}', "is not one of"),
    ):
        done = kubectl("patch", "tokenentitlement", "chat", "--type=merge", "-p", f'{{"spec": {spec}}}')
        assert done.returncode == 1
        assert said in done.stderr
    fine = kubectl("patch", "te", "chat", "--type=merge", "-p", '{"spec": {"resources": {"concurrency": 49}}}')
    assert fine.returncode == 0, fine.stderr


def test_it_does_no_more_than_its_role_may(api: KubeApi) -> None:
    file = Path(__file__).parents[2] / "deploy/operator/operator.yaml"
    (role,) = (one for one in yaml.safe_load_all(file.read_text()) if one["kind"] == "Role")
    granted = {
        (group, resource, verb) for rule in role["rules"] for group in rule["apiGroups"]
        for resource in rule["resources"] for verb in rule["verbs"]
    }  # fmt: skip
    peering = {"apiVersion": "kopf.dev/v1", "kind": "KopfPeering", "metadata": {"name": "tokenpools"}}
    for one in (peering, pool(most=3), entitlement("chat", 50), entitlement("more", 75)):
        api.put(one)
    with operator(api, peering="tokenpools"):
        until(lambda: (api.get("statefulsets", "vllm") or {})["spec"]["replicas"] == 2)
        api.put(entitlement("chat", 60))
        api.delete("tokenentitlements", "more")
        until(lambda: (api.get("tokenentitlements", "chat") or {})["status"]["observedGeneration"] == 2)
        api.put(entitlement("chat", 60, "spot"))
        until(lambda: not api.all("leases"))
        api.delete("tokenpools", "llama")
        until(lambda: api.get("tokenpools", "llama") is None)
    used = set()
    for method, path, watches in api.requests:
        parts = path.strip("/").split("/")
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        if len(rest) < 3 or rest[0] != "namespaces":
            continue
        group, named = ("" if parts[0] == "api" else parts[1]), len(rest) > 3
        verb = {"POST": "create", "PATCH": "patch", "DELETE": "delete", "GET": "get" if named else "list"}[method]
        used.add((group, "/".join(rest[2::2]), "watch" if watches else verb))
    assert ("apps", "statefulsets/scale", "patch") in used
    assert used <= granted, used - granted
