"""From a configuration to the core of a gateway, and what tells others by which core it decides.

A recording and a shared state keep the pool and policy (`recorded_head`), of which the same core is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from pydantic import ValidationError

from policies.api import EntitlementSpec
from policies.core import GatewayCore
from policies.hierarchy import Hierarchy
from policies.limit_leases import why_unfit
from policies.registry import SCALERS
from sim.errors import ScenarioError
from sim.live.gateway.config_file import ServeConfig
from sim.live.gateway.settings import StateSecrets
from sim.live.shared_state.signing import Signer
from sim.records.provenance import versions
from sim.scenario import plugins
from sim.scenario.model import Policy
from sim.scenario.pool import Pool
from sim.scenario.validation_errors import explain
from sim.scenario.yaml_file import as_json


def make_core(config: ServeConfig) -> GatewayCore:
    """Return the core of a gateway: the same object that a simulation of this pool and policy runs.

    Raises
    ------
    ScenarioError : the policy does not fit the pool.
    """
    core = core_of(config.whole_pool(), config.policy, config.seed)
    for one in config.shadow:
        core_of(config.whole_pool(), one, config.seed)
    if config.state is not None and config.state.share == "leases" and (why := why_unfit(core.policy)):
        raise ScenarioError("", "state.share", f"{why}, as leases ask", "give replicated")
    return core


def core_of(pool: Pool, chosen: Policy, seed: int, leaving: Sequence[EntitlementSpec] = ()) -> GatewayCore:
    """Return the core of a gateway of this pool and policy; ``leaving`` are entitlements that expire.

    Raises
    ------
    ScenarioError : the policy does not fit the pool.
    """
    if pool.also:
        raise ScenarioError(
            "", "pool.also", "replicas of several kinds, which only the simulator tells apart", "give one profile"
        )
    specs = [*(one.spec() for one in pool.entitlements), *leaving]
    profile = pool.profile
    scaling = pool.autoscaler if chosen.autoscaler is None else chosen.autoscaler
    try:
        policy = plugins.POLICY_KINDS[chosen.params.kind].build(
            chosen.params, entitlements=specs, kv_bytes_per_token=profile.kv_bytes_per_token, chance=Random(seed),
        )
        scaler = SCALERS[scaling.kind].build(
            scaling, policy=policy, entitlements=specs, per_replica=pool.capacity(1)
        )
    except ValueError as error:
        problem, _, fix = str(error).partition("; ")
        raise ScenarioError("", "policy", problem, fix or "see the policy's fields in tokenpools schema") from None
    return GatewayCore(
        entitlements=specs, capacity=pool.capacity(), replica_ids=range(pool.replicas), policy=policy,
        router=plugins.ROUTER_KINDS[pool.router.kind].build(pool.router),
        default_max_output_tokens=pool.default_max_output_tokens,
        max_context_tokens=profile.max_model_tokens or profile.kv_blocks * profile.block_tokens, scaler=scaler,
        retry_failed=pool.on_failure == "retry",
        hierarchy=None if (tree := pool.hierarchy()) is None else Hierarchy(tree, specs, profile.kv_bytes_per_token),
    )


def recorded_head(config: ServeConfig) -> dict[str, Any]:
    """Return what a recording needs to say, for `core_of` to make the same core again."""
    return {
        "pool": config.whole_pool().model_dump(mode="json"), "policy": config.policy.model_dump(mode="json"),
        "seed": config.seed,
        **({"shadow": [one.model_dump(mode="json") for one in config.shadow]} if config.shadow else {}),
    }  # fmt: skip


def core_of_head(
    head: Mapping[str, Any], file: str, leaving: Sequence[EntitlementSpec] = (), *, may_import: bool = True
) -> GatewayCore:
    """Return the core that a recording was made with.

    Parameters
    ----------
    may_import : whether ``module:Class`` is imported; False for a head that came over a network.

    Raises
    ------
    ScenarioError : the head of the recording is none.
    """
    found: list[Any] = []
    for name, kind in (("pool", Pool), ("policy", Policy)):
        mapping = head.get(name)
        if not isinstance(mapping, dict):
            raise ScenarioError(file, name, "missing", "give a file that a gateway recorded")
        if name == "policy":
            own = {key: value for key, value in mapping.items() if key not in ("name", "autoscaler")}
            mapping = {"name": mapping.get("name"), "autoscaler": mapping.get("autoscaler"), "params": own}
            plugins.find("policies", own.get("kind"), may_import=may_import)
        elif isinstance(mapping.get("router"), dict):
            plugins.find("routers", mapping["router"].get("kind"), may_import=may_import)
        try:
            found.append(kind.model_validate_json(as_json(mapping, file)))
        except ValidationError as error:
            raise explain(error, kind, mapping, file) from None
    return core_of(found[0], found[1], int(head.get("seed", 0)), leaving)


def agreed(config: ServeConfig, secrets: StateSecrets, head: Mapping[str, Any] | None = None) -> str:
    """Return a digest of what gateways that share a pool must agree on, so that all decide alike.

    ``head`` is in the place of the configuration's own, where a store of accounts adds to it.
    """
    pool = "" if config.state is None else config.state.pool
    parts = [
        recorded_head(config) if head is None else head, [one.base_url for one in config.upstreams],
        versions()["tokenpools"], Signer(pool, secrets.key).fingerprint(),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
