"""Fuzz what reads files, for as long as is asked: ``make fuzz``, or ``python -m fuzz.run scenario --seconds 300``.

By coverage with atheris where that is installed (``pip install '.[fuzz]'``), else by mutations alone. What is new grows
the corpus under ``build/fuzz``; what breaks something is kept there too, and the exit code is 1. Seeds are in
``tests/fuzz/corpus``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import subprocess
import sys
import time
import traceback
from importlib.util import find_spec
from pathlib import Path

from fuzz.mutations import mutated
from fuzz.targets import MOST_BYTES, TARGETS, attempt, seeds

BUILD = Path("build/fuzz")


def by_mutations(name: str, seconds: float, seed: int) -> tuple[int, int]:
    """Return how many inputs were tried, and how many of them broke something."""
    chance = random.Random(f"{name}/{seed}")
    corpus = seeds(name)
    tried = broken = 0
    known: set[str] = set()
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        data = mutated(chance.choice(corpus), chance, corpus) if tried >= len(corpus) else corpus[tried]
        tried += 1
        try:
            attempt(name, data)
        except Exception as error:  # whatever it is, it is a finding
            where = traceback.extract_tb(error.__traceback__)[-1]
            mark = f"{type(error).__name__} {where.filename}:{where.lineno}"
            if mark not in known:
                known.add(mark)
                broken += 1
                kept(name, data, "".join(traceback.format_exception(error)))
        else:
            if len(data) < MOST_BYTES and chance.random() < 0.002:
                corpus.append(data)
    return tried, broken


def kept(name: str, data: bytes, words: str) -> None:
    """Keep an input that broke something, and say so."""
    path = BUILD / "findings" / name / hashlib.sha256(data).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.with_suffix(".txt").write_text(words, encoding="utf-8", errors="replace")
    print(f"{name}: {path}: {words.strip().splitlines()[-1][:200]}", flush=True)


def by_coverage(name: str, seconds: float, seed: int) -> int:
    """Fuzz with atheris, in a process of its own, as libFuzzer ends it; return its exit code."""
    corpus = BUILD / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for data in seeds(name):
        if len(data) <= MOST_BYTES:
            (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    findings = BUILD / "findings" / name
    findings.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "fuzz.run", name, "--child", str(corpus), f"-max_total_time={int(seconds)}",
        f"-seed={seed}", f"-max_len={MOST_BYTES}", "-rss_limit_mb=4096", "-timeout=60", f"-artifact_prefix={findings}/",
        "-print_final_stats=1", "-verbosity=0",
    ]  # fmt: skip
    return subprocess.run(command, check=False).returncode


def child(name: str, arguments: list[str]) -> None:
    """Be libFuzzer's process."""
    import atheris

    with atheris.instrument_imports(include=["sim", "workloads", "policies"], enable_loader_override=False):
        import sim.analysis.compare
        import sim.experiments.run
        import sim.judging.explain
        import sim.judging.parity
        import sim.live.gateway.config_file
        import sim.records.result_folder
        import sim.scenario.manifests
        import sim.traces.convert  # noqa: F401 - what the targets import, instrumented
    corpus = seeds(name)

    def one(data: bytes) -> None:
        attempt(name, data)

    def change(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        return mutated(data, chance, corpus)[:most] if chance.random() < 0.7 else atheris.Mutate(data, most)

    atheris.Setup([sys.argv[0], *arguments], one, custom_mutator=change)
    atheris.Fuzz()


def main() -> None:
    """Fuzz the targets one after the other."""
    if len(sys.argv) > 2 and sys.argv[2] == "--child":
        child(sys.argv[1], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], default=list(TARGETS), help="what to fuzz")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 2**31)
    parser.add_argument("--engine", choices=("auto", "atheris", "mutations"), default="auto")
    given = parser.parse_args()
    engine = given.engine
    if engine == "auto":
        engine = "atheris" if find_spec("atheris") is not None else "mutations"
    os.nice(5)
    bad = 0
    for name in given.targets:
        if engine == "atheris":
            bad += by_coverage(name, given.seconds, given.seed) != 0
            continue
        tried, broken = by_mutations(name, given.seconds, given.seed)
        print(f"{name}: {tried} inputs, {broken} findings (seed {given.seed})", flush=True)
        bad += broken
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
