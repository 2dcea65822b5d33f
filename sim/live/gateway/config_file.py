"""The configuration of a live gateway: the pool and policy of a scenario, and what a server needs besides.

It is read with the same care as a scenario: unknown keys, wrong types and impossible values are refused with place,
finding and fix (`sim.scenario.validation_errors`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, model_validator

from policies.api import EntitlementSpec
from policies.core import GatewayCore
from policies.hierarchy import Hierarchy
from policies.limit_leases import why_unfit
from policies.registry import SCALERS
from sim.errors import ScenarioError
from sim.live.gateway.settings import (
    LOOPBACK,
    PROMPT_TOKENS,
    Accounts,
    AccountsAddress,
    Admin,
    CheckInvariants,
    Key,
    Limits,
    Logs,
    Metering,
    PricedPath,
    Settings,
    SharedState,
    StateSecrets,
    Timeouts,
    Tls,
    UpstreamAddress,
)
from sim.live.replicas.scaling import SCALING
from sim.live.shared_state.signing import LEAST_KEY_BYTES, Signer
from sim.records.provenance import versions
from sim.scenario import plugins
from sim.scenario.editor_schemas import identified, with_shorthands
from sim.scenario.hierarchy import BudgetLimit, PoolKey, check_tree
from sim.scenario.model import Policy
from sim.scenario.pool import Pool
from sim.scenario.pool_amounts import Amounts, Name, check_known, check_unique
from sim.scenario.registered_types import MisfitError, OneOf, Strict, named
from sim.scenario.shorthand import with_pool_and_policy
from sim.scenario.validation_errors import explain
from sim.scenario.yaml_file import as_json, one_line, plain, read_mapping

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


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


def bare_address(host: str) -> str:
    """Return an address as sockets take it: IPv6 without the brackets of a URL."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


class Listen(Strict):
    """Where the gateway listens."""

    host: str = Field(default="127.0.0.1", min_length=1, description="give an address, e.g. 127.0.0.1 or 0.0.0.0")
    port: int = Field(default=8080, ge=0, le=65535, description="give a port, e.g. 8080; 0 for any that is free")
    tls: Tls | None = Field(default=None, description="give {certificate: FILE, key: FILE} to speak HTTPS")
    cors_origins: tuple[str, ...] = Field(
        default=("*",), description="give the origins whose pages may ask, e.g. [https://chat.example.com]; [] for none"
    )


class Upstream(Strict):
    """One replica: a server of the OpenAI API, such as vLLM."""

    name: Name = Field(description="give the replica a name")
    base_url: str = Field(description="give the address before /v1, e.g. http://127.0.0.1:8000")
    api_key_env: str | None = Field(
        default=None, description="give the environment variable that holds its API key, e.g. VLLM_API_KEY"
    )

    @model_validator(mode="after")
    def _fits(self) -> Upstream:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise MisfitError("base_url", f"{self.base_url!r} is no address", "give e.g. http://127.0.0.1:8000")
        if parts.path.rstrip("/").endswith("/v1"):
            raise MisfitError("base_url", "ends with /v1, which requests bring along", "leave /v1 out")
        if parts.username or parts.password:
            raise MisfitError("base_url", "holds a password", "use api_key_env")
        if self.api_key_env is not None and not _VARIABLE.fullmatch(self.api_key_env):
            raise MisfitError("api_key_env", "is no name of a variable", "give the variable's name, not the key")
        return self

    def address(self, where: str, file: str) -> UpstreamAddress:
        """Return the replica as the gateway sees it, with its key from the environment."""
        key = None
        if self.api_key_env is not None:
            key = os.environ.get(self.api_key_env)
            if not key:
                raise ScenarioError(
                    file, f"{where}.api_key_env", f"the variable {self.api_key_env} is not set", "set it to the key"
                )
        return UpstreamAddress(name=self.name, base_url=self.base_url.rstrip("/"), api_key=key)


class ApiKey(Strict):
    """A client's key, by its hash."""

    name: Name = Field(description="give the key a name for logs, e.g. chat-production")
    entitlement: str = Field(description="give the name of an entitlement of the pool")
    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="give the SHA-256 of the key in hexadecimal; tokenpools key NAME makes both",
    )
    limit: Amounts = Field(default=Amounts(), description="give the most it may use, e.g. {slots: 2}")
    budgets: tuple[BudgetLimit, ...] = Field(default=(), description="give budgets, e.g. [{per: day, limit: 100000}]")

    def below(self) -> PoolKey | None:
        """Return the key's place in the tree of limits; None where it has no limits of its own."""
        if not self.budgets and self.limit == Amounts():
            return None
        return PoolKey(name=self.name, entitlement=self.entitlement, limit=self.limit, budgets=self.budgets)


class AdminPages(Strict):
    """Who may see metrics, state and the admin page."""

    host: str = Field(default="127.0.0.1", min_length=1, description="give an address, e.g. 127.0.0.1")
    port: int | None = Field(
        default=None, ge=0, le=65535, description="give their own port, e.g. 9090; without one they are beside the API"
    )
    token_sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$",
        description="give the SHA-256 of a token in hexadecimal; tokenpools key admin makes both",
    )

    @model_validator(mode="after")
    def _fits(self) -> AdminPages:
        if self.port is None and self.token_sha256 is None:
            raise MisfitError("", "pages beside the API that anybody may see", "give token_sha256, or a port")
        if self.port is not None and self.token_sha256 is None and bare_address(self.host) not in LOOPBACK:
            raise MisfitError(
                "token_sha256", f"missing, although {self.host} can be reached from outside",
                "give it, or leave the host out",
            )
        return self

    def settings(self) -> Admin:
        """Return them as the gateway sees them."""
        digest = None if self.token_sha256 is None else bytes.fromhex(self.token_sha256)
        return Admin(host=bare_address(self.host), port=self.port, token_digest=digest)


class AccountsApi(Strict):
    """Where the admin API of keys and budgets is."""

    host: str = Field(default="127.0.0.1", min_length=1, description="give an address, e.g. 127.0.0.1")
    port: int = Field(ge=0, le=65535, description="give a port of its own, e.g. 9091")
    token_sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="give the SHA-256 of a token in hexadecimal; tokenpools key admin makes both",
    )


class AccountsStore(Strict):
    """Where keys, budgets and use are kept, so that they outlive the gateway."""

    store: str = Field(
        min_length=1, repr=False, description="give a file, e.g. accounts.db, or redis://127.0.0.1:6379/0"
    )
    password_env: str | None = Field(
        default=None, description="give the variable that holds Redis's password, e.g. REDIS_PASSWORD"
    )
    api: AccountsApi | None = Field(
        default=None, description="give {port: 9091, token_sha256: ...} for the admin API; left out, there is none"
    )
    poll_s: float = Field(default=2.0, gt=0, description="give the seconds between two looks for changes, e.g. 2")
    when_away: Literal["open", "closed"] = Field(
        default="open", description="open: books go on in memory while the store is away; closed: requests are refused"
    )

    def settings(self, file: str) -> Accounts:
        """Return them as the gateway sees them."""
        password = None
        if self.password_env is not None:
            password = os.environ.get(self.password_env)
            if not password:
                problem = f"the variable {self.password_env} is not set"
                raise ScenarioError(file, "accounts.password_env", problem, "set it to the password")
        api = None if self.api is None else AccountsAddress(
            host=bare_address(self.api.host), port=self.api.port, token_digest=bytes.fromhex(self.api.token_sha256)
        )
        return Accounts(
            store=self.store, password=password, api=api, poll_s=self.poll_s, when_away=self.when_away
        )


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


def state_secrets(state: SharedState | None, file: str) -> StateSecrets:
    """Return what the environment holds for the shared state.

    Raises
    ------
    ScenarioError : a variable is not set, or its key is too short to be one.
    """
    if state is None:
        return StateSecrets()
    found = {}
    for name, variable in (("key_env", state.key_env), ("password_env", state.password_env)):
        found[name] = None if variable is None else os.environ.get(variable)
        if variable is not None and not found[name]:
            raise ScenarioError(file, f"state.{name}", f"the variable {variable} is not set", "set it everywhere")
    key = found["key_env"]
    if key is not None and len(key.encode()) < LEAST_KEY_BYTES:
        problem = f"the variable {state.key_env} holds {len(key.encode())} bytes"
        raise ScenarioError(file, "state.key_env", problem, "give 32 random ones, e.g. of openssl rand -hex 32")
    return StateSecrets(key=None if key is None else key.encode(), password=found["password_env"])


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


def make_settings(config: ServeConfig, file: str = "") -> Settings:
    """Return what the server is told.

    Raises
    ------
    ScenarioError : the key of an upstream is not in the environment.
    """
    pool, secrets = config.pool, state_secrets(config.state, file)
    return Settings(
        host=bare_address(config.listen.host), port=config.listen.port,
        upstreams=tuple(one.address(f"upstreams[{i}]", file) for i, one in enumerate(config.upstreams)),
        capacity_of=pool.capacity, entitlements=tuple(one.spec() for one in pool.entitlements),
        keys=tuple(
            Key(name=one.name, entitlement=one.entitlement, digest=bytes.fromhex(one.sha256)) for one in config.keys
        ),
        policy=config.policy.name, models=config.models, default_max_output_tokens=pool.default_max_output_tokens,
        prompt_tokens=config.prompt_tokens, limits=config.limits, timeouts=config.timeouts,
        paths=config.paths, metering=config.metering, tls=config.listen.tls, cors_origins=config.listen.cors_origins,
        decode_s=_decode_s(pool), scrape_interval_s=pool.scrape_interval_s, records=config.records,
        admin=None if config.admin is None else config.admin.settings(), logs=config.logs, recording=config.recording,
        telemetry=config.telemetry, scaling=config.scaling, check_invariants=config.check_invariants,
        accounts=None if config.accounts is None else config.accounts.settings(file),
        state=config.state, state_config=agreed(config, secrets),
        state_secrets=secrets,
    )  # fmt: skip


def _decode_s(pool: Pool) -> float:
    """Return how long a replica takes for a token of one sequence when it has nothing else to do."""
    profile = pool.profile
    gain = 1.0 if profile.speculation is None else float(profile.speculation.gain)
    step_s: float = profile.step_time.iteration_s(0, 0.0, 1, 1.0)
    return step_s / gain


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a configuration file, shorthands included."""
    schema = with_shorthands(ServeConfig.model_json_schema())
    fields = schema["properties"]
    for name, short in (("state", {"type": "string"}), ("check_invariants", {"type": "boolean"})):
        fields[name]["anyOf"].append(short)
    return identified(schema, "gateway")


__all__ = [
    "ServeConfig", "agreed", "core_of", "core_of_head", "json_schema", "load_config", "make_core", "make_settings",
    "parse_config", "recorded_head",
]  # fmt: skip
