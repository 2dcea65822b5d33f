"""What every test run begins with."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ON_THE_WALL_CLOCK = {"adapters", "deploy", "experiments", "live"}
"""Rooms whose tests talk to processes and sockets. A machine that stops for seconds can make one of them miss a
time-out, so each gets one second try, which the summary shows as ``rerun``; a test of any other room never does."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background by a shell: programs that the tests start would inherit it and never hear Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE) and item.path.relative_to(HERE).parts[0] in ON_THE_WALL_CLOCK:
            item.add_marker(pytest.mark.flaky(reruns=1))
