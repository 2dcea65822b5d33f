"""A whole sweep killed on a cluster of separate processes: the driver dies, the cluster lives, the command resumes.

The clusters are started as a user starts them, by their own commands, and reached by address.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from experiments.small import RATE, TREE, digest, scenario

from sim.experiments.sweep import sweep

ROOT = Path(__file__).parents[2]
CHANGES: dict[str, Any] = {"replications": 25, "vary": {RATE: [5, 7]}, "horizon_s": 120}
CELLS = 100
START_WITHIN_S = 60
TOKEN = secrets.token_hex(32)

pytestmark = pytest.mark.filterwarnings("ignore")  # Dask's and Ray's own


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def listening(port: int) -> bool:
    with socket.socket() as one:
        one.settimeout(0.5)
        return one.connect_ex(("127.0.0.1", port)) == 0


def environment() -> dict[str, str]:
    """Workers import the checkout's code, wherever they start; Ray's cluster and driver share a token of this run."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    return os.environ | {"PYTHONPATH": path, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"} | token


@contextmanager
def started(*commands: list[str], cwd: Path) -> Iterator[None]:
    """Run commands until the block ends; then end them and all that they started."""
    with (cwd / "cluster.log").open("wb") as log:
        running = [
            subprocess.Popen(
                command, cwd=cwd, env=environment(), stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            for command in commands
        ]  # fmt: skip
        try:
            yield
        finally:
            for process in running:
                process.terminate()
            for process in running:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=20)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(timeout=20)


def wait_for(port: int, folder: Path) -> None:
    deadline_s = time.monotonic() + START_WITHIN_S
    while not listening(port):
        assert time.monotonic() < deadline_s, (folder / "cluster.log").read_text()[-3000:]
        time.sleep(0.1)


@pytest.fixture
def dask_address(tmp_path: Path) -> Iterator[str]:
    """A scheduler and two workers, each a process of its own."""
    port = free_port()
    dask = [sys.executable, "-m", "dask"]
    scheduler = [*dask, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    address = f"tcp://127.0.0.1:{port}"
    worker = [
        *dask, "worker", address, "--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path / "dask"),
        "--death-timeout", "60",
    ]  # fmt: skip
    with started(scheduler, worker, worker, cwd=tmp_path):
        wait_for(port, tmp_path)
        yield address


@pytest.fixture
def ray_address(tmp_path: Path) -> Iterator[str]:
    """A head node of two processors."""
    port = free_port()
    # Ray's sockets lie in its folder, and a path to a socket has 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    head = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--port", str(port), "--num-cpus", "2",
        "--node-ip-address", "127.0.0.1", "--include-dashboard", "false", "--temp-dir", str(folder),
        "--disable-usage-stats", "--object-store-memory", "100000000",
    ]  # fmt: skip
    try:
        with started(head, cwd=tmp_path):
            wait_for(port, tmp_path)
            yield f"127.0.0.1:{port}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("here") / "s"
    sweep(scenario(**CHANGES), folder)
    return digest(folder)


def finished_cells(folder: Path) -> int:
    return sum(not path.parent.name.startswith(".") for path in folder.glob("cells/*/cell.json"))


def killed_and_resumed(folder: Path, *executor: str) -> None:
    """Kill the driving process after a few cells, and give the same command again."""
    (folder / "s.yaml").write_text(yaml.safe_dump(TREE | CHANGES))
    command = [sys.executable, "-m", "sim", "sweep", "s.yaml", "--out", "o", *executor]
    driver = subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline_s = time.monotonic() + START_WITHIN_S
    while finished_cells(folder / "o") < 3 and driver.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.002)
    driver.send_signal(signal.SIGKILL)
    _, said = driver.communicate(timeout=20)
    kept = finished_cells(folder / "o")
    assert 3 <= kept < CELLS, said
    assert not (folder / "o/manifest.json").exists()
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"{CELLS} of {CELLS} cells finished, {kept} of them before" in done.stderr
    assert not list(folder.glob("o/cells/.*"))


@pytest.mark.skipif(find_spec("distributed") is None, reason="the dask extra is not installed")
def test_a_sweep_killed_on_dask_resumes_to_the_same_bytes(tmp_path: Path, expected: str, dask_address: str) -> None:
    killed_and_resumed(tmp_path, "--executor", "dask", "--scheduler", dask_address)
    assert digest(tmp_path / "o") == expected


@pytest.mark.skipif(find_spec("ray") is None, reason="the ray extra is not installed")
def test_a_sweep_killed_on_ray_resumes_to_the_same_bytes(tmp_path: Path, expected: str, ray_address: str) -> None:
    killed_and_resumed(tmp_path, "--executor", "ray", "--address", ray_address)
    assert digest(tmp_path / "o") == expected
