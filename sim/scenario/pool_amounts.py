"""Amounts of resources and names, as pools, entitlements and groups have them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field, model_validator

from policies.api import Resources
from sim.scenario.registered_types import MisfitError, Strict
from sim.scenario.validation_errors import suggestion
from sim.scenario.yaml_file import shown

_GIB = 2**30
DIMENSIONS = ("slots", "tokens_per_s", "kv_bytes")
"""The fields of `policies.api.Resources`."""

Name = Annotated[
    str, Field(min_length=1, max_length=100, pattern=r"^[^\s\x00-\x1f\x7f]([^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f])?$")
]


def is_none(value: object) -> bool:
    """Return whether a field says nothing: what a scenario resolves to, and its hash, is without it then."""
    return value is None


def is_empty(value: tuple[object, ...]) -> bool:
    """Return the same of a list."""
    return not value


def is_false(value: float) -> bool:
    """Return the same of a switch, or of a number that is 0."""
    return not value


class Amounts(Strict):
    """How much of each of the three resources; what is left out is not promised, or not limited."""

    slots: float | None = Field(default=None, ge=0, description="give sequences in flight, e.g. 6")
    tokens_per_s: float | None = Field(
        default=None, ge=0, description="give prompt plus output tokens per second, e.g. 90"
    )
    kv_bytes: float | None = Field(default=None, ge=0, description="give bytes of KV cache, e.g. 4.0e9, or kv_gib")
    kv_gib: float | None = Field(default=None, ge=0, description="give GiB of KV cache, e.g. 4, or kv_bytes")

    @model_validator(mode="after")
    def _fits(self) -> Amounts:
        if self.kv_bytes is not None and self.kv_gib is not None:
            raise MisfitError("kv_gib", "given beside kv_bytes", "keep one of the two")
        return self

    def resources(self) -> Resources:
        """Return the amounts as policies see them."""
        kv_bytes = self.kv_gib * _GIB if self.kv_gib is not None else self.kv_bytes
        return Resources(tokens_per_s=self.tokens_per_s, kv_bytes=kv_bytes, slots=self.slots)


def check_unique(path: str, names: Iterable[str]) -> None:
    """Refuse names that two elements share."""
    for name, times in Counter(names).items():
        if times > 1:
            raise MisfitError(path, f"{times} are called {shown(name)}", "give each a name")


def check_known(path: str, what: str, name: str, known: Iterable[str]) -> None:
    """Refuse a name that nothing has."""
    if name not in (names := list(known)):
        raise MisfitError(path, f"unknown {what} {shown(name)}", suggestion(name, names))
