from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sim.analysis.own_limit import own_limit_losses
from sim.experiments.own_limit import foreseen_losses, lost_share
from sim.experiments.run import run_scenario
from sim.scenario.load import Scenario, parse_scenario

PAGE = Path(__file__).parents[2] / "docs/which-class.md"
POOL = {"entitlements": [
    {"name": "chat", "service_class": "guaranteed"}, {"name": "batch", "service_class": "spot"},
]}  # fmt: skip


def requests(*rows: tuple[str, float, str, str | None]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["entitlement", "arrival_s", "outcome", "reason"])
    return frame.assign(first_arrival_s=frame["arrival_s"], final=True)


def timeline(in_flight: list[float], slots: float = 10.0) -> pd.DataFrame:
    rows = [
        ("pool", "pool", metric, float(t_s), value)
        for t_s, one in enumerate(in_flight)
        for metric, value in (("in_flight", one), ("capacity_slots", slots))
    ]
    return pd.DataFrame(rows, columns=["scope", "name", "metric", "t_s", "value"])


def test_what_is_lost_is_what_the_own_limit_refused_while_slots_were_free() -> None:
    rows = requests(
        ("chat", 0.5, "refused", "concurrency"),  # 4 of 10 in flight
        ("chat", 1.5, "refused", "concurrency"),  # 8 of 10
        ("chat", 2.5, "refused", "tokens"),  # 10 of 10: the pool is full, so it was no loss
        ("chat", 0.6, "refused", "low_priority"),  # not its limit
        ("chat", 0.7, "finished", None),
        ("batch", 0.5, "refused", "concurrency"),  # spot: a burst beyond its limit was never promised
    )
    (loss,) = own_limit_losses(rows, timeline([4, 8, 10]), POOL)
    assert (loss.entitlement, loss.refused, loss.offered) == ("chat", 2, 5)
    assert loss.idle == pytest.approx((0.6 + 0.2) / 2)
    assert str(loss).startswith("chat lost 40.0% of its requests (2 of 5) to its own limit while 40% of the slots")
    assert own_limit_losses(rows, timeline([10, 10, 10]), POOL) == []
    assert own_limit_losses(rows[rows["entitlement"] == "batch"], timeline([1]), POOL) == []
    assert own_limit_losses(rows, timeline([4, 8, 10]), POOL, warmup_s=1.0)[0].refused == 1


def test_the_loss_system_is_erlangs() -> None:
    rng = np.random.default_rng(1)
    n, erlangs, slots = 200_000, 5.2, 6
    arrivals = np.cumsum(rng.exponential(1.0, n))
    held = list(zip(arrivals.tolist(), rng.gamma(0.5, 2 * erlangs, n).tolist(), strict=True))
    terms = [erlangs**k / math.factorial(k) for k in range(slots + 1)]
    assert lost_share(held, slots) == pytest.approx(terms[-1] / sum(terms), rel=0.03)  # insensitive to the law


def scenario(**change: Any) -> Scenario:
    chat = {"name": "chat", "service_class": "guaranteed", "ttft_slo_s": 1.2, "baseline": {"slots": 6}}
    return parse_scenario(
        {
            "version": 1, "seed": 7, "horizon_s": 900, "policies": ["token-pool"],
            "pool": {"profile": "dgx-spark-qwen3-8b-nvfp4", "replicas": 1, "entitlements": [{**chat, **change}]},
            "workload": [{"entitlement": "chat", "arrivals": {"kind": "poisson", "rate_per_s": 0.6},
                          "prompt_tokens": 64, "output_tokens": 64}],
        },
        "s.yaml",
    )  # fmt: skip


def test_what_is_foreseen_is_what_a_run_loses() -> None:
    (loss,) = foreseen_losses(scenario())
    run = run_scenario(scenario())
    assert run.summary[0]["refused"] / run.summary[0]["offered"] == pytest.approx(loss.lost, abs=0.04)
    assert loss.lost > 0.1
    enough = scenario(baseline={"slots": loss.enough_slots})
    assert foreseen_losses(enough) == []
    one_less = scenario(baseline={"slots": loss.enough_slots - 1})
    assert foreseen_losses(one_less)[0].lost >= 0.01
    found = own_limit_losses(run.requests.to_pandas(), run.timeline.to_pandas(), POOL)
    assert found[0].refused == run.summary[0]["refused"]


def test_nothing_is_foreseen_where_nothing_binds() -> None:
    assert foreseen_losses(scenario(service_class="elastic")) == []
    assert foreseen_losses(scenario(baseline={"tokens_per_s": 100.0})) == []
    assert foreseen_losses(scenario().model_copy(update={"policies": ()})) == []


def test_the_table_of_the_page_is_erlangs() -> None:
    rows = re.findall(r"^\| ([\d.]+) \| (\d+) \| ([\d.]+) % \|$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) == 6
    for mean, slots, refused in rows:
        terms = [float(mean) ** k / math.factorial(k) for k in range(int(slots) + 1)]
        assert 100 * terms[-1] / sum(terms) == pytest.approx(float(refused), abs=0.5 if float(refused) > 2 else 0.06)
