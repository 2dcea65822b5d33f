"""What a gateway's configuration says of addresses, upstreams, keys and stores: the parts of `ServeConfig`."""

from __future__ import annotations

import os
import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from sim.errors import ScenarioError
from sim.live.gateway.settings import LOOPBACK, Accounts, AccountsAddress, Admin, Tls, UpstreamAddress
from sim.scenario.hierarchy import BudgetLimit, PoolKey
from sim.scenario.pool_amounts import Amounts, Name
from sim.scenario.registered_types import MisfitError, Strict

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


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
