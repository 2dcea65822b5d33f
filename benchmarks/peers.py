"""Other simulators on the same load, each in a process of its own, where they are installed.

NVIDIA Dynamo's offline replay is in the package ai-dynamo-runtime, which wants an environment of its own; any other
(BLIS) is a command with {requests}, {rate_per_s}, {replicas}, {prompt_tokens} and {output_tokens} in it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass

import simpy

EVENTS = 200_000
DYNAMO = """
from dynamo._core import run_mocker_synthetic_trace_replay as replay
replay({prompt_tokens}, {output_tokens}, {requests}, num_workers={replicas}, request_rate={rate_per_s},
       replay_mode="offline", capture_planner_details=False)
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of every simulator: means of lengths, and requests a second over all replicas."""

    requests: int
    rate_per_s: float
    replicas: int
    prompt_tokens: int
    output_tokens: int

    def filled(self, text: str) -> str:
        """Return a text with these values in its places."""
        return text.format(**{name: getattr(self, name) for name in self.__slots__})


def bare_events_per_cpu_s() -> float:
    """Return how many events of one SimPy process that only waits this machine does in a CPU-second, now."""
    env = simpy.Environment()

    def ticks():  # type: ignore[no-untyped-def]
        while True:
            yield env.timeout(1)

    env.process(ticks())
    began_s = time.process_time()
    env.run(until=EVENTS)
    return EVENTS / (time.process_time() - began_s)


def spent(command: list[str]) -> tuple[float, float]:
    """Run a command; return its CPU-seconds and its memory at most, in GB.

    Bytecode is kept, as where users run it: else every start compiles what it imports, half a second.
    """
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    surroundings["PYTHONSAFEPATH"] = "1"  # the form that is asked for, not that of the checkout where this runs
    process = subprocess.Popen(command, env=surroundings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{shlex.join(command)[:300]} failed; run it by hand to see why")
    unit = 1024 if sys.platform != "darwin" else 1
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e9


def commands(dynamo: str | None, others: list[str], load: Load) -> dict[str, list[str]]:
    """Return the command of each peer on a load; ``dynamo`` is a Python that has it, an other is NAME=COMMAND."""
    found = {"Dynamo replay": [dynamo, "-c", load.filled(DYNAMO)]} if dynamo else {}
    for other in others:
        name, _, command = other.partition("=")
        found[name] = shlex.split(load.filled(command))
    return found

