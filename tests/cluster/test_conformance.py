"""The replica beside recorded traces of vLLM's own scheduler; `make conformance` runs thousands more against it."""

from __future__ import annotations

import importlib.util
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sim.cluster.prefix_cache import PrefixCache
from sim.cluster.scheduler import Scheduler
from sim.studies.conformance import first_difference, replay

FOLDER = Path(__file__).parents[2] / "benchmarks" / "conformance"
SAMPLE = json.loads((Path(__file__).parent / "conformance_sample.json").read_text())


def benchmark_module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"conformance_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LOADS = benchmark_module("loads")
CASES = [(LOADS.load(trace["seed"]), trace["steps"]) for trace in SAMPLE["traces"]]


def differing() -> list[int]:
    return [case["seed"] for case, steps in CASES if first_difference(steps, replay(case).steps)]


def test_every_iteration_is_vllms() -> None:
    assert len(CASES) >= 20
    for case, steps in CASES:
        assert first_difference(steps, replay(case).steps) == "", (case["seed"], case["features"])


def test_the_sample_has_every_feature_and_preemptions() -> None:
    features = {feature for case, _ in CASES for feature in case["features"]}
    assert features == set(LOADS.FEATURES) - {"speculation", "answers"} | {"pipeline"}
    assert any(step[3] for _, steps in CASES for step in steps)


def test_the_sample_is_of_the_versions_that_make_conformance_runs() -> None:
    (versions,) = re.findall(r"(?m)^VLLM_VERSIONS \?= (.+)$", (FOLDER.parents[1] / "Makefile").read_text())
    for version in versions.split():
        seeds = [trace["seed"] for trace in SAMPLE["traces"] if trace["vllm"] == version]
        assert len(seeds) >= 20
        assert any(seed >= LOADS.PIPELINE_SEEDS for seed in seeds)
    assert {trace["vllm"] for trace in SAMPLE["traces"]} == set(versions.split())


@pytest.mark.parametrize("fault", ["free order", "watermark", "overrun", "threshold"])
def test_a_planted_fault_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "free order":
        monkeypatch.setattr(PrefixCache, "_prepend_empty", PrefixCache._append_empty)
    elif fault == "threshold":
        monkeypatch.setattr(Scheduler, "_most_tokens", lambda self: self._long_prefill_tokens)
    elif fault == "watermark":
        admit = Scheduler._admit

        def without(self: Any, *arguments: Any) -> int:
            self._watermark = 0.0
            return admit(self, *arguments)

        monkeypatch.setattr(Scheduler, "_admit", without)
    else:
        schedule = Scheduler._schedule

        def at_once(self: Any, now_s: float) -> bool:
            self._overrunning = []
            return schedule(self, now_s)

        monkeypatch.setattr(Scheduler, "_schedule", at_once)
    assert differing()


def row(seed: int, *features: str, said: str = "", moved: float | None = None) -> dict[str, Any]:
    moves = {} if moved is None else {"ttft": moved, "tpot": moved / 2}
    return {"seed": seed, "features": list(features), "iterations": 10, "preemptions": 1, "said": said} | moves


def test_the_page_is_made_of_what_the_loads_showed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    run, known = benchmark_module("run"), benchmark_module("known")
    rows = [
        row(1, "caching"),
        row(2, "async", said="tokens: iteration 3", moved=0.5),
        row(3, "speculation", said="blocks: iteration 4", moved=0.01),
        row(4, "speculation", said="blocks: iteration 9", moved=0.03),
        row(5, "speculation", said="vLLM: AttributeError()"),  # not run: no feature explains that
    ]
    counts = run.counted("0.32.0", rows)
    assert [said.split()[1] for said in counts["unknown"]] == ["2", "5"]
    page = known.page([counts])
    assert "| 0.32.0 | 5 | 50 | 5 | 2 |" in page
    assert "| async | 1 | 1 |" in page
    assert "| all | 2 | 1 |" in page
    assert "| 0.32.0 | speculation (3) | 3 | 2.0%, 3.0% | 1.0%, 1.5% | ours |" in page


def test_stages_of_a_load_are_planned_batch_by_batch() -> None:
    case = LOADS.load(LOADS.PIPELINE_SEEDS + 1)
    assert "pipeline" in case["features"]
    assert not set(LOADS.UNSTAGED) & set(case["features"])
    starts_s = [step[0] for step in replay(case).steps]
    assert starts_s == sorted(starts_s)
    assert any(a == b for a, b in pairwise(starts_s))  # two batches planned at one instant
