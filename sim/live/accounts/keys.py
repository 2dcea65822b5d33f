"""What can be done with keys and budgets: the command line and the admin API both do it here, and leave an entry."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from pydantic import ValidationError

from sim.errors import InputError
from sim.live.accounts.store import AccountStore, AuditEntry, StoredKey
from sim.live.gateway.authentication import hashed, new_key
from sim.scenario.hierarchy import BudgetLimit
from sim.scenario.pool_amounts import Amounts
from sim.scenario.registered_types import MisfitError

_LONGEST_NAME = 100


class KeyAdmin:
    """Changes keys and budgets in a store.

    Parameters
    ----------
    actor : who does it, for the audit log.
    now_s : the time, in seconds since 1970.
    """

    def __init__(self, store: AccountStore, actor: str, now_s: Callable[[], float] = time.time) -> None:
        self._store = store
        self._actor = actor
        self._now_s = now_s

    def create(
        self, name: str, entitlement: str, *, expires_s: float | None = None, limit: Mapping[str, Any] | None = None,
        budgets: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """Make a key and return it; the store keeps its hash.

        Raises
        ------
        InputError : there is one of that name, or something is not as it should be.
        """
        if not name.strip() or len(name) > _LONGEST_NAME or not name.isprintable():
            raise InputError("name", f"{name[:80]!r} is no name", f"give 1 to {_LONGEST_NAME} printable characters")
        if expires_s is not None and expires_s <= self._now_s():
            raise InputError("expires", "is over already", "give a time to come")
        secret = new_key()
        key = StoredKey(
            name=name, entitlement=entitlement, sha256=hashed(secret).hex(), created_s=self._now_s(),
            expires_s=expires_s, limit=_limit(limit), budgets=checked_budgets(budgets),
        )  # fmt: skip
        if not self._store.change(self._entry("create", name, f"entitlement {entitlement}"), key=key, only_new=True):
            raise InputError("name", f"there is a key {name!r} already", "give another name, or rotate it")
        return secret

    def rotate(self, name: str, grace_s: float = 0.0) -> str:
        """Return a new key in the place of one, which still opens for ``grace_s``."""
        if not 0 <= grace_s <= 366 * 86_400:
            raise InputError("grace", f"{grace_s:g} s", "give seconds from 0 to a year, e.g. 3600")
        old = self.find(name)
        secret = new_key()
        changed = replace(
            old, sha256=hashed(secret).hex(), old_sha256=old.sha256 if grace_s else None,
            old_until_s=self._now_s() + grace_s if grace_s else None,
        )  # fmt: skip
        self._store.change(self._entry("rotate", name, f"the old one until {grace_s:g} s later"), key=changed)
        return secret

    def expire(self, name: str, at_s: float | None) -> None:
        """Set when a key expires; None for never."""
        key = replace(self.find(name), expires_s=at_s)
        self._store.change(self._entry("expire", name, "never" if at_s is None else f"at {at_s:.0f}"), key=key)

    def disable(self, name: str, *, disabled: bool = True) -> None:
        """Disable a key, or enable it again."""
        key = replace(self.find(name), disabled=disabled)
        self._store.change(self._entry("disable" if disabled else "enable", name, ""), key=key)

    def set_budgets(self, node: str, budgets: Sequence[Mapping[str, Any]] | None) -> None:
        """Set the budgets of a group, entitlement or key (``group/acme``), in the place of the configured ones.

        ``None`` brings the configured ones back.
        """
        if node.partition("/")[0] not in ("group", "entitlement", "key") or not node.partition("/")[2]:
            raise InputError("node", f"{node[:80]!r} is none", "give group/NAME, entitlement/NAME or key/NAME")
        content = None if budgets is None else checked_budgets(budgets)
        detail = "as configured" if content is None else "; ".join(
            f"{one['limit']:g} {one['unit']} a {one['per']}" for one in content
        )
        self._store.change(self._entry("set budgets", node, detail), budgets=(node, content))

    def find(self, name: str) -> StoredKey:
        """Return a key.

        Raises
        ------
        InputError : there is none of that name in the store.
        """
        for one in self._store.all_keys():
            if one.name == name:
                return one
        raise InputError("name", f"there is no key {name[:80]!r} in the store", "see tokenpools key list")

    def _entry(self, action: str, subject: str, detail: str) -> AuditEntry:
        return AuditEntry(self._now_s(), self._actor, action, subject, detail)


def checked_budgets(budgets: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Return budgets as a store keeps them.

    Raises
    ------
    InputError : one is none.
    """
    return tuple(BudgetLimit.model_validate(_valid(BudgetLimit, one, "budgets")).model_dump() for one in budgets)


def _limit(limit: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if not limit:
        return None
    _valid(Amounts, limit, "limit")
    return dict(limit)


def _valid(model: Any, given: object, where: str) -> object:
    try:
        model.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join([where, *map(str, first["loc"])])
        raise InputError(place, str(first["msg"]).lower(), f"it holds {', '.join(model.model_fields)}") from None
    except MisfitError as error:
        path, problem, fix = error.args
        raise InputError(f"{where}.{path}", problem, fix) from None
    return given


def public(key: StoredKey) -> dict[str, Any]:
    """Return a key as it may be shown: without hashes."""
    found = asdict(key)
    for hidden in ("sha256", "old_sha256"):
        found.pop(hidden)
    return found
