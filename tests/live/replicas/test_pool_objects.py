"""The file of a pool's objects beside a gateway: written when they change, the gateway told."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from sim.live.replicas.pool_objects import follow, gateways, lister, objects_text, write_if_changed
from sim.scenario.manifests import pool_from_manifests

POOL = {
    "apiVersion": "inference.example.com/v1", "kind": "TokenPool",
    "metadata": {"name": "llama", "resourceVersion": "7", "managedFields": [{"manager": "kubectl"}]},
    "spec": {
        "model": "m", "backendRef": {"name": "h100-llama-2-70b-tp8"}, "scaling": {"minReplicas": 1, "maxReplicas": 2},
    },
    "status": {"seen": 1},
}  # fmt: skip


def entitlement(name: str, version: str = "1") -> dict[str, Any]:
    return {
        "apiVersion": "inference.example.com/v1", "kind": "TokenEntitlement",
        "metadata": {"name": name, "resourceVersion": version},
        "spec": {"tenantId": "a", "poolRef": {"name": "llama"}, "qos": {"serviceClass": "spot"}},
    }  # fmt: skip


def cluster(*entitlements: dict[str, Any]) -> Any:
    def ask(plural: str) -> Iterable[dict[str, Any]]:
        return {"tokenpools": [POOL], "tokenentitlements": list(entitlements)}[plural]

    return ask


def test_the_file_is_what_the_gateway_reads(tmp_path: Path) -> None:
    file = tmp_path / "objects.yaml"
    assert write_if_changed(objects_text(cluster(entitlement("b"), entitlement("a"))), file)
    pool = pool_from_manifests(file, "objects.yaml")
    assert [one["name"] for one in pool["entitlements"]] == ["a", "b"]


def test_the_gateway_hears_of_changes_and_of_nothing_else(tmp_path: Path) -> None:
    file, told = tmp_path / "objects.yaml", []
    for asked, times in (
        (cluster(entitlement("a")), 1), (cluster(entitlement("a", "2")), 1),
        (cluster(entitlement("b"), entitlement("a")), 2), (cluster(entitlement("a"), entitlement("b")), 2),
        (cluster(), 3),
    ):  # fmt: skip
        follow(asked, file, tell=lambda: told.append(1))
        assert len(told) == times
    assert [path.name for path in tmp_path.iterdir()] == ["objects.yaml"]


def test_a_cluster_that_does_not_answer_leaves_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def away(plural: str) -> Iterable[dict[str, Any]]:
        raise ConnectionError("no\nroute")

    file = tmp_path / "objects.yaml"
    file.write_text("kept")
    follow(away, file, tell=lambda: pytest.fail("told"))
    assert file.read_text() == "kept"
    assert "stays as it is: no route" in caplog.text


def test_gateways_are_found_by_what_they_were_started_with(tmp_path: Path) -> None:
    for pid, words in ((1, b"pause"), (7, b"python\0tokenpools\0serve\0/etc/g.yaml\0"), (9, b"python\0-m\0served\0")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cmdline").write_bytes(words)
    (tmp_path / str(os.getpid())).mkdir()
    (tmp_path / "self").mkdir()
    (tmp_path / "12").mkdir()  # has gone meanwhile
    assert gateways(tmp_path) == [7]


class Cluster(BaseHTTPRequestHandler):
    """A Kubernetes API that has one pool."""

    def do_GET(self) -> None:
        self.server.seen.append(self.path)  # type: ignore[attr-defined]
        body = json.dumps({"items": [POOL]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


def test_the_cluster_is_asked_for_its_objects() -> None:
    client = pytest.importorskip("kubernetes.client")
    server = HTTPServer(("127.0.0.1", 0), Cluster)
    server.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        configuration = client.Configuration()
        configuration.host = f"http://127.0.0.1:{server.server_port}"
        with client.ApiClient(configuration) as api_client:
            assert list(lister("team", api_client)("tokenpools")) == [POOL]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
    assert server.seen == ["/apis/inference.example.com/v1/namespaces/team/tokenpools"]  # type: ignore[attr-defined]
