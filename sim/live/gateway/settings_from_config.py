"""From a configuration and the environment to what the server is told."""

from __future__ import annotations

import os

from sim.errors import ScenarioError
from sim.live.gateway.config_file import ServeConfig
from sim.live.gateway.config_parts import bare_address
from sim.live.gateway.core_from_config import agreed
from sim.live.gateway.settings import Key, Settings, SharedState, StateSecrets
from sim.live.shared_state.signing import LEAST_KEY_BYTES
from sim.scenario.pool import Pool


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
