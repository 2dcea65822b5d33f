"""From the dataclasses that workloads and policies register to what a scenario file may say.

A registered type is a frozen standard-library dataclass whose first field is ``kind: Literal["..."]`` and whose field
metadata are keyword arguments of pydantic's ``Field``. pydantic reads such dataclasses as they are: bounds,
descriptions and unknown keys need no code, and a validated value is an instance of the dataclass itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema, to_json

from policies.lazy_mapping import imported

Kind = TypeVar("Kind")

_MODELS: list[type[BaseModel]] = []


class Strict(BaseModel):
    """A frozen model that refuses unknown keys, text for numbers, NaN and infinity.

    The configuration also holds for the dataclasses inside, which have none of their own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)

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

    reader_of.cache_clear()
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
        return _union({kind: Choice(self.variants, kind).schema() for kind in self.variants})

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the union's schema, beside the shorthand's."""
        readers = {kind: reader_of(params_of(found)) for kind, found in self.variants.items()}
        union = handler(_union({kind: reader.core_schema for kind, reader in readers.items()}))
        return {"anyOf": [dict(self.short), union]} if self.short else union


def _union(choices: dict[str, CoreSchema]) -> CoreSchema:
    return core_schema.tagged_union_schema(cast("dict[Any, CoreSchema]", choices), discriminator="kind", strict=True)


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """One of the registered kinds, prepared when a file names it: to prepare all of them takes a tenth of a second.

    What pydantic finds wrong in there it adds to what it finds elsewhere, in its place, as without this.
    """

    variants: Mapping[str, Any]
    kind: str

    def schema(self) -> CoreSchema:
        """Return the schema, which says no more than whom to ask."""
        return _asking(self.read)

    def read(self, value: object, info: core_schema.ValidationInfo) -> Any:
        """Return the dataclass for what a file says, or for itself."""
        return _read(params_of(self.variants[self.kind]), value, info)


@dataclass(frozen=True, slots=True)
class Later:
    """Marks a field that holds a dataclass which is imported and prepared when a file gives one, as few do.

    Use it under the name of the class, which a type checker takes for the class itself::

        if TYPE_CHECKING:
            from sim.engine.lora import Lora
        else:
            Lora = Annotated[Any, Later("sim.engine.lora:Lora")]

    Attributes
    ----------
    place : where the class is, as ``module:name``.
    """

    place: str

    def found(self) -> type:
        """Return the class."""
        found: type = imported(self.place)
        return found

    def read(self, value: object, info: core_schema.ValidationInfo) -> Any:
        """Return the dataclass for what a file says, or for itself."""
        return _read(self.found(), value, info)

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return a schema that says no more than whom to ask."""
        return _asking(self.read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the class's own, which has a name in the schema of the whole."""
        name = self.place.replace(":", ".")
        own = cast("CoreSchema", {**reader_of(self.found()).core_schema, "ref": name})
        return handler(core_schema.definitions_schema(core_schema.definition_reference_schema(name), [own]))


def _asking(read: Callable[[object, core_schema.ValidationInfo], Any]) -> CoreSchema:
    return core_schema.with_info_plain_validator_function(
        read, serialization=core_schema.plain_serializer_function_ser_schema(_written, info_arg=True)
    )


def _read(params: type, value: object, info: core_schema.ValidationInfo) -> Any:
    reader = reader_of(params)
    if info.mode == "json":  # which knows no tuples and no dataclasses, and is strict in another way
        return reader.validate_json(to_json(value, inf_nan_mode="constants"))
    return reader.validate_python(value)


def _written(value: Any, info: core_schema.SerializationInfo) -> Any:
    """Return a registered dataclass as plain data."""
    kind: type = type(value)
    return reader_of(kind).dump_python(value, mode="json" if info.mode == "json" else "python")


@dataclass(frozen=True, slots=True)
class _Registered:
    """Marks a field of one registered dataclass. pydantic refuses a configuration beside the dataclass itself."""

    params: type

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the dataclass's own."""
        return handler.generate_schema(self.params)


@cache
def reader_of(params: type) -> TypeAdapter[Any]:
    """Return what reads and writes a registered dataclass, as strict as the models."""
    return TypeAdapter(Annotated[Any, _Registered(params)], config=Strict.model_config)


def named(kinds: Mapping[str, object]) -> dict[str, Any]:
    """Return the JSON schema of a bare name that stands for ``{kind: name}``."""
    return {"type": "string", "enum": sorted(kinds)}
