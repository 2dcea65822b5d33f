"""Profiles as files: the mapping that a scenario may name, in YAML that a person can read."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import yaml

from sim.errors import InputError
from sim.records.whole_files import whole_file
from sim.scenario.profile import Profile


def profile_text(profile: Profile, comment: str = "") -> str:
    """Return a profile as YAML: a line a field, lists in one line where they fit, ``comment`` on top."""
    mapping = profile.model_dump(mode="json", exclude_none=True)
    mapping.pop("name", None)
    for name in ("step_time", "calibration"):  # the long ones last
        if name in mapping:
            mapping[name] = mapping.pop(name)
    defaults = {name: info.default for name, info in Profile.model_fields.items()}
    lines = [f"# {line}" for line in textwrap.wrap(comment, 116)] if comment else []
    for key, value in mapping.items():
        if key in defaults and value == defaults[key]:
            continue
        lines.append(_entry(key, value))
    return "\n".join(lines) + "\n"


def write_profile(profile: Profile, file: Path, comment: str = "") -> None:
    """Write a profile, whole or not at all.

    Raises
    ------
    InputError : the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as half:
            half.write_text(profile_text(profile, comment), encoding="utf-8")
    except OSError as error:
        raise InputError(str(file), f"cannot be written ({error.strerror})", "name another file") from None


def _entry(key: str, value: Any) -> str:
    if isinstance(value, dict) and len(str(value)) > 100:
        return "\n".join([f"{key}:", *(f"  {name}: {_flow(item)}" for name, item in value.items())])
    return f"{key}: {_flow(value)}"


def _flow(value: Any) -> str:
    text = yaml.safe_dump(_short(value), default_flow_style=True, width=10**9, sort_keys=False)
    return text.replace("\n...", "").strip()


def _short(value: Any) -> Any:
    """Return numbers without the digits that rounding in binary adds, whole ones as integers."""
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_short(v) for v in value]
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 1e6 else float(f"{value:.6g}")
    return value
