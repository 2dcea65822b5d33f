"""A whole gateway core as plain data, and back to one that goes on identically.

The core, its policy with all meters, its router and its scaler are one graph of objects. `take` writes that graph down
as JSON-able data, `restore` builds it again: the same references where objects are shared, every float to the bit, the
state of the seeded generator included. It is no pickle: reading makes only instances of classes that the package
``policies`` defines and of a few containers, sets their attributes, and runs no code of theirs.

Policies from elsewhere may appear once `trust` has named their package.

What a policy may keep: None, bool, int, float, str, enums, tuples, lists, dicts, sets, deques, heaps; objects of
classes and functions at the top of a module of ``policies``; bound methods of such objects; the generator it was
given. Lambdas, functions defined in functions, generators and iterators are refused, with the place they were found.

Values (tuples, enums, frozen dataclasses) are written where they stand; only mutable objects keep their identity.
"""

from __future__ import annotations

import gc
import math
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from types import (
    BuiltinMethodType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
)
from typing import Any, Protocol, cast

from policies import registry
from policies.core import GatewayCore

FORMAT = 1
_COMPILED = "__mypyc_attrs__"
"""What a class has that mypyc compiled: the names of its attributes. Snapshots of both forms are the same."""

_TRUSTED = ["policies"]

_PRIMITIVES = (type(None), bool, int, float, str)
_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_CONTAINERS: Mapping[str, type] = MappingProxyType({
    "list": list, "dict": dict, "set": set, "deque": deque, "ordered": OrderedDict, "counter": Counter,
    "default": defaultdict,
})  # fmt: skip
_TAGS = {kind: tag for tag, kind in _CONTAINERS.items()}
_MAPS = (dict, OrderedDict, Counter, defaultdict)
_FACTORIES: Mapping[str, type] = MappingProxyType({kind.__name__: kind for kind in (int, float, list, dict, set)})


class StatefulChance(Protocol):
    """A generator whose state can be read and set, as `random.Random`'s can."""

    def random(self) -> float:
        """Return the next number in [0, 1)."""
        ...

    def setstate(self, state: Any, /) -> None:
        """Go on from ``state``."""
        ...


class SnapshotError(TypeError):
    """Something cannot be part of a snapshot, or data is no snapshot. The text says where."""

    def __init__(self, problem: str, *path: str) -> None:
        super().__init__(problem, *path)
        self.problem, self.path = problem, path

    def __str__(self) -> str:
        where = ".".join(reversed(self.path))
        return f"{where}: {self.problem}" if where else self.problem

    def under(self, name: str) -> SnapshotError:
        """Return the same error, one level further up."""
        return SnapshotError(self.problem, *self.path, name)


def take(core: GatewayCore) -> dict[str, Any]:
    """Return a gateway core as data that JSON can hold. Equal states give equal data.

    Raises
    ------
    SnapshotError : something in it cannot be written down.
    """
    return dump(core)


def restore(data: object, *, chance: Callable[[], StatefulChance] | None = None) -> GatewayCore:
    """Return the core that `take` wrote down.

    Parameters
    ----------
    chance : makes the generator that gets the saved state, e.g. ``random.Random``; needed if the policy has one.

    Raises
    ------
    SnapshotError : it is no snapshot of a core, or one of other code.
    """
    core = load(data, chance=chance)
    if not isinstance(core, GatewayCore):
        raise SnapshotError(f"found a {type(core).__name__}; expected a snapshot of a GatewayCore")
    return core


def trust(package: str) -> None:
    """Let snapshots of this process hold classes of another package too: one that a policy was loaded from.

    What makes reading safe stays: nothing is imported for it, instances are made empty, and no code of theirs is run.
    """
    if package not in _TRUSTED:
        _TRUSTED.append(package)


def dump(root: object, *, packages: Iterable[str] | None = None) -> dict[str, Any]:
    """Return an object and all it refers to as data.

    Parameters
    ----------
    packages : those whose classes may appear; left out, ``policies`` and what is trusted besides.
    """
    return _Writer(tuple(_TRUSTED if packages is None else packages)).write(root)


def load(
    data: object, *, chance: Callable[[], StatefulChance] | None = None, packages: Iterable[str] | None = None
) -> object:
    """Return what `dump` wrote down."""
    registry.import_all()  # what is registered can be restored
    return _Reader(data, chance, tuple(_TRUSTED if packages is None else packages)).root()


def _belongs(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def _slots(kind: type) -> dict[str, Any]:
    # What mypyc compiled keeps its attributes behind descriptors of another kind, and names them.
    return {
        name: member for base in reversed(kind.__mro__) for name, member in vars(base).items()
        if isinstance(member, MemberDescriptorType)
        or (isinstance(member, GetSetDescriptorType) and name in vars(base).get(_COMPILED, ()))
    }  # fmt: skip


def _compiled_function(value: Any) -> bool:
    # Unlike a method's, or that of a built-in, what stands for its object says nothing: it is looked for where it says.
    return getattr(sys.modules.get(str(value.__module__)), value.__name__, None) is value


def _makes_itself(kind: type) -> bool:
    return any("__new__" in vars(base) and _COMPILED not in vars(base) for base in kind.__mro__ if base is not object)


def _is_value(kind: type) -> bool:
    params = getattr(kind, "__dataclass_params__", None)
    return params is not None and params.frozen and params.eq


# --------------------------------------------------------------------------------------------------------------------
# Writing. A value stands for itself, or is a list: [n] the n-th object, otherwise a tag and what it needs.


class _Writer:
    def __init__(self, packages: tuple[str, ...]) -> None:
        self._packages = packages
        self._objects: list[list[Any]] = []
        self._numbers: dict[int, int] = {}
        self._alive: list[object] = []  # so that no id is used twice
        self._layouts: dict[tuple[str, tuple[str, ...]], int] = {}

    def write(self, root: object) -> dict[str, Any]:
        value = self._value(root)
        layouts = [[name, list(attributes)] for name, attributes in self._layouts]
        return {"format": FORMAT, "layouts": layouts, "objects": self._objects, "root": value}

    def _value(self, value: Any) -> Any:
        kind = type(value)
        if kind in _PRIMITIVES:
            if kind is float and not math.isfinite(value):
                return ["float", repr(value)]
            return value
        number = self._numbers.get(id(value))
        if number is not None:
            return [number]
        if kind is tuple:
            return ["tuple", *self._several(value)]
        if kind is frozenset:
            return ["frozenset", *self._several(_in_order(value))]
        if isinstance(value, Enum):
            return ["enum", self._class(kind), self._value(value.value)]
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            return ["named", self._layout(kind, kind._fields), *self._several(value, kind._fields)]
        if isinstance(value, type):
            return ["class", self._class(value)]
        if kind is FunctionType or (kind is BuiltinMethodType and _compiled_function(value)):
            return ["function", self._function(value)]
        if _is_value(kind):
            return self._instance(value)
        return self._object(value, kind)

    def _object(self, value: Any, kind: type) -> list[int]:
        number = self._numbers[id(value)] = len(self._objects)
        self._alive.append(value)
        self._objects.append([])
        if kind in _TAGS:
            node = self._container(value, kind)
        elif kind is MappingProxyType:
            behind = [each for each in gc.get_referents(value) if type(each) is dict]
            if len(behind) != 1:
                raise SnapshotError("found a view of something that is no dict; keep a dict")
            node = ["view", self._value(behind[0])]
        elif kind is MethodType or (kind is BuiltinMethodType and hasattr(type(value.__self__), _COMPILED)):
            node = ["method", self._value(value.__self__), self._method(value)]
        elif kind is BuiltinMethodType and (
            type(value.__self__) in _TAGS or _is_chance(value.__self__)
        ):
            node = ["builtin", self._value(value.__self__), value.__name__]
        elif _is_chance(value):
            version, words, spare = value.getstate()
            node = ["chance", version, list(words), spare]
        else:
            node = self._instance(value)
        self._objects[number] = node
        return [number]

    def _container(self, value: Any, kind: type) -> list[Any]:
        node: list[Any] = [_TAGS[kind]]
        if kind is deque:
            node.append(value.maxlen)
        elif kind is defaultdict:
            factory = value.default_factory
            if factory is not None and _FACTORIES.get(factory.__name__) is not factory:
                raise SnapshotError(f"found a defaultdict of {factory!r}; give one of {list(_FACTORIES)}")
            node.append(None if factory is None else factory.__name__)
        if kind in _MAPS:
            for key, each in value.items():
                node += (self._within(f"key {key!r}", key), self._within(f"[{key!r}]", each))
        else:
            node += self._several(_in_order(value) if kind is set else value)
        return node

    def _instance(self, value: Any) -> list[Any]:
        kind = type(value)
        found = dict(getattr(value, "__dict__", {}))
        for name, member in _slots(kind).items():
            try:
                found[name] = member.__get__(value)
            except AttributeError:  # a slot that was never filled
                continue
        names = tuple(sorted(found))
        layout = self._layout(kind, names)
        if _makes_itself(kind):
            raise SnapshotError(f"found a {kind.__qualname__}, which cannot be made empty; build it on plain classes")
        return ["object", layout, *self._several([found[name] for name in names], names)]

    def _several(self, values: Iterable[Any], names: Iterable[str] | None = None) -> list[Any]:
        if names is None:
            return [self._within(f"[{index}]", each) for index, each in enumerate(values)]
        return [self._within(name, each) for name, each in zip(names, values, strict=True)]

    def _within(self, name: str, value: Any) -> Any:
        if type(value) in _PRIMITIVES:
            return self._value(value)
        try:
            return self._value(value)
        except SnapshotError as error:
            raise error.under(name) from None

    def _layout(self, kind: type, names: tuple[str, ...]) -> int:
        return self._layouts.setdefault((self._class(kind), names), len(self._layouts))

    def _class(self, kind: type) -> str:
        module, name = kind.__module__, kind.__qualname__
        if not _belongs(module, self._packages) or getattr(sys.modules.get(module), name, None) is not kind:
            raise SnapshotError(
                f"found {module}.{name}; a snapshot holds classes at the top of a module of {list(self._packages)}, "
                "enums, tuples, lists, dicts, sets and deques"
            )
        return f"{module}:{name}"

    def _function(self, function: Any) -> str:
        module, name = function.__module__, function.__qualname__
        if not _belongs(module, self._packages) or getattr(sys.modules.get(module), name, None) is not function:
            raise SnapshotError(f"found the function {module}.{name}; keep a bound method, or one at a module's top")
        return f"{module}:{name}"

    def _method(self, method: Any) -> str:
        name = str(method.__name__)
        plain = _plain_method(type(method.__self__), name)
        if plain is None or plain.__get__(method.__self__) != method:
            raise SnapshotError(f"found the method {method.__qualname__}, which its class does not have")
        return name


def _is_chance(value: object) -> bool:
    """Whether it is Python's own generator, told by name since policies do not import it."""
    kind = type(value)
    return (kind.__module__, kind.__qualname__) == ("random", "Random")


def _in_order(values: Iterable[Any]) -> list[Any]:
    """Return a set's members in an order that does not hang on the process."""
    return sorted(values, key=lambda each: (type(each).__name__, each if isinstance(each, int | float) else repr(each)))


def _plain_method(kind: type, name: str) -> Any:
    for base in kind.__mro__:
        if name in vars(base):
            found = vars(base)[name]
            return found if isinstance(found, FunctionType | MethodDescriptorType) else None
    return None


# --------------------------------------------------------------------------------------------------------------------
# Reading


class _Reader:
    def __init__(
        self, data: object, chance: Callable[[], StatefulChance] | None, packages: tuple[str, ...]
    ) -> None:
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise SnapshotError(f"found format {found!r}; expected a snapshot of format {FORMAT}")
        self._chance = chance
        self._packages = packages
        self._root = data.get("root")
        self._nodes = cast("list[list[Any]]", data.get("objects"))
        self._made: dict[int, Any] = {}
        self._layouts = [(self._named(name), list(names)) for name, names in data["layouts"]]

    def root(self) -> object:
        try:
            return self._value(self._root)
        except (IndexError, ValueError, KeyError, AttributeError) as error:
            raise SnapshotError(f"the data is damaged or of other code: {error}") from error

    def _value(self, data: Any) -> Any:
        if not isinstance(data, list):
            if type(data) not in _PRIMITIVES:
                raise SnapshotError(f"found {type(data).__name__}; expected a value or a list")
            return data
        tag = data[0]
        if type(tag) is int:
            return self._made[tag] if tag in self._made else self._object(tag)
        if tag == "float":
            return _FLOATS[data[1]]
        if tag == "tuple":
            return tuple([self._value(each) for each in data[1:]])
        if tag == "frozenset":
            return frozenset([self._value(each) for each in data[1:]])
        if tag == "enum":
            kind = self._named(data[1])
            if not issubclass(kind, Enum):
                raise SnapshotError(f"{data[1]} is no enum")
            return kind(self._value(data[2]))
        if tag == "named":
            kind, names = self._layouts[data[1]]
            if not issubclass(kind, tuple) or list(getattr(kind, "_fields", ())) != names:
                raise SnapshotError(f"{kind.__qualname__} has other fields here than {names}")
            return tuple.__new__(kind, [self._value(each) for each in data[2:]])
        if tag == "class":
            return self._named(data[1])
        if tag == "function":
            return self._found(data[1], FunctionType, BuiltinMethodType)
        if tag == "object":
            return self._filled(self._empty(data), data)
        raise SnapshotError(f"found the tag {tag!r}, which means nothing")

    def _object(self, number: int) -> Any:
        if not 0 <= number < len(self._nodes):
            raise SnapshotError(f"refers to object {number} of {len(self._nodes)}")
        node = self._nodes[number]
        tag = node[0]
        if tag == "object":  # made before it is filled, since it may refer to itself
            made = self._made[number] = self._empty(node)
            return self._filled(made, node)
        if tag in _CONTAINERS:
            return self._container(number, node)
        if tag == "view":
            made = MappingProxyType(self._value(node[1]))
        elif tag == "method":
            owner = self._value(node[1])
            method = _plain_method(type(owner), node[2])
            if method is None or not _belongs(type(owner).__module__, self._packages):
                raise SnapshotError(f"{type(owner).__qualname__} has no method {node[2]!r}")
            made = method.__get__(owner)
        elif tag == "builtin":
            owner = self._value(node[1])
            if not (type(owner) in _TAGS or _is_chance(owner)) or node[2].startswith("_"):
                raise SnapshotError(f"found the method {node[2]!r} of a {type(owner).__qualname__}")
            made = getattr(owner, node[2])
        elif tag == "chance":
            if self._chance is None:
                raise SnapshotError("the policy has a generator; say with what to make it, e.g. chance=random.Random")
            made = self._chance()
            made.setstate((node[1], tuple(node[2]), node[3]))
        else:
            raise SnapshotError(f"found the tag {tag!r}, which means nothing")
        self._made[number] = made
        return made

    def _container(self, number: int, node: list[Any]) -> Any:
        kind = _CONTAINERS[node[0]]
        skip = 1 + (kind in (deque, defaultdict))
        made: Any
        if kind is deque:
            made = deque(maxlen=node[1])
        elif kind is defaultdict:
            made = defaultdict(None if node[1] is None else _FACTORIES[node[1]])
        else:
            made = kind()
        self._made[number] = made
        parts = [self._value(each) for each in node[skip:]]
        if kind in _MAPS:
            for key, value in zip(parts[::2], parts[1::2], strict=True):
                made[key] = value
        elif kind is set:
            made.update(parts)
        else:
            made.extend(parts)
        return made

    def _empty(self, node: list[Any]) -> Any:
        kind, _ = self._layouts[node[1]]
        if _makes_itself(kind):
            raise SnapshotError(f"{kind.__qualname__} cannot be made empty")
        try:
            return kind.__new__(kind)
        except TypeError as error:
            raise SnapshotError(f"{kind.__qualname__} cannot be made empty: {error}") from error

    def _filled(self, made: Any, node: list[Any]) -> Any:
        kind, names = self._layouts[node[1]]
        slots = _slots(kind)
        for name, data in zip(names, node[2:], strict=True):
            value = self._value(data)
            if name in slots:
                slots[name].__set__(made, value)
            elif name.startswith("__"):
                raise SnapshotError(f"found the attribute {name!r}")
            else:
                made.__dict__[name] = value
        return made

    def _named(self, name: str) -> type:
        return cast("type", self._found(name, type))

    def _found(self, name: str, *kinds: type) -> Any:
        module, _, attribute = name.partition(":")
        # Only what is loaded: reading data imports nothing.
        found = getattr(sys.modules.get(module), attribute, None) if _belongs(module, self._packages) else None
        if not isinstance(found, kinds) or found.__module__ != module:
            raise SnapshotError(f"found {name!r}; expected a {kinds[0].__name__} of a module of {list(self._packages)}")
        return found
