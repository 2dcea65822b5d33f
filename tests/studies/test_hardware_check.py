"""The simulator against a real GPU under four admission policies: what docs/tournament.md says holds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sim.cli import app
from sim.studies.hardware_check import FOLDER, MEASURED, Hardware, check, measured_requests, tenant_table

DATA = Path(os.environ.get("TOKENPOOLS_DATA", "/nowhere"))
needs_data = pytest.mark.skipif(not (DATA / FOLDER / MEASURED).is_file(), reason=f"needs TOKENPOOLS_DATA with {FOLDER}")


@pytest.fixture(scope="module")
def found() -> Hardware:
    return check(DATA)


@needs_data
@pytest.mark.parametrize(("policy", "refusals"), [("rate-limit-5", 919), ("rate-limit-20", 342)])
def test_request_limits_refuse_whom_they_refused(found: Hardware, policy: str, refusals: int) -> None:
    one = next(one for one in found.checks if one.policy == policy)
    measured, simulated = one.refused
    assert measured == refusals
    assert abs(simulated - measured) <= 0.01 * measured
    assert one.same_verdict >= 0.985


@needs_data
def test_tenants_wait_in_the_measured_order(found: Hardware) -> None:
    by_name = {one.policy: one for one in found.checks}
    assert by_name["none"].rank_correlation() > 0.99  # the run that was fitted
    assert by_name["vtc"].rank_correlation() > 0.85  # a prediction
    for policy, within in (("none", 0.02), ("vtc", 0.06), ("rate-limit-20", 0.05)):
        rows = by_name[policy].requests
        assert rows.ttft_s.mean() == pytest.approx(rows.measured_ttft_s.mean(), rel=within)
    assert len(tenant_table(found).splitlines()) == 2 + 27


@needs_data
def test_every_measured_request_is_there(found: Hardware) -> None:
    measured = measured_requests(DATA)
    assert len(measured) == 4 * 1500
    for one in found.checks:
        assert len(one.requests) == 1500
        assert one.requests.tenant.nunique() == 27


def test_without_data_it_says_what_to_give(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TOKENPOOLS_DATA", raising=False)
    shown = CliRunner().invoke(app, ["hardware-check"], standalone_mode=False)
    assert "set TOKENPOOLS_DATA" in str(shown.exception)
    shown = CliRunner().invoke(app, ["hardware-check", "--data", str(tmp_path)], standalone_mode=False)
    assert f"name a folder with {FOLDER}" in str(shown.exception)
