"""What a guaranteed entitlement's own limit will refuse, foreseen from its demand before anything runs.

Its slots are a loss system: a request that finds all of them taken is turned away. With Poisson arrivals the share lost
is Erlang's B, whatever the law of the service times; here the demand itself is played through the slots, so that bursts
and phases count as they are.

References
----------
A. K. Erlang, "Solution of some problems in the theory of probabilities of significance in automatic telephone
exchanges", 1917.
"""

from __future__ import annotations

import heapq
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from policies.api import ServiceClass
from sim.engine.step_table import ExtrapolationWarning
from sim.experiments.demands import demands
from sim.scenario.load import Scenario
from sim.scenario.profile import Profile
from workloads.requests import Demand

LEAST = 0.01
"""The share foreseen to be lost from which somebody is told."""

_LOOKED_AT = 20_000  # requests of a demand: enough for a share, and a second even of a trace of millions


@dataclass(frozen=True, slots=True)
class ForeseenLoss:
    """What one guaranteed entitlement is foreseen to lose to its own limit of slots.

    Attributes
    ----------
    slots : its baseline.
    wanted_slots : what its requests occupy on average, if all are let in.
    lost : the share of its requests that find every slot taken.
    enough_slots : the fewest with which less than `LEAST` is lost.
    """

    entitlement: str
    slots: int
    wanted_slots: float
    lost: float
    enough_slots: int

    def __str__(self) -> str:
        """Return it as a sentence, with the remedy."""
        return (
            f"{self.entitlement} is guaranteed {self.slots} slots and never has more, even in an idle pool; its demand "
            f"takes {self.wanted_slots:.1f} on average, so that about {self.lost:.0%} of its requests find them taken. "
            f"{self.enough_slots} slots would do, or make it elastic (docs/which-class.md)."
        )


def foreseen_losses(scenario: Scenario) -> list[ForeseenLoss]:
    """Return what guaranteed entitlements of a scenario with token pools lose to their own limits, the greatest first.

    Service times are those of requests in full batches. Retries and what follows a request are left out.
    """
    if not any(getattr(policy.params, "kind", "") == "token-pool" for policy in scenario.policies):
        return []
    profile, drawn = scenario.pool.profile, demands(scenario, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)  # a foreboding, not a measurement
        found = _found(scenario, profile, drawn)
    return sorted(found, key=lambda loss: -loss.lost)


def _found(scenario: Scenario, profile: Profile, drawn: Sequence[Demand]) -> list[ForeseenLoss]:
    found = []
    for entitlement in scenario.pool.entitlements:
        slots = entitlement.baseline.resources().slots
        if entitlement.service_class not in (ServiceClass.GUARANTEED, ServiceClass.DEDICATED) or slots is None:
            continue
        mine = [one for spec, one in zip(scenario.workload, drawn, strict=True) if spec.entitlement == entitlement.name]
        held = sorted(hold for one in mine for hold in holding_times(profile, one))[:_LOOKED_AT]
        if held and lost_share(held, math.floor(slots)) >= LEAST:
            found.append(_foreseen(entitlement.name, math.floor(slots), held))
    return found


def _foreseen(name: str, slots: int, held: list[tuple[float, float]]) -> ForeseenLoss:
    span_s = max(held[-1][0] - held[0][0], max(hold for _, hold in held))
    wanted = sum(hold for _, hold in held) / span_s
    few, enough = slots, max(2 * slots, math.ceil(2 * wanted), 1)
    while lost_share(held, enough) >= LEAST:
        few, enough = enough, 2 * enough
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (middle, enough) if lost_share(held, middle) >= LEAST else (few, middle)
    return ForeseenLoss(name, slots, wanted, lost_share(held, slots), enough)


def lost_share(held: list[tuple[float, float]], slots: int) -> float:
    """Return the share of (arrival, holding time), in seconds and in order, that find all slots taken."""
    ends: list[float] = []
    lost = 0
    for arrival_s, hold_s in held:
        while ends and ends[0] <= arrival_s:
            heapq.heappop(ends)
        if len(ends) >= slots:
            lost += 1
        else:
            heapq.heappush(ends, arrival_s + hold_s)
    return lost / len(held)


def holding_times(profile: Profile, demand: Demand) -> list[tuple[float, float]]:
    """Return arrival and holding time of each request, in a batch as full as the replica takes."""
    step, batch = profile.step_time, profile.max_num_seqs
    holds = []
    columns = (demand.arrival_s, demand.prompt_tokens, demand.output_tokens)
    for arrival_s, prompt, output in zip(*(column[:_LOOKED_AT] for column in columns), strict=True):
        tokens, answers = int(prompt), int(output)
        context = min(batch * (tokens + answers / 2), profile.kv_blocks * profile.block_tokens)
        chunk = min(tokens, profile.max_num_batched_tokens - batch + 1)
        chunks = math.ceil(tokens / chunk)
        prefill_s = chunks * step.iteration_s(chunk, tokens * (tokens + 1) / 2 / chunks, batch - 1, context)
        holds.append((float(arrival_s), prefill_s + (answers - 1) * step.iteration_s(0, 0.0, batch, context)))
    return holds
