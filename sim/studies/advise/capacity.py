"""What a replica can do with a demand, from its step time: work, limits, and what nothing can serve."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sim.engine.step_table import ExtrapolationWarning
from sim.scenario.load import Scenario
from sim.scenario.profile import Profile
from workloads.requests import Demand


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How much of a pool a demand takes on average, each as a share of what there is.

    ``prefill`` and ``decode`` are shares of the engines' time, which they divide; ``slots`` and ``kv`` are what the
    requests hold, in batches as full as these shares.
    """

    prefill: float
    decode: float
    slots: float
    kv: float

    @property
    def binds(self) -> str:
        """What runs out first."""
        compute = self.prefill + self.decode
        found = {"slots": self.slots, "kv": self.kv, "prefill" if self.prefill >= self.decode else "decode": compute}
        return max(found, key=lambda name: found[name])


def tokens_per_s(profile: Profile, prompt_tokens: float, output_tokens: float) -> float:
    """Return the prompt and output tokens per second of one replica in full batches of such requests."""
    held = prompt_tokens + output_tokens
    batch = max(1, min(profile.slots, int(profile.held_blocks * profile.block_tokens / held)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        prefill_s = batch * _prefill_s(profile, prompt_tokens)
        context = batch * (prompt_tokens + output_tokens / 2)
        decode_s = output_tokens * profile.step_time.iteration_s(0, 0.0, batch, context)
    return float(batch * held / (prefill_s + decode_s))


def _prefill_s(profile: Profile, prompt_tokens: float) -> float:
    """Return what a prompt adds to iterations that run anyway."""
    chunk = max(1, min(int(prompt_tokens), profile.max_num_batched_tokens))
    chunks = max(1.0, prompt_tokens / chunk)
    alone_s = profile.step_time.iteration_s(chunk, prompt_tokens * (chunk + 1) / 2, 0, 0)
    idle_s = profile.step_time.iteration_s(1, 1.0, 0, 0)
    return float(max(chunks * (alone_s - idle_s), 0.0))


def use_of(profile: Profile, replicas: int, demands: Sequence[Demand], horizon_s: float) -> Use:
    """Return what these requests take of so many replicas."""
    prompts = np.concatenate([one.prompt_tokens for one in demands]).astype(float)
    outputs = np.concatenate([one.output_tokens for one in demands]).astype(float)
    rate_per_s = len(prompts) / horizon_s / replicas
    prompt, output = float(prompts.mean()), float(outputs.mean())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        prefill = rate_per_s * _prefill_s(profile, prompt)
        # The batch at which what leaves is what comes: found by walking up, since an iteration's time grows with it.
        batch = 1.0
        for _ in range(200):
            step_s = profile.step_time.iteration_s(0, 0.0, round(batch) or 1, batch * (prompt + output / 2))
            wanted = rate_per_s * output * step_s / max(1e-9, 1 - min(prefill, 0.99))
            if wanted <= batch or batch >= profile.slots:
                break
            batch = min(wanted, float(profile.slots))
        full_s = profile.step_time.iteration_s(0, 0.0, profile.slots, profile.slots * (prompt + output / 2))
    return Use(
        prefill=prefill,
        decode=rate_per_s * output * full_s / profile.slots,
        slots=batch / profile.slots,
        kv=batch * (prompt + output / 2) / (profile.held_blocks * profile.block_tokens),
    )


def never_served(scenario: Scenario, demands: Sequence[Demand]) -> Mapping[str, tuple[float, float]]:
    """Return, by entitlement with an objective, the share of requests no number of replicas serves in time.

    Alone on an idle replica their first token takes longer than the objective, or they do not fit it at all. With the
    share comes the time in which 95 % of them would have it.
    """
    profile = scenario.pool.profile
    most = profile.max_model_tokens or profile.kv_blocks * profile.block_tokens
    objectives = {one.name: one.ttft_slo_s for one in scenario.pool.entitlements}
    found: dict[str, tuple[float, float]] = {}
    for workload, demand in zip(scenario.workload, demands, strict=True):
        ttft_s = objectives[workload.entitlement]
        if ttft_s is None or not len(demand):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExtrapolationWarning)
            least_s = np.array([_alone_s(profile, int(tokens)) for tokens in demand.prompt_tokens])
        too_long = demand.prompt_tokens + demand.output_tokens > most
        share = float(((least_s > ttft_s) | too_long).mean())
        if share > 0:
            found[workload.entitlement] = share, float(np.quantile(least_s, 0.95))
    return found


def _alone_s(profile: Profile, prompt_tokens: int) -> float:
    done, total_s = 0, profile.request_overhead_s
    while done < prompt_tokens:
        chunk = min(prompt_tokens - done, profile.max_num_batched_tokens)
        pairs = chunk * (done + (chunk + 1) / 2)
        total_s += profile.step_time.iteration_s(chunk, pairs, 0, 0)
        done += chunk
    return float(total_s)
