"""Some thousands of requests through each door, recorded, and told to a fresh core: what differs, and what leaks.

    python benchmarks/door_parity.py [--requests 2500] [--only own,library,LiteLLM,Envoy] [--out docs/door-parity.csv]

The doors are those of `doors.py`, each in its real server, with eight slots and twenty-four clients at once: many are
refused, some leave in the middle of their answer, some streams are read to their end. Afterwards the recording is told
to a fresh core as `tokenpools parity` does, and every request that was let in must have had one end; else exit code 1.
"""

from __future__ import annotations

import argparse
import csv
import http.client
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import doors
from doors import ASK, DOORS, KEY, LITELLM_PORTS, MASTER, ROOT, UPSTREAM, Server, running

from sim.judging.parity import check_parity

CLIENTS, SLOTS = 24, 8
HEADS = ("door", "requests", "verdicts", "let in", "refused", "ended", "left open", "differing")


def main() -> int:
    """Send, check, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2500)
    parser.add_argument("--only", default="own,library,LiteLLM,Envoy")
    parser.add_argument("--out", type=Path, help="A file for the table, as CSV.")
    args = parser.parse_args()
    profile = doors.POOL["profile"] | {"max_num_seqs": SLOTS}  # type: ignore[operator]
    one = {"name": "all", "service_class": "elastic", "ttft_slo_s": 1.0, "baseline": {"slots": SLOTS // 2}}
    doors.GATE["pool"] = {"profile": profile, "entitlements": [one]}
    rows = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = [sys.executable, str(ROOT / "benchmarks/gateway_load/upstream.py"), str(UPSTREAM)]
        pid = stack.enter_context(running(upstream, f"http://127.0.0.1:{UPSTREAM}/v1/models", folder, "upstream"))
        for name in args.only.split(","):
            doors.GATE["recording"] = str(folder / f"{name}.jsonl")
            with DOORS[name](folder, Server(UPSTREAM, [pid])) as (_, door):
                counted = load(door.port, args.requests)
            rows.append((name, *judged(Path(doors.GATE["recording"]))))
            print(f"{name}: {dict(zip(HEADS[1:], rows[-1][1:], strict=True))}; answers {dict(counted)}", flush=True)
    print("| " + " | ".join(HEADS) + " |\n|" + "---|" * len(HEADS))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    if args.out is not None:
        with args.out.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([HEADS, *rows])
    return int(any(row[-1] or row[-2] for row in rows))


def load(port: int, count: int) -> Counter[str]:
    """Send so many requests, twenty-four at a time; returns how many were answered how."""
    rng, lock, counted = random.Random(port), threading.Lock(), Counter[str]()
    plans = [(rng.random(), rng.choice((1, 8, 64)), rng.random() < 0.3) for _ in range(count)]

    def work() -> None:
        while True:
            with lock:
                if not plans:
                    return
                plan = plans.pop()
            said = ask(port, *plan)
            with lock:
                counted[said] += 1

    threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    time.sleep(1.0)  # for those whose clients have left: their door ends them on its own time
    return counted


def ask(port: int, chance: float, max_tokens: int, stream: bool) -> str:
    """Send one request; one in ten leaves before it has its whole answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = ASK | {"max_tokens": max_tokens, "stream": stream}
    headers = {"content-type": "application/json", "x-tenant": "all", "authorization": f"Bearer {KEY}"}
    if port in LITELLM_PORTS:
        headers["authorization"] = f"Bearer {MASTER}"
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        if chance < 0.05:
            return "left"
        answer = connection.getresponse()
        if chance < 0.1:
            answer.read(20)
            return "left"
        answer.read()
        return str(answer.status)
    except (OSError, http.client.HTTPException):
        return "broken"
    finally:
        connection.close()


def judged(recording: Path) -> tuple[int, int, int, int, int, int, int]:
    """Return what a recording holds: requests, verdicts, let in, refused, ended, left open, and what differs."""
    rows: list[Any] = [json.loads(line) for line in recording.read_text(encoding="utf-8").splitlines()[1:]]
    said = Counter(one[0] for _, _, every in rows for one in every)
    told = Counter(event[0] for _, event, _ in rows)
    ends = told["finished"] + told["failed"] + told["cancelled"]
    found = check_parity(recording)
    left_open = told["arrived"] - said["refuse"] - said["evict"] - ends
    verdicts = sum(found.verdicts.values())
    return told["arrived"], verdicts, said["forward"], said["refuse"], ends, left_open, found.differing


if __name__ == "__main__":
    sys.exit(main())
