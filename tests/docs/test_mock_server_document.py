"""The commands of docs/mock-server.md as shown: two mock replicas, a gateway and a load generator, each a process."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from live.gate import free_port

TEXT = (Path(__file__).parents[2] / "docs" / "mock-server.md").read_text()
BLOCKS = dict(re.findall(r"<!-- run: (\w+) -->\n```sh\n(.*?)```", TEXT, re.DOTALL))
GATEWAY, SCENARIO = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
DEADLINE_S = 120


def command(
    name: str, ports: Mapping[str, str], blocks: Mapping[str, str] = BLOCKS
) -> tuple[list[str], dict[str, str]]:
    words = shlex.split(with_ports(blocks[name], ports))
    given = dict(word.split("=", 1) for word in words[: words.index("tokenpools")])
    return [sys.executable, "-m", "sim", *words[words.index("tokenpools") + 1 :]], os.environ | given


def with_ports(text: str, ports: Mapping[str, str]) -> str:
    return re.sub("|".join(ports), lambda found: ports[found[0]], text)


@contextmanager
def process(
    name: str, ports: Mapping[str, str], folder: Path, says: str, blocks: Mapping[str, str] = BLOCKS
) -> Iterator[None]:
    """Run a command that does not end by itself, from when it has said that it is ready."""
    words, given = command(name, ports, blocks)
    child = subprocess.Popen(
        words, cwd=folder, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )  # fmt: skip
    assert child.stdout is not None
    seen = []
    for line in child.stdout:
        seen.append(line)
        if says in line:
            break
    else:
        pytest.fail(f"{name}: {''.join(seen)}")
    try:
        yield
    finally:
        child.terminate()
        child.communicate(timeout=DEADLINE_S)


def two_free_ports_in_a_row() -> int:
    for _ in range(100):
        first = free_port()
        with socket.socket() as second:
            try:
                second.bind(("127.0.0.1", first + 1))
            except OSError:
                continue
            return first
    raise AssertionError("no two ports in a row")


def test_a_gateway_before_two_mock_replicas_is_replayed_against(tmp_path: Path) -> None:
    first = two_free_ports_in_a_row()
    ports = {"8000": str(first), "8001": str(first + 1), "8080": str(free_port()), "9090": str(free_port())}
    (tmp_path / "gateway.yaml").write_text(with_ports(GATEWAY, ports))
    (tmp_path / "scenario.yaml").write_text(SCENARIO)
    with process("mock", ports, tmp_path, "replica 1:"), process("serve", ports, tmp_path, "running"):
        words, given = command("replay", ports)
        done = subprocess.run(
            words, cwd=tmp_path, env=given, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )  # fmt: skip
        with urllib.request.urlopen(f"http://127.0.0.1:{first}/metrics", timeout=DEADLINE_S) as page:
            metrics = page.read().decode()
    assert done.returncode in (0, 1), done.stdout + done.stderr  # 1 where this machine was too busy to be punctual
    table = pd.read_parquet(tmp_path / "results" / "tried" / "requests.parquet")
    assert len(table) > 5
    finished = table[table["outcome"] == "finished"]
    assert set(table["outcome"]) <= {"finished", "running"}, table["outcome"].value_counts()
    assert len(finished) > 3
    assert (finished["first_token_s"] - finished["arrival_s"] > 0.015).all()  # no iteration takes less
    assert "vllm:request_success_total" in metrics
