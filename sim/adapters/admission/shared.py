"""State that several processes share in Redis, for doors: the logs of our own gateway, as they are.

Every process decides as one would (``share: replicated``), or has a part of every limit (``leases``); while Redis is
out of reach each class fails open or closed as ``when_away`` says.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from typing import Protocol

from sim.adapters.admission.config import GateConfig
from sim.live.gateway.core_driver import EventLog
from sim.live.gateway.core_from_config import core_of_head
from sim.live.gateway.settings_from_config import state_secrets
from sim.live.shared_state.signing import Signer
from sim.records.provenance import versions

LOG = logging.getLogger("tokenpools.gate")

JOIN_S = 10.0
"""How long a door waits for Redis before it serves; after that it refuses until Redis is there. Leases are dealt out
only once a book is ``ttl_s`` old, which is 5 s. [choice]"""


class SharedState(EventLog, Protocol):
    """A log that is joined and left."""

    @property
    def has_joined(self) -> bool:
        """Whether it was joined once."""
        ...

    async def joined(self, timeout_s: float) -> None:
        """Wait until it was joined, for a while.

        Raises
        ------
        RunError : other processes of the pool have another configuration.
        """
        ...

    async def close(self) -> None:
        """Leave: what this process still holds returns at once."""
        ...


def shared_state(config: GateConfig) -> SharedState | None:
    """Return the log of the shared state on the loop that runs; None for a process that has the pool for itself.

    Raises
    ------
    TokenpoolsError : redis-py is not installed, or a variable that holds a secret is not set.
    """
    if config.state is None:
        return None
    from sim.live.shared_state.leased import LeasedLog
    from sim.live.shared_state.replicated_core import SharedLog

    secrets, head = state_secrets(config.state, "gate"), config.head()
    parts = [head, versions()["tokenpools"], Signer(config.state.pool, secrets.key).fingerprint()]
    agreed = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    loop = asyncio.get_running_loop()
    if config.state.share == "leases":
        return LeasedLog(config.state, loop=loop, config=agreed, secret=secrets)
    return SharedLog(
        config.state, loop=loop, config=agreed, head=head, secret=secrets,
        core_of=lambda head, leaving: core_of_head(head, "gate", leaving, may_import=False),
    )  # fmt: skip


async def join(log: SharedState | None) -> None:
    """Wait for the shared state, for a while.

    Raises
    ------
    RunError : other processes of the pool have another configuration.
    """
    if log is None:
        return
    await log.joined(JOIN_S)
    if not log.has_joined:
        LOG.warning("the shared state was not reached within %g s: nobody is let in until it is", JOIN_S)
