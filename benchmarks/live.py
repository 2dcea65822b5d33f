"""The proof of live mode: a paced vLLM, the gateway before it, the paper's experiments, and the simulator beside them.

`make live` runs it. It starts a vLLM whose iterations last as long as the paper's replica needs, calibrates a profile
from it, serves both experiments through the gateway, simulates the same requests with that profile, and feeds what the
gateways recorded to a fresh core. Everything is written to ``--out``; exit code 1 where a row of the acceptance table
fails, a verdict differs or requests were sent too late.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from servers import at_once, serving

from sim.live.gateway.authentication import hashed, new_key
from sim.studies.live_proof import FIRST, SECOND, begun_at, prove

ROOT = Path(__file__).resolve().parents[1]
PACED = ROOT / "benchmarks" / "paced_vllm"
# ms: the step time of the scenarios' profile, less the 4 ms that vLLM itself takes between two iterations.
PACE = "126,0.05,0.2,0"
SLOTS, BATCHED_TOKENS, LONGEST, BLOCK, BLOCKS = 16, 512, 512, 32, 512
KV_BYTES_PER_TOKEN = 2048  # of the tiny model
BEGIN_AT_S = 15.0  # on the gateway's clock: a tick of the policy, and late enough for a slow machine
START_S = 180
QUIET = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}  # fmt: skip


def main() -> int:
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="Python of the environment that has vLLM.")
    parser.add_argument("--out", type=Path, default=Path("results/live"), help="Folder to write, new or empty.")
    parser.add_argument(
        "--draws", type=int, default=2, help="Replications of experiment 1 under token-pool: its P99 hangs on the draw."
    )
    parser.add_argument("--quick", action="store_true", help="Experiment 1 under token-pool only, coarse calibration.")
    args = parser.parse_args()
    out: Path = args.out.absolute()
    if out.exists() and any(out.iterdir()):
        print(f"error: {out} is not empty; remove it, or name another with --out", file=sys.stderr)
        return 2
    (out / "logs").mkdir(parents=True, exist_ok=True)
    draws = [(FIRST, "token-pool", draw) for draw in range(args.draws)]
    runs = draws[:1] if args.quick else [(FIRST, "none", 0), *draws, (SECOND, "token-pool", 0)]
    started_s = time.monotonic()
    with contextlib.ExitStack() as stack:
        vllm = stack.enter_context(vllm_server(args.python.absolute(), out))
        profile = out / "profile.yaml"
        say("calibrating a profile from it")
        tokenpools(
            "calibrate", "--base-url", vllm, "--max-num-seqs", SLOTS, "--max-num-batched-tokens", BATCHED_TOKENS,
            "--kv-bytes-per-token", KV_BYTES_PER_TOKEN, "--no-async-scheduling", "--out", profile,
            *(["--quick"] if args.quick else []), log=out / "logs" / "calibrate.log",
        )  # fmt: skip
        live: dict[str, list[Path]] = {}
        recordings: dict[str, Path] = {}
        for scenario, policy, draw in runs:
            name = f"{scenario}-{policy}-{draw}"
            say(f"{scenario} under {policy}, draw {draw}")
            live.setdefault(scenario, []).append(out / name)
            recordings[name] = replay(vllm, scenario, policy, draw, name, out)
    say("simulating the same requests and telling the recordings again")
    proof = prove(live, profile, out, recordings)
    (out / "proof.md").write_text(proof.words + "\n", encoding="utf-8")
    print(proof.words)
    say(f"took {(time.monotonic() - started_s) / 60:.1f} minutes; wrote {out}")
    return 0 if proof.passed else 1


def replay(vllm: str, scenario: str, policy: str, draw: int, name: str, out: Path) -> Path:
    """Serve one scenario under one policy, send it one draw of its requests, and return what the gateway recorded."""
    port, admin = free_port(), free_port()
    config, keys, events = (out / f"{name}{suffix}" for suffix in (".serve.yaml", ".keys.yaml", ".events.jsonl"))
    secrets = write_config(config, scenario, policy, vllm, port, admin, events)
    keys.write_text(yaml.safe_dump(secrets), encoding="utf-8")
    (out / "slots").write_text(f"{SLOTS}\n", encoding="utf-8")
    base_url, pages = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}"
    command = [sys.executable, "-m", "sim", "serve", str(config)]
    with serving(command, out / "logs" / f"{name}.gateway.log", {}, f"{pages}/readyz", starts_s=START_S):
        tokenpools(
            "replay", scenario, "--policy", policy, "--replication", draw, "--base-url", base_url, "--admin-url", pages,
            "--metrics-url", f"{vllm}/metrics", "--keys", keys, "--slots-file", out / "slots",
            "--begin-at-s", BEGIN_AT_S, "--out", out / name,
            log=out / "logs" / f"{name}.replay.log", accepted=(0, 1),
        )  # fmt: skip
    keys.unlink()
    return events


def write_config(
    config: Path, scenario: str, policy: str, vllm: str, port: int, admin: int, events: Path
) -> dict[str, str]:
    """Write a gateway's configuration for a shipped scenario, and return the keys of its entitlements."""
    written: dict[str, Any] = yaml.safe_load((files("scenarios") / f"{scenario}.yaml").read_text(encoding="utf-8"))
    (chosen,) = [one for one in written["policies"] if policy in (one, one["kind"] if isinstance(one, dict) else "")]
    pool = written["pool"]
    begun_at(pool, BEGIN_AT_S)
    secrets = {entitlement["name"]: new_key() for entitlement in pool["entitlements"]}
    config.write_text(yaml.safe_dump({
        "version": 1, "listen": {"port": port}, "pool": pool, "policy": chosen,
        "upstreams": [{"name": "replica-0", "base_url": vllm}],
        "keys": [{"name": n, "entitlement": n, "sha256": hashed(key).hex()} for n, key in secrets.items()],
        "admin": {"port": admin}, "logs": {"style": "json"}, "recording": str(events), "seed": written["seed"],
    }), encoding="utf-8")  # fmt: skip
    return secrets


@contextlib.contextmanager
def vllm_server(python: Path, out: Path) -> Iterator[str]:
    """Run the paced vLLM; its slots follow ``out/slots``."""
    model = out / "model"
    say("making a tiny model and starting a paced vLLM")
    environment = {**QUIET, "PYTHONPATH": str(PACED), "PACE": PACE, "SLOTS_FILE": str(out / "slots")}
    with (out / "logs" / "model.log").open("w") as log:
        made = [str(python), str(PACED / "make_model.py"), str(model)]
        subprocess.run(made, env={**os.environ, **environment}, stdout=log, stderr=log, check=True, timeout=START_S)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        str(python), str(PACED / "vllm_cli.py"), "serve", str(model), "--served-model-name", "tiny",
        "--load-format", "dummy", "--enforce-eager", "--host", "127.0.0.1", "--port", str(port),
        "--max-model-len", str(LONGEST), "--max-num-seqs", str(SLOTS),
        "--max-num-batched-tokens", str(BATCHED_TOKENS), "--block-size", str(BLOCK),
        "--num-gpu-blocks-override", str(BLOCKS), "--no-enable-prefix-caching",
        "--worker-cls", "paced.PacedWorker", "--scheduler-cls", "paced.SlotsScheduler",
    ]  # fmt: skip
    with serving(command, out / "logs" / "vllm.log", environment, f"{url}/health", starts_s=START_S):
        yield url


def tokenpools(*words: object, log: Path, accepted: Sequence[int] = (0,)) -> None:
    """Run a tokenpools command, showing what it says."""
    with log.open("w") as file:
        command = subprocess.Popen(
            [sys.executable, "-m", "sim", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, preexec_fn=at_once,
        )  # fmt: skip
        assert command.stdout is not None
        for line in command.stdout:
            file.write(line)
            if not line.startswith("measuring"):
                print(f"  {line}", end="", flush=True)
        if command.wait() not in accepted:
            raise SystemExit(f"error: tokenpools {words[0]} failed; see {log}")


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def say(text: str) -> None:
    """Say what is done now."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
