"""The configuration of a live gateway: the pool and policy of a scenario, and what a server needs besides.

It is read with the same care as a scenario: unknown keys, wrong types and impossible values are refused with place,
finding and fix (`sim.scenario.validation_errors`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, model_validator

from sim.live.gateway.config_parts import AccountsStore, AdminPages, ApiKey, Listen, Upstream, bare_address
from sim.live.gateway.settings import (
    LOOPBACK,
    PROMPT_TOKENS,
    CheckInvariants,
    Limits,
    Logs,
    Metering,
    PricedPath,
    SharedState,
    Timeouts,
)
from sim.live.replicas.scaling import SCALING
from sim.scenario.editor_schemas import identified, with_shorthands
from sim.scenario.hierarchy import check_tree
from sim.scenario.model import Policy
from sim.scenario.pool import Pool
from sim.scenario.pool_amounts import check_known, check_unique
from sim.scenario.registered_types import MisfitError, OneOf, Strict, named
from sim.scenario.shorthand import with_pool_and_policy
from sim.scenario.validation_errors import explain
from sim.scenario.yaml_file import as_json, one_line, plain, read_mapping

_SIMULATED = {
    "start_up_s": "leave it out: replicas are ready when their health says so",
    "drain_s": "leave it out, or give timeouts: {drain_s: ...} for the gateway's own end",
    "notice_s": "leave it out, or give timeouts: {health_every_s: ...}",
    "share": "leave it out, or give state: {share: leases}",
}
"""Fields of a pool that only its simulation reads, and what to give in their place."""

_ANYWHERE = ("0.0.0.0", "::", "")


def _same_place(one: str, other: str) -> bool:
    """Return whether a port of two addresses is one port."""
    one, other = bare_address(one), bare_address(other)
    return one == other or one in _ANYWHERE or other in _ANYWHERE or {one, other} == {"localhost", "127.0.0.1"}


class ServeConfig(Strict):
    """A live gateway: whom it serves, with what policy, in front of which servers."""

    version: Literal[1] = Field(description="start with version: 1")
    listen: Listen = Field(default=Listen(), description="give {host: 127.0.0.1, port: 8080}")
    pool: Pool = Field(description="give the pool: its profile and entitlements, as in a scenario")
    policy: Policy = Field(description="give a policy, e.g. token-pool")
    shadow: tuple[Policy, ...] = Field(
        default=(), description="give policies that watch without acting, e.g. [token-pool]"
    )
    upstreams: tuple[Upstream, ...] = Field(min_length=1, description="give the servers, one for each replica")
    keys: tuple[ApiKey, ...] = Field(default=(), description="give the clients' keys; tokenpools key NAME makes one")
    models: tuple[str, ...] = Field(
        default=(), description="give the models that clients may ask for; left out, what the servers say they have"
    )
    prompt_tokens: Annotated[Any, OneOf(PROMPT_TOKENS, short=named(PROMPT_TOKENS))] = Field(
        default=PROMPT_TOKENS["estimate"](), description="give estimate, tokenize or {kind: tokenizer, file: ...}"
    )
    limits: Limits = Field(default=Limits(), description="give the most that may be sent, e.g. {body_bytes: 8388608}")
    timeouts: Timeouts = Field(default=Timeouts(), description="give how long to wait, e.g. {first_byte_s: 120}")
    paths: tuple[PricedPath, ...] = Field(
        default=(), description="give further paths with their prices, e.g. [{path: /v1/audio/speech}]"
    )
    metering: Metering = Field(default=Metering(), description="give e.g. {cache_salt: true}")
    records: str | None = Field(default=None, description="give a folder for the tables of requests, e.g. records")
    admin: AdminPages | None = Field(
        default=None, description="give {port: 9090} for metrics and the admin page; left out, there are none"
    )
    accounts: AccountsStore | None = Field(
        default=None, description="give {store: accounts.db} to keep keys, budgets and use there"
    )
    logs: Logs = Field(default=Logs(), description="give {style: json, level: info}")
    recording: str | None = Field(
        default=None, description="give a file for all events and decisions, e.g. events.jsonl; see tokenpools parity"
    )
    telemetry: Literal["none", "otlp"] = Field(
        default="none", description="give otlp for traces and metrics by OpenTelemetry; OTEL_* variables say where to"
    )
    scaling: Annotated[Any, OneOf(SCALING, short=named(SCALING))] = Field(
        default=None, description="give log, {kind: kubernetes, name: vllm}, or {kind: command or processes, ...}"
    )
    check_invariants: CheckInvariants | None = Field(
        default=None, description="give {on_violation: log} to check the core's books while it serves"
    )
    state: SharedState | None = Field(
        default=None, description="give {url: redis://HOST:PORT/0} if several gateways share the pool"
    )
    seed: int = Field(default=0, ge=0, description="give a whole number for the jitter of Retry-After, e.g. 7")

    @model_validator(mode="after")
    def _fits(self) -> ServeConfig:
        check_unique("upstreams", [one.name for one in self.upstreams])
        check_unique("keys", [one.name for one in self.keys])
        self._check_accounts()
        entitlements = [one.name for one in self.pool.entitlements]
        seen: dict[str, str] = {}
        for index, key in enumerate(self.keys):
            check_known(f"keys[{index}].entitlement", "entitlement", key.entitlement, entitlements)
            if key.sha256 in seen:
                problem = f"is that of {seen[key.sha256]} too"
                raise MisfitError(f"keys[{index}].sha256", problem, "give each its own key")
            seen[key.sha256] = key.name
        for name in getattr(self.policy.params, "per_entitlement", None) or ():
            check_known("policy.per_entitlement", "entitlement", name, entitlements)
        self._check_tree()
        self._check_shadows()
        self._check_ports()
        check_unique("paths", [one.path for one in self.paths])
        if self.pool.replicas != len(self.upstreams):
            raise MisfitError(
                "pool.replicas", f"{self.pool.replicas}, but there are {len(self.upstreams)} upstreams",
                "leave it out, or give as many",
            )
        if self.state is not None and self.recording is not None:
            raise MisfitError(
                "recording", "is of one core from its start, which shared state may replace", "leave it or state out"
            )
        if self.state is not None and self.state.share == "leases":
            scaler = self.pool.autoscaler if self.policy.autoscaler is None else self.policy.autoscaler
            if scaler.kind != "none":
                problem = "leases have no autoscaler, which would see one gateway's part"
                raise MisfitError("state.share", problem, "give replicated, or no autoscaler")
        if self.pool.gateways > 1:
            raise MisfitError("pool.gateways", "is for simulations", "start as many processes with one --state")
        self._check_simulated()
        return self

    def _check_simulated(self) -> None:
        """Refuse what only a simulated pool has: here it would change nothing."""
        for name, instead in _SIMULATED.items():
            if getattr(self.pool, name) != Pool.model_fields[name].default:
                raise MisfitError(f"pool.{name}", "is for simulations", instead)
        if self.pool.calendar.starts is not None:
            raise MisfitError("pool.calendar.starts", "is for simulations", "leave it out: days are the real ones")

    def _check_ports(self) -> None:
        """Refuse a port that two of the gateway's own servers would take, and an upstream that is the gateway."""
        given = [("listen", self.listen.host, self.listen.port)]
        if self.admin is not None and self.admin.port is not None:
            given.append(("admin", self.admin.host, self.admin.port))
        if self.accounts is not None and self.accounts.api is not None:
            given.append(("accounts.api", self.accounts.api.host, self.accounts.api.port))
        for index, (name, host, port) in enumerate(given):
            for other, there, theirs in given[:index]:
                if port and port == theirs and _same_place(host, there):
                    raise MisfitError(f"{name}.port", f"{port} is {other}.port too", "give each its own")
        for index, upstream in enumerate(self.upstreams):
            parts = urlsplit(upstream.base_url)
            for name, host, port in given:
                if port and parts.port == port and bare_address(parts.hostname or "") in LOOPBACK and (
                    bare_address(host) in LOOPBACK or bare_address(host) in _ANYWHERE
                ):  # fmt: skip
                    problem = f"{upstream.base_url} is this gateway's own {name}"
                    raise MisfitError(f"upstreams[{index}].base_url", problem, "give the model server's port")

    def _check_shadows(self) -> None:
        """Refuse shadows of one name, and beside what knows one core alone."""
        check_unique("shadow", [one.name for one in self.shadow])
        if self.shadow and self.state is not None:
            raise MisfitError("shadow", "given beside a shared state, which keeps one core", "leave one of the two out")
        if self.shadow and self.recording is not None:
            raise MisfitError("shadow", "given beside a recording, which is of one core", "leave one of the two out")
        if self.shadow and self.check_invariants is not None:
            raise MisfitError("shadow", "given beside check_invariants, which look at one core", "leave one out")

    def _check_accounts(self) -> None:
        """Refuse keys that are nowhere, and a store that does not fit how the state is shared."""
        if self.accounts is None:
            if not self.keys:
                raise MisfitError("keys", "there are none", "give the clients' keys; tokenpools key NAME makes one")
            return
        in_redis = self.accounts.store.startswith(("redis://", "rediss://", "unix://"))
        if self.state is not None and self.state.share == "leases":
            raise MisfitError("accounts", "given beside leases, whose gateways keep books apart", "give replicated")
        if self.state is not None and not in_redis:
            problem = "is a file, which gateways that share their state cannot share"
            raise MisfitError("accounts.store", problem, "give an address of Redis")

    def _check_tree(self) -> None:
        """Refuse limits of keys that contradict what is above them, and what cannot keep their books."""
        if self.pool.keys:
            raise MisfitError("pool.keys", "is for simulations", "give limit and budgets at keys")
        pool = self.pool
        below = [one for one in self.keys if one.below() is not None]
        try:
            check_tree(pool.groups, below, pool.entitlements, pool.prices)  # type: ignore[arg-type]
        except MisfitError as error:
            path, problem, fix = error.args
            number, _, rest = path.removeprefix("keys[").partition("]")
            if not path.startswith("keys[") or not number.isdigit():
                raise
            raise MisfitError(f"keys[{self.keys.index(below[int(number)])}]{rest}", problem, fix) from None
        if self.state is not None and self.state.share == "leases" and self.whole_pool().hierarchy() is not None:
            raise MisfitError("state.share", "leases cannot deal out groups, keys and budgets", "give replicated")

    def whole_pool(self) -> Pool:
        """Return the pool with the limits of its keys."""
        below = tuple(place for one in self.keys if (place := one.below()) is not None)
        if not below and self.accounts is None:
            return self.pool
        return self.pool.model_copy(update={"keys": below, "count_use": self.accounts is not None})


def load_config(path: str | Path, state_url: str | None = None) -> ServeConfig:
    """Return the configuration in a file; ``state_url`` is in the place of its ``state.url``.

    Raises
    ------
    ScenarioError : it cannot be read, or not served as it is.
    """
    file = one_line(str(path))
    mapping = read_mapping(Path(path), file)
    if state_url is not None:
        given = mapping.get("state")
        mapping = {**mapping, "state": {**(given if isinstance(given, Mapping) else {}), "url": state_url}}
    return parse_config(mapping, file)


def parse_config(mapping: Mapping[str, Any], file: str) -> ServeConfig:
    """Return the configuration that a mapping describes; ``file`` is what to call it in errors.

    Raises
    ------
    ScenarioError : see `sim.scenario.validation_errors` for what it says.
    """
    raw = plain(mapping, file)
    try:
        return ServeConfig.model_validate_json(as_json(_canonical(raw, file), file))
    except ValidationError as error:
        raise explain(error, ServeConfig, raw, file) from None


def _canonical(raw: dict[str, Any], file: str) -> dict[str, Any]:
    """Bring the shorthands of scenarios into their canonical form: `sim.scenario.shorthand` knows them."""
    found = with_pool_and_policy(raw, file)
    pool, upstreams = found.get("pool"), found.get("upstreams")
    # A manifest's minReplicas is what an autoscaler may go down to; how many there are, the upstreams say.
    if isinstance(pool, dict) and "replicas" not in raw["pool"] and isinstance(upstreams, list) and upstreams:
        found["pool"] = {**pool, "replicas": len(upstreams)}
    if isinstance(found.get("state"), str):
        found["state"] = {"url": found["state"]}
    if isinstance(found.get("check_invariants"), bool):
        found["check_invariants"] = {} if found["check_invariants"] else None
    if isinstance(found.get("scaling"), str):
        found["scaling"] = {"kind": found["scaling"]}
    if isinstance(found.get("prompt_tokens"), str):
        found["prompt_tokens"] = {"kind": found["prompt_tokens"]}
    return found


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a configuration file, shorthands included."""
    schema = with_shorthands(ServeConfig.model_json_schema())
    fields = schema["properties"]
    for name, short in (("state", {"type": "string"}), ("check_invariants", {"type": "boolean"})):
        fields[name]["anyOf"].append(short)
    return identified(schema, "gateway")
