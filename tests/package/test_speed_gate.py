"""Slower code is noticed by what a run executes, which no other program on the machine changes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from sim.cluster.replica import Replica
from sim.records.provenance import COMPILED, form

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "speed_gate.py"
pytestmark = pytest.mark.skipif(form() == COMPILED, reason="compiled code executes no bytecode")


@pytest.fixture(scope="module")
def gate() -> Any:
    spec = importlib.util.spec_from_file_location("speed_gate", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_run_executes_more_than_is_written_down(gate: Any) -> None:
    if not gate.written():
        pytest.skip(f"nothing is written down for Python {gate.VERSION}")
    counts = {name: gate.cost(description) for name, description in gate.CASES.items()}
    assert not gate.above(counts, gate.written()), f"{counts}; python benchmarks/speed_gate.py says more"


def test_the_same_code_counts_the_same_and_a_little_more_is_noticed(gate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = gate.CASES["one replica"]
    plain = gate.cost(case)
    assert gate.cost(case) == plain
    boundary = Replica.boundary

    def slower(replica: Replica[Any], now_s: float) -> None:
        sum(request.outputs for request in list(replica._running) * 2)
        boundary(replica, now_s)

    monkeypatch.setattr(Replica, "boundary", slower)
    # The test is no part of what is counted, as a plug-in's code is not; a file of ours would be.
    monkeypatch.setattr(gate, "ROOTS", (*gate.ROOTS, str(Path(__file__).parent)))
    assert gate.above({"one replica": gate.cost(case)}, {"one replica": plain}) == ["one replica"]


if sys.gettrace() is not None:  # a debugger or a coverage tool traces already
    pytestmark = [pytestmark, pytest.mark.skip(reason="somebody else traces")]
