"""A demand in units that are sold: counted by hand on a demand without chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from sim.cli import app
from sim.errors import InputError, TokenpoolsError
from sim.studies.sold_units import (
    Minutes,
    gpu_words,
    minutes_of,
    price_table,
    reservation_words,
    shipped_text,
    sold_words,
)

TREE: dict[str, Any] = {
    "version": 1, "seed": 1, "horizon_s": 130,
    "pool": {
        "profile": "h100-llama-3.1-8b", "replicas": 2,
        "entitlements": [
            {"name": "chat", "service_class": "elastic", "ttft_slo_s": 1.0}, {"name": "batch", "service_class": "spot"},
        ],
    },
    "workload": [
        {"entitlement": "chat", "arrivals": {"kind": "even", "rate_per_s": 1}, "prompt_tokens": 100,
         "output_tokens": 50},
        {"entitlement": "batch", "arrivals": {"kind": "even", "rate_per_s": 2}, "prompt_tokens": 200,
         "output_tokens": 10},
    ],
}  # fmt: skip


def test_minutes_are_counted_by_arrival_and_whole_ones_only() -> None:
    found = minutes_of(TREE, draws=3)
    assert found.prompt["chat"].tolist() == pytest.approx([6000] * 6, abs=100)
    assert found.load(4.0).tolist() == pytest.approx([60 * (100 + 200) + 120 * (200 + 40)] * 6, rel=0.02)
    with pytest.raises(InputError, match="shorter than a minute"):
        minutes_of(TREE | {"horizon_s": 59})


def test_units_are_bought_in_steps_and_overflow_where_minutes_exceed_them() -> None:
    unit = price_table().unit("azure-ptu/gpt-4.1")
    assert [unit.sold(units) for units in (0.1, 15, 15.1, 20, 20.1)] == [15, 15, 20, 20, 25]
    # 3,000 tokens a minute each: 9 minutes of 45,000 take 15 PTU, one of 120,000 takes 40.
    minutes = Minutes({"a": np.array([45_000.0] * 9 + [120_000.0])}, {"a": np.zeros(10)})
    lines = sold_words(minutes, unit)
    assert "15 PTU, 30.00 USD an hour; overflow in 10.0% of minutes, 14.3% of the tokens" in lines[0]
    assert "40 PTU, 80.00 USD an hour; overflow in 0.0% of minutes" in lines[-1]


def test_what_the_table_does_not_know_is_said_and_not_made_up(tmp_path: Path) -> None:
    table, minutes = price_table(), minutes_of(TREE, draws=1)
    with pytest.raises(InputError, match="no such model") as found:
        table.unit("azure-ptu/gpt-41")
    assert "did you mean azure-ptu/gpt-4.1" in str(found.value)
    with pytest.raises(InputError, match="no output_weight"):
        sold_words(minutes, table.unit("azure-ptu/gpt-4o"))
    assert "is not published" in sold_words(minutes, table.unit("bedrock/claude-4"))[0]
    assert "price not in the table" in sold_words(minutes, table.unit("google-gsu/gemini-2.5-pro"))[0]
    assert "no price in the table" in gpu_words(table, 2, 1)
    assert gpu_words(table, 1, 1).startswith("GPUs: 1 GPU-hour an hour (1 replica of 1 GPU), ")
    mine = tmp_path / "prices.yaml"
    mine.write_text(shipped_text().replace("usd_per_gpu_hour: null", "usd_per_gpu_hour: 2.5"))
    assert gpu_words(price_table(mine), 2, 4) == "GPUs: 8 GPU-hours an hour (2 replicas of 4 GPUs), 20.00 USD an hour"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("version: 1\nlooked_up: 2026-11-28\nunits: [{vendor: a, model: b, unit: u}]\n", "tokens_per_min"),
        ("version: 1\nlooked_up: 2026-11-28\n"
         "units: [{vendor: a, model: b, unit: u, tokens_per_min: -1, output_weight: 1}]\n", "tokens_per_min"),
        ("version: 2\nlooked_up: 2026-11-28\n", "version"),
        ("- a\n", "mapping"),
    ],
)  # fmt: skip
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(TokenpoolsError, match=problem):
        price_table(path)


def test_every_row_has_its_source_and_the_day() -> None:
    table, text = price_table(), shipped_text()
    assert table.looked_up == "2026-11-28"
    assert len(table.units) >= 15
    assert all(word in text for word in ("azure-ai-docs", "unofficial mirrors", "quotas-token-burndown"))


def test_reservations_fit_and_the_rest_is_free_until_it_would_take_them() -> None:
    minutes = Minutes(
        {"a": np.full(10, 300.0), "b": np.full(10, 200.0), "rest": np.full(10, 500.0)},
        {name: np.zeros(10) for name in ("a", "b", "rest")},
    )
    (line,) = reservation_words(minutes, ["a", "b"])
    assert "capacity 1,000 tokens a minute" in line
    assert "enforced from 50% of it, reserved: a 30%, b 20%" in line


def test_the_command_says_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(yaml.safe_dump(TREE | {"policies": ["none"]}))
    done = CliRunner().invoke(app, ["units", "s.yaml", "--sold", "azure-ptu/gpt-4.1"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "2 GPU-hours an hour" in done.output
    assert "PTU" in done.output
    assert "DataRobot quota" in done.output
    done = CliRunner().invoke(app, ["units", "--list"], catch_exceptions=False)
    assert yaml.safe_load(done.output)["version"] == 1
    done = CliRunner().invoke(app, ["units", "--list", "--prices", "none.yaml"])
    assert str(done.exception).startswith("none.yaml: ")
    done = CliRunner().invoke(app, ["units", "s.yaml", "--sold", "azure-ptu/gpt-9"])
    assert "has no such model" in str(done.exception)
