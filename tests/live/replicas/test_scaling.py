from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sim.errors import RunError
from sim.live.replicas import scaling
from sim.live.replicas.command import run_command
from sim.live.replicas.scaling import (
    CommandFleet,
    CommandScale,
    KubernetesFleet,
    KubernetesScale,
    ProcessFleet,
    ProcessScale,
    Wanted,
    fleet_of,
)


async def until(true: Callable[[], object], within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not true():
            await asyncio.sleep(0.02)


def test_log_only_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    asyncio.run(fleet_of(scaling.LogScale(), ()).want(3))
    assert "should have 3 replicas" in caplog.text


def test_a_command_is_told_in_its_environment_and_its_failure_is_an_error(tmp_path: Path) -> None:
    out = tmp_path / "wanted"
    script = f"import os, pathlib; pathlib.Path({str(out)!r}).write_text(os.environ['TOKENPOOLS_REPLICAS'])"
    asyncio.run(CommandFleet(CommandScale(command=(sys.executable, "-c", script))).want(4))
    assert out.read_text() == "4"
    for words, said in [
        ((sys.executable, "-c", "raise SystemExit(3)"), "ended with code 3"), (("/no/such",), "cannot be run"),
        ((sys.executable, "-c", "import time; time.sleep(30)"), "still ran after 0.3 s"),
    ]:  # fmt: skip
        with pytest.raises(RunError, match=said):
            asyncio.run(CommandFleet(CommandScale(command=words, timeout_s=0.3)).want(1))


def test_a_command_that_is_not_waited_for_any_more_leaves_no_process(tmp_path: Path) -> None:
    out = tmp_path / "pid"
    script = f"import os, pathlib, time; pathlib.Path({str(out)!r}).write_text(str(os.getpid())); time.sleep(30)"

    async def run() -> None:
        task = asyncio.create_task(run_command((sys.executable, "-c", script), {}, 60.0))
        await until(lambda: out.exists() and out.read_text())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    with pytest.raises(ProcessLookupError):
        os.kill(int(out.read_text()), 0)


def test_the_latest_wish_counts_and_one_that_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "_AGAIN_S", (0.01, 0.02))
    heard: list[int] = []

    class Fleet:
        async def want(self, replicas: int) -> None:
            heard.append(replicas)
            await asyncio.sleep(0.02)
            if len(heard) < 3:
                raise RunError("not now")

        async def close(self) -> None:
            heard.append(0)

    async def run() -> None:
        wanted = Wanted(Fleet())
        wanted(2)
        await asyncio.sleep(0.005)
        wanted(3)
        wanted(5)
        await until(lambda: len(heard) == 3)
        await asyncio.sleep(0.1)
        await wanted.close()

    asyncio.run(run())
    assert heard == [2, 5, 5, 0]


class Api(BaseHTTPRequestHandler):
    seen: list[tuple[str, str, Any]]
    status = 200

    def do_PATCH(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.seen.append((self.path, self.headers["content-type"], body))
        answer = {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {"name": "vllm"}, **body}
        data = json.dumps(answer).encode()
        self.send_response(self.status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def cluster() -> Iterator[tuple[Any, type[Api]]]:
    client = pytest.importorskip("kubernetes.client")
    handler = type("Handler", (Api,), {"seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    configuration = client.Configuration(host=f"http://127.0.0.1:{server.server_address[1]}")
    configuration.retries = False
    with client.ApiClient(configuration) as api_client:
        yield api_client, handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_kubernetes_scale_subresource(cluster: tuple[Any, type[Api]]) -> None:
    api_client, handler = cluster
    for resource in ("statefulset", "deployment"):
        params = KubernetesScale(name="vllm", namespace="llm", resource=resource)  # type: ignore[arg-type]
        asyncio.run(KubernetesFleet(params, api_client).want(3))
    paths = [path.partition("?")[0] for path, _, _ in handler.seen]
    assert paths == [f"/apis/apps/v1/namespaces/llm/{kind}/vllm/scale" for kind in ("statefulsets", "deployments")]
    assert all(body == {"spec": {"replicas": 3}} for _, _, body in handler.seen)
    assert all("patch" in kind for _, kind, _ in handler.seen)
    handler.status = 403
    with pytest.raises(RunError, match="statefulset default/vllm was not scaled: 403"):
        asyncio.run(KubernetesFleet(KubernetesScale(name="vllm"), api_client).want(1))


def test_without_a_cluster_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("kubernetes")
    from kubernetes.config import kube_config

    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(RunError, match="no Kubernetes cluster"):
        fleet_of(KubernetesScale(name="vllm"), ())


def test_processes_start_die_start_again_and_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "_AGAIN_S", (0.01, 0.02))
    script = (
        "import os, pathlib, sys, time; "
        f"open({str(tmp_path)!r} + '/' + sys.argv[1], 'a').write(str(os.getpid()) + '\\n'); time.sleep(60)"
    )

    def pids(port: int) -> list[int]:
        file = tmp_path / str(port)
        return [int(line) for line in file.read_text().splitlines()] if file.exists() else []

    def lives(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True

    async def run() -> None:
        fleet = ProcessFleet(
            ProcessScale(command=(sys.executable, "-c", script, "{port}"), stop_s=0.5), ports=[7001, 7002]
        )
        await fleet.want(3)  # one more than there are upstreams
        await until(lambda: pids(7001) and pids(7002))
        os.kill(pids(7001)[0], 9)
        await until(lambda: len(pids(7001)) == 2)
        await fleet.want(1)
        assert not lives(pids(7002)[0])
        assert lives(pids(7001)[1])
        await fleet.want(2)
        await until(lambda: len(pids(7002)) == 2)
        await fleet.close()
        assert not any(lives(pid) for pid in pids(7001) + pids(7002))

    asyncio.run(run())
