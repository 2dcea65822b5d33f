"""What a store of accounts keeps, and what it can be asked; `sqlite_store` and `redis_store` are the two there are.

All writing is absolute: a balance or a row of use is written as it is, not as a change of what stands there. So what
was written once or twice, or again after an error that left it open whether the first try arrived, is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from policies.budgets import Balance
from sim.errors import InputError, TokenpoolsError

BalanceKey = tuple[str, str, str]
"""Node, unit and period of a budget."""


class StoreError(Exception):
    """A store cannot be read or written now. The text says why."""


class DamagedStoreError(TokenpoolsError):
    """A store's content is none: ``place: problem; fix``."""

    def __init__(self, place: str, problem: str, fix: str) -> None:
        super().__init__(place, problem, fix)

    def __str__(self) -> str:
        """Return the one line that is shown."""
        return "{}: {}; {}".format(*self.args)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """A client's key, known by its hash.

    Attributes
    ----------
    expires_s : Unix time from which it is refused; None: never.
    old_sha256, old_until_s : of a key that was rotated, what still opens until then.
    limit, budgets : as in a configuration's ``keys``.
    """

    name: str
    entitlement: str
    sha256: str
    created_s: float
    expires_s: float | None = None
    disabled: bool = False
    old_sha256: str | None = None
    old_until_s: float | None = None
    limit: Mapping[str, Any] | None = None
    budgets: tuple[Mapping[str, Any], ...] = ()


class UseKey(NamedTuple):
    """Whose use it is, and of which day (2026-11-28)."""

    day: str
    key: str
    entitlement: str
    model: str


class Use(NamedTuple):
    """What was used: requests that ended, tokens, and money by the pool's prices."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    money: float = 0.0

    def plus(self, other: Use) -> Use:
        """Return the sum."""
        return Use(
            self.requests + other.requests, self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens, self.output_tokens + other.output_tokens,
            self.money + other.money,
        )  # fmt: skip


class AuditEntry(NamedTuple):
    """Who changed what, when."""

    at_s: float
    actor: str
    action: str
    subject: str
    detail: str


class AccountStore(Protocol):
    """A store. Methods raise `StoreError` where it is out of reach."""

    where: str

    def version(self) -> int:
        """Return a number that grows with every change of keys or budgets."""
        ...

    def all_keys(self) -> list[StoredKey]:
        """Return all keys, by name."""
        ...

    def budgets(self) -> dict[str, tuple[Mapping[str, Any], ...]]:
        """Return the budgets that were set, by node."""
        ...

    def change(
        self, entry: AuditEntry, *, key: StoredKey | None = None,
        budgets: tuple[str, tuple[Mapping[str, Any], ...] | None] | None = None, only_new: bool = False,
    ) -> bool:
        """Write a key, or a node's budgets (None: as configured), with its entry in the audit log, at once or not.

        Returns False where ``only_new`` and there is a key of that name.
        """
        ...

    def audit(self, most: int) -> list[AuditEntry]:
        """Return the last changes, the latest first."""
        ...

    def balances(self) -> dict[BalanceKey, Balance]:
        """Return the accounts of budgets."""
        ...

    def write(
        self, writer: str, balances: Mapping[BalanceKey, Balance], use: Mapping[UseKey, Use]
    ) -> None:
        """Write accounts and a writer's rows of use, all at once or nothing."""
        ...

    def use(self, since_day: str, until_day: str, writer: str | None = None) -> dict[UseKey, Use]:
        """Return what was used from one day to another, both included; by all writers unless one is named."""
        ...

    def claim(self) -> None:
        """Take the store for a gateway of this process, which alone writes balances.

        Raises
        ------
        InputError : another gateway has it.
        """
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


def is_missing(where: str) -> bool:
    """Return whether a store is a file that there is not yet."""
    return "://" not in where.removeprefix("sqlite:///") and not Path(where.removeprefix("sqlite:///")).exists()


def open_store(where: str, password: str | None = None) -> AccountStore:
    """Return the store at a path (SQLite) or an address of Redis.

    Raises
    ------
    InputError : it cannot be opened; DamagedStoreError : it is none.
    """
    if not where.strip():
        raise InputError("accounts.store", "is empty", "give a file, e.g. accounts.db, or redis://HOST:PORT/0")
    if where.startswith(("redis://", "rediss://", "unix://")):
        from sim.live.accounts.redis_store import RedisStore

        return RedisStore(where, password=password)
    from sim.live.accounts.sqlite_store import SqliteStore

    return SqliteStore(where.removeprefix("sqlite:///"))


def summed(rows: Iterable[tuple[UseKey, Use]]) -> dict[UseKey, Use]:
    """Return the rows with those of one key added up."""
    found: dict[UseKey, Use] = {}
    for key, use in rows:
        found[key] = found.get(key, Use()).plus(use)
    return dict(sorted(found.items()))
