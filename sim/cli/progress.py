"""Progress on stderr: simulated time, requests, cells or settings done, and the time left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.experiments.plan import Trial
    from sim.experiments.sweep import Count
    from sim.scenario.load import Scenario

OnProgress = Callable[[float, int], None]


def _looked_at(wanted: bool | None) -> bool:
    return sys.stderr.isatty() if wanted is None else wanted


@contextmanager
def shown(scenario: Scenario, wanted: bool | None) -> Iterator[OnProgress | None]:
    """Give a function that hears simulated seconds and requests done, and shows them; None where nobody looks."""
    with total_of([scenario], wanted) as hear:
        yield hear


@contextmanager
def total_of(scenarios: Sequence[Scenario], wanted: bool | None) -> Iterator[OnProgress | None]:
    """Do as `shown` for several scenarios that run one after the other, with one total."""
    if not _looked_at(wanted):
        yield None
        return
    from tqdm import tqdm

    from sim.scenario.load import expand

    spans = [None if one.horizon_s is None else one.horizon_s * len(expand(one)) for one in scenarios]
    total_s = None if None in spans else sum(span for span in spans if span is not None)
    with tqdm(
        total=total_s, unit="s", unit_scale=True, file=sys.stderr, leave=False, mininterval=0.2,
        bar_format="{percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} simulated s [{elapsed}<{remaining}]{postfix}"
        if total_s is not None
        else "{n:.0f} simulated s [{elapsed}]{postfix}",
    ) as bar:  # fmt: skip
        done = 0

        def hear(simulated_s: float, ended: int) -> None:
            nonlocal done
            done += ended
            bar.set_postfix_str(f"{done:,} requests", refresh=False)
            bar.update(simulated_s)

        yield hear


@contextmanager
def cells(wanted: bool | None) -> Iterator[Callable[[Count], None] | None]:
    """Give a function that shows cells done, failed and the time left; None where nobody looks."""
    if not _looked_at(wanted):
        yield None
        return
    from tqdm import tqdm

    with tqdm(unit="cell", file=sys.stderr, leave=False, mininterval=0.2) as bar:

        def hear(count: Count) -> None:
            if bar.total != count.total:
                bar.total, bar.initial = count.total, count.kept
            if count.failed:
                bar.set_postfix_str(f"{count.failed} failed", refresh=False)
            bar.update(count.finished + count.failed - bar.n)

        yield hear


@contextmanager
def trials(most: int, wanted: bool | None) -> Iterator[Callable[[Trial], None]]:
    """Give a function that hears each setting tried by a plan: a line each, and a bar where somebody looks.

    Parameters
    ----------
    most : settings that may be tried in all; a search that ends sooner leaves the bar short of it.
    """
    if not _looked_at(wanted):
        yield lambda one: print(f"{one.policy}, {one}", file=sys.stderr)  # noqa: T201
        return
    from tqdm import tqdm

    with tqdm(total=most, unit="setting", file=sys.stderr, leave=False, mininterval=0.2) as bar:

        def hear(one: Trial) -> None:
            bar.write(f"{one.policy}, {one}", file=sys.stderr)
            bar.update(1)

        yield hear
