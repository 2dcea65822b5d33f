"""A progress bar on stderr: simulated time, requests done, time left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sim.scenario.load import Scenario, expand


@contextmanager
def shown(scenario: Scenario, wanted: bool | None) -> Iterator[Callable[[float, int], None] | None]:
    """Give a function that hears simulated seconds and requests done, and shows them; None where nobody looks."""
    if wanted is False or (wanted is None and not sys.stderr.isatty()):
        yield None
        return
    from tqdm import tqdm

    total_s = None if scenario.horizon_s is None else scenario.horizon_s * len(expand(scenario))
    with tqdm(
        total=total_s, unit="s", unit_scale=True, file=sys.stderr, leave=False, mininterval=0.2,
        bar_format="{percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} simulated s [{elapsed}<{remaining}]{postfix}"
        if total_s is not None
        else "{n:.0f} simulated s [{elapsed}]{postfix}",
    ) as bar:
        done = 0

        def hear(simulated_s: float, ended: int) -> None:
            nonlocal done
            done += ended
            bar.set_postfix_str(f"{done:,} requests", refresh=False)
            bar.update(simulated_s)

        yield hear
