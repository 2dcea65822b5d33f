"""A first scenario of one's own: the file that `tokenpools init` writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from policies.api import ServiceClass
from policies.registry import POLICIES
from sim.errors import InputError
from sim.scenario.profile import load_profile, shipped_profiles
from sim.scenario.validation_errors import suggestion
from sim.scenario.yaml_file import shown

_RESERVED = (ServiceClass.DEDICATED, ServiceClass.GUARANTEED, ServiceClass.ELASTIC)


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant of the pool: its class, and the slots that it is promised, or may have where nothing is promised."""

    name: str
    service_class: ServiceClass
    slots: float


@dataclass(frozen=True, slots=True)
class Defaults:
    """What is written where nobody says anything."""

    profile: str = "dgx-spark-qwen3-8b-nvfp4"
    replicas: int = 1
    tenant_texts: tuple[str, ...] = ("chat:guaranteed:6", "batch:spot:10")
    rate_per_s: float = 0.8
    policies: tuple[str, ...] = ("token-pool", "none")


DEFAULTS = Defaults()


@dataclass(frozen=True, slots=True)
class Starter:
    """What the file is to say."""

    profile: str
    replicas: int
    tenants: tuple[Tenant, ...]
    rate_per_s: float
    policies: tuple[str, ...]

    @classmethod
    def of(
        cls, profile: str, replicas: str | int, tenants: Sequence[Tenant], rate_per_s: str | float,
        policies: Sequence[str],
    ) -> Starter:  # fmt: skip
        """Return the answers checked.

        Raises
        ------
        InputError : an answer does not fit, with what would.
        """
        if profile not in shipped_profiles() and not Path(profile).is_file():
            raise InputError("profile", f"no such profile: {profile}", suggestion(profile, shipped_profiles()))
        many = _number("replicas", replicas, "give a whole number, e.g. 2")
        if many < 1 or many != int(many):
            raise InputError("replicas", f"got {replicas}", "give a whole number, e.g. 2")
        rate = _number("rate", rate_per_s, "give requests per second, e.g. 0.8")
        if not 0 < rate < float("inf"):
            raise InputError("rate", f"got {rate_per_s}", "give requests per second, e.g. 0.8")
        names = [one.name for one in tenants]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError("tenant", f"{twice} is there twice", "give each a name of its own")
        for name in policies:
            if name not in POLICIES:
                raise InputError("policy", f"unknown policy {name!r}", suggestion(name, POLICIES))
        found = cls(profile, int(many), tuple(tenants), rate, tuple(dict.fromkeys(policies)))
        has = found.replicas * load_profile(profile).max_num_seqs
        promised = sum(one.slots for one in tenants if one.service_class in _RESERVED)
        if promised > has:
            fix = f"promise less, or give --replicas {-(-int(promised) // (has // found.replicas))}"
            raise InputError("tenants", f"{promised:g} slots are promised and the pool has {has:g}", fix)
        return found


def parse_tenant(text: str) -> Tenant:
    """Return the tenant of ``name:class:slots``.

    Raises
    ------
    InputError : it is not that.
    """
    fix = "give name:class:slots, e.g. chat:guaranteed:6"
    parts = [part.strip() for part in text.split(":")]
    if len(parts) != 3 or not parts[0]:
        raise InputError("tenant", f"got {shown(text)}", fix)
    classes = [str(one) for one in ServiceClass]
    if parts[1] not in classes:
        raise InputError("tenant", f"unknown class {parts[1]!r} of {parts[0]}", suggestion(parts[1], classes))
    slots = _number("tenant", parts[2], fix)
    if not 0 < slots < float("inf"):
        raise InputError("tenant", f"got {shown(text)}", fix)
    return Tenant(parts[0], ServiceClass(parts[1]), slots)


def starter_text(starter: Starter, file: Path) -> str:
    """Return the scenario as YAML with comments that say what each part is for."""
    profile = load_profile(starter.profile)
    entitlements = "\n".join(_entitlement(one) for one in starter.tenants)
    workload = "\n".join(_workload(one, starter.rate_per_s) for one in starter.tenants)
    policies = "\n".join(f"  - {_text(name)}" for name in starter.policies)
    slots = starter.replicas * profile.max_num_seqs
    return f"""\
# A scenario of your own, made by `tokenpools init`. Check it with `tokenpools validate {file}`, run it with
# `tokenpools run {file}`. Every field is in `tokenpools schema`.
version: 1
title: My pool
seed: 1                # the same seed gives the same bytes
horizon_s: 300         # simulated seconds
warmup_s: 30           # requests that arrive before are left out of the summary
replications: 1        # 5 and more give intervals

pool:
  profile: {_text(starter.profile)}     # how fast a replica is; `tokenpools list profiles`, or a file of your own
  replicas: {starter.replicas}          # of {profile.max_num_seqs:,} slots each: {slots:,} sequences at a time in all
  entitlements:        # who is promised what (baseline), and who may have how much at most (limit)
{entitlements}

workload:              # who asks for what, and when; `tokenpools list arrivals`, `lengths` and `clients`
{workload}

policies:              # each runs on the same requests; `tokenpools list policies`
{policies}

# Next: `tokenpools run {file} --replications 5`, `tokenpools plot RESULT`, `tokenpools report RESULT`,
# and `vary: {{workload.{starter.tenants[0].name}.arrivals.rate_per_s: [1, 2, 4]}}` for a grid (docs/experiments.md).
"""


def write_starter(file: Path, text: str) -> None:
    """Write the file in one step.

    Raises
    ------
    InputError : it cannot be written.
    """
    partial = file.with_name(f".{file.name}.partial-{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.rename(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(str(file), f"cannot be written ({error.strerror or error})", "name another file") from None


def _entitlement(one: Tenant) -> str:
    amount = "baseline" if one.service_class in _RESERVED else "limit"
    return (
        f"    - name: {_text(one.name)}\n      service_class: {one.service_class}\n"
        f"      ttft_slo_s: 1.2    # the objective: seconds to the first token\n"
        f"      {amount}: {{slots: {one.slots:g}}}"
    )


def _workload(one: Tenant, rate_per_s: float) -> str:
    return (
        f"  - entitlement: {_text(one.name)}\n    arrivals: {{kind: poisson, rate_per_s: {rate_per_s:g}}}\n"
        "    prompt_tokens: {kind: lognormal, mean: 200, cv: 1}\n"
        "    output_tokens: {kind: lognormal, mean: 80, cv: 0.8}\n"
        "    client: {kind: retry, max_attempts: 3}    # what it does when it is turned away"
    )


def _text(value: str) -> str:
    """Return a text as YAML, in quotes where it would be read as something else."""
    import yaml

    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")


def _number(what: str, value: str | float, fix: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise InputError(what, f"got {shown(value)}", fix) from None
