"""A gateway's configuration with what its store of accounts adds: keys, and budgets that were set there."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from policies.core import GatewayCore
from policies.hierarchy import entitlement_id, group_id, key_id
from sim.errors import ScenarioError
from sim.live.accounts.store import AccountStore, StoredKey
from sim.live.gateway.config_file import ServeConfig
from sim.live.gateway.core_from_config import agreed, core_of, recorded_head
from sim.live.gateway.reload import Loaded
from sim.live.gateway.settings import Key, Settings
from sim.live.gateway.settings_from_config import make_settings
from sim.scenario.hierarchy import BudgetLimit, PoolKey, check_tree
from sim.scenario.pool import Pool
from sim.scenario.pool_amounts import Amounts
from sim.scenario.registered_types import MisfitError

LOG = logging.getLogger("tokenpools.accounts")


def merged(config: ServeConfig, store: AccountStore, file: str) -> tuple[Loaded, GatewayCore]:
    """Return what a gateway runs with, and a core of it.

    Raises
    ------
    StoreError : the store is out of reach; ScenarioError : what it holds does not fit the configuration.
    """
    stored = store.all_keys()
    pool = pool_with(config.whole_pool(), stored, store.budgets(), store.where)
    head = {**recorded_head(config), "pool": pool.model_dump(mode="json")}
    settings = make_settings(config, file)
    settings = replace(
        settings, keys=keys_with(config, stored, store.where),
        state_config=agreed(config, settings.state_secrets, head),
    )  # fmt: skip
    return Loaded(settings, head), core_of(pool, config.policy, config.seed)


def keys_with(config: ServeConfig, stored: Sequence[StoredKey], where: str) -> tuple[Key, ...]:
    """Return the keys of a configuration, and those of a store that are not disabled and open something.

    Raises
    ------
    ScenarioError : one of the configuration has the name of one in the store.
    """
    found = list(make_settings_keys(config))
    names = {one.name for one in found}
    known = [one.name for one in config.pool.entitlements]
    for one in stored:
        if one.name in names:
            problem = f"the key {one.name} is in the configuration too"
            raise ScenarioError(where, "keys", problem, "take it out of one of the two")
        if one.entitlement not in known:
            LOG.warning("the key %s of %s opens %r, which the pool does not have", one.name, where, one.entitlement)
            continue
        if one.disabled:
            continue
        found.append(Key(
            name=one.name, entitlement=one.entitlement, digest=bytes.fromhex(one.sha256), expires_s=one.expires_s
        ))  # fmt: skip
        if one.old_sha256 is not None and one.old_until_s is not None:
            until_s = one.old_until_s if one.expires_s is None else min(one.old_until_s, one.expires_s)
            found.append(Key(
                name=one.name, entitlement=one.entitlement, digest=bytes.fromhex(one.old_sha256), expires_s=until_s
            ))  # fmt: skip
    return tuple(found)


def make_settings_keys(config: ServeConfig) -> Iterable[Key]:
    """Return the keys of the configuration alone."""
    return (Key(name=one.name, entitlement=one.entitlement, digest=bytes.fromhex(one.sha256)) for one in config.keys)


def pool_with(
    pool: Pool, stored: Sequence[StoredKey], budgets: Mapping[str, Sequence[Mapping[str, Any]]], where: str
) -> Pool:
    """Return the pool with the limits of stored keys, and with the budgets that were set in the place of its own.

    Raises
    ------
    ScenarioError : they contradict the tree.
    """
    try:
        keys = list(pool.keys)
        for one in stored:
            opens = any(each.name == one.entitlement for each in pool.entitlements)
            if opens and not one.disabled and (one.limit or one.budgets or key_id(one.name) in budgets):
                limits = tuple(BudgetLimit.model_validate(each) for each in one.budgets)
                limit = Amounts.model_validate(dict(one.limit or {}))
                keys.append(PoolKey(name=one.name, entitlement=one.entitlement, limit=limit, budgets=limits))
        given = {node: tuple(BudgetLimit.model_validate(one) for one in each) for node, each in budgets.items()}

        def with_budgets(one: Any, node: str) -> Any:
            return one.model_copy(update={"budgets": given[node]}) if node in given else one

        groups = tuple(with_budgets(one, group_id(one.name)) for one in pool.groups)
        entitlements = tuple(with_budgets(one, entitlement_id(one.name)) for one in pool.entitlements)
        placed = tuple(with_budgets(one, key_id(one.name)) for one in keys)
        check_tree(groups, placed, entitlements, pool.prices)
    except ValidationError as error:
        raise ScenarioError(where, "budgets", str(error.errors()[0]["msg"]), "set them again") from None
    except MisfitError as error:
        path, problem, fix = error.args
        raise ScenarioError(where, path, problem, fix) from None
    return pool.model_copy(update={
        "groups": groups, "entitlements": entitlements, "keys": placed, "count_use": True,
    })  # fmt: skip


def nodes_of(settings: Settings, core: GatewayCore) -> list[str]:
    """Return the ids of all nodes of a gateway's tree, and of its keys."""
    known = [] if core.hierarchy is None else core.hierarchy.nodes()
    return sorted({*known, *(key_id(one.name) for one in settings.keys)})
