"""Simulations with the checker beside every core."""

from __future__ import annotations

import pytest

from policies.core import GatewayCore
from sim.errors import RunError
from sim.experiments.run import run_cell
from sim.scenario.load import Cell, expand, load_scenario


def cells(name: str, *changes: str) -> list[Cell]:
    return expand(load_scenario(name, overrides=changes))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("paper-exp2", ()),
        ("several-gateways", ("pool.share_every_s=0.5", "horizon_s=40", "warmup_s=5")),
    ],
)
def test_a_checked_run_finds_nothing_and_decides_the_same(name: str, changes: tuple[str, ...]) -> None:
    cell = cells(name, *changes)[0]
    checked, plain = run_cell(cell, check_invariants=True), run_cell(cell)
    assert checked.requests.equals(plain.requests)
    assert checked.timeline.equals(plain.timeline)


def test_a_run_whose_core_miscounts_ends_with_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    book = GatewayCore._book

    def twice(core: GatewayCore, flight: object, now_s: float) -> None:
        book(core, flight, now_s)  # type: ignore[arg-type]
        flight.ledger.in_flight += 1  # type: ignore[attr-defined]

    monkeypatch.setattr(GatewayCore, "_book", twice)
    with pytest.raises(RunError, match=r"invariant entitlement broken .* in_flight of"):
        run_cell(cells("paper-exp2")[0], check_invariants=True)
