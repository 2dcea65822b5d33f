"""What the gateway is told of replicas that differ."""

from __future__ import annotations

from collections.abc import Sequence

from policies.api import ReplicaKind
from sim.scenario.profile import Profile

_CONTEXT_TOKENS = 512
"""The context of each sequence where speeds are compared."""


def context_tokens(profile: Profile) -> int:
    """Return the longest prompt + output that a replica can serve.

    What exceeds the whole KV cache could never run, and would block the queue for ever.
    """
    return int(profile.max_model_tokens or profile.kv_blocks * profile.block_tokens)


def decode_tokens_per_s(profile: Profile) -> float:
    """Return how many tokens a full replica decodes in a second, each sequence with a context of 512 tokens."""
    sequences = profile.max_num_seqs
    iteration_s = profile.step_time.iteration_s(0, 0.0, sequences, float(sequences * _CONTEXT_TOKENS))
    gain = 1.0 if profile.speculation is None else float(profile.speculation.gain)
    return float(profile.slots * gain / iteration_s)


def kinds_of(profiles: Sequence[Profile]) -> dict[int, ReplicaKind]:
    """Return what each replica can do, by its number; speeds are over their mean."""
    speeds = [decode_tokens_per_s(profile) for profile in profiles]
    mean = sum(speeds) / len(speeds)
    return {
        number: ReplicaKind(profile.slots, context_tokens(profile), speed / mean)
        for number, (profile, speed) in enumerate(zip(profiles, speeds, strict=True))
    }
