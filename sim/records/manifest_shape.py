"""What a manifest must look like for those who read it: checked once, where it is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sim.errors import InputError
from sim.scenario.yaml_file import join, one_line

_Name = Annotated[str, Field(max_length=10_000)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


class _Cell(_Shape):
    """A run."""

    policy: _Name
    variant: dict[str, str]
    replication: Annotated[int, Field(ge=0, lt=2**31)]
    # A folder's name: it must not lead anywhere else.
    key: Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{1,64}$")] | None = None
    error: str | None = None
    attempts: Annotated[int, Field(ge=0)] | None = None
    end_s: _Seconds | None = None
    warmup_s: _Seconds | None = None
    wall_s: _Seconds | None = None
    cpu_s: _Seconds | None = None
    gpu_s: _Seconds | None = None
    lost_tokens: Annotated[int, Field(ge=0)] | None = None
    violation: dict[str, float | None] | None = None


class _Amounts(_Shape):
    tokens_per_s: _Seconds | None = None
    kv_bytes: _Seconds | None = None
    slots: _Seconds | None = None


class _Entitlement(_Shape):
    name: _Name
    tenant: _Name | None = None
    service_class: str = "elastic"
    ttft_slo_s: _Seconds | None = None
    baseline: _Amounts | None = None
    limit: _Amounts | None = None
    from_s: _Seconds | None = None
    until_s: _Seconds | None = None


class _Profile(_Shape):
    kv_blocks: Annotated[int, Field(ge=1)] | None = None
    block_tokens: Annotated[int, Field(ge=1)] | None = None
    max_num_seqs: Annotated[int, Field(ge=1)] | None = None


class _Pool(_Shape):
    entitlements: list[_Entitlement]
    profile: _Profile | None = None
    replicas: Annotated[int, Field(ge=1)] = 1
    gpus_per_replica: Annotated[int, Field(ge=1)] | None = None


class _Workload(_Shape):
    entitlement: str
    name: _Name | None = None
    from_s: _Seconds | None = None
    until_s: _Seconds | None = None


class _Event(_Shape):
    at_s: _Seconds


class _Phase(_Shape):
    from_s: _Seconds
    until_s: _Seconds
    label: str


class _Scenario(_Shape):
    """What is read of the scenario that ran, whichever version's it is."""

    pool: _Pool
    workload: list[_Workload]
    policies: list[dict[str, Any]]
    title: str | None = None
    description: str | None = None
    seed: int | None = None
    horizon_s: _Seconds | None = None
    warmup_s: _Seconds | str | None = None
    phases: list[_Phase] = []
    events: list[_Event] = []
    vary: dict[str, Any] = {}
    record_decisions: bool = False


class _Manifest(_Shape):
    """The parts that somebody reads; others may be there."""

    scenario: _Scenario
    cells: list[_Cell]
    kind: str | None = None
    scenario_hash: str | None = None
    seed: int | None = None
    commit: str | None = None
    started: str | None = None
    versions: dict[str, str] = {}
    host: dict[str, Any] = {}
    files: dict[str, str] = {}
    wall_s: _Seconds | None = None
    cpu_s: _Seconds | None = None


def check_manifest(manifest: Mapping[str, Any], path: Path) -> None:
    """Raise `InputError` with the first part of a manifest that has another shape than `sim` gives it."""
    try:
        found = _Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ""
        for step in first["loc"]:
            place = join(place, step)
        problem = one_line(f"{place}: {first['msg'].lower()}")[:200]
        raise InputError(str(path), problem, "restore it, or run the scenario again") from None
    known = {one.name for one in found.scenario.pool.entitlements}
    unknown = next((one.entitlement for one in found.scenario.workload if one.entitlement not in known), None)
    if unknown is not None:
        problem = one_line(f"scenario: a workload of {unknown[:40]!r}, which is no entitlement")
        raise InputError(str(path), problem, "restore it, or run the scenario again")
    if found.kind == "sweep" and any(cell.key is None and not cell.error for cell in found.cells):
        raise InputError(str(path), "a cell of a sweep has no key", "restore it, or sweep again")
