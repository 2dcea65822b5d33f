"""Accounts in one SQLite file, in WAL mode: what was written before a process died is there when the next one looks.

A transaction is in the file once it is committed, whatever becomes of the process (``synchronous = NORMAL``); a machine
that loses power can lose the last ones, never a part of one.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from policies.budgets import Balance
from sim.errors import InputError
from sim.live.accounts.store import (
    AuditEntry,
    BalanceKey,
    DamagedStoreError,
    StoredKey,
    StoreError,
    Use,
    UseKey,
    summed,
)

_BUSY_S = 0.1
"""How long another's transaction is waited for: the gateway's loop waits meanwhile."""
_PATIENT_S = 5.0
_FORMAT = 1
_SCHEMA = """
create table if not exists meta (name text primary key, value integer not null);
create table if not exists keys (name text primary key, sha256 text not null unique, content text not null);
create table if not exists budgets (node text primary key, content text not null);
create table if not exists balances (
    node text, unit text, per text, period integer not null, used real not null, carried real not null,
    last_used real not null, last_carried real not null, primary key (node, unit, per)
) without rowid;
create table if not exists use (
    day text, key text, entitlement text, model text, writer text, requests integer not null,
    prompt_tokens integer not null, cached_tokens integer not null, output_tokens integer not null,
    money real not null, primary key (day, key, entitlement, model, writer)
) without rowid;
create table if not exists audit (
    number integer primary key, at_s real not null, actor text, action text, subject text, detail text
);
"""
_USE = (
    "insert or replace into use values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_BALANCE = "insert or replace into balances values (?, ?, ?, ?, ?, ?, ?, ?)"

Result = TypeVar("Result")


class SqliteStore:
    """See `sim.live.accounts.store.AccountStore`."""

    def __init__(self, path: str | Path) -> None:
        self.where = str(path)
        self._lock: int | None = None
        file = Path(path)
        if not file.parent.is_dir():
            raise InputError(self.where, f"there is no folder {file.parent}", "make it, or give another file")
        if file.is_dir():
            raise InputError(self.where, "is a folder", "give a file, e.g. accounts.db")
        is_new = not file.exists()
        try:
            self._db = sqlite3.connect(self.where, timeout=_PATIENT_S, isolation_level=None, check_same_thread=False)
            if is_new:
                file.chmod(0o600)
            self._prepare()
        except sqlite3.OperationalError as error:
            raise InputError(self.where, f"cannot be opened: {error}", _fix(error)) from None
        except (sqlite3.DatabaseError, OSError) as error:
            raise self._damaged(error) from None
        self._db.execute(f"pragma busy_timeout = {int(_BUSY_S * 1000)}")

    def _prepare(self) -> None:
        self._db.execute("pragma journal_mode = wal")
        self._db.execute("pragma synchronous = normal")
        (sound,) = self._db.execute("pragma quick_check(1)").fetchone()
        if sound != "ok":
            raise sqlite3.DatabaseError(sound)
        self._db.executescript(_SCHEMA)
        self._db.execute("insert or ignore into meta values ('format', ?), ('version', 0)", (_FORMAT,))
        (found,) = self._db.execute("select value from meta where name = 'format'").fetchone()
        if found != _FORMAT:
            raise sqlite3.DatabaseError(f"its format is {found}, this program's is {_FORMAT}")

    def _damaged(self, error: Exception) -> DamagedStoreError:
        fix = "restore it from a copy, or move it away to begin anew (keys and what was used are in it)"
        return DamagedStoreError(self.where, f"is no store of accounts, or is damaged: {error}", fix)

    def _run(self, work: Callable[[sqlite3.Connection], Result], *, patient: bool = False) -> Result:
        """Do something in one transaction: all of it or nothing."""
        db = self._db
        try:
            if patient:
                db.execute(f"pragma busy_timeout = {int(_PATIENT_S * 1000)}")
            try:
                db.execute("begin immediate")
                try:
                    result = work(db)
                    db.execute("commit")
                except BaseException:
                    if db.in_transaction:
                        db.execute("rollback")
                    raise
            finally:
                if patient:
                    db.execute(f"pragma busy_timeout = {int(_BUSY_S * 1000)}")
        except sqlite3.Error as error:
            raise StoreError(f"{self.where}: {error}") from None
        return result

    def _ask(self, query: str, *values: object) -> list[Any]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"{self.where}: {error}") from None

    # ----------------------------------------------------------------------------------------------------------------

    def version(self) -> int:
        """See `AccountStore`."""
        return int(self._ask("select value from meta where name = 'version'")[0][0])

    def all_keys(self) -> list[StoredKey]:
        """See `AccountStore`."""
        return [key_from(content) for (content,) in self._ask("select content from keys order by name")]

    def budgets(self) -> dict[str, tuple[Mapping[str, Any], ...]]:
        """See `AccountStore`."""
        return {node: tuple(json.loads(text)) for node, text in self._ask("select * from budgets order by node")}

    def change(
        self, entry: AuditEntry, *, key: StoredKey | None = None,
        budgets: tuple[str, tuple[Mapping[str, Any], ...] | None] | None = None, only_new: bool = False,
    ) -> bool:
        """See `AccountStore`."""

        def work(db: sqlite3.Connection) -> bool:
            if key is not None:
                known = db.execute("select 1 from keys where name = ?", (key.name,)).fetchone()
                if only_new and known:
                    return False
                db.execute("insert or replace into keys values (?, ?, ?)", (key.name, key.sha256, key_to(key)))
            if budgets is not None:
                node, content = budgets
                if content is None:
                    db.execute("delete from budgets where node = ?", (node,))
                else:
                    db.execute("insert or replace into budgets values (?, ?)", (node, json.dumps(content)))
            db.execute("insert into audit (at_s, actor, action, subject, detail) values (?, ?, ?, ?, ?)", entry)
            db.execute("update meta set value = value + 1 where name = 'version'")
            return True

        return self._run(work, patient=True)

    def audit(self, most: int) -> list[AuditEntry]:
        """See `AccountStore`."""
        query = "select at_s, actor, action, subject, detail from audit order by number desc limit ?"
        return [AuditEntry(*row) for row in self._ask(query, most)]

    def balances(self) -> dict[BalanceKey, Balance]:
        """See `AccountStore`."""
        return {(row[0], row[1], row[2]): Balance(*row[3:]) for row in self._ask("select * from balances")}

    def write(self, writer: str, balances: Mapping[BalanceKey, Balance], use: Mapping[UseKey, Use]) -> None:
        """See `AccountStore`."""

        def work(db: sqlite3.Connection) -> None:
            db.executemany(_BALANCE, [(*key, *balance) for key, balance in balances.items()])
            db.executemany(_USE, [(*key, writer, *row) for key, row in use.items()])

        self._run(work)

    def use(self, since_day: str, until_day: str, writer: str | None = None) -> dict[UseKey, Use]:
        """See `AccountStore`."""
        query = "select * from use where day >= ? and day <= ?" + ("" if writer is None else " and writer = ?")
        values = (since_day, until_day) if writer is None else (since_day, until_day, writer)
        return summed((UseKey(*row[:4]), Use(*row[5:])) for row in self._ask(query, *values))

    def claim(self) -> None:
        """See `AccountStore`. The lock is the process's: it ends with it, however it ends."""
        lock = os.open(f"{self.where}.gateway", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            fix = "give each its own file, or let them share their state and their accounts in Redis"
            raise InputError(self.where, "another gateway keeps its accounts there", fix) from None
        self._lock = lock

    def close(self) -> None:
        """See `AccountStore`."""
        self._db.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _fix(error: sqlite3.OperationalError) -> str:
    if "locked" in str(error):
        return "wait until the other program is done with it, or stop that"
    if "full" in str(error):
        return "make room on its disk"
    return "let this user read and write it and its folder"


def key_to(key: StoredKey) -> str:
    """Return a key as JSON."""
    return json.dumps({name: getattr(key, name) for name in StoredKey.__slots__})


def key_from(text: str) -> StoredKey:
    """Return the key that `key_to` wrote."""
    found = json.loads(text)
    return StoredKey(**{**found, "budgets": tuple(found["budgets"])})
