"""What the gateway costs: requests per second, latency added, memory of idle streams; and LiteLLM's proxy beside it.

    python benchmarks/gateway.py [--litellm PYTHON | --install FOLDER] [--seconds 5] [--idle 9900] [--only WHAT,...]

One model server that costs next to nothing (`gateway_load/upstream.py`), one client (`gateway_load/client.py`), and one
worker of each proxy between them, all on this machine and one after the other. Latency that is added is the difference
between what the client sees through a proxy and what it sees without one, quantile by quantile. LiteLLM runs as its
documents advise for production (no debug log, no database, one worker, a master key); `--install` makes a virtual
environment for it, `--litellm` names the interpreter of one that is there.

The targets are of issue 4: at least 5 times LiteLLM's requests per second with at most a fifth of its added latency at
P50 and P99; alone less than 2 ms at P99 added to the time to first token and to each event at 200 streams, and 10,000
idle streams in less than 1 GB. Every process needs two descriptors for each stream: see `ulimit -n`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LITELLM = "litellm[proxy]==1.108.7"
KEY = "sk-benchmark-0123456789abcdef0123456789abcdef"
UPSTREAM, GATEWAY, OTHER = 18191, 18190, 18192
STARTS_S = 120.0

CONFIG = """
version: 1
listen: {{port: {port}}}
pool:
  profile: {{step_time: {{kind: linear, base_s: 0.01}}, max_num_seqs: 20000, max_num_batched_tokens: 20000,
            kv_blocks: 1000000, block_tokens: 16}}
  entitlements: [{{name: all, service_class: guaranteed, ttft_slo_s: 1.0, baseline: {{slots: 20000}}}}]
policy: token-pool
logs: {{level: warning}}
timeouts: {{idle_s: 3600}}
upstreams: [{{name: fixed, base_url: "http://127.0.0.1:{upstream}"}}]
keys: [{{name: all, entitlement: all, sha256: {digest}}}]
"""
LITELLM_CONFIG = """
model_list:
  - model_name: tiny
    litellm_params: {{model: openai/tiny, api_base: "http://127.0.0.1:{upstream}/v1", api_key: none}}
litellm_settings: {{set_verbose: false, telemetry: false, request_timeout: 600}}
general_settings: {{master_key: {key}}}
"""


@contextmanager
def running(
    command: Sequence[str], *, url: str, env: dict[str, str] | None = None, log: Path, folder: Path = ROOT
) -> Iterator[int]:
    """Run a server until it answers, and end it; yields its process id."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=folder, env={**os.environ, **(env or {})})
        try:
            deadline_s = time.monotonic() + STARTS_S
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > deadline_s:
                    raise SystemExit(f"{command[0]} did not start:\n{log.read_text(errors='replace')[-2000:]}")
                time.sleep(0.1)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    try:
        asked = urllib.request.Request(url, headers={"authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(asked, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def client(mode: str, port: int, **options: float) -> dict[str, Any]:
    """Run the client and return what it measured."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "benchmarks.gateway_load.client", mode, str(port), f"--key={KEY}", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if found.get("bad"):
        print(f"  !! {found['bad']} answers were not 200", file=sys.stderr)
    return found


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process and of the children it has."""
    total = 0.0
    for process in [pid, *_children(pid)]:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *_children(int(child))]
    return found


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def both(name: str, port: int, pid: int, seconds: float) -> dict[str, Any]:
    """Measure what can be compared: throughput at 32 connections, latency one at a time and at a fixed rate."""
    before_s = cpu_s(pid)
    full = client("closed", port, connections=32, seconds=seconds, warm_up=2)
    per_request_ms = (cpu_s(pid) - before_s) * 1000 / max(1.0, full["requests_per_s"] * (seconds + 2))
    one = client("closed", port, connections=1, seconds=seconds, warm_up=1)
    paced = client("paced", port, connections=64, rate=20, seconds=seconds * 2, warm_up=2)
    print(f"{name:>10}: {full['requests_per_s']:8.0f} requests/s ({per_request_ms:.3f} ms of CPU each);"
          f" one at a time {_show(one['latency_ms'])}; at 20/s {_show(paced['latency_ms'])}", flush=True)  # fmt: skip
    return {"full": full, "one": one, "paced": paced, "cpu_ms": per_request_ms}


def _show(spread: dict[str, float]) -> str:
    return f"p50 {spread['p50']:.2f} ms, p99 {spread['p99']:.2f} ms (n={spread['n']})"


def added(through: dict[str, Any], direct: dict[str, Any], what: str, quantile: str) -> float:
    """Return the latency that a proxy adds, in milliseconds."""
    return float(through[what]["latency_ms"][quantile] - direct[what]["latency_ms"][quantile])


def compare(ours: dict[str, Any], other: dict[str, Any], direct: dict[str, Any]) -> None:
    """Print the ratios that the targets are about."""
    ratio = ours["full"]["requests_per_s"] / other["full"]["requests_per_s"]
    print(f"requests/s: {ratio:.1f} times LiteLLM's (target: at least 5)")
    for what, words in (("one", "one at a time"), ("paced", "at 20 requests/s")):
        for quantile in ("p50", "p99"):
            mine, theirs = added(ours, direct, what, quantile), added(other, direct, what, quantile)
            print(f"added {quantile}, {words}: {mine:.2f} ms against {theirs:.2f} ms: 1/{theirs / mine:.1f}"
                  " (target: at most 1/5)")  # fmt: skip


def alone(pid: int, seconds: float) -> None:
    """Print what is added to first tokens and to events at 200 streams."""
    options = {"connections": 200, "seconds": seconds * 3, "tokens": 40, "gap_ms": 50, "warm_up": 3}
    direct = client("streams", UPSTREAM, **options)
    before_s = cpu_s(pid)
    ours = client("streams", GATEWAY, **options)
    used_s = cpu_s(pid) - before_s
    for what in ("ttft_ms", "event_ms"):
        parts = [
            f"{quantile} {ours[what][quantile]:.2f} - {direct[what][quantile]:.2f} = "
            f"{ours[what][quantile] - direct[what][quantile]:.2f} ms"
            for quantile in ("p50", "p99")
        ]  # fmt: skip
        print(f"200 streams of 20 events/s, {what}: {'; '.join(parts)} (n={ours[what]['n']}; target: p99 below 2)")
    print(f"  the gateway used {used_s:.1f} s of CPU")


def idle(pid: int, count: int) -> None:
    """Print the memory of so many open streams."""
    before = rss_bytes(pid)
    command = [sys.executable, "-m", "benchmarks.gateway_load.client", "idle", str(GATEWAY), f"--key={KEY}",
               f"--connections={count}"]  # fmt: skip
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        time.sleep(1)
        now = rss_bytes(pid)
        began_s, cpu = time.monotonic(), cpu_s(pid)
        time.sleep(3)
        share = (cpu_s(pid) - cpu) / (time.monotonic() - began_s)
        process.stdin.write("\n")
        process.stdin.flush()
        process.terminate()
    each_kib = (now - before) / count / 1024
    print(f"{said['open']} idle streams ({said['bad']} bad): {now / 1e6:.0f} MB, {each_kib:.1f} KiB each,"
          f" {share:.1%} of a core (target: 10,000 below 1 GB)")  # fmt: skip


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--litellm", help="the Python that has litellm[proxy]")
    parser.add_argument("--install", type=Path, help=f"make a virtual environment with {LITELLM} here")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--idle", type=int, default=9900)
    parser.add_argument("--only", default="both,alone,idle")
    args = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if args.install is not None:
        args.litellm = str(args.install / "bin/python")
        if not Path(args.litellm).exists():
            subprocess.run([sys.executable, "-m", "venv", str(args.install)], check=True)
            subprocess.run([args.litellm, "-m", "pip", "install", "-q", LITELLM], check=True)
    wanted = args.only.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        upstream = [sys.executable, "-m", "benchmarks.gateway_load.upstream", str(UPSTREAM)]
        with running(upstream, url=f"http://127.0.0.1:{UPSTREAM}/v1/models", log=folder / "upstream.log"):
            measure(args, wanted, folder)


def measure(args: argparse.Namespace, wanted: Sequence[str], folder: Path) -> None:
    """Run the proxies, one after the other, and print what they cost."""
    from hashlib import sha256

    config, other_config = folder / "gateway.yaml", folder / "litellm.yaml"
    config.write_text(CONFIG.format(port=GATEWAY, upstream=UPSTREAM, digest=sha256(KEY.encode()).hexdigest()))
    other_config.write_text(LITELLM_CONFIG.format(upstream=UPSTREAM, key=KEY))
    serve = [sys.executable, "-m", "sim", "serve", str(config)]
    gateway_url = f"http://127.0.0.1:{GATEWAY}/v1/models"
    direct: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    if "both" in wanted:
        direct = both("direct", UPSTREAM, os.getpid(), args.seconds)
        with running(serve, url=gateway_url, log=folder / "gateway.log") as pid:
            ours = both("tokenpools", GATEWAY, pid, args.seconds)
        if args.litellm:
            command = [str(Path(args.litellm).parent / "litellm"), "--config", str(other_config), "--host",
                       "127.0.0.1", "--port", str(OTHER), "--num_workers", "1", "--telemetry", "False"]  # fmt: skip
            env = {"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                   "NO_DOCS": "True", "PYTHONPATH": ""}  # fmt: skip
            url = f"http://127.0.0.1:{OTHER}/v1/models"
            with running(command, url=url, env=env, log=folder / "litellm.log") as pid:
                compare(ours, both("litellm", OTHER, pid, args.seconds), direct)
    if "alone" in wanted:
        with running(serve, url=gateway_url, log=folder / "gateway.log") as pid:
            alone(pid, args.seconds)
    if "idle" in wanted:
        with running(serve, url=gateway_url, log=folder / "gateway.log") as pid:
            idle(pid, args.idle)


if __name__ == "__main__":
    main()
