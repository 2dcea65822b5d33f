"""From the description of a workload to its requests."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from workloads.arrivals import Arrivals
from workloads.clients import Client, Drop
from workloads.lengths import LengthLaw
from workloads.requests import Demand, Ints
from workloads.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSpec:
    """One stream of requests of one entitlement.

    Attributes
    ----------
    name : unique in a scenario; the random streams are named after it.
    prompt_tokens, output_tokens : laws; None where a trace supplies the lengths. A law beside a trace replaces its.
    max_output_tokens : what the client asks for. None: exactly the true output length, as a benchmark client with a
        fixed length does. A law: drawn, and the output is cut off there.
    ask_max_tokens : False where the client names no max_tokens and leaves it to the gateway's default.
    priority : the engine's priority, lower first.
    from_s, until_s : the workload's window in the run, [from_s, until_s), seconds.
    requests : stop after this many; None: no such limit.
    """

    name: str
    entitlement: str
    arrivals: Arrivals | Trace
    prompt_tokens: LengthLaw | None = None
    output_tokens: LengthLaw | None = None
    max_output_tokens: LengthLaw | None = None
    ask_max_tokens: bool = True
    priority: int = 0
    from_s: float = 0.0
    until_s: float = math.inf
    requests: int | None = None
    client: Client = field(default_factory=Drop)

    def __post_init__(self) -> None:
        if not isinstance(self.arrivals, Trace):
            for name, law in (("prompt_tokens", self.prompt_tokens), ("output_tokens", self.output_tokens)):
                if law is None:
                    raise ValueError(f"{name} is missing; give a number of tokens or a law (only a trace has lengths)")
        if not self.ask_max_tokens and self.max_output_tokens is not None:
            raise ValueError("max_output_tokens is given although ask_max_tokens is false; remove one of them")
        if not 0 <= self.from_s < self.until_s:
            raise ValueError(
                f"from_s {self.from_s:g} and until_s {self.until_s:g} leave no time; give 0 <= from_s < until_s"
            )
        if self.requests is not None and self.requests < 0:
            raise ValueError(f"requests is {self.requests}; give a number of requests, e.g. 1000")


def generate(
    spec: WorkloadSpec, stream: Callable[[str], np.random.Generator], horizon_s: float, data_folder: Path | None
) -> Demand:
    """Return the requests of a workload up to the horizon.

    ``stream`` makes a generator from a name. Arrivals, prompts, outputs and limits have a stream each, so changing one
    law never moves another's draws, and a longer horizon only adds requests.

    Parameters
    ----------
    spec : the workload.
    stream : as `sim.seeds.stream` with seed and replication filled in.
    horizon_s : end of the run, seconds.
    data_folder : where the names of `workloads.trace.TRACES` are looked up; None if there is no such folder.

    Raises
    ------
    TraceError
        If a trace is missing or has a bad row.
    ValueError
        If the workload has more than `workloads.arrivals.MAX_ARRIVALS` requests.
    """
    until_s = min(spec.until_s, horizon_s)
    arrivals_rng = stream(f"{spec.name}/arrivals")
    prompt: Ints | None = None
    output: Ints | None = None
    if isinstance(spec.arrivals, Trace):
        trace = spec.arrivals
        cut = trace.read(data_folder, max(0.0, until_s - spec.from_s))
        replayed = trace.replay(cut, arrivals_rng, spec.from_s, until_s, spec.requests, stream(trace.stream_name))
        arrival_s, prompt, output = replayed.arrival_s, replayed.prompt_tokens, replayed.output_tokens
    else:
        arrival_s = spec.arrivals.times_s(arrivals_rng, spec.from_s, until_s, spec.requests)
    count = len(arrival_s)
    if spec.prompt_tokens is not None:
        prompt = spec.prompt_tokens.draw(stream(f"{spec.name}/prompt"), count)
    if spec.output_tokens is not None:
        output = spec.output_tokens.draw(stream(f"{spec.name}/output"), count)
    assert prompt is not None  # as WorkloadSpec has checked
    assert output is not None
    limit = output
    if not spec.ask_max_tokens:
        limit = np.zeros(count, dtype=np.int64)
    elif spec.max_output_tokens is not None:
        limit = spec.max_output_tokens.draw(stream(f"{spec.name}/max_output"), count)
        output = np.minimum(output, limit)
    return Demand(arrival_s, prompt, output, limit)
