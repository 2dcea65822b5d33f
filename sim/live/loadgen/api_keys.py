"""API keys by entitlement, for the clients of a run: from a file or the environment, and in no record."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from sim.errors import InputError
from sim.scenario.validation_errors import suggestion

PREFIX = "TOKENPOOLS_KEY_"


def variable(entitlement: str) -> str:
    """Return the variable of the environment that may hold an entitlement's key."""
    return PREFIX + re.sub(r"[^A-Z0-9]", "_", entitlement.upper())


def load_keys(
    file: Path | None, entitlements: Iterable[str], environment: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the keys of a file (a mapping of entitlements to keys), else of the environment.

    Where an entitlement has neither, OPENAI_API_KEY serves, and where that is not set it has none.

    Raises
    ------
    InputError : the file cannot be read, is no such mapping, or names an entitlement that there is not.
    """
    names = list(entitlements)
    given = {} if file is None else _read(file, names)
    around = os.environ if environment is None else environment
    found = {}
    for name in names:
        key = given.get(name) or around.get(variable(name)) or around.get("OPENAI_API_KEY")
        if key:
            found[name] = key
    return found


def _read(file: Path, names: list[str]) -> dict[str, str]:
    shape = "give a mapping, e.g. {chat: sk-...}"
    try:
        loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(str(file), f"cannot be read ({error.strerror})", "name a file of keys") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InputError(str(file), "is neither YAML nor JSON", shape) from None  # what was found may be a key
    if not isinstance(loaded, dict) or not all(isinstance(part, str) for one in loaded.items() for part in one):
        raise InputError(str(file), "is no mapping of names to keys", shape)
    for name in loaded:
        if name not in names:
            raise InputError(str(file), f"unknown entitlement {name}", suggestion(name, names))
    return dict(loaded)
