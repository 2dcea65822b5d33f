"""What tests of the gateway's HTTP side share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from live.gate import Gate
from live.stand_in import StandIn, running


@pytest.fixture(scope="module")
def stand_in() -> Iterator[StandIn]:
    with running() as one:
        yield one


@pytest.fixture
def books(gate: Gate) -> Iterator[None]:
    """Check after a test that the books of its module's gateway balance."""
    yield
    gate.balanced()
