"""What a reader of a run must know about its profile: terms that it lacks, and load beyond what it was measured for.

A step time answers for any iteration, also for those that nobody measured. A profile's ``calibration.ranges`` say
what was; a run that goes beyond them by more than a quarter says so, a line for each quantity.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sim.scenario.profile import Profile

_BEYOND = 1.25  # of a range's ends: nearer than that, what was measured still says something
_WORDS = {
    "concurrency": "{:.0f} sequences decode at once on a replica",
    "prompt_tokens": "prompts have {:.0f} tokens",
    "output_tokens": "outputs have {:.0f} tokens",
    "context_tokens_each": "a sequence has {:.0f} tokens of context",
    "chunk_tokens": "an iteration may compute {:.0f} tokens",
}


def caveats(runs: Iterable[tuple[Profile, pa.Table]]) -> list[str]:
    """Return the sentences for runs, each a profile and the request table that it gave; none twice."""
    found: dict[str, None] = {}
    beyond: dict[tuple[str, str], tuple[float, float]] = {}
    for profile, table in runs:
        found.update(dict.fromkeys(profile.caveats))
        calibration = profile.calibration
        if calibration is None or not calibration.ranges:
            continue
        for name, value in _extremes(profile, table, frozenset(calibration.ranges)).items():
            least, most = calibration.ranges[name]
            if value > _BEYOND * most or (name == "chunk_tokens" and value < least / _BEYOND):
                worst = max((value, most), beyond.get((profile.name, name), (0.0, most)))
                beyond[profile.name, name] = worst if value > most else (value, least)
    for (profile_name, name), (value, limit) in beyond.items():
        end = "up to" if value > limit else "from"
        found[f"{_WORDS[name].format(value)}; profile {profile_name} was measured {end} {limit:.0f}"] = None
    return list(found)


def _extremes(profile: Profile, table: pa.Table, wanted: frozenset[str]) -> dict[str, float]:
    """Return the largest of each wanted quantity that a run had."""
    import pyarrow.compute as pc  # here, because most runs have nothing to look for

    values: dict[str, float] = {}
    if "chunk_tokens" in wanted:
        values["chunk_tokens"] = float(profile.max_num_batched_tokens)
    served = table.filter(pc.is_valid(table["first_token_s"]))
    if not served.num_rows:
        return values
    for name in wanted & {"prompt_tokens", "output_tokens"}:
        values[name] = float(pc.max(served[name]).as_py() or 0)
    if "context_tokens_each" in wanted:
        values["context_tokens_each"] = float(pc.max(pc.add(served["prompt_tokens"], served["output_tokens"])).as_py())
    if "concurrency" in wanted:
        values["concurrency"] = float(_most_at_once(served))
    return values


def _most_at_once(served: pa.Table) -> int:
    """Return the most requests that one replica was decoding at a time."""
    replica = served["replica"].fill_null(-1).to_numpy()
    begin: NDArray[np.float64] = served["first_token_s"].to_numpy()
    end = np.nan_to_num(served["finish_s"].fill_null(np.inf).to_numpy(), nan=np.inf)
    most = 0
    for one in np.unique(replica):
        mine = replica == one
        times = np.concatenate([begin[mine], end[mine]])
        steps = np.repeat([1, -1], mine.sum())
        order = np.lexsort((steps, times))  # who ends makes room before another begins
        most = max(most, int(np.cumsum(steps[order]).max()))
    return most
