"""YAML text in, plain values out: text, numbers, truth values, None, lists and mappings with text keys.

Values are built from parser events rather than by a YAML loader, so that scalars follow YAML 1.2 (``1e5`` is a number,
``no`` and ``12:30`` are text), every refusal has a line and a column, and neither nesting nor anchors can exhaust
the stack or the memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from numbers import Integral
from pathlib import Path
from typing import Any

import yaml

from sim.errors import ScenarioError, shortened

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MAX_BYTES = 16 * 2**20
_MAX_DEPTH = 50
_MAX_NODES = 1_000_000
_INT_LIMIT = 2**63  # what the columns of a result can hold

_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: Mapping[str, object] = (
    dict.fromkeys(("", "~", "null", "Null", "NULL"))
    | dict.fromkeys(("true", "True", "TRUE"), True)
    | dict.fromkeys(("false", "False", "FALSE"), False)
    | dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf"))
    | dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf"))
    | dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan"))
)


def read_mapping(source: Path | Traversable, file: str) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises
    ------
    ScenarioError : unreadable, not text, not YAML, or YAML that is no mapping.
    """
    value = parse_yaml(_read_text(source, file), file)
    if value is None:
        raise ScenarioError(file, "", "empty", "start with version: 1")
    if not isinstance(value, dict):
        raise ScenarioError(file, "", f"holds {describe(value)}, not a mapping", "start with version: 1")
    return value


def read_documents(source: Path | Traversable, file: str) -> list[tuple[int, Any]]:
    """Return the line on which each document of a YAML file begins, and its value; empty documents are left out.

    Raises
    ------
    ScenarioError : unreadable, not text or not YAML.
    """
    with _refusing(file, ""):
        return _documents(_read_text(source, file), file)


def _documents(text: str, file: str) -> list[tuple[int, Any]]:
    documents: list[tuple[int, Any]] = []
    begun: list[Any] = []
    for event in yaml.parse(text, Loader=_LOADER):
        begun.append(event)
        if isinstance(event, yaml.DocumentEndEvent):
            value = _Builder(file, "").build(begun)
            if value is not None:
                documents.append((begun[0].start_mark.line + 1, value))
            begun = []
        elif isinstance(event, yaml.StreamStartEvent):
            begun = []
    return documents


def _read_text(source: Path | Traversable, file: str) -> str:
    try:
        if not source.is_file():
            found = "is a folder" if source.is_dir() else "is not a file" if _exists(source) else "no such file"
            raise ScenarioError(file, "", found, "give the path of a YAML file")
        with source.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise ScenarioError(
            file, "", f"cannot be read ({_reason(error)})", "check the path and its permissions"
        ) from None
    if len(content) > _MAX_BYTES:
        raise ScenarioError(
            file, "", f"larger than {_MAX_BYTES} bytes", "give a YAML file; traces go in files of their own"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ScenarioError(
            file, "", f"not UTF-8 text (byte {error.start})", "give a YAML file, saved as UTF-8"
        ) from None


def parse_yaml(text: str, file: str, field: str = "") -> Any:
    """Return the value that YAML text holds; ``field`` names the place where the text has no lines worth naming."""
    with _refusing(file, field):
        return _Builder(file, field).build(yaml.parse(text, Loader=_LOADER))


@contextmanager
def _refusing(file: str, field: str) -> Iterator[None]:
    """Turn what the YAML parser says into an error with a place."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = " ".join(part for part in (error.context, error.problem) if part)
        raise ScenarioError(
            file, field or place(mark), f"not valid YAML: {one_line(said)}", "check indentation, brackets and quotes"
        ) from None
    except (yaml.YAMLError, UnicodeError) as error:
        position = getattr(error, "position", None)
        where = field or ("" if position is None else f"character {position + 1}")
        raise ScenarioError(file, where, "not valid YAML: not a printable character", "give plain text") from None


def plain(value: object, file: str, path: str = "", depth: int = 0) -> Any:
    """Return a copy of ``value`` made of JSON's types only, or refuse it: a scenario may also come from Python."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, Integral):
        whole = int(value)
        if abs(whole) >= _INT_LIMIT:
            raise ScenarioError(file, path, "number too large", "give a number below 2**63")
        return whole
    if isinstance(value, str):
        if value.isascii() or value == value.encode(errors="replace").decode():
            return str(value)
        raise ScenarioError(file, path, "text that is not Unicode", "give plain text")
    if depth > _MAX_DEPTH:
        raise ScenarioError(file, path.split(".")[0], f"nested deeper than {_MAX_DEPTH} levels", "flatten it")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ScenarioError(file, path, f"{describe(key)} as a key", "keys are names: quote it or rename it")
        return {plain(key, file, path): plain(item, file, join(path, key), depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, file, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
    raise ScenarioError(file, path, f"a {type(value).__name__}", "give text, numbers, lists and mappings only")


def as_json(mapping: Mapping[str, Any], file: str) -> str:
    """Return JSON text for strict validation: unlike Python's, its lists may become tuples and its text enums."""
    return json.dumps(plain(mapping, file))


def join(path: str, step: str | int) -> str:
    """Return ``path`` with one more step, as errors show it: ``workload[0].arrivals``."""
    if isinstance(step, int):
        return f"{path}[{step}]"
    word = step if re.fullmatch(r"[\w#-]{1,60}", step) else shown(step)
    return f"{path}.{word}" if path else word


def shown(value: object) -> str:
    """Return a value as errors show it: on one line, short, and without the password that a URL may hold."""
    text = re.sub(r"(:/.*:)[^@]+@", r"\1***@", repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def describe(value: object) -> str:
    """Return a phrase for a value found where another kind of value was wanted."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, bool):
        return str(value).lower()
    return shown(value)


def one_line(text: str) -> str:
    """Return text with every run of white space and unprintable characters made one space."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def place(mark: Any) -> str:
    """Return where in a file a YAML mark points, counted as a text editor does."""
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""


def _exists(source: Path | Traversable) -> bool:
    return isinstance(source, Path) and source.exists()


def _reason(error: Exception) -> str:
    return (error.strerror or type(error).__name__).lower() if isinstance(error, OSError) else one_line(str(error))


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not been read yet."""

    value: dict[str, Any] | list[Any]
    anchor: str | None
    nodes_before: int
    key: str | None = None


@dataclass(slots=True)
class _Builder:
    """Turns parser events into one value."""

    file: str
    place: str
    nodes: int = 0
    anchors: dict[str, tuple[Any, int]] = field(default_factory=dict)
    stack: list[_Open] = field(default_factory=list)

    def build(self, events: Iterable[Any]) -> Any:
        root: Any = None
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self.refusal(event, "a second document", "keep one document per file")
                continue
            if isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
                self.open(event)
                continue
            if isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
                done = self.stack.pop()
                value: Any = done.value
                if done.anchor is not None:
                    self.anchors[done.anchor] = (value, self.nodes - done.nodes_before)
            elif isinstance(event, yaml.ScalarEvent):
                value = self.scalar(event)
            elif isinstance(event, yaml.AliasEvent):
                value = self.alias(event)
            else:
                continue
            if self.stack:
                self.add(self.stack[-1], value, event)
            else:
                root = value
        return root

    def open(self, event: Any) -> None:
        self.count(event, 1)
        if event.tag not in (None, "!"):
            raise self.refusal(event, f"the tag {shown(event.tag)}", "leave tags out")
        if len(self.stack) >= _MAX_DEPTH:
            raise self.refusal(event, f"nested deeper than {_MAX_DEPTH} levels", "flatten it")
        if self.stack and isinstance(self.stack[-1].value, dict) and self.stack[-1].key is None:
            raise self.refusal(event, "a list or mapping as a key", "keys are names")
        self.anchors.pop(event.anchor, None)  # the name may be used again; until the end it points nowhere
        value: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self.stack.append(_Open(value, event.anchor, self.nodes))

    def add(self, parent: _Open, value: Any, event: Any) -> None:
        if isinstance(parent.value, list):
            parent.value.append(value)
        elif parent.key is not None:
            parent.value[parent.key] = value
            parent.key = None
        elif not isinstance(value, str):
            raise self.refusal(event, f"{describe(value)} as a key", "keys are names: quote it or rename it")
        elif value in parent.value:
            raise self.refusal(event, f"{shown(value)} appears twice in one mapping", "keep one of the two")
        else:
            parent.key = value

    def scalar(self, event: Any) -> Any:
        self.count(event, 1)
        if event.tag not in (None, "!"):
            raise self.refusal(event, f"the tag {shown(event.tag)}", "leave tags out")
        value = self.resolve(event) if event.implicit[0] else event.value
        if event.anchor is not None:
            self.anchors[event.anchor] = (value, 1)
        return value

    def resolve(self, event: Any) -> Any:
        text: str = event.value
        if text in _WORDS:
            return _WORDS[text]
        if not _FLOAT.fullmatch(text):
            return text
        if _INT.fullmatch(text):
            if len(text) > 20:
                raise self.refusal(event, "number too large", "give a number below 2**63")
            return int(text)
        number = float(text)
        # 1e5 requests are a count like 100000
        return int(number) if "e" in text.lower() and abs(number) < 2**53 and number.is_integer() else number

    def alias(self, event: Any) -> Any:
        if event.anchor not in self.anchors:
            inside = any(one.anchor == event.anchor for one in self.stack)
            problem = "refers to itself" if inside else "refers to nothing"
            name = shortened(event.anchor, 60)
            raise self.refusal(event, f"*{name} {problem}", f"define &{name} before, or write it out")
        value, nodes = self.anchors[event.anchor]
        self.count(event, nodes)
        return value

    def count(self, event: Any, nodes: int) -> None:
        self.nodes += nodes
        if self.nodes > _MAX_NODES:
            raise self.refusal(event, f"more than {_MAX_NODES} values", "traces go in files of their own")

    def refusal(self, event: Any, problem: str, fix: str) -> ScenarioError:
        return ScenarioError(self.file, self.place or place(event.start_mark), problem, fix)
