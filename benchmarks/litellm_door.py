"""The paper's first experiment through LiteLLM's proxy, with the callback in it and simulated replicas behind it.

    python benchmarks/litellm_door.py [--policies none token-pool] [--out results/litellm]

`make litellm-paper` runs it. It starts `tokenpools mock-server` with the scenario's profile in real time, LiteLLM's
proxy before it, and sends the requests of `tokenpools replay`; the acceptance table of the paper is read from what its
client saw and from the replica's own metrics. What the callback recorded is told to a fresh core. Experiment 2 takes
away half of the pool's slots in the middle, which nobody can tell a callback of LiteLLM's: it is not run. Exit code 1
where a row of the table fails or a verdict differs.
"""

from __future__ import annotations

import argparse
import secrets
import subprocess
import sys
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from servers import at_once, serving

from sim.judging.parity import check_parity
from sim.scenario.load import load_scenario
from sim.studies import paper_acceptance as acceptance
from sim.studies import paper_measures as measures
from sim.studies.live_proof import FIRST, SECOND, joined_tables

ROOT = Path(__file__).resolve().parents[1]
PROXY, REPLICA = 18_400, 18_401
STARTS_S = 240.0
KEY = "sk-none"
AUTH = '''
from litellm.proxy._types import UserAPIKeyAuth

async def by_team(request, api_key):
    return UserAPIKeyAuth(api_key=api_key, team_id=api_key.removeprefix("sk-"))
'''


def main() -> int:
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", nargs="+", default=["none", "token-pool"])
    parser.add_argument("--litellm", type=Path, default=ROOT / "build/litellm", help="Environment that has LiteLLM.")
    parser.add_argument("--out", type=Path, default=Path("results/litellm"), help="Folder to write, new or empty.")
    args = parser.parse_args()
    out: Path = args.out.absolute()
    if out.exists() and any(out.iterdir()):
        print(f"error: {out} is not empty; remove it, or name another with --out", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    folders, parities = [], []
    for policy in args.policies:
        folders.append(run(policy, args.litellm.absolute(), out))
        parities.append((policy, check_parity(out / f"{policy}.jsonl")))
    tables = joined_tables(folders)
    one = measures.each_replication(tables.requests, tables.timeline, measures.experiment1(load_scenario(FIRST)))
    table = acceptance.rows(one, None, load_scenario(SECOND))
    print(acceptance.as_table(table))
    for policy, parity in parities:
        print(f"{policy}: {parity.words}")
    failed = [row.check for row in table if row.verdict == acceptance.FAIL]
    return 1 if failed or any(parity.differing for _, parity in parities) else 0


def run(policy: str, litellm: Path, out: Path) -> Path:
    """Send one draw of the experiment under one policy; returns the result folder."""
    written: dict[str, Any] = yaml.safe_load((files("scenarios") / f"{FIRST}.yaml").read_text(encoding="utf-8"))
    (chosen,) = [one for one in written["policies"] if policy in (one, one["kind"] if isinstance(one, dict) else "")]
    names = [one["name"] for one in written["pool"]["entitlements"]]
    gate = {
        "version": 1, "pool": written["pool"], "policy": chosen, "tenants": {f"team:{name}": name for name in names},
        "recording": str(out / f"{policy}.jsonl"), "seed": written["seed"],
    }  # fmt: skip
    (out / "gate.yaml").write_text(yaml.safe_dump(gate), encoding="utf-8")
    (out / "keys.yaml").write_text(yaml.safe_dump({name: f"sk-{name}" for name in names}), encoding="utf-8")
    (out / "auth_by_team.py").write_text(AUTH, encoding="utf-8")
    replica = f"http://127.0.0.1:{REPLICA}"
    (out / "config.yaml").write_text(yaml.safe_dump({
        "model_list": [{"model_name": "replica", "litellm_params": {
            "model": "text-completion-openai/replica", "api_base": f"{replica}/v1", "api_key": KEY,
        }}],
        "litellm_settings": {"callbacks": "tokenpools.litellm.handler", "telemetry": False, "num_retries": 0},
        "router_settings": {"disable_cooldowns": True},
        "general_settings": {"custom_auth": "auth_by_team.by_team", "master_key": f"sk-{secrets.token_hex(32)}"},
    }), encoding="utf-8")  # fmt: skip
    env = {"TOKENPOOLS_GATE": str(out / "gate.yaml"), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with ExitStack() as stack:
        stack.enter_context(serving(
            [sys.executable, "-m", "tokenpools", "mock-server", "--profile", written["pool"]["profile"], "--port",
             str(REPLICA), "--model", "replica"], out / f"{policy}-replica.log", {}, f"{replica}/health",
            starts_s=STARTS_S, folder=out,
        ))  # fmt: skip
        stack.enter_context(serving(
            [str(litellm / "bin/litellm"), "--config", str(out / "config.yaml"), "--host", "127.0.0.1", "--port",
             str(PROXY)], out / f"{policy}-litellm.log", env, f"http://127.0.0.1:{PROXY}/health/liveliness",
            starts_s=STARTS_S, folder=out,
        ))  # fmt: skip
        done = subprocess.run([
            sys.executable, "-m", "tokenpools", "replay", FIRST, "--policy", policy, "--base-url",
            f"http://127.0.0.1:{PROXY}", "--metrics-url", f"{replica}/metrics", "--keys", str(out / "keys.yaml"),
            "--model", "replica", "--out", str(out / policy),
        ], capture_output=True, text=True, check=False, cwd=out, start_new_session=True,
            preexec_fn=at_once)  # fmt: skip
    print(done.stdout, done.stderr, file=sys.stderr)
    if done.returncode not in (0, 1):
        raise SystemExit(done.returncode)
    return out / policy


if __name__ == "__main__":
    sys.exit(main())
