"""Settings of a scenario that are given and change nothing in any of its runs, said before they run.

What contradicts its neighbour is an error (see the models). Here is what may be meant for another variant: a field that
only one kind of scheduler reads, beside several schedulers that a sweep goes through, is no mistake. One that none of a
scenario's runs reads is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from sim.scenario.model import Scenario
from sim.scenario.pool import Pool
from sim.scenario.profile import Profile


class _Rule(NamedTuple):
    """A field, whether it was given, whether a run reads it, and what would make it do so."""

    path: str
    is_given: Callable[[Scenario], bool]
    is_read: Callable[[Scenario], bool]
    otherwise: str


def idle_fields(runs: Sequence[Scenario]) -> list[str]:
    """Return a sentence for each field that is given and that none of the runs reads; each has one policy."""
    return [
        f"{rule.path} is given and changes nothing: {rule.otherwise}"
        for rule in _RULES
        if any(map(rule.is_given, runs)) and not any(rule.is_given(run) and rule.is_read(run) for run in runs)
    ]


def _other(model: type, name: str, at: Callable[[Scenario], Any]) -> Callable[[Scenario], bool]:
    default = model.model_fields[name].default  # type: ignore[attr-defined]
    return lambda run: getattr(at(run), name) != default


def _profile(run: Scenario) -> Profile:
    return run.pool.profile


def _pool(run: Scenario) -> Pool:
    return run.pool


def _scheduled(*kinds: str) -> Callable[[Scenario], bool]:
    return lambda run: run.pool.profile.scheduling in kinds


def _policies(run: Scenario) -> Iterable[Any]:
    return (one.params for one in (*run.policies, *run.shadow))


def _demotes(run: Scenario) -> bool:
    return any(
        getattr(one, "over", "") == "demote" or getattr(one, "infeasible", "") == "relegate" for one in _policies(run)
    )


def _fills_bands(params: Any) -> bool:
    return bool(params.kind == "bands" and params.occupancy != 1.0)


def _scales(run: Scenario) -> bool:
    return any(run.autoscaler_of(one).kind != "none" for one in run.policies)


def _is_hit(run: Scenario) -> bool:
    return bool(run.events)


_RULES = (
    _Rule(
        "pool.profile.tpot_slo_s", _other(Profile, "tpot_slo_s", _profile), _scheduled("fair-batching"),
        "only scheduling: fair-batching goes by it",
    ),
    _Rule(
        "pool.profile.operator_s", _other(Profile, "operator_s", _profile), _scheduled("flow-prefill"),
        "only scheduling: flow-prefill interrupts operators",
    ),
    _Rule(
        "pool.profile.data_parallel_score", _other(Profile, "data_parallel_score", _profile),
        lambda run: run.pool.profile.data_parallel > 1, "there is one rank (data_parallel: 1)",
    ),
    _Rule(
        "workload.priority", lambda run: any(one.priority for one in run.workload), _scheduled("priority"),
        "the engines are not told to go by it (pool.profile.scheduling: priority)",
    ),
    _Rule(
        "over: demote, or infeasible: relegate,", _demotes, _scheduled("priority"),
        "the engines do not go by priorities (pool.profile.scheduling: priority)",
    ),
    _Rule(
        "occupancy of bands", lambda run: any(_fills_bands(one) for one in _policies(run)), lambda _: False,
        "saturation decides how much is let in (max_ceiling)",
    ),
    _Rule(
        "pool.start_up_s", _other(Pool, "start_up_s", _pool), _scales, "nothing scales the pool (pool.autoscaler)",
    ),
    _Rule("pool.drain_s", _other(Pool, "drain_s", _pool), _scales, "nothing scales the pool (pool.autoscaler)"),
    _Rule(
        "pool.on_failure", _other(Pool, "on_failure", _pool), lambda run: _is_hit(run) or _scales(run),
        "no replica is lost (events)",
    ),
)  # fmt: skip
