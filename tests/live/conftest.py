"""What tests of live gateways share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from live.gate import Gate
from live.shared_state.redis_server import RedisServer
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


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path).start()
    yield server
    server.kill()
