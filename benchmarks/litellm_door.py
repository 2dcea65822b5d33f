"""The paper's experiments through LiteLLM's proxy, with the callback in it and simulated replicas behind it.

    python benchmarks/litellm_door.py [--runs exp1/none/0 exp2/token-pool/0] [--out results/litellm]

`make litellm-paper` runs it. It starts `tokenpools mock-server` with the scenario's profile in real time, LiteLLM's
proxy before it, and sends the requests of `tokenpools replay`; the acceptance table of the paper is read from what its
client saw, from the replica's own metrics and from the state that the callback shows on its admin pages. In the second
experiment the replica loses half of its slots, and the callback is told there. What the callback recorded is told to a
fresh core. Exit code 1 where a row of the table fails, a verdict differs or requests were sent too late.
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
from servers import answers, at_once, serving, until

from sim.judging.parity import check_parity
from sim.records.result_folder import read_manifest
from sim.scenario.load import load_scenario
from sim.studies import paper_acceptance as acceptance
from sim.studies.live_proof import FIRST, SECOND, begun_at, joined_tables, measured

ROOT = Path(__file__).resolve().parents[1]
PROXY, REPLICA, PAGES = 18_400, 18_401, 18_402
BEGIN_AT_S = 45.0  # on the callback's clock: a tick of the policy, and late enough for LiteLLM on a slow machine
SCENARIOS = {"exp1": FIRST, "exp2": SECOND}
RUNS = ["exp1/none/0", "exp1/token-pool/0", "exp1/token-pool/1", "exp2/token-pool/0", "exp2/token-pool/1"]
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
    parser.add_argument(
        "--runs", nargs="+", default=RUNS,
        help="Experiment, policy and draw; what comes out hangs on the draw, and the mean is judged.",
    )
    parser.add_argument("--litellm", type=Path, default=ROOT / "build/litellm", help="Environment that has LiteLLM.")
    parser.add_argument("--out", type=Path, default=Path("results/litellm"), help="Folder to write, new or empty.")
    args = parser.parse_args()
    out: Path = args.out.absolute()
    if out.exists() and any(out.iterdir()):
        print(f"error: {out} is not empty; remove it, or name another with --out", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    live: dict[str, list[Path]] = {}
    parities = []
    for name in args.runs:
        experiment, policy, draw = name.split("/")
        folder = run(SCENARIOS[experiment], policy, int(draw), args.litellm.absolute(), out)
        live.setdefault(SCENARIOS[experiment], []).append(folder)
        parities.append((name, check_parity(folder.with_suffix(".jsonl"))))
    one, two = (measured(joined_tables(live[name]) if name in live else None, name) for name in (FIRST, SECOND))
    table = acceptance.rows(one, two, load_scenario(SECOND))
    print(acceptance.as_table(table))
    for name, parity in parities:
        print(f"{name}: {parity.words}")
    late = [str(folder) for folders in live.values() for folder in folders if not read_manifest(folder)["valid"]]
    if late:
        print(f"not valid, because requests were sent more than 5 ms late at P99: {', '.join(late)}")
    failed = [row.check for row in table if row.verdict == acceptance.FAIL]
    return 1 if failed or late or any(parity.differing for _, parity in parities) else 0


def run(scenario: str, policy: str, draw: int, litellm: Path, out: Path) -> Path:
    """Send a draw of an experiment under a policy; returns the result folder."""
    name = f"{scenario}-{policy}-{draw}"
    written: dict[str, Any] = yaml.safe_load((files("scenarios") / f"{scenario}.yaml").read_text(encoding="utf-8"))
    (chosen,) = [one for one in written["policies"] if policy in (one, one["kind"] if isinstance(one, dict) else "")]
    begun_at(written["pool"], BEGIN_AT_S)
    teams = [one["name"] for one in written["pool"]["entitlements"]]
    gate = {
        "version": 1, "pool": written["pool"], "policy": chosen, "tenants": {f"team:{team}": team for team in teams},
        "recording": str(out / f"{name}.jsonl"), "seed": written["seed"], "admin": {"port": PAGES},
    }  # fmt: skip
    (out / "gate.yaml").write_text(yaml.safe_dump(gate), encoding="utf-8")
    (out / "keys.yaml").write_text(yaml.safe_dump({team: f"sk-{team}" for team in teams}), encoding="utf-8")
    (out / "auth_by_team.py").write_text(AUTH, encoding="utf-8")
    (out / "slots").unlink(missing_ok=True)
    replica, pages = f"http://127.0.0.1:{REPLICA}", f"http://127.0.0.1:{PAGES}"
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
             str(REPLICA), "--model", "replica", "--slots-file", str(out / "slots")],
            out / f"{name}-replica.log", {}, f"{replica}/health", starts_s=STARTS_S, folder=out,
        ))  # fmt: skip
        stack.enter_context(serving(
            [str(litellm / "bin/litellm"), "--config", str(out / "config.yaml"), "--host", "127.0.0.1", "--port",
             str(PROXY)], out / f"{name}-litellm.log", env, f"http://127.0.0.1:{PROXY}/health/liveliness",
            starts_s=STARTS_S, folder=out,
        ))  # fmt: skip
        until(lambda: answers(f"{pages}/admin/state"), "the callback's pages", STARTS_S)
        done = subprocess.run([
            sys.executable, "-m", "tokenpools", "replay", scenario, "--policy", policy, "--replication", str(draw),
            "--base-url", f"http://127.0.0.1:{PROXY}", "--metrics-url", f"{replica}/metrics", "--keys",
            str(out / "keys.yaml"),
            "--admin-url", pages, "--slots-file", str(out / "slots"), "--begin-at-s", str(BEGIN_AT_S),
            "--model", "replica", "--out", str(out / name),
        ], capture_output=True, text=True, check=False, cwd=out, start_new_session=True,
            preexec_fn=at_once)  # fmt: skip
    print(done.stdout, done.stderr, file=sys.stderr)
    if done.returncode not in (0, 1):
        raise SystemExit(done.returncode)
    return out / name


if __name__ == "__main__":
    sys.exit(main())
