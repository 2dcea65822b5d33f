"""CPU of the gateway for a request and for a streamed event, beside other proxies, in alternating runs.

    python benchmarks/gateway_cost.py [--rounds 5] [--seconds 2] [--tokens 40] [--busy 0] [--preferred]
        [--other NAME=TREE ...] [--envoy FILE] [--vllm-router FILE] [--logs warning]

All servers stand before one model server that costs next to nothing (`gateway_load/upstream.py`) and are asked one
after the other, round by round, so that what else the machine does falls on all of them. CPU is what the kernel's
scheduler counts for all threads of a server (in nanoseconds), for as many answers and events as the client saw.
``--other`` is the gateway of another checkout (before and after), ``--envoy`` and ``--vllm-router`` name what `make
envoy` and pip install. An event's share of its request is a ``--tokens``-th of that. ``--busy`` programs take what they
can of the cores meanwhile: ``core_wait_ms`` is how long a server that could run waits for a core, on average, each time
that it gets one, and ``core_waits_share`` for how much of the time. A median and the least and greatest round are
printed: beside other work they tell how far to trust it.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from gateway import CONFIG, KEY, ROOT, UPSTREAM, client, running

FIRST_PORT = 18_195
ENVOY = """
node: {{id: bench, cluster: bench}}
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          route_config:
            virtual_hosts: [{{name: all, domains: ["*"], routes: [{{match: {{prefix: "/"}}, route: {{cluster: model, timeout: 0s}}}}]}}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: model
    type: STATIC
    load_assignment:
      cluster_name: model
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {upstream}}}}}}}}}]}}]
"""  # noqa: E501


def cpu_ns(pid: int) -> int:
    """Return the CPU time of a process, all its threads and children."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
        for child in (task / "children").read_text().split():
            total += cpu_ns(int(child))
    return total


def core_waits(pid: int) -> tuple[int, int]:
    """Return for how many ns a process, its threads and children have waited for a core, and how often they got one."""
    waited_ns = turns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        _, waited, got = (task / "schedstat").read_text().split()
        waited_ns, turns = waited_ns + int(waited), turns + int(got)
        for child in (task / "children").read_text().split():
            more_ns, more = core_waits(int(child))
            waited_ns, turns = waited_ns + more_ns, turns + more
    return waited_ns, turns


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """Run so many programs that want a core each."""
    running_now = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    try:
        yield
    finally:
        for one in running_now:
            one.kill()
            one.wait()


def commands(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, int, list[str], Path, str]]:
    """Yield each server: its name, port, command, folder, and the path that answers once it is there."""
    port = FIRST_PORT
    trees = {"gateway": ROOT, **({"preferred": ROOT} if args.preferred else {})}
    trees |= {name: Path(tree) for name, _, tree in (one.partition("=") for one in args.other)}
    for name, tree in trees.items():
        config = folder / f"{name}.yaml"
        text = CONFIG.format(port=port, upstream=UPSTREAM, digest=sha256(KEY.encode()).hexdigest())
        config.write_text(text.replace("level: warning", f"level: {args.logs}"))
        first = ["nice", "-n", "-10"] if name == "preferred" else []
        yield name, port, [*first, sys.executable, "-m", "sim", "serve", str(config)], tree, "/v1/models"
        port += 1
    if args.envoy:
        config = folder / "envoy.yaml"
        config.write_text(ENVOY.format(port=port, upstream=UPSTREAM))
        yield ("envoy", port, [args.envoy, "-c", str(config), "--concurrency", "1", "-l", "warning",
                               "--disable-hot-restart"], folder, "/v1/models")  # fmt: skip
        port += 1
    if args.vllm_router:
        command = [args.vllm_router, "--host", "127.0.0.1", "--port", str(port), "--worker-urls",
                   f"http://127.0.0.1:{UPSTREAM}", "--policy", "round_robin", "--log-level", "warning",
                   "--prometheus-port", str(port + 50)]  # fmt: skip
        yield "vllm-router", port, command, folder, "/v1/models"


def measure(args: argparse.Namespace, pids: dict[str, tuple[int, int]]) -> dict[str, dict[str, list[float]]]:
    """Return, of each server, the figures of every round."""
    found: dict[str, dict[str, list[float]]] = {
        name: {"request_us": [], "event_us": [], "ttft_p50_ms": [], "ttft_p99_ms": [], "event_p50_ms": [],
               "event_p99_ms": [], "core_wait_ms": [], "core_waits_share": []} for name in pids
    }  # fmt: skip
    for turn in range(args.rounds):
        order = list(pids) if turn % 2 == 0 else list(reversed(pids))
        for name in order:
            port, pid = pids[name]
            rows = found[name]
            if "requests" in args.only:
                used = cpu_ns(pid)
                seen = client("closed", port, connections=args.connections, seconds=args.seconds, warm_up=0.1)
                rows["request_us"].append((cpu_ns(pid) - used) / 1000 / seen["answers"])
            if "streams" in args.only:
                used, (waited_ns, turns), began_ns = cpu_ns(pid), core_waits(pid), time.monotonic_ns()
                seen = client("streams", port, connections=args.streams, seconds=args.seconds * 2, tokens=args.tokens,
                              gap_ms=args.gap_ms, warm_up=0.5)  # fmt: skip
                rows["event_us"].append((cpu_ns(pid) - used) / 1000 / max(1, seen["events"]))
                now_ns, now_turns = core_waits(pid)
                rows["core_wait_ms"].append((now_ns - waited_ns) / 1e6 / max(1, now_turns - turns))
                rows["core_waits_share"].append((now_ns - waited_ns) / (time.monotonic_ns() - began_ns))
                for what in ("ttft", "event"):
                    for at in ("p50", "p99"):
                        rows[f"{what}_{at}_ms"].append(seen[f"{what}_ms"].get(at, float("nan")))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--gap-ms", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=40, help="events of a stream")
    parser.add_argument("--preferred", action="store_true", help="this gateway once more, by nice before others")
    parser.add_argument("--busy", type=int, default=0, help="programs beside that want a core each")
    parser.add_argument("--other", action="append", default=[], help="NAME=TREE, the gateway of another checkout")
    parser.add_argument("--envoy")
    parser.add_argument("--vllm-router")
    parser.add_argument("--direct", action="store_true", help="the model server without any proxy, too")
    parser.add_argument("--logs", default="warning", help="level of the gateways' logs")
    parser.add_argument("--only", default="requests,streams")
    parser.add_argument("--json", type=Path, help="where to keep every round's figures")
    args = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        upstream = [sys.executable, "-m", "benchmarks.gateway_load.upstream", str(UPSTREAM)]
        models = f"http://127.0.0.1:{UPSTREAM}/v1/models"
        upstream_pid = stack.enter_context(running(upstream, url=models, log=folder / "upstream.log"))
        pids = {}
        for server, port, command, tree, path in commands(args, folder):
            url = f"http://127.0.0.1:{port}{path}"
            log = folder / f"{server}.log"
            pids[server] = port, stack.enter_context(running(command, url=url, log=log, folder=tree))
        if args.direct:
            pids["direct"] = UPSTREAM, upstream_pid
        stack.enter_context(busy(args.busy))
        found = measure(args, pids)
    if args.json:
        args.json.write_text(json.dumps(found))
    for server, rows in found.items():
        print(f"{server:>12}: " + "; ".join(_said(name, values) for name, values in rows.items() if values))


def _said(name: str, values: list[Any]) -> str:
    return f"{name} {statistics.median(values):.4g} ({min(values):.4g}..{max(values):.4g})"


if __name__ == "__main__":
    main()
