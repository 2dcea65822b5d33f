"""Random streams by name: adding a tenant or changing a policy moves nobody else's draws."""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, replication: int, name: str) -> np.random.Generator:
    """Return a generator fixed by its name, not by how many others were made before it.

    References
    ----------
    NumPy manual, "Parallel random number generation", SeedSequence with a spawn key.
    """
    key = (replication, zlib.crc32(name.encode()))
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
