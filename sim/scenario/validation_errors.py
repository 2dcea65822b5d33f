"""From pydantic's list of errors to one line that says where, what was found and how to mend it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ValidationError

from sim.errors import ScenarioError
from sim.scenario.registered_types import MisfitError
from sim.scenario.yaml_file import describe, join, one_line, shown

Loc = tuple[str | int, ...]

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # a model's word for it, and a dataclass's
_UNWRITTEN = ("params", "grid", "range", "values", "seconds", "rule")  # steps of a place that no file has
_UNITS = (
    ("_per_s", "a rate per second"),
    ("_per_min", "a rate per minute"),
    ("_s", "in seconds"),
    ("_tokens", "in tokens"),
    ("_bytes", "in bytes"),
    ("_gib", "in GiB"),
)
_NAMED_PLACES = 12  # of further problems
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_QUANTITY = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([^\d\s].*)?", re.DOTALL)


def explain(error: ValidationError, model: type[BaseModel], raw: object, file: str) -> ScenarioError:
    """Return the error to raise for what ``model`` refused.

    A misspelt key comes before everything else and speaks for the key that it leaves missing; the rest keep the order
    of the model's fields. How many others there are, and where, is said in the fix.

    Parameters
    ----------
    raw : the mapping as it was written, shorthands included: places are named in its terms.
    """
    schema = _schema(model)
    found = error.errors(include_url=False)
    unknown = [one for one in found if one["type"] in _UNKNOWN]
    meant = {(*one["loc"][:-1], _nearest(str(one["loc"][-1]), _siblings(schema, one["loc"]))) for one in unknown}
    rest = [
        one for one in found if one["type"] not in _UNKNOWN and not (one["type"] == "missing" and one["loc"] in meant)
        and not (one["type"] == "too_short" and _holds_others(one, found))
    ]  # fmt: skip
    first, *others = [*unknown, *rest]
    path, problem, fix = _message_parts(first, schema, raw)
    places = list(dict.fromkeys(place for place, _, _ in (_message_parts(one, schema, raw) for one in others)))
    named = ", ".join(one_line(place) for place in places[:_NAMED_PLACES])
    named += ", ..." if len(places) > _NAMED_PLACES else ""
    more = f" (and {len(others)} more: {named})" if others else ""
    return ScenarioError(file, path, one_line(problem), one_line(fix) + more)


def _holds_others(short: Any, found: Sequence[Any]) -> bool:
    """Return whether a list is short only because elements of it were refused."""
    depth = len(short["loc"])
    return any(len(one["loc"]) > depth and one["loc"][:depth] == short["loc"] for one in found)


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return "did you mean ...?" for a misspelt name, or what names there are."""
    names = list(known)
    nearest = _nearest(name, names)
    if nearest:
        return f"did you mean {one_line(nearest)}?"
    return "give one of: " + ", ".join(map(one_line, names)) if names else "there is none"


def _message_parts(one: Any, schema: dict[str, Any], raw: object) -> tuple[str, str, str]:
    """Return place, problem and fix for one of pydantic's errors."""
    kind, loc, value = one["type"], one["loc"], one["input"]
    path, written = _walk(loc, raw, keep_last=kind in (*_UNKNOWN, "missing"))
    about = _description(schema, loc)
    context = one.get("ctx", {})
    if kind in _UNKNOWN:
        return path, "unknown field", suggestion(str(loc[-1]), _siblings(schema, loc))
    if kind == "missing":
        return path, "missing", about
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        kinds = [tag.strip(" '") for tag in context["expected_tags"].split(",")] if "expected_tags" in context else []
        if kind == "union_tag_invalid":
            tag = str(context["tag"])
            where = join(path, "kind") if isinstance(written, dict) else path
            return where, f"unknown kind {shown(tag)}", suggestion(tag, kinds)
        return join(path, "kind"), "missing", about or "give one of the registered kinds"
    if kind in ("literal_error", "enum"):
        choices = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        fix = suggestion(str(value), choices) if choices else f"give {context.get('expected', about)}"
        if len(choices) == 1 and not _nearest(str(value), choices):  # one word among other things that may stand here
            fix = about or fix
        return path, f"input should be {context.get('expected')}, got {describe(value)}", fix
    if kind == "value_error":
        cause = context["error"]
        if isinstance(cause, MisfitError):
            inner, problem, fix = cause.args
            return f"{path}{'.' if path and inner and inner[0] != '[' else ''}{inner}", problem, fix
        problem, _, fix = str(cause).partition("; ")
        return path, problem, fix or about or "see tokenpools schema"
    if kind == "too_short":
        return path, f"has {context['actual_length']} elements, at least {context['min_length']} needed", about
    wanted, fix = _wanted(kind, one["msg"], path, value)
    return path, f"input should be {wanted}, got {describe(value)}", fix or about or "see tokenpools schema"


def _wanted(kind: str, message: str, path: str, value: object) -> tuple[str, str]:
    """Return what should stand there, and how to mend it where the value itself tells."""
    if kind in ("dataclass_type", "dict_type", "model_type", "model_attributes_type", "dataclass_exact_type"):
        if path.endswith("_tokens"):  # a length, for which a bare number is short
            return "a number or a mapping", _number_fix(path, value, whole=True)
        return "a mapping", ""
    if kind in ("list_type", "tuple_type"):
        return "a list", ""
    if kind in ("int_type", "int_from_float"):
        return "a whole number", _number_fix(path, value, whole=True)
    if kind == "float_type":
        return "a number", _number_fix(path, value, whole=False)
    if kind == "bool_type":
        return "true or false", ""
    if kind == "string_type":
        bare = value is not None and not isinstance(value, dict | list)
        return "text", f"put it in quotes: {shown(str(value))}" if bare else ""
    wanted = message.removeprefix("Input should be ").replace("String should match pattern", "text that matches")
    return wanted[0].lower() + wanted[1:], ""


def _number_fix(path: str, value: object, *, whole: bool) -> str:
    """Return how to write a number that was given as text, with its unit or in quotes."""
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) and len(value) < 40 else None
    name = path.rpartition(".")[2]
    unit = next((unit for suffix, unit in _UNITS if name.endswith(suffix)), "")
    if match is None:
        return ""
    number, suffix = match.groups()
    if not suffix:
        return f"leave out the quotes: {number}"
    if unit == "in seconds" and suffix.strip() in _SECONDS and not whole:
        return f"the field is in seconds, give a plain number: {float(number) * _SECONDS[suffix.strip()]:g}"
    return f"the field is {unit}, give a plain number" if unit else "give a plain number, without a unit"


def _walk(loc: Loc, raw: object, *, keep_last: bool) -> tuple[str, object]:
    """Return the place as the file's author knows it, and what stands there.

    A loc also holds the kinds that selected a variant, and steps that the file does not have.
    """
    path, node = "", raw
    for index, step in enumerate(loc):
        last = keep_last and index == len(loc) - 1
        if isinstance(node, dict) and isinstance(step, str):
            if not last and (step == node.get("kind") or (step in _UNWRITTEN and step not in node)):
                continue
            node = node.get(step)
        elif isinstance(node, list) and isinstance(step, int):
            node = node[step] if step < len(node) else None
        else:
            break
        path = join(path, step)
    return path, node


def forget_schemas() -> None:
    """Ask the models for their schemas again, which have changed."""
    _schema.cache_clear()


@lru_cache(maxsize=4)
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _flat(schema: dict[str, Any], nodes: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Return the nodes with references followed and alternatives listed."""
    for node in nodes:
        if "$ref" in node:
            yield from _flat(schema, [schema["$defs"][node["$ref"].rpartition("/")[2]]])
        alternatives = [*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ())]
        if alternatives:
            yield from _flat(schema, alternatives)
        elif "$ref" not in node:
            yield node


def _at(schema: dict[str, Any], loc: Loc) -> list[dict[str, Any]]:
    """Return the schema nodes that may describe what stands at ``loc``."""
    nodes = [schema]
    for step in loc:
        below: list[dict[str, Any]] = []
        for node in _flat(schema, nodes):
            fields = node.get("properties", {})
            if isinstance(step, int):
                below += [node["items"]] if isinstance(node.get("items"), dict) else []
            elif step in fields:
                below.append(fields[step])
            elif fields.get("kind", {}).get("const") == step or step in _UNWRITTEN:
                below.append(node)
            elif isinstance(node.get("additionalProperties"), dict):
                below.append(node["additionalProperties"])
        nodes = below
    return nodes


def _description(schema: dict[str, Any], loc: Loc) -> str:
    """Return the description of the innermost field on the way to ``loc`` that is one of ours, not a docstring."""
    for end in range(len(loc), 0, -1):
        for node in _at(schema, loc[:end]):
            if "description" in node and "properties" not in node:
                return str(node["description"])
    return ""


def _siblings(schema: dict[str, Any], loc: Loc) -> list[str]:
    """Return the fields there are where ``loc`` names one that there is not."""
    names = [name for node in _flat(schema, _at(schema, loc[:-1])) for name in node.get("properties", {})]
    return [*names, "name"] if "params" in loc else names


def _nearest(name: str, known: Sequence[str]) -> str:
    """Return the known name that a misspelt one most resembles, or nothing."""
    if name in known:
        return ""
    near = get_close_matches(name.lower(), [one.lower() for one in known], n=1, cutoff=0.6)
    by_lower = {one.lower(): one for one in reversed(known)}
    begun = [one for one in known if len(name) > 2 and one.startswith(name)]
    return by_lower[near[0]] if near else begun[0] if begun else ""
