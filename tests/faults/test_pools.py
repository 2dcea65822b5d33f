from __future__ import annotations

import pytest
from faults.pools import World, run_pool

from policies.invariants import InvariantError


@pytest.mark.parametrize("chunk", range(4))
def test_random_small_pools_keep_every_invariant(chunk: int) -> None:
    assert all(run_pool(seed) for seed in range(chunk * 500, chunk * 500 + 500))


def test_a_fault_planted_in_a_random_pool_is_found() -> None:
    world = World(5, every_events=1)
    for _ in range(30):
        world.step()
    next(iter(world.core.pool.entitlements.values())).reserved_tokens += 1
    with pytest.raises(InvariantError):
        world.run(10)
