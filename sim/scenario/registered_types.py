"""From the dataclasses that workloads and policies register to what a scenario file may say.

A registered type is a frozen standard-library dataclass whose first field is ``kind: Literal["..."]`` and whose field
metadata are keyword arguments of pydantic's ``Field``. pydantic reads such dataclasses as they are: bounds,
descriptions and unknown keys need no code, and a validated value is an instance of the dataclass itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

Kind = TypeVar("Kind")

_MODELS: list[type[BaseModel]] = []


class Strict(BaseModel):
    """A frozen model that refuses unknown keys, text for numbers, NaN and infinity.

    The configuration also holds for the dataclasses inside, which have none of their own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Note the model, after those that it is made of, for `rebuild_models`."""
        _MODELS.append(cls)


class MisfitError(ValueError):
    """Values that are each possible but do not fit together, found by a validator.

    Arguments are the place relative to the model that raised it, the problem and the fix.
    """

    def __init__(self, path: str, problem: str, fix: str) -> None:
        super().__init__(path, problem, fix)


class Kinds(Mapping[str, Kind]):
    """A registry that plug-ins may join: kinds by name, each the dataclass itself or something with ``params``.

    Attributes
    ----------
    built_in : those that come with tokenpools.
    """

    def __init__(self, built_in: Mapping[str, Kind]) -> None:
        self.built_in = built_in
        self._added: dict[str, Kind] = {}

    def __getitem__(self, kind: str) -> Kind:
        return self.built_in[kind] if kind in self.built_in else self._added[kind]

    def __iter__(self) -> Iterator[str]:
        yield from self.built_in
        yield from self._added

    def __len__(self) -> int:
        return len(self.built_in) + len(self._added)

    def params(self, kind: str) -> type:
        """Return the dataclass that a scenario fills in."""
        return params_of(self[kind])

    def add(self, kind: str, found: Kind) -> None:
        """Take in a kind from outside."""
        self._added[kind] = found

    def forget(self, kind: str) -> None:
        """Take it out again, if it is there."""
        self._added.pop(kind, None)


def params_of(found: Any) -> type:
    """Return the dataclass of a registered kind: itself, or its ``params``."""
    kind: type = found if isinstance(found, type) else found.params
    return kind


def rebuild_models() -> None:
    """Have the models read the registries again, after a kind has joined one."""
    from sim.scenario import validation_errors

    for model in _MODELS:
        model.model_rebuild(force=True)
    validation_errors.forget_schemas()


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity: typing wants a hash, a registry has none
class OneOf:
    """Marks a field that holds one of the registered dataclasses, selected by its ``kind``.

    Use it as ``Annotated[Any, OneOf(REGISTRY)]``.

    Attributes
    ----------
    variants : the registry, of dataclasses or of entries that have them as ``params``.
    short : JSON schema of the shorthand that a scenario file may use instead of a mapping, if there is one.
    """

    variants: Mapping[str, Any]
    short: Mapping[str, Any] | None = None

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return a union tagged by ``kind``."""
        choices: dict[Any, CoreSchema] = {
            kind: handler.generate_schema(params_of(variant)) for kind, variant in self.variants.items()
        }
        return core_schema.tagged_union_schema(choices, discriminator="kind", strict=True)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the union's schema, beside the shorthand's."""
        union = handler(schema)
        return {"anyOf": [dict(self.short), union]} if self.short else union


def named(kinds: Mapping[str, object]) -> dict[str, Any]:
    """Return the JSON schema of a bare name that stands for ``{kind: name}``."""
    return {"type": "string", "enum": sorted(kinds)}
