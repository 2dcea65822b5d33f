"""Servers that a measurement in real time begins, waits for and ends, and the priorities that it needs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

STOPS_S = 30.0


@contextlib.contextmanager
def serving(
    command: Sequence[str], log: Path, environment: dict[str, str], health: str, *, starts_s: float,
    folder: Path | None = None,
) -> Iterator[None]:
    """Run a server in ``folder`` until it is no longer needed; it is ready when ``health`` answers 200.

    Raises
    ------
    SystemExit : it is not ready after ``starts_s``, or has ended before.
    """
    with log.open("w") as file:
        server = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment}, cwd=folder,
            start_new_session=True, preexec_fn=first,
        )  # fmt: skip
        try:
            deadline_s = time.monotonic() + starts_s
            while not answers(health):
                if server.poll() is not None or time.monotonic() > deadline_s:
                    raise SystemExit(f"error: {command[0]} did not start; see {log}:\n{_tail(log)}")
                time.sleep(0.2)
            yield
        finally:
            if server.poll() is None:
                server.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.wait(STOPS_S)
            with contextlib.suppress(ProcessLookupError):  # vLLM's engine, where its server left it behind
                os.killpg(server.pid, signal.SIGKILL)
            server.wait(STOPS_S)


def until(says: Callable[[], object], what: str, within_s: float) -> None:
    """Wait until something is so.

    Raises
    ------
    SystemExit : it is not, after ``within_s``.
    """
    deadline_s = time.monotonic() + within_s
    while not says():
        if time.monotonic() > deadline_s:
            raise SystemExit(f"error: {what}: not after {within_s:g} s")
        time.sleep(0.2)


def first() -> None:
    """Let a process go before what else this machine does, where that is allowed: all of it is measured in time."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
        Path("/proc/self/autogroup").write_text("-10", encoding="utf-8")


def at_once() -> None:
    """Let a process run as soon as it is due, where that is allowed: one that sends requests has little else to do."""
    first()
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def answers(url: str) -> bool:
    """Return whether a server answers with 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]
