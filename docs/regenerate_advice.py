"""Ask for advice on recorded demands, put it to 50 fresh draws, and bring from-logs-to-limits.md up to date.

From the repository, with TOKENPOOLS_DATA naming the traces: ``make advice``; about 25 minutes on one core. What is in
``build/advice`` already is not searched again: empty it after a change of the search. Exit code 1 where fewer draws
hold than the advice stated. ``--only NAME`` searches and rechecks one, and leaves the table. The first of each is what
`tokenpools advise` does by itself; the others go without the survey of every policy (`--survey 0`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from regenerate import DOCS, write

from sim.studies.advise.recheck import Rechecked, recheck_both, table

BUILD = DOCS.parent / "build" / "advice"
AZURE = ("azure-llm-2023/conv", "azure-llm-2023/code", "--objective")
ARENA = ("lmsys-arena-vtc", "--profile", "a10g-llama-2-7b-slora", "--objective")
QUICK = ("--survey", "0")
DEMANDS: dict[str, tuple[str, ...]] = {
    "azure, conv 1 s": (*AZURE, "conv=1.0", "--replicas", "1..4"),
    "azure, conv 1 s, guaranteed": (
        *AZURE, "conv=1.0:guaranteed", "--replicas", "1..4", "--policy", "token-pool", *QUICK,
    ),
    "azure, conv 1 s, code 3 s": (*AZURE, "conv=1.0", "--objective", "code=3.0", "--replicas", "1..6", *QUICK),
    "azure, conv 1 s, on one H100": (
        *AZURE, "conv=1.0", "--replicas", "1", "--policy", "token-pool", "--policy", "predictive-pool", *QUICK,
    ),
    "arena, two of 27 at 2 s": (
        *ARENA, "arena-model-02=2.0", "--objective", "arena-model-06=2.0", "--replicas", "1..4",
    ),
    "arena, the largest at 1 s": (*ARENA, "arena-model-02=1.0", "--replicas", "1..4", *QUICK),
    "arena, a small one on one A10G": (
        *ARENA, "arena-model-06=2.0", "--replicas", "1", "--rest", "0.2", "--policy", "token-pool", *QUICK,
    ),
}  # fmt: skip
DRAWS, SEED = 50, 12345


def main() -> None:
    """Bring the table up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=DEMANDS)
    asked = parser.parse_args()
    found = [(name, *_rechecked(name)) for name in DEMANDS if asked.only in (None, name)]
    sys.stdout.write(table(found) + "\n")
    if asked.only is None:
        write("from-logs-to-limits.md", {"recheck": table(found)})
    sys.exit(0 if all(one.good for _, _, checks in found for one in checks) else 1)


def _rechecked(name: str) -> tuple[Path, list[Rechecked]]:
    folder = BUILD / "".join(letter if letter.isalnum() else "-" for letter in name)
    if not (folder / "advice.json").exists():
        command = [sys.executable, "-m", "tokenpools", "advise", *DEMANDS[name], "--out", str(folder), "--overwrite"]
        # 1: it does not hold on fresh draws, which it then says.
        if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode not in (0, 1):
            sys.exit(f"{name}: no advice")
    kept = folder / "recheck.json"
    if not kept.exists():
        kept.write_text(json.dumps([asdict(one) for one in recheck_both(folder, draws=DRAWS, seed=SEED)]))
    return folder, [Rechecked(**one) for one in json.loads(kept.read_text())]


if __name__ == "__main__":
    main()
