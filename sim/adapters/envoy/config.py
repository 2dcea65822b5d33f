"""The configuration of the external processor: a gate's, where it listens, and whose requests are whose."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sim.adapters.admission.config import GateConfig, config_of
from sim.live.gateway.config_parts import ApiKey
from sim.live.gateway.settings import Estimate, PricedPath, Tls, Tokenizer
from sim.scenario.pool_amounts import check_known, check_unique
from sim.scenario.registered_types import MisfitError, OneOf, named

_COUNTERS: Mapping[str, type] = {"estimate": Estimate, "tokenizer": Tokenizer}


class ExtProcConfig(GateConfig):
    """A gate for Envoy."""

    listen: str = Field(
        default="127.0.0.1:9002", pattern=r"^(unix:/.+|.+:\d{1,5})$",
        description="give an address, e.g. 127.0.0.1:9002, [::]:9002 or unix:/run/tokenpools.sock",
    )
    tls: Tls | None = Field(default=None, description="give {certificate: FILE, key: FILE} to speak TLS")
    tenant_header: str | None = Field(
        default=None, pattern=r"^[a-z0-9!#$%&'*+.^_`|~-]+$",
        description="give the header that Envoy itself sets to the tenant, in small letters, e.g. x-tenant",
    )
    keys: tuple[ApiKey, ...] = Field(default=(), description="give API keys by their hashes; tokenpools key makes them")
    class_header: str = Field(
        default="x-service-class", min_length=1, description="give the header that names a lower class"
    )
    destinations: tuple[Annotated[str, Field(pattern=r"^.+:\d{1,5}$")], ...] = Field(
        default=(), description="give HOST:PORT of every replica, in order, to choose the endpoint; [] if Envoy does"
    )
    paths: tuple[PricedPath, ...] = Field(default=(), description="give further paths and what they cost")
    other_paths: Literal["refuse", "pass"] = Field(
        default="refuse", description="give refuse, or pass for what is no path of an engine's API: it is not admitted"
    )
    prompt_tokens: Annotated[Any, OneOf(_COUNTERS, short=named(_COUNTERS))] = Field(
        default=Estimate(), description="give how prompts are counted, e.g. {kind: estimate, bytes_per_token: 4}"
    )
    write_default_limit: bool = Field(
        default=False, description="give true to write the pool's default limit into requests without one"
    )
    continuous_usage: bool = Field(
        default=False, description="give true where the engine tells the usage with each event, as vLLM does"
    )
    body_bytes: int = Field(default=8 * 2**20, ge=1, description="give the largest body, e.g. 8388608")
    choices: int = Field(default=128, ge=1, description="give the most answers that one request may ask for")
    prompts: int = Field(default=2048, ge=1, description="give the most prompts that one request may have")
    drain_s: float = Field(default=30.0, ge=0, description="give how long streams may go on at the end, e.g. 30")

    @model_validator(mode="after")
    def _names_somebody(self) -> ExtProcConfig:
        if bool(self.keys) == (self.tenant_header is not None):
            raise MisfitError(
                "tenant_header", "stands beside keys" if self.keys else "is missing, and there are no keys",
                "give one of the two: a header that Envoy sets and no client can, or keys",
            )
        check_unique("keys", [one.name for one in self.keys])
        names = [one.name for one in self.pool.entitlements]
        for index, key in enumerate(self.keys):
            check_known(f"keys[{index}].entitlement", "entitlement", key.entitlement, names)
        if self.destinations and len(self.destinations) != self.pool.replicas:
            raise MisfitError(
                "destinations", f"are {len(self.destinations)}, but the pool has {self.pool.replicas} replicas",
                "give one for each",
            )
        return self


def ext_proc_config(given: Mapping[str, Any] | str | Path) -> ExtProcConfig:
    """Return the configuration in a file or mapping.

    Raises
    ------
    ScenarioError : it cannot be read, or is none.
    """
    return config_of(given, ExtProcConfig)
