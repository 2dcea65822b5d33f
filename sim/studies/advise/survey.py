"""Every policy there is, within a budget of runs: who might serve this demand better than the best that was searched.

Policies go out by halves: one draw at the stressed demand for each, then all draws of the search for those that met
the objectives in it. Each is tried loosely and at the middle of what it may be set to. Who is left is a candidate that
`sim.studies.advise.advise` may search and check on fresh draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sim.studies.advise.model import PolicyAdvice, Setting, Terms
from sim.studies.advise.search import Say, goodput, holds, ladder, meets
from sim.studies.advise.trial import Bench


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy that held in the survey, where, and its goodput in output tokens/s at the demand as it is."""

    policy: str
    setting: Setting
    output_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Survey:
    """What it found.

    Attributes
    ----------
    candidates : who held, those with fewer replicas and more goodput first.
    failed : who did not.
    untried : who was not tried to the end, for want of runs.
    runs : how many were made.
    """

    candidates: tuple[Candidate, ...]
    failed: tuple[str, ...]
    untried: tuple[str, ...]
    runs: int


def survey(
    bench: Bench, policies: Sequence[str], best: PolicyAdvice, terms: Terms, budget_runs: int, say: Say = lambda _: None
) -> Survey:
    """Try policies with as many replicas as the best, and before that with one fewer where there may be fewer."""
    assert best.setting is not None
    begin, found = bench.runs, dict[str, Candidate]()
    fewest = max(terms.low_replicas, best.setting.replicas - 1)
    untried: dict[str, None] = {}
    for replicas in range(fewest, best.setting.replicas + 1):
        passed: list[tuple[str, Setting]] = []
        for policy in policies:
            if policy in found:
                continue
            if bench.runs - begin >= budget_runs:
                untried[policy] = None
                continue
            passed += [(policy, setting) for setting in _loosely(bench, policy, replicas) if meets(
                bench, policy, setting, terms, draws=1)][:1]  # fmt: skip
        for policy, setting in passed:
            if bench.runs - begin >= budget_runs:
                untried[policy] = None
            elif holds(bench, policy, setting, terms):
                found[policy] = Candidate(policy, setting, goodput(bench, policy, setting, terms))
                say(f"survey: {policy}: {setting}: holds in the search's draws")
    ordered = sorted(found.values(), key=lambda one: (one.setting.replicas, -one.output_tokens_per_s, one.policy))
    failed = tuple(one for one in policies if one not in found and one not in untried)
    left = tuple(one for one in untried if one not in found)
    return Survey(tuple(ordered), failed, left, bench.runs - begin)


def _loosely(bench: Bench, policy: str, replicas: int) -> Iterator[Setting]:
    """Yield the loosest setting of a policy and the middle one."""
    steps = ladder(bench, policy, replicas)
    yield from steps[:1]
    if len(steps) > 2:
        yield steps[len(steps) // 2]
