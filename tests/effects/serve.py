"""The same for a gateway's configuration: a change shows in what the server is told, or in its core."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from live.gate import ENTITLEMENTS, PROFILE

from policies.snapshot import dump
from sim.errors import TokenpoolsError
from sim.live.gateway.authentication import hashed
from sim.live.gateway.config_file import ServeConfig, parse_config
from sim.live.gateway.core_from_config import core_of, make_core
from sim.live.gateway.settings_from_config import make_settings

LIVE = Path(__file__).parents[2] / "sim" / "live"
_TOLD = ("settings.py", "config_file.py", "config_parts.py", "core_from_config.py", "settings_from_config.py")
"""Where a setting is made, and not used."""


def configurations() -> dict[str, dict[str, Any]]:
    """Return configurations that between them hold every part of one."""
    plain: dict[str, Any] = {
        "version": 1,
        "listen": {"host": "127.0.0.1", "port": 0},
        "pool": {"profile": PROFILE, "entitlements": list(ENTITLEMENTS)},
        "policy": "token-pool",
        "upstreams": [{"name": "up0", "base_url": "http://127.0.0.1:1"}, {"name": "up1", "base_url": "http://127.0.0.1:2"}],
        "keys": [
            {"name": f"key-{one['name']}", "entitlement": one["name"], "sha256": hashed(str(one["name"])).hex(),
             "limit": {"slots": 2}, "budgets": [{"per": "day", "limit": 1000, "carry_over": "unused", "carry_most": 5}]}
            for one in ENTITLEMENTS
        ],
        "prompt_tokens": {"kind": "estimate"}, "paths": [{"path": "/v1/audio/speech"}], "records": "records",
        "admin": {"port": 9090, "token_sha256": "a" * 64}, "check_invariants": {},
        "accounts": {"store": "accounts.db", "api": {"port": 9091, "token_sha256": "b" * 64},
                     "password_env": "TOKENPOOLS_TEST_PASSWORD"},
        "scaling": {"kind": "command", "command": ["x"]},
    }  # fmt: skip
    plain["upstreams"][0]["api_key_env"] = "TOKENPOOLS_TEST_KEY"
    bare = {name: plain[name] for name in ("version", "listen", "pool", "policy", "upstreams")}
    bare["keys"] = [{name: one[name] for name in ("name", "entitlement", "sha256")} for one in plain["keys"]]
    shared = bare | {
        "state": {"url": "redis://127.0.0.1:6379/0", "key_env": "TOKENPOOLS_TEST_STATE_KEY",
                  "password_env": "TOKENPOOLS_TEST_PASSWORD"},
        "scaling": {"kind": "kubernetes", "name": "vllm"}, "prompt_tokens": {"kind": "tokenize"},
        "listen": {"port": 0, "tls": {"certificate": "a.crt", "key": "a.key", "client_ca": "ca.pem"}},
    }  # fmt: skip
    recorded = bare | {
        "recording": "events.jsonl", "telemetry": "otlp", "prompt_tokens": {"kind": "tokenizer", "file": "t.json"},
        "scaling": {"kind": "processes", "command": ["x", "{port}"]}, "models": ["tiny"],
    }
    pool = bare["pool"] | {
        "groups": [{"name": "acme", "limit": {"slots": 9}}, {"name": "globex", "limit": {"slots": 5}}],
        "entitlements": [dict(one) | {"parent": "acme"} for one in ENTITLEMENTS],
    }
    watched = bare | {"shadow": ["cap"], "scaling": "log", "pool": pool}
    return {"plain": plain, "shared": shared, "recorded": recorded, "watched": watched}


class Told:
    """All that a server of a configuration would be told; the cores that it decides by are made when they matter.

    Raises
    ------
    TokenpoolsError : it is refused.
    """

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self._config = parse_config(tree, "serve.yaml")
        settings = make_settings(self._config, "serve.yaml")
        shadows = [one.name for one in self._config.shadow]
        self.settings = repr((_open(settings), [settings.capacity_of(count) for count in (1, 2)], shadows))
        self._core = make_core(self._config)

    @cached_property
    def cores(self) -> str:
        """What the cores hold."""
        config = self._config
        shadows = [core_of(config.whole_pool(), one, config.seed) for one in config.shadow]
        return repr([dump(core) for core in (self._core, *shadows)])

    def differs(self, other: Told) -> bool:
        """Return whether a server would be told something else."""
        return self.settings != other.settings or self.cores != other.cores


def told(tree: Mapping[str, Any]) -> Told | None:
    """Return what a server is told; None where the configuration is refused."""
    try:
        return Told(tree)
    except TokenpoolsError:
        return None


def _open(value: Any) -> Any:
    """Return a value with what its repr leaves out: keys and addresses."""
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: _open(getattr(value, one.name)) for one in fields(value) if one.name != "capacity_of"}
    if isinstance(value, tuple | list):
        return [_open(one) for one in value]
    return value


def read_names() -> set[str]:
    """Return every name that the gateway's code reads from some object, but for where settings are made."""
    found: set[str] = set()
    for file in LIVE.rglob("*.py"):
        if file.name in _TOLD and file.parent.name == "gateway":
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return found


__all__ = ["ServeConfig", "configurations", "read_names", "told"]
