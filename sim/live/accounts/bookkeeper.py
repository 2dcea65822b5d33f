"""Writes what the core charges, and what was used, into the store of accounts: before anything else happens.

It is told of every event right after the core (`sim.live.gateway.core_driver`). A charge is so in the store before the
request goes to a replica, and what it really used before its client has the end of the answer. A process that is killed
in between leaves the charge as it was made: what may have been used counts.

Where the store cannot be written, books go on in memory and are written as soon as it can be, at most once a second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from policies.api import Event, Instruction
from policies.core import GatewayCore
from policies.hierarchy import Settled
from sim.live.accounts.store import AccountStore, BalanceKey, StoreError, Use, UseKey

LOG = logging.getLogger("tokenpools.accounts")

_AGAIN_S = 1.0


class BookStatus(NamedTuple):
    """How the books are kept: ``away_for_s`` is 0 where all is written."""

    where: str
    unwritten: int
    away_for_s: float
    times_away: int
    why: str


class Bookkeeper:
    """Keeps one gateway's books.

    Parameters
    ----------
    core : returns the core of now.
    loop_s : the time, for trying again.
    writer : whose rows of use these are; several gateways that share a store each have their own.
    mine : whether a request is this gateway's; of several that share a pool each writes its own requests' use.
    restores : whether `begin` brings the store's accounts to the core. Of gateways that share a pool only the first
        one's are wanted, before it joins: the others get a copy of its core.
    writes_balances : whether this gateway writes the accounts; of several that share a pool the leader does.
    """

    def __init__(
        self, store: AccountStore, core: Callable[[], GatewayCore], *, loop_s: Callable[[], float], writer: str = "",
        mine: Callable[[str], bool] = lambda request_id: True,  # noqa: ARG005
        writes_balances: Callable[[], bool] = lambda: True, restores: bool = True,
    ) -> None:
        self._store = store
        self._core = core
        self._loop_s = loop_s
        self._writer = writer
        self._mine = mine
        self._writes_balances = writes_balances
        self._restores = restores
        self._use: dict[UseKey, Use] = {}
        self._days: set[str] = set()
        self._dirty_use: set[UseKey] = set()
        self._dirty: set[BalanceKey] = set()
        self._away_since_s: float | None = None
        self._tried_s = -_AGAIN_S
        self._times_away = 0
        self._why = ""

    def begin(self) -> None:
        """Let the core go on from what the store has; before the first request.

        Raises
        ------
        StoreError : it cannot be read.
        """
        hierarchy = self._core().hierarchy
        if hierarchy is not None:
            if self._restores:
                hierarchy.restore(self._store.balances())
            hierarchy.journal = []

    def __call__(self, now_s: float, event: Event, instructions: Sequence[Instruction]) -> None:  # noqa: ARG002
        """Write down what an event has changed."""
        hierarchy = self._core().hierarchy
        if hierarchy is None:
            return
        if hierarchy.journal is None:  # a core that another gateway's snapshot became
            hierarchy.journal = []
            return
        if not hierarchy.journal:
            return
        for entry in hierarchy.journal:
            if isinstance(entry, Settled):
                if self._mine(entry.request_id):
                    self._count(entry)
                self._dirty.update((one.node, one.unit, one.per) for one in entry.changes)
            else:
                self._dirty.update((one.node, one.unit, one.per) for one in entry.charges)
        hierarchy.journal.clear()
        self.write()

    def write(self) -> None:
        """Write what is not written, unless that failed within the last second."""
        if not self._dirty and not self._dirty_use:
            return
        loop_s = self._loop_s()
        if self._away_since_s is not None and loop_s - self._tried_s < _AGAIN_S:
            return
        self._tried_s = loop_s
        hierarchy = self._core().hierarchy
        known = {} if hierarchy is None or not self._writes_balances() else hierarchy.balances()
        try:
            self._store.write(
                self._writer, {key: known[key] for key in self._dirty if key in known},
                {key: self._total(key) for key in self._dirty_use},
            )  # fmt: skip
        except StoreError as error:
            self._why = str(error)
            if self._away_since_s is None:
                self._away_since_s = loop_s
                self._times_away += 1
                LOG.error("accounts cannot be written, books go on in memory: %s", error)
            return
        if self._away_since_s is not None:
            LOG.warning("accounts are written again, after %.0f s", loop_s - self._away_since_s)
        self._away_since_s, self._why = None, ""
        self._dirty.clear()
        self._dirty_use.clear()

    def status(self) -> BookStatus:
        """Return how it stands."""
        away_s = 0.0 if self._away_since_s is None else self._loop_s() - self._away_since_s
        return BookStatus(
            self._store.where, len(self._dirty) + len(self._dirty_use), away_s, self._times_away, self._why
        )

    @property
    def is_away(self) -> bool:
        """Whether the store could not be written when it was last tried."""
        return self._away_since_s is not None

    def _count(self, entry: Settled) -> None:
        day = datetime.fromtimestamp(max(0.0, min(entry.wall_s, 4e10)), UTC).strftime("%Y-%m-%d")
        key = UseKey(day, entry.key, entry.entitlement, entry.model)
        used = Use(1, entry.prompt_tokens, entry.cached_tokens, entry.output_tokens, entry.money)
        self._use[key] = self._use.get(key, Use()).plus(used)
        self._dirty_use.add(key)

    def _total(self, key: UseKey) -> Use:
        """Return a row's total: what this process counted, and what the store had of its writer before.

        Raises
        ------
        StoreError : it cannot be read.
        """
        if key.day not in self._days:
            for known, use in self._store.use(key.day, key.day, self._writer).items():
                self._use[known] = self._use.get(known, Use()).plus(use)
            self._days.add(key.day)
            if len(self._days) > 3:
                oldest = min(self._days)
                self._days.discard(oldest)
                self._use = {each: use for each, use in self._use.items() if each.day != oldest}
        return self._use[key]
