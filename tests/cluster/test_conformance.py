"""The replica beside recorded traces of vLLM's own scheduler; `make conformance` runs thousands more against it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from sim.cluster.prefix_cache import PrefixCache
from sim.cluster.scheduler import Scheduler
from sim.studies.conformance import first_difference, replay

FOLDER = Path(__file__).parents[2] / "benchmarks" / "conformance"
SAMPLE = json.loads((Path(__file__).parent / "conformance_sample.json").read_text())


def loads_module() -> Any:
    spec = importlib.util.spec_from_file_location("conformance_loads", FOLDER / "loads.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LOADS = loads_module()
CASES = [(LOADS.load(trace["seed"]), trace["steps"]) for trace in SAMPLE["traces"]]


def differing() -> list[int]:
    return [case["seed"] for case, steps in CASES if first_difference(steps, replay(case).steps)]


def test_every_iteration_is_vllms() -> None:
    assert len(CASES) >= 20
    for case, steps in CASES:
        assert first_difference(steps, replay(case).steps) == "", (case["seed"], case["features"])


def test_the_sample_has_every_feature_and_preemptions() -> None:
    features = {feature for case, _ in CASES for feature in case["features"]}
    assert features == set(LOADS.FEATURES) - {"speculation", "answers"}
    assert any(step[3] for _, steps in CASES for step in steps)


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
