"""Accounts in Redis: for several gateways, and as durable as Redis is set to be (``appendonly yes``)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from policies.budgets import Balance
from sim.errors import InputError
from sim.extras import needs
from sim.live.accounts.sqlite_store import key_from, key_to
from sim.live.accounts.store import AuditEntry, BalanceKey, StoredKey, StoreError, Use, UseKey, summed
from sim.live.redis_options import unnamed

_TIMEOUT_S = 0.25
_MOST_AUDIT = 100_000
_CHANGE = """
if ARGV[1] == 'new' and redis.call('HEXISTS', KEYS[1], ARGV[2]) == 1 then return 0 end
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], ARGV[2], ARGV[3]) end
if ARGV[4] ~= '' then
  if ARGV[5] == '' then redis.call('HDEL', KEYS[2], ARGV[4]) else redis.call('HSET', KEYS[2], ARGV[4], ARGV[5]) end
end
redis.call('LPUSH', KEYS[3], ARGV[6])
redis.call('LTRIM', KEYS[3], 0, tonumber(ARGV[7]) - 1)
redis.call('INCR', KEYS[4])
return 1
"""

Result = TypeVar("Result")


class RedisStore:
    """See `sim.live.accounts.store.AccountStore`.

    Parameters
    ----------
    prefix : begins the names of its keys; gateways of one prefix share keys, budgets and use.
    client : in the place of a connection to ``url``.
    """

    def __init__(
        self, url: str, *, prefix: str = "accounts", password: str | None = None, client: Any = None
    ) -> None:
        try:
            import redis
        except ImportError:
            raise InputError("accounts.store", *needs("redis", "redis")) from None
        scheme, _, rest = url.partition("://")
        self.where = f"{scheme}://{rest.rpartition('@')[2]}"
        self._errors: tuple[type[Exception], ...] = (redis.RedisError, OSError)
        try:
            self._redis = client or redis.Redis.from_url(
                url, password=password, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S,
                decode_responses=True, **unnamed(),
            )  # fmt: skip
        except ValueError as error:
            raise InputError("accounts.store", f"{self.where}: {error}", "give e.g. redis://127.0.0.1:6379/0") from None
        self._script = self._redis.register_script(_CHANGE)
        tables = ("keys", "budgets", "audit", "version", "balances")
        self._names = {name: f"tokenpools:{{{prefix}}}:{name}" for name in tables}
        self._use = f"tokenpools:{{{prefix}}}:use:"
        self._days = f"tokenpools:{{{prefix}}}:days"

    def _do(self, work: Callable[[], Result]) -> Result:
        try:
            return work()
        except self._errors as error:
            raise StoreError(f"{self.where}: {error}") from None

    def version(self) -> int:
        """See `AccountStore`."""
        return self._do(lambda: int(self._redis.get(self._names["version"]) or 0))

    def all_keys(self) -> list[StoredKey]:
        """See `AccountStore`."""
        found = self._do(lambda: self._redis.hgetall(self._names["keys"]))
        return [key_from(str(found[name])) for name in sorted(found)]

    def budgets(self) -> dict[str, tuple[Mapping[str, Any], ...]]:
        """See `AccountStore`."""
        found = self._do(lambda: self._redis.hgetall(self._names["budgets"]))
        return {node: tuple(json.loads(found[node])) for node in sorted(found)}

    def change(
        self, entry: AuditEntry, *, key: StoredKey | None = None,
        budgets: tuple[str, tuple[Mapping[str, Any], ...] | None] | None = None, only_new: bool = False,
    ) -> bool:
        """See `AccountStore`."""
        node, content = budgets or ("", None)
        names = [self._names[name] for name in ("keys", "budgets", "audit", "version")]
        arguments = [
            "new" if only_new else "", "" if key is None else key.name, "" if key is None else key_to(key), node,
            "" if content is None else json.dumps(content), json.dumps(entry), str(_MOST_AUDIT),
        ]  # fmt: skip
        return bool(self._do(lambda: self._script(keys=names, args=arguments)))

    def audit(self, most: int) -> list[AuditEntry]:
        """See `AccountStore`."""
        return [
            AuditEntry(*json.loads(text))
            for text in self._do(lambda: self._redis.lrange(self._names["audit"], 0, most - 1))
        ]

    def balances(self) -> dict[BalanceKey, Balance]:
        """See `AccountStore`."""
        found = self._do(lambda: self._redis.hgetall(self._names["balances"]))
        rows = [(json.loads(key), json.loads(text)) for key, text in found.items()]
        return {(key[0], key[1], key[2]): Balance(*values) for key, values in rows}

    def write(self, writer: str, balances: Mapping[BalanceKey, Balance], use: Mapping[UseKey, Use]) -> None:
        """See `AccountStore`."""

        def work() -> None:
            pipe = self._redis.pipeline(transaction=True)
            for key, balance in balances.items():
                pipe.hset(self._names["balances"], json.dumps(key), json.dumps(balance))
            for row, used in use.items():
                pipe.hset(self._use + row.day, json.dumps([*row[1:], writer]), json.dumps(used))
                pipe.sadd(self._days, row.day)
            pipe.execute()

        if balances or use:
            self._do(work)

    def use(self, since_day: str, until_day: str, writer: str | None = None) -> dict[UseKey, Use]:
        """See `AccountStore`."""

        def work() -> list[tuple[UseKey, Use]]:
            rows = []
            for day in sorted(self._redis.smembers(self._days)):
                if since_day <= day <= until_day:
                    for key, text in self._redis.hgetall(self._use + day).items():
                        *whose, who = json.loads(key)
                        if writer is None or who == writer:
                            rows.append((UseKey(day, *whose), Use(*json.loads(text))))
            return rows

        return summed(self._do(work))

    def claim(self) -> None:
        """See `AccountStore`. Which of several gateways writes balances, their shared state says."""

    def close(self) -> None:
        """See `AccountStore`."""
        self._redis.close()
