"""The configuration of a gate: the pool and policy of a scenario, and whose requests are whose."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from policies.core import GatewayCore
from policies.limit_leases import why_unfit
from sim.live.gateway.config_parts import AdminPages
from sim.live.gateway.core_from_config import core_of
from sim.live.gateway.settings import CheckInvariants, SharedState
from sim.scenario.model import Policy
from sim.scenario.pool import Pool
from sim.scenario.pool_amounts import check_known
from sim.scenario.registered_types import MisfitError, Strict
from sim.scenario.shorthand import with_pool_and_policy
from sim.scenario.validation_errors import explain
from sim.scenario.yaml_file import as_json, one_line, plain, read_mapping


class GateConfig(Strict):
    """A pool and its policy, for a server that is not ours.

    `pool` and `policy` are those of a scenario and of ``tokenpools serve``.
    """

    version: Literal[1] = Field(description="start with version: 1")
    pool: Pool = Field(description="give the pool: its profile and entitlements, as in a scenario")
    policy: Policy = Field(description="give a policy, e.g. token-pool")
    tenants: dict[str, str] = Field(
        default={}, description="give the entitlement of names that are no tenant of the pool, e.g. {team-7: chat}"
    )
    unknown_tenant: str | None = Field(
        default=None, description="give the entitlement of whoever is not known; left out, they are refused"
    )
    held_s: float = Field(default=60.0, gt=0, description="give the longest time that a request is held, e.g. 60")
    recording: str | None = Field(
        default=None, description="give a file for all events and decisions, e.g. events.jsonl; see tokenpools parity"
    )
    check_invariants: CheckInvariants | None = Field(
        default=None, description="give {on_violation: log} to check the core's books while it serves"
    )
    state: SharedState | None = Field(
        default=None, description="give {url: redis://HOST:PORT/0} if several processes share the pool"
    )
    admin: AdminPages | None = Field(
        default=None, description="give {port: 9090} for metrics, state and the admin page; left out, there are none"
    )
    seed: int = Field(default=0, ge=0, description="give a whole number for the jitter of Retry-After, e.g. 7")

    @model_validator(mode="after")
    def _fits(self) -> GateConfig:
        names = [one.name for one in self.pool.entitlements]
        for tenant, name in self.tenants.items():
            check_known(f"tenants.{tenant}", "entitlement", name, names)
        if self.unknown_tenant is not None:
            check_known("unknown_tenant", "entitlement", self.unknown_tenant, names)
        for name in getattr(self.policy.params, "per_entitlement", None) or ():
            check_known("policy.per_entitlement", "entitlement", name, names)
        self._check_shared()
        if self.admin is not None and self.admin.port is None:
            raise MisfitError("admin.port", "is missing, and a door has no API of its own", "give one, e.g. 9090")
        return self

    def _check_shared(self) -> None:
        """Refuse what one process alone has, beside a state that several share."""
        if self.state is None:
            return
        for name in ("recording", "check_invariants"):
            if getattr(self, name) is not None:
                raise MisfitError(name, "is of the core of one process, beside a shared state", "leave one of them out")
        if self.state.share == "leases" and (why := why_unfit(self.core().policy)):
            raise MisfitError("state.share", f"{why}, as leases ask", "give replicated")

    def core(self) -> GatewayCore:
        """Return a new core of this pool and policy: the object that a simulation of them runs.

        Raises
        ------
        ScenarioError : the policy does not fit the pool.
        """
        return core_of(self.pool, self.policy, self.seed)

    def head(self) -> dict[str, Any]:
        """Return what a recording needs to say, for ``tokenpools parity`` to make the same core again."""
        return {
            "pool": self.pool.model_dump(mode="json"), "policy": self.policy.model_dump(mode="json"),
            "seed": self.seed,
        }  # fmt: skip


Config = TypeVar("Config", bound=GateConfig)


def gate_config(given: GateConfig | Mapping[str, Any] | str | Path) -> GateConfig:
    """Return the configuration in a file or mapping.

    Raises
    ------
    ScenarioError : it cannot be read, or is none; it says where, what was found and what to give.
    """
    return given if isinstance(given, GateConfig) else config_of(given, GateConfig)


def config_of(given: Mapping[str, Any] | str | Path, model: type[Config]) -> Config:
    """Return the configuration in a file or mapping, as ``model`` has it: a door's own says more than a gate's.

    Raises
    ------
    ScenarioError : it cannot be read, or is none; it says where, what was found and what to give.
    """
    if isinstance(given, Mapping):
        file, mapping = "gate", given
    else:
        file = one_line(str(given))
        mapping = read_mapping(Path(given), file)
    raw = plain(mapping, file)
    try:
        return model.model_validate_json(as_json(_canonical(raw, file), file))
    except ValidationError as error:
        raise explain(error, model, raw, file) from None


def _canonical(raw: dict[str, Any], file: str) -> dict[str, Any]:
    """Bring the shorthands of scenarios into their canonical form."""
    found = with_pool_and_policy(raw, file)
    if isinstance(found.get("check_invariants"), bool):
        found["check_invariants"] = {} if found["check_invariants"] else None
    if isinstance(found.get("state"), str):
        found["state"] = {"url": found["state"]}
    return found
