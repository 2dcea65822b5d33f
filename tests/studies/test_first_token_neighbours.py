"""What neighbours cost is found again where it is known: arms made by a law, with rows that must play no part."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from sim.studies.first_token_neighbours import neighbours
from sim.studies.hardware_check_tenants import Arm

EDGES_MS = (-60, -30, -20, -10, -5, 0, 5, 10, 15, 20, 30, 50)
ADDS_MS = {(-20, -10): -1.5, (-5, 0): 2.5, (0, 5): 3.0, (15, 20): 0.75}
NOISE_MS = 0.3
COUNT = 2000


def arm() -> Arm:
    """Return 2,000 requests in 50 s: 20 ms each, 0.5 for each that runs, and `ADDS_MS` for each neighbour."""
    rng = np.random.default_rng(5)
    start_s = np.sort(rng.uniform(5.0, 55.0, COUNT))
    e2e_s = rng.uniform(0.05, 0.15, COUNT)
    running = np.array([((start_s[:i] + e2e_s[:i]) >= start_s[i]).sum() for i in range(len(start_s))])
    later_ms = 1e3 * (start_s[None, :] - start_s[:, None])
    np.fill_diagonal(later_ms, np.inf)
    found_ms = 20 + 0.5 * running + rng.normal(0, NOISE_MS, COUNT)
    for (low, high), adds in ADDS_MS.items():
        found_ms += adds * ((later_ms > low) & (later_ms < high)).sum(axis=1)
    exact = np.arange(COUNT) % 3 > 0
    # What is cold, and what is not a first token, is far off, and there is much of it; some others are far off too.
    found_ms[(start_s < 10) | ~exact] += 50 * rng.random(((start_s < 10) | ~exact).sum())
    found_ms[500::40] += 30
    rows = pd.DataFrame({
        "start_s": start_s, "measured_status": "ok", "status": "ok", "measured_e2e_s": e2e_s, "e2e_s": e2e_s,
        "measured_ttft_s": found_ms / 1e3, "ttft_s": 0.02, "exact": exact,
    })  # fmt: skip
    refused = rows[::7].assign(measured_status="refused", status="refused", measured_ttft_s=9.0, ttft_s=9.0)
    return Arm("made", mixed=False, requests=pd.concat([refused, rows[::-1]], ignore_index=True), flaws="")


MADE = arm()


def test_what_each_neighbour_adds_is_found_with_its_error() -> None:
    found = neighbours(MADE)
    assert [(one.from_ms, one.to_ms) for one in found] == list(pairwise(EDGES_MS))
    for one in found:
        assert abs(one.adds_ms - ADDS_MS.get((one.from_ms, one.to_ms), 0.0)) < 4 * one.standard_error_ms
    # Of the 1,170 rows that count, 40 a second make 0.8 neighbours in 20 ms, and as much variance.
    (last,) = (one for one in found if one.from_ms == 30)
    assert last.standard_error_ms == pytest.approx(NOISE_MS / np.sqrt(0.8 * 1170), rel=0.15)


def test_what_is_predicted_is_told_from_what_was_measured() -> None:
    rows = MADE.requests
    swapped = rows.assign(ttft_s=rows.measured_ttft_s, measured_ttft_s=rows.ttft_s, measured_e2e_s=9.0)
    predicted = neighbours(Arm("made", mixed=False, requests=swapped, flaws=""), predicted=True)
    assert [one.adds_ms for one in predicted] == [one.adds_ms for one in neighbours(MADE)]
