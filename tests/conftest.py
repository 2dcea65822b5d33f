"""What every test run begins with."""

from __future__ import annotations

import gc
import signal
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# How long an example takes is the machine's affair.
_PATIENT: dict[str, Any] = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("fixed", derandomize=True, **_PATIENT)
hypothesis.settings.register_profile("explore", print_blob=True, **_PATIENT)
hypothesis.settings.load_profile("fixed")
# The same in every run, or whoever changes a comment pays for a fault that is older: `make explore` draws others.

gc.disable()  # imports make many objects and no garbage: `pytest_collection_finish` turns it on again

HERE = Path(__file__).parent
ON_THE_WALL_CLOCK = {"adapters", "deploy", "experiments", "live"}
"""Rooms whose tests talk to processes and sockets. A machine that stops for seconds can make one of them miss a
time-out, so each gets one second try, which the summary shows as ``rerun``; a test of any other room never does."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background by a shell: programs that the tests start would inherit it and never hear Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--examples-times", type=int, default=1, help="draw so many times as many examples of a property")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    times = config.getoption("--examples-times")
    for item in items:
        if times != 1 and isinstance(item, pytest.Function) and hypothesis.is_hypothesis_test(item.function):
            # Hypothesis has no option for it, and what a test asks for itself goes before its profile.
            asked = item.function._hypothesis_internal_use_settings  # type: ignore[attr-defined]
            item.function._hypothesis_internal_use_settings = hypothesis.settings(  # type: ignore[attr-defined]
                asked, max_examples=asked.max_examples * times
            )
        if item.path.is_relative_to(HERE) and item.path.relative_to(HERE).parts[0] in ON_THE_WALL_CLOCK:
            item.add_marker(pytest.mark.flaky(reruns=1))
        if item.get_closest_marker("xdist_group") is None and _shares(item):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


def _shares(item: pytest.Item) -> bool:
    """Return whether a test has a fixture of its whole module, of which two workers would make one each."""
    info = getattr(item, "_fixtureinfo", None)
    used = info.name2fixturedefs.values() if info is not None else ()
    # What has no place in the tree is pytest's own or a plug-in's, and costs nothing.
    return any(one.scope != "function" and one.baseid for several in used for one in several)


def pytest_collection_finish() -> None:
    """Leave to itself what was imported.

    All test modules and their libraries are in memory from here on, and a look at them all takes the collector a second
    of CPU. Each gateway has it look before it begins, and so do tests of what is dropped.
    """
    gc.collect()
    gc.freeze()
    gc.enable()
