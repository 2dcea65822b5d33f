"""From the description of a workload to its requests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from workloads.arrivals import Arrivals
from workloads.clients import Adversarial, Client, Drop
from workloads.coupling import coupled
from workloads.lengths import LengthLaw
from workloads.requests import Demand, Ints, Lengths, Replayed, Streams


@runtime_checkable
class Recorded(Protocol):
    """Arrivals that bring their lengths with them."""

    def requests(
        self, stream: Streams, name: str, folder: Path | None, from_s: float, until_s: float, limit: int | None
    ) -> Replayed:
        """Return the requests of workload ``name`` in [from_s, until_s), at most ``limit`` of them.

        ``folder`` is where named data lie; None if there is no such folder.

        Raises
        ------
        TraceError
            If the recording is missing or has a bad row.
        """
        ...


@runtime_checkable
class Interactive(Protocol):
    """Arrivals some of which wait for the answers to others."""

    def demand(
        self, lengths: Lengths, stream: Streams, name: str, from_s: float, until_s: float, limit: int | None
    ) -> Demand:
        """Return the first requests of workload ``name`` in [from_s, until_s), and the plan of what follows them.

        Parameters
        ----------
        lengths : draws lengths: the number wanted and a suffix for the names of the streams in, prompts, outputs and
            max_output_tokens out.
        limit : as the class describes it.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSpec:
    """One stream of requests of one entitlement.

    Attributes
    ----------
    name : unique in a scenario; the random streams are named after it.
    prompt_tokens, output_tokens : laws; None where a trace supplies the lengths. A law beside a trace replaces its.
    max_output_tokens : what the client asks for. None: what a trace says of it, else exactly the true output length, as
        a benchmark client with a fixed length does. A law: drawn. The output is cut off there.
    length_correlation : rank correlation of prompts and outputs that both come from laws; 0: independent.
    ask_max_tokens : False where the client names no max_tokens and leaves it to the gateway's default.
    priority : the engine's priority, lower first.
    from_s, until_s : the workload's window in the run, [from_s, until_s), seconds.
    requests : stop after this many; None: no such limit.
    key, model : what its requests are sent with and ask for, which limits and prices go by.
    """

    name: str
    entitlement: str
    arrivals: Arrivals | Recorded | Interactive
    prompt_tokens: LengthLaw | None = None
    output_tokens: LengthLaw | None = None
    max_output_tokens: LengthLaw | None = None
    length_correlation: float = 0.0
    ask_max_tokens: bool = True
    priority: int = 0
    from_s: float = 0.0
    until_s: float = math.inf
    requests: int | None = None
    client: Client = field(default_factory=Drop)
    key: str | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.arrivals, Recorded):
            for name, law in (("prompt_tokens", self.prompt_tokens), ("output_tokens", self.output_tokens)):
                if law is None:
                    raise ValueError(f"{name} is missing; give a number of tokens or a law (only a trace has lengths)")
        elif self.prompt_tokens is not None:
            for name, idle in (("prompt_factor", 1.0), ("prompt_at_most_tokens", None)):
                if getattr(self.arrivals, name, idle) != idle:
                    raise ValueError(
                        f"{name} changes a trace's prompts, and prompt_tokens replaces them; leave one of them out"
                    )
        if not -1 <= self.length_correlation <= 1:
            raise ValueError(f"length_correlation is {self.length_correlation:g}; give a rank correlation, e.g. 0.4")
        if self.length_correlation and (self.prompt_tokens is None or self.output_tokens is None):
            raise ValueError("length_correlation needs laws of both lengths; give prompt_tokens and output_tokens")
        if not self.ask_max_tokens and self.max_output_tokens is not None:
            raise ValueError("max_output_tokens is given although ask_max_tokens is false; remove one of them")
        if not 0 <= self.from_s < self.until_s:
            raise ValueError(
                f"from_s {self.from_s:g} and until_s {self.until_s:g} leave no time; give 0 <= from_s < until_s"
            )
        if isinstance(self.arrivals, Interactive) and len(keys_of(self)) > 1:
            raise ValueError("keys cannot divide requests that wait for each other; leave keys out, or the answers")
        if self.requests is not None and self.requests < 0:
            raise ValueError(f"requests is {self.requests}; give a number of requests, e.g. 1000")


def generate(spec: WorkloadSpec, stream: Streams, horizon_s: float, data_folder: Path | None) -> Demand:
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
    lengths = partial(_lengths, spec, stream)
    arrivals = spec.arrivals
    if isinstance(arrivals, Interactive):
        return arrivals.demand(lengths, stream, spec.name, spec.from_s, until_s, spec.requests)
    if isinstance(arrivals, Recorded):
        found = arrivals.requests(stream, spec.name, data_folder, spec.from_s, until_s, spec.requests)
        prompt, output, asked = lengths(len(found.arrival_s), recorded=found)
        prefixes = found.prefixes if spec.prompt_tokens is None else None  # a law's prompts are not the trace's
        return Demand(
            found.arrival_s, prompt, output, asked, prefixes=prefixes, failed=found.failed, raised=found.raised,
            unanswered=found.unanswered,
        )  # fmt: skip
    arrival_s = arrivals.times_s(stream(f"{spec.name}/arrivals"), spec.from_s, until_s, spec.requests)
    return Demand(arrival_s, *lengths(len(arrival_s)))


def _lengths(
    spec: WorkloadSpec, stream: Streams, count: int, suffix: str = "", recorded: Replayed | None = None
) -> tuple[Ints, Ints, Ints]:
    """Return prompts, outputs and what the client asks for."""
    of_prompt, of_output = stream(f"{spec.name}/prompt{suffix}"), stream(f"{spec.name}/output{suffix}")
    prompt = None if recorded is None else recorded.prompt_tokens
    output = None if recorded is None else recorded.output_tokens
    if spec.length_correlation and spec.prompt_tokens is not None and spec.output_tokens is not None:
        u, v = coupled(of_prompt, of_output, count, spec.length_correlation)
        prompt, output = spec.prompt_tokens.from_uniform(u), spec.output_tokens.from_uniform(v)
    else:
        prompt = prompt if spec.prompt_tokens is None else spec.prompt_tokens.draw(of_prompt, count)
        output = output if spec.output_tokens is None else spec.output_tokens.draw(of_output, count)
    assert prompt is not None  # as WorkloadSpec has checked
    assert output is not None
    limit = output
    if not spec.ask_max_tokens:
        limit = np.zeros(count, dtype=np.int64)
    elif spec.max_output_tokens is not None:
        limit = spec.max_output_tokens.draw(stream(f"{spec.name}/max_output{suffix}"), count)
        output = np.minimum(output, limit)
    elif recorded is not None and recorded.max_output_tokens is not None and spec.output_tokens is None:
        limit = recorded.max_output_tokens
        output = np.where(limit > 0, np.minimum(output, limit), output)
    if isinstance(spec.client, Adversarial):
        limit = spec.client.requested_max_tokens(limit)
    return prompt, output, limit


def keys_of(spec: WorkloadSpec) -> tuple[str, ...]:
    """Return the entitlements that a workload's client uses, its own first."""
    return (spec.entitlement, *(spec.client.keys if isinstance(spec.client, Adversarial) else ()))


def split_over_keys(
    specs: Sequence[WorkloadSpec], demands: Sequence[Demand]
) -> tuple[list[WorkloadSpec], list[Demand]]:
    """Return the workloads with each that uses several keys as one for each key, which together make its requests."""
    found_specs, found_demands = list(specs), list(demands)
    for i, (spec, demand) in enumerate(zip(specs, demands, strict=True)):
        keys = keys_of(spec)
        if len(keys) == 1:
            continue
        from workloads.prefixes import every

        parts = [
            Demand(
                demand.arrival_s[k :: len(keys)],
                demand.prompt_tokens[k :: len(keys)],
                demand.output_tokens[k :: len(keys)],
                demand.max_output_tokens[k :: len(keys)],
                prefixes=every(demand.prefixes, k, len(keys), len(demand)),
            )
            for k in range(len(keys))
        ]
        found_demands[i] = parts[0]
        found_demands += parts[1:]
        found_specs += [replace(spec, name=f"{spec.name}@{key}", entitlement=key) for key in keys[1:]]
    return found_specs, found_demands
