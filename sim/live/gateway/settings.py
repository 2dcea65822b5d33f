"""What a live gateway is told: limits, timeouts, keys, upstreams. `settings_from_config` makes it of a file.

These are frozen standard-library dataclasses whose field metadata are keyword arguments of pydantic's ``Field``, as in
`sim.scenario.registered_types`, so that the checks of the file and its schema need no code of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from policies.api import EntitlementSpec, PoolCapacity, ServiceClass
from sim.live.replicas.scaling import Scaling


def _seconds(default: float, what: str) -> Any:
    return field(default=default, metadata={"gt": 0, "description": f"give {what}, in seconds, e.g. {default:g}"})


def _count(default: int, what: str, least: int = 1) -> Any:
    return field(default=default, metadata={"ge": least, "description": f"give {what}, e.g. {default}"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a client or an upstream may send at most.

    Attributes
    ----------
    body_bytes : of a request; more is 413.
    header_bytes : of a request line with its headers; more is 431.
    answer_bytes : of an answer in one piece that is kept until it is whole; what is longer is passed on as it comes.
    event_bytes : of one event of a stream; more is taken for a broken upstream.
    choices : answers that one request may ask for (prompts times n, best_of or beam_width).
    prompts : of one request that generates nothing, such as embeddings.
    connections : open at a time; more are closed at once. What the process may open (``ulimit -n``) bounds it too.
    connections_per_address : of these, from one address.
    requests_per_key : on their way at a time, with one key, admitted or not.
    waiting_bytes, waiting_bytes_per_key : of bodies that are kept until their answer begins: of all, and of one key.
    """

    body_bytes: int = _count(8 * 2**20, "the largest request body in bytes")
    header_bytes: int = _count(32 * 2**10, "the most bytes of a request's headers", 1024)
    answer_bytes: int = _count(16 * 2**20, "the largest answer that is kept whole in bytes", 1024)
    event_bytes: int = _count(2**20, "the largest event of a stream in bytes", 1024)
    choices: int = _count(16, "the most answers that one request may ask for")
    prompts: int = _count(2048, "the most prompts of a request that generates nothing")
    connections: int = _count(20_000, "the most connections at a time")
    connections_per_address: int = _count(15_000, "the most connections at a time from one address")
    requests_per_key: int = _count(15_000, "the most requests at a time with one key")
    waiting_bytes: int = _count(256 * 2**20, "the most bytes of bodies that are kept at a time")
    waiting_bytes_per_key: int = _count(64 * 2**20, "the most bytes of bodies that are kept at a time for one key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long to wait for what.

    Attributes
    ----------
    header_s, body_s : for a client's headers, and for its body.
    keep_alive_s : for the next request on a connection.
    held_s : at the gateway, for a request that the policy holds.
    connect_s : for a connection to an upstream.
    first_byte_s : for the first token of a stream.
    whole_s : for an answer in one piece, which comes when all of it is generated.
    idle_s : between two bytes of an upstream, once there are tokens.
    client_stall_s : for a client that does not read.
    total_s : for an answer in full.
    drain_s : for what is in flight when the gateway is told to stop.
    drain_notice_s : between saying so (readyz is 503) and taking no more connections.
    health_every_s, health_s : between two looks at an upstream's health, and for its answer.
    """

    header_s: float = _seconds(10.0, "the longest time for a client's headers")
    body_s: float = _seconds(30.0, "the longest time for a client's body")
    keep_alive_s: float = _seconds(75.0, "the longest time between two requests of a connection")
    held_s: float = _seconds(60.0, "the longest time that a request is held")
    connect_s: float = _seconds(5.0, "the longest time for a connection to an upstream")
    first_byte_s: float = _seconds(120.0, "the longest time for the first token of a stream")
    whole_s: float = _seconds(600.0, "the longest time for an answer in one piece")
    idle_s: float = _seconds(60.0, "the longest time between two bytes of an upstream")
    client_stall_s: float = _seconds(30.0, "the longest time for a client that does not read")
    total_s: float = _seconds(1800.0, "the longest time for an answer in full")
    drain_s: float = _seconds(300.0, "the longest time for what is in flight at the end")
    drain_notice_s: float = field(
        default=0.0,
        metadata={"ge": 0, "description": "give how long readyz warns before no more is accepted, in seconds, e.g. 5"},
    )
    health_every_s: float = _seconds(1.0, "the time between two looks at an upstream's health")
    health_s: float = _seconds(2.0, "the longest time for an upstream's health")


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Prompt tokens from the length of the text."""

    kind: Literal["estimate"] = "estimate"
    bytes_per_token: float = field(
        default=4.0, metadata={"gt": 0, "description": "give the mean bytes of UTF-8 text in a token, e.g. 4"}
    )
    message_tokens: int = _count(4, "the tokens that a chat template adds to each message", 0)
    media_tokens: int = _count(1024, "the tokens of a picture or a sound of which only the address is known", 0)
    pixels_per_token: int = _count(784, "the pixels of a picture in a token")
    audio_bytes_per_token: int = _count(320, "the bytes of sound in a token")
    embedding_bytes_per_token: int = _count(8192, "the bytes of the embedding of a token")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenize:
    """Prompt tokens from vLLM's /tokenize; an estimate where that fails."""

    kind: Literal["tokenize"] = "tokenize"
    timeout_s: float = _seconds(2.0, "the longest time for an answer of /tokenize")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """Prompt tokens from a tokenizer file on this machine."""

    kind: Literal["tokenizer"] = "tokenizer"
    file: str = field(metadata={"min_length": 1, "description": "give the path of a tokenizer.json"})
    message_tokens: int = _count(4, "the tokens that a chat template adds to each message", 0)
    media_tokens: int = _count(1024, "the tokens of a picture or a sound of which only the address is known", 0)
    pixels_per_token: int = _count(784, "the pixels of a picture in a token")
    audio_bytes_per_token: int = _count(320, "the bytes of sound in a token")
    embedding_bytes_per_token: int = _count(8192, "the bytes of the embedding of a token")


LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Addresses that only this machine can reach."""

PROMPT_TOKENS: Mapping[str, type] = {"estimate": Estimate, "tokenize": Tokenize, "tokenizer": Tokenizer}
"""How the tokens of a prompt are counted, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedPath:
    """A further path of the upstreams' API, with what a request to it is taken to cost.

    Attributes
    ----------
    path : as it stands in the request line.
    output_tokens : reserved for its output; its prompt is priced by the bytes of the body.
    sequences : slots that it takes.
    """

    path: str = field(
        metadata={"pattern": r"^/[A-Za-z0-9._~/-]+$", "description": "give the path in full, e.g. /v1/audio/speech"}
    )
    methods: tuple[Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"], ...] = field(
        default=("POST",), metadata={"min_length": 1, "description": "give methods, e.g. [POST]"}
    )
    output_tokens: int = _count(256, "the tokens of output to reserve", 0)
    sequences: int = _count(1, "the slots that a request takes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metering:
    """How requests are measured, and whether that shows.

    Attributes
    ----------
    write_default_limit : whether a request without a limit goes on with the pool's default as its limit.
    continuous_usage : whether streams are asked to tell their usage with each event; ``auto``: those of vLLM are.
    cache_salt : whether each tenant's requests get a salt of their own, so that none finds another's prefix cache.
    """

    write_default_limit: bool = field(
        default=False, metadata={"description": "give true to write the pool's default limit into requests without one"}
    )
    continuous_usage: Literal["auto", "always", "never"] = field(
        default="auto", metadata={"description": "give auto, always or never"}
    )
    cache_salt: bool = field(
        default=False, metadata={"description": "give true to keep each tenant's prefix cache to itself"}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """What a server proves itself with, and whom it lets in.

    Attributes
    ----------
    certificate, key : files in PEM; read again on SIGHUP.
    client_ca : certificates of whom clients must show one of; None: clients show none.
    """

    certificate: str = field(metadata={"min_length": 1, "description": "give the file of the certificate chain"})
    key: str = field(metadata={"min_length": 1, "description": "give the file of its private key"})
    client_ca: str | None = field(
        default=None, metadata={"description": "give the file of the authority that clients' certificates come from"}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamAddress:
    """One replica: an OpenAI-compatible server. The key, if there is one, is in nobody's repr."""

    name: str
    base_url: str
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A client's API key, known by its hash only."""

    name: str
    entitlement: str
    digest: bytes = field(repr=False)
    expires_s: float | None = None  # Unix time from which it is refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Admin:
    """Who may see metrics, state and the admin page.

    Attributes
    ----------
    host, port : the pages' own address; without a port they are beside the API, where a token is needed.
    token_digest : SHA-256 of the token; None: whoever reaches the address may see them.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    token_digest: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountsAddress:
    """Where the admin API of keys and budgets is, and the SHA-256 of the token that it asks for."""

    host: str
    port: int
    token_digest: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """Where keys, budgets and use are kept.

    Attributes
    ----------
    store : a file (SQLite) or an address of Redis.
    password : Redis's; None where the address has it, or none is needed.
    api : the admin API; None: there is none.
    poll_s : how often to look whether another process has changed keys or budgets.
    when_away : what happens to requests while the store cannot be written: open, the books go on in memory; closed,
        they are refused.
    """

    store: str = field(repr=False)
    password: str | None = field(default=None, repr=False)
    api: AccountsAddress | None = None
    poll_s: float = 2.0
    when_away: Literal["open", "closed"] = "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Logs:
    """What is logged to stderr, and how."""

    style: Literal["text", "json"] = field(default="text", metadata={"description": "give text or json"})
    level: Literal["debug", "info", "warning", "error"] = field(
        default="info", metadata={"description": "give debug, info, warning or error"}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckInvariants:
    """Whether what must hold of the core is checked while it serves, see `policies.invariants`.

    Attributes
    ----------
    every_events : everything is looked at every so many events; what an event touches is after each.
    on_violation : log: say it and go on; stop: end, with what is in flight, and with exit code 1.
    """

    every_events: int = _count(1000, "the events between two looks at everything")
    on_violation: Literal["log", "stop"] = field(default="log", metadata={"description": "give log or stop"})


_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"

Mode = Literal["open", "closed"]


_MODE = {"description": "give open or closed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackSettings:
    """What a gateway does by itself while the shared state is out of reach, for each class of service.

    Open lets in what fits in this gateway's part of the entitlement's baseline, closed nothing; see
    `sim.live.shared_state.fallback`.
    """

    dedicated: Mode = field(default="open", metadata=_MODE)
    guaranteed: Mode = field(default="open", metadata=_MODE)
    elastic: Mode = field(default="closed", metadata=_MODE)
    spot: Mode = field(default="closed", metadata=_MODE)
    preemptible: Mode = field(default="closed", metadata=_MODE)

    def of(self, service_class: ServiceClass) -> Mode:
        """Return what holds for a class."""
        mode: Mode = getattr(self, service_class.value)
        return mode


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedState:
    """Where the state is that several gateways of one pool share, and how long to wait for it.

    Attributes
    ----------
    url : as redis-py reads it, e.g. ``redis://127.0.0.1:6379/0`` or ``unix:///run/redis.sock``.
    pool : the name under which the state is kept: gateways of one name share it.
    ttl_s : a gateway that says nothing for this long is lost, and its reservations return.
    timeout_s : how long a request waits for the shared state before ``when_away`` decides.
    snapshot_every : events between two snapshots; about twice as many stay in the log.
    key_env, password_env : variables that hold the key that entries are signed with, and Redis's password.
    share : replicated: every gateway decides on every event, and all as one would; leases: each has a part of every
        limit and decides alone, see `sim.live.shared_state.leased`.
    every_s : under leases, how often a gateway asks for its parts.
    stored_ttl_s, stored_most : for how long it is kept whose a stored response is, and how many of one tenant.
    """

    url: str = field(
        repr=False,
        metadata={"pattern": r"^(rediss?|unix)://", "description": "give e.g. redis://127.0.0.1:6379/0"},
    )
    pool: str = field(
        default="default",
        metadata={"pattern": r"^[A-Za-z0-9._-]{1,100}$", "description": "give the pool a name of letters and digits"},
    )
    ttl_s: float = _seconds(5.0, "the time after which a silent gateway is lost")
    timeout_s: float = _seconds(0.25, "the longest that a request waits for the shared state")
    snapshot_every: int = _count(20_000, "the events between two snapshots")
    key_env: str | None = field(
        default=None,
        metadata={
            "pattern": _VARIABLE,
            "description": "give the variable that holds the key of the pool's gateways, e.g. TOKENPOOLS_STATE_KEY",
        },
    )
    password_env: str | None = field(
        default=None,
        metadata={
            "pattern": _VARIABLE, "description": "give the variable that holds Redis's password, e.g. REDIS_PASSWORD"
        },
    )
    share: Literal["replicated", "leases"] = field(
        default="replicated", metadata={"description": "give replicated or leases"}
    )
    every_s: float = _seconds(0.5, "the time between two rounds of leases")
    stored_ttl_s: float = _seconds(86_400.0, "the time for which owners of stored responses are kept")
    stored_most: int = _count(20_000, "the stored responses of a tenant whose owner is kept")
    when_away: FallbackSettings = field(
        default_factory=FallbackSettings,
        metadata={"description": "give {guaranteed: open, elastic: closed, spot: closed}"},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSecrets:
    """What the environment holds for the shared state, in nobody's repr.

    Attributes
    ----------
    key : what entries are signed with; None: they are not.
    password : Redis's; None where the URL has it, or none is needed.
    """

    key: bytes | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)


NO_SECRETS = StateSecrets()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that a gateway is told, but for its core.

    Attributes
    ----------
    upstreams : the replicas that the pool begins with; their ids are 0, 1, ...
    capacity_of : what so many ready replicas provide.
    models : names that clients may ask for; empty for what the upstreams say they serve.
    default_max_output_tokens : for a request that names no limit.
    paths : further paths that are passed on, with their prices.
    metering : how requests are measured.
    tls : what the server proves itself with; None: it speaks in clear.
    cors_origins : web pages that browsers may let ask, ``*`` for all; empty for none.
    decode_s : the time that the fastest replica needs for a token of one sequence; None where it is not known.
    scrape_interval_s : between two looks at a replica's metrics.
    records : folder for the tables of requests; None for none.
    admin : who may see the pages; None: nobody, there are none.
    accounts : where keys, budgets and use are kept; None: in the configuration, and nowhere.
    recording : file for every event and instruction of the core; None for none.
    telemetry : whether traces and metrics go to OpenTelemetry, by OTLP.
    scaling : what makes the replicas that the autoscaler wants; None: nothing, and nobody is told.
    check_invariants : whether the core is checked while it serves; None: it is not.
    state : where the state is that several processes share; None: this process has the pool for itself.
    state_config : a digest of what the processes must agree on.
    state_secrets : the key and password for it.
    """

    host: str
    port: int
    upstreams: tuple[UpstreamAddress, ...]
    capacity_of: Callable[[int], PoolCapacity]
    entitlements: tuple[EntitlementSpec, ...]
    keys: tuple[Key, ...]
    policy: str = ""
    models: tuple[str, ...] = ()
    default_max_output_tokens: int = 256
    prompt_tokens: Estimate | Tokenize | Tokenizer = Estimate()
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    paths: tuple[PricedPath, ...] = ()
    metering: Metering = Metering()
    tls: Tls | None = None
    cors_origins: tuple[str, ...] = ("*",)
    decode_s: float | None = None
    scrape_interval_s: float = 1.0
    records: str | None = None
    admin: Admin | None = None
    accounts: Accounts | None = None
    logs: Logs = Logs()
    recording: str | None = None
    telemetry: Literal["none", "otlp"] = "none"
    scaling: Scaling | None = None
    check_invariants: CheckInvariants | None = None
    state: SharedState | None = None
    state_config: str = ""
    state_secrets: StateSecrets = NO_SECRETS
    class_header: str = "x-tokenpools-class"
