"""From the dataclasses that workloads and policies register to what a scenario file may say.

A registered type is a frozen standard-library dataclass whose first field is ``kind: Literal["..."]`` and whose field
metadata are keyword arguments of pydantic's ``Field``. pydantic reads such dataclasses as they are: bounds,
descriptions and unknown keys need no code, and a validated value is an instance of the dataclass itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema


class Strict(BaseModel):
    """A frozen model that refuses unknown keys, text for numbers, NaN and infinity.

    The configuration also holds for the dataclasses inside, which have none of their own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class MisfitError(ValueError):
    """Values that are each possible but do not fit together, found by a validator.

    Arguments are the place relative to the model that raised it, the problem and the fix.
    """

    def __init__(self, path: str, problem: str, fix: str) -> None:
        super().__init__(path, problem, fix)


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity: typing wants a hash, a registry has none
class OneOf:
    """Marks a field that holds one of the registered dataclasses, selected by its ``kind``.

    Use it as ``Annotated[Any, OneOf(REGISTRY)]``.

    Attributes
    ----------
    variants : the registry.
    short : JSON schema of the shorthand that a scenario file may use instead of a mapping, if there is one.
    """

    variants: Mapping[str, type]
    short: Mapping[str, Any] | None = None

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return a union tagged by ``kind``."""
        choices: dict[Any, CoreSchema] = {
            kind: handler.generate_schema(variant) for kind, variant in self.variants.items()
        }
        return core_schema.tagged_union_schema(choices, discriminator="kind", strict=True)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Return the union's schema, beside the shorthand's."""
        union = handler(schema)
        return {"anyOf": [dict(self.short), union]} if self.short else union


def named(kinds: Mapping[str, object]) -> dict[str, Any]:
    """Return the JSON schema of a bare name that stands for ``{kind: name}``."""
    return {"type": "string", "enum": sorted(kinds)}
