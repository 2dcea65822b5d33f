"""A demand in what vendors sell: GPU-hours, provisioned units and how often they overflow, quota reservations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from sim.errors import InputError
from sim.experiments.demands import demands
from sim.scenario.load import parse_scenario
from sim.scenario.registered_types import MisfitError, Strict
from sim.scenario.validation_errors import explain, suggestion
from sim.scenario.yaml_file import as_json, read_mapping

Floats = NDArray[np.float64]

_DRAWS = 30
_MINUTE_S = 60.0
_QUANTILES = (0.5, 0.9, 0.99)


class SoldUnit(Strict):
    """One model's unit, as a row of the price table."""

    vendor: str = Field(min_length=1, description="give the vendor and what it sells, e.g. azure-ptu")
    model: str = Field(min_length=1, description="give the model, e.g. gpt-4.1")
    unit: str = Field(min_length=1, description="give what a unit is called, e.g. PTU")
    tokens_per_min: float | None = Field(gt=0, description="give what a unit serves in a minute, or null")
    output_weight: float | None = Field(gt=0, description="give what an output token counts, e.g. 4, or null")
    minimum: int = Field(default=1, ge=1, description="give the fewest units that are sold, e.g. 15")
    step: int = Field(default=1, ge=1, description="give by how many they are sold, e.g. 5")
    usd_per_unit_hour: float | None = Field(default=None, ge=0, description="give the price, or null")

    @property
    def name(self) -> str:
        """The row's name: vendor/model."""
        return f"{self.vendor}/{self.model}"

    def sold(self, units: float) -> int:
        """Return the fewest units that can be bought and are no fewer than these."""
        return max(self.minimum, self.minimum + math.ceil((units - self.minimum) / self.step - 1e-9) * self.step)


class GpuPrice(Strict):
    """What a GPU-hour costs."""

    usd_per_gpu_hour: float | None = Field(default=None, ge=0, description="give dollars, or null")
    source: str = Field(default="", description="say where from")


class PriceTable(Strict):
    """What is sold, and for how much."""

    version: int = Field(ge=1, le=1, description="start with version: 1")
    looked_up: str = Field(description="give the day, e.g. 2026-11-28")
    gpu: GpuPrice = Field(default=GpuPrice(), description="give {usd_per_gpu_hour: ...}")
    units: tuple[SoldUnit, ...] = Field(default=(), description="give a list of units")

    @model_validator(mode="after")
    def _fits(self) -> PriceTable:
        names = [one.name for one in self.units]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise MisfitError("units", f"{twice} is there twice", "keep one")
        return self

    def unit(self, name: str) -> SoldUnit:
        """Return the row of ``vendor/model``.

        Raises
        ------
        InputError : there is none.
        """
        for one in self.units:
            if one.name == name:
                return one
        known = [one.name for one in self.units]
        fix = f"{suggestion(name, known)}; or add it to a copy of the table (tokenpools units --list) and give --prices"
        raise InputError(f"--sold {name}", f"the price table of {self.looked_up} has no such model", fix)


def shipped_text() -> str:
    """Return the table that comes with tokenpools."""
    return (files("sim.studies") / "prices.yaml").read_text(encoding="utf-8")


def price_table(path: Path | None = None) -> PriceTable:
    """Return a price table: a user's own, or the one that comes along.

    Raises
    ------
    InputError : it cannot be read.
    ScenarioError : it is not as it should be.
    """
    place = Path(str(files("sim.studies") / "prices.yaml")) if path is None else path
    mapping = read_mapping(place, str(place))
    mapping = {key: str(value) if key == "looked_up" else value for key, value in mapping.items()}
    try:
        return PriceTable.model_validate_json(as_json(mapping, str(place)))
    except ValidationError as error:
        raise explain(error, PriceTable, mapping, str(place)) from None


@dataclass(frozen=True, slots=True)
class Minutes:
    """What draws of a demand ask for in each minute, by entitlement: arrays of input and output tokens."""

    prompt: Mapping[str, Floats]
    output: Mapping[str, Floats]

    def load(self, output_weight: float, name: str | None = None) -> Floats:
        """Return the weighted tokens of each minute, of one entitlement or of all together."""
        names = list(self.prompt) if name is None else [name]
        found: Floats = np.sum([self.prompt[one] + output_weight * self.output[one] for one in names], axis=0)
        return found


def minutes_of(tree: Mapping[str, Any], draws: int = _DRAWS) -> Minutes:
    """Return the minutes of so many draws of a demand; tokens count in the minute of their arrival.

    Raises
    ------
    InputError : its window is shorter than a minute, or it is empty.
    """
    scenario = parse_scenario({**tree, "policies": ["none"]}, "units")
    whole = int((scenario.horizon_s or 0.0) // _MINUTE_S)
    if whole < 1:
        problem = "the demand is shorter than a minute, which is what units are sold by"
        raise InputError("units", problem, "give a longer window or horizon_s")
    edges = np.arange(whole + 1) * _MINUTE_S
    prompt = {one.name: [] for one in scenario.pool.entitlements}  # type: dict[str, list[Floats]]
    output = {one.name: [] for one in scenario.pool.entitlements}  # type: dict[str, list[Floats]]
    for draw in range(draws):
        mine = {name: (np.zeros(whole), np.zeros(whole)) for name in prompt}
        for workload, demand in zip(scenario.workload, demands(scenario, draw), strict=True):
            for kind, tokens in enumerate((demand.prompt_tokens, demand.output_tokens)):
                mine[workload.entitlement][kind][:] += np.histogram(demand.arrival_s, edges, weights=tokens)[0]
        for name, (asked, answered) in mine.items():
            prompt[name].append(asked)
            output[name].append(answered)
    found = Minutes(
        {name: np.concatenate(parts) for name, parts in prompt.items()},
        {name: np.concatenate(parts) for name, parts in output.items()},
    )
    if not found.load(1.0).any():
        raise InputError("units", "the demand is empty", "give a log or a window that has requests")
    return found


def sold_words(minutes: Minutes, unit: SoldUnit) -> list[str]:
    """Return how many units cover how many minutes, their price, and how likely they overflow.

    Raises
    ------
    InputError : the table lacks what that needs.
    """
    if unit.output_weight is None:
        problem = "the price table has no output_weight: what an output token counts beside an input token"
        raise InputError(f"--sold {unit.name}", problem, "look it up, and give it in a copy of the table with --prices")
    load = minutes.load(unit.output_weight)
    if unit.tokens_per_min is None:
        asked = ", ".join(f"P{q * 100:g} {np.quantile(load, q):,.0f}" for q in _QUANTILES)
        return [
            f"{unit.name}: the size of a {unit.unit} is not published; ask for {asked} tokens a minute "
            f"(input + {unit.output_weight:g} * output)"
        ]
    lines: dict[int, str] = {}
    for quantile in _QUANTILES:
        count = unit.sold(float(np.quantile(load, quantile)) / unit.tokens_per_min)
        room = count * unit.tokens_per_min
        over = load > room
        spilt = float(np.maximum(load - room, 0.0).sum() / load.sum())
        price = (
            "price not in the table" if unit.usd_per_unit_hour is None
            else f"{count * unit.usd_per_unit_hour:,.2f} USD an hour"
        )  # fmt: skip
        lines.setdefault(
            count,
            f"{unit.name}: {count:,} {unit.unit}, {price}; overflow in {over.mean():.1%} of minutes, {spilt:.1%} of "
            "the tokens",
        )
    return list(lines.values())


def gpu_words(table: PriceTable, replicas: int, gpus: int) -> str:
    """Return the GPU-hours of a pool, and their price if the table has one."""
    count = replicas * gpus
    price = table.gpu.usd_per_gpu_hour
    words = (
        "no price in the table (give usd_per_gpu_hour in one of your own, --prices)" if price is None
        else f"{count * price:,.2f} USD an hour"
    )  # fmt: skip
    hours = "1 GPU-hour" if count == 1 else f"{count} GPU-hours"
    number = "1 replica" if replicas == 1 else f"{replicas} replicas"
    each = "1 GPU" if gpus == 1 else f"{gpus} GPUs"
    return f"GPUs: {hours} an hour ({number} of {each}), {words}"


def reservation_words(minutes: Minutes, promised: Sequence[str]) -> list[str]:
    """Return DataRobot's quota reservations: capacity, reserved shares, and the threshold that starts enforcement.

    Capacity is the P99 minute of everybody; an entity's share is its own P99 minute of that. Below the threshold
    anybody may take anything; from there on what is left is what is reserved.
    """
    capacity = float(np.quantile(minutes.load(1.0), 0.99))
    shares = {name: float(np.quantile(minutes.load(1.0, name), 0.99)) / capacity for name in promised}
    total = sum(shares.values())
    if total > 1:  # busy minutes of different entities need not meet, and shares must fit
        shares = {name: share / total for name, share in shares.items()}
    threshold = max(0.0, 1 - sum(shares.values()))
    reserved = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return [
        f"DataRobot quota: capacity {capacity:,.0f} tokens a minute (rule token, window min), enforced from "
        f"{threshold:.0%} of it, reserved: {reserved}"
    ]
