"""Kinds from outside: policies, routers, arrival laws and clients of other packages, named by a scenario or a program.

A kind that tokenpools does not have is looked for where packages announce theirs, the entry points of `GROUPS`, under
its name; one with a colon, ``module:Class``, is imported. Nothing is looked for, and no entry point read, before such a
kind appears, so a run without plug-ins pays nothing.

What is found joins the registry of its group (`sim.scenario.registered_types.Kinds`), and is from then on as good as
those that come with tokenpools: bounds, errors with places, and the schema know it. Its ``kind`` is what the scenario
says, so that a resolved scenario finds it again.
"""

from __future__ import annotations

import hashlib
import marshal
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter

from policies.api import AdmissionPolicy, Router
from policies.registry import POLICIES, ROUTERS, Entry, Traits
from sim.errors import InputError
from sim.scenario.registered_types import Kinds, rebuild_models
from workloads.registry import ARRIVALS, CLIENTS

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUPS = ("policies", "arrivals", "clients", "routers")
"""Plurals of what may come from outside; the entry points are called ``tokenpools.policies`` and so on."""

_WHAT = {"policies": "policy", "arrivals": "arrival law", "clients": "client", "routers": "router"}
_NEEDS: Mapping[str, tuple[tuple[str, ...], ...]] = {  # one of these sets of methods
    "policies": (("build",), ("decide", "on_admitted", "on_ended", "on_tick", "on_capacity", "gauges")),
    "routers": (("build",), ("route",)),
    "arrivals": (("times_s",), ("requests",), ("demand",)),
    "clients": (("next_attempt_s",),),
}
_BUILT_NEEDS = {
    "policies": ("tick_s", "wants_progress", "wants_reports", *_NEEDS["policies"][1]),
    "routers": ("route",),
}


class PluginError(InputError):
    """A kind from outside that cannot be used: ``place: problem; fix``."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """A kind from outside.

    Attributes
    ----------
    group : one of `GROUPS`.
    kind : what scenarios call it: a name, or ``module:Class``.
    params : the dataclass that a scenario fills in.
    """

    group: str
    kind: str
    params: type

    @property
    def reference(self) -> str:
        """Where it is defined, as ``module:Class``."""
        return f"{self.params.__module__}:{self.params.__qualname__}"

    def source_hash(self) -> str:
        """Return the hash of the source that it is made of: its package's Python files, or its own class's text."""
        return _source_hash(self.params.__module__, self.params)


ARRIVAL_KINDS: Kinds[type] = Kinds(ARRIVALS)
CLIENT_KINDS: Kinds[type] = Kinds(CLIENTS)
POLICY_KINDS: Kinds[Entry[AdmissionPolicy]] = Kinds(POLICIES)
ROUTER_KINDS: Kinds[Entry[Router]] = Kinds(ROUTERS)
_KINDS: Mapping[str, Kinds[Any]] = {
    "policies": POLICY_KINDS, "arrivals": ARRIVAL_KINDS, "clients": CLIENT_KINDS, "routers": ROUTER_KINDS,
}  # fmt: skip
_LOADED: dict[type, Plugin] = {}


# --------------------------------------------------------------------------------------------------------------------
# Finding them


def find(group: str, kind: object, *, may_import: bool = True) -> None:
    """See that a kind that a scenario names is registered, if there is one of that name anywhere.

    Parameters
    ----------
    may_import : whether ``module:Class`` is imported; False for scenarios that come over a network.

    Raises
    ------
    PluginError : it is there and cannot be used, or it names a module or class that is not there.
    """
    if not isinstance(kind, str) or kind in _KINDS[group]:
        return
    if ":" in kind:
        if not may_import:
            raise PluginError(kind, "is not loaded here", "start this process with a configuration that names it")
        register(group, _imported(kind, group), kind=kind)
        return
    announced = [point for point in _announced(group) if point.name == kind]
    if len(announced) > 1:
        raise PluginError(
            kind, f"{_WHAT[group]} of {' and of '.join(sorted(map(_origin, announced)))}", "uninstall one, or name it "
            f"{announced[0].value}",
        )  # fmt: skip
    if announced:
        register(group, _imported(announced[0].value, group, _origin(announced[0])), kind=kind)


def class_of(reference: str) -> type:
    """Return the class that ``module:Class`` names.

    Raises
    ------
    PluginError : there is none, or its module cannot be imported.
    """
    return _imported(reference, "policies")


def names(group: str) -> list[str]:
    """Return what may be called by its name: kinds that are registered, and those that installed packages announce."""
    return list(dict.fromkeys([*_KINDS[group], *(point.name for point in _announced(group))]))


def listed(group: str) -> Iterator[tuple[str, str]]:
    """Yield name and one line for every kind that installed packages announce; what is wrong with it, if it is."""
    for point in _announced(group):
        try:
            if point.name in _KINDS[group].built_in:
                raise PluginError(point.name, "the name is taken", f"have {_origin(point)} give it another")
            find(group, point.name)
            doc = " ".join((_KINDS[group].params(point.name).__doc__ or "").split())
            yield point.name, f"{doc.split('. ')[0].rstrip('.')} ({_origin(point)})"
        except PluginError as error:
            yield point.name, f"cannot be used: {error.args[1]} ({_origin(point)})"


@lru_cache(maxsize=4)
def _announced(group: str) -> tuple[EntryPoint, ...]:
    from importlib.metadata import entry_points  # reads every installed package, and takes long to import

    return tuple(sorted(entry_points(group=f"tokenpools.{group}"), key=lambda point: (point.name, point.value)))


def _origin(point: EntryPoint) -> str:
    return "an unknown package" if point.dist is None else f"{point.dist.name} {point.dist.version}"


def _imported(reference: str, group: str, origin: str = "") -> type:
    """Return the class that ``module:Class`` names."""
    place = f"{reference} ({origin})" if origin else reference
    module, _, name = reference.partition(":")
    if not module or not name:
        raise PluginError(place, "is no module:Class", "write e.g. my_package.my_policy:MyPolicy")
    try:
        found: Any = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise PluginError(
                place, f"there is no module {error.name}", "install it, or set PYTHONPATH to the folder it is in"
            ) from None
        raise PluginError(place, f"its module needs {error.name}, which is not installed", "install it") from error
    except Exception as error:
        raise PluginError(place, f"its module raises {_said(error)}", "mend that, then run again") from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type):
        has = "has no" if found is None else "has something else than a"
        raise PluginError(place, f"module {module} {has} class {name}", f"give the name of a {_WHAT[group]}'s class")
    return found


def _said(error: BaseException) -> str:
    """Return an exception in a line, with the place where it was raised."""
    steps = traceback.extract_tb(error.__traceback__)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{text} ({Path(steps[-1].filename).name}, line {steps[-1].lineno})" if steps else text


# --------------------------------------------------------------------------------------------------------------------
# Taking them in


def register(group: str, params: type, *, kind: str | None = None) -> Plugin:
    """Make a kind known to this process.

    Parameters
    ----------
    kind : what scenarios call it; its own ``kind`` if left out.

    Raises
    ------
    PluginError : it lacks something, or the name is taken.
    """
    if group not in GROUPS:
        raise PluginError(str(group), "is nothing that has kinds", f"give one of: {', '.join(GROUPS)}")
    _check(group, params)
    plugin = Plugin(group, kind or own_kind(params), params)
    kinds = _KINDS[group]
    if plugin.kind in kinds.built_in:
        raise PluginError(
            plugin.reference, f"its name {plugin.kind!r} is taken by a {_WHAT[group]} of tokenpools",
            "give it another kind",
        )
    before = kinds.params(plugin.kind) if plugin.kind in kinds else None
    if before is params:
        return plugin
    if before is not None and (before.__module__, before.__qualname__) != (params.__module__, params.__qualname__):
        raise PluginError(
            plugin.reference, f"its name {plugin.kind!r} is taken by {before.__module__}:{before.__qualname__}",
            "give it another kind",
        )
    try:
        TypeAdapter(params).rebuild(force=True, raise_errors=True)
    except Exception as error:
        text = " ".join(str(error).split("\n")[0].split())
        problem = f"its fields cannot be read ({text})"
        raise PluginError(plugin.reference, problem, "annotate each with a plain type") from error
    # The kind is what the scenario says, which need not be the one word that the class has for itself.
    called = [*(each for each in kinds if kinds.params(each) is params), plugin.kind]
    params.__dataclass_fields__["kind"].type = Literal[tuple(called)]  # type: ignore[attr-defined]
    kinds.add(plugin.kind, _entry(plugin) if group in _BUILT_NEEDS else params)
    _LOADED[params] = plugin
    from policies import snapshot  # here, because a run without plug-ins need not know it

    snapshot.trust(_package(params.__module__))
    rebuild_models()
    return plugin


def group_of(params: type) -> str:
    """Return which of `GROUPS` a class belongs to.

    Raises
    ------
    PluginError : it has the methods of none.
    """
    for group in ("arrivals", "clients", "routers", "policies"):
        if any(all(hasattr(params, name) for name in methods) for methods in _NEEDS[group] if methods != ("build",)):
            return group
    if hasattr(params, "build"):
        import inspect

        return "policies" if "entitlements" in inspect.signature(params.build).parameters else "routers"
    known = "; ".join(f"a {_WHAT[group]} {_wanted(group)}" for group in GROUPS)
    raise PluginError(f"{params.__module__}:{params.__qualname__}", "is nothing that tokenpools knows", known)


def own_kind(params: type) -> str:
    """Return the name that a class has for itself."""
    return str(params.__dataclass_fields__["kind"].default)  # type: ignore[attr-defined]


def named_object(group: str, params: object) -> object:
    """Return what a program gave as an object under a kind that a resolved scenario finds again, and register it.

    Raises
    ------
    PluginError : its class cannot be used.
    """
    cls = type(params)
    if cls in {kind.params if isinstance(kind, Entry) else kind for kind in _KINDS[group].built_in.values()}:
        return params
    _check(group, cls)
    known = _LOADED.get(cls)
    kind = known.kind if known is not None else f"{cls.__module__}:{cls.__qualname__}"
    register(group, cls, kind=kind)
    return replace(params, kind=kind)  # type: ignore[type-var]


def arrived(group: str, params: object) -> None:
    """Register the class of what came from another process, which knows it already."""
    cls = type(params)
    kind = getattr(params, "kind", None)
    if isinstance(kind, str) and kind not in _KINDS[group].built_in and cls not in _LOADED:
        _KINDS[group].forget(kind)
        register(group, cls, kind=kind)


def _check(group: str, params: type) -> None:
    place = f"{params.__module__}:{params.__qualname__}"
    frozen = is_dataclass(params) and params.__dataclass_params__.frozen  # type: ignore[attr-defined]
    own = fields(params) if is_dataclass(params) else ()
    if not frozen or not own or own[0].name != "kind" or not isinstance(own[0].default, str):
        lacks = "a frozen dataclass" if not frozen else "a first field `kind` with a text for its default"
        raise PluginError(
            place, f"is no {_WHAT[group]}: it lacks {lacks}",
            'write @dataclass(frozen=True) above it and kind: str = "my-name" first in it',
        )  # fmt: skip
    if not any(all(callable(getattr(params, name, None)) for name in methods) for methods in _NEEDS[group]):
        raise PluginError(place, f"is no {_WHAT[group]}: it lacks {_lacking(group, params)}", _wanted(group))


def _lacking(group: str, params: type) -> str:
    nearest = min(_NEEDS[group], key=lambda methods: sum(not hasattr(params, name) for name in methods))
    return " and ".join(f"{name}()" for name in nearest if not callable(getattr(params, name, None)))


def _wanted(group: str) -> str:
    return "needs " + ", or ".join(" and ".join(f"{name}()" for name in methods) for methods in _NEEDS[group])


def _entry(plugin: Plugin) -> Entry[Any]:
    return Entry(plugin.params, _Build(plugin), getattr(plugin.params, "traits", Traits()))


@dataclass(frozen=True, slots=True)
class _Build:
    """Makes the working object, and holds it to what its group needs."""

    plugin: Plugin

    def __call__(self, params: Any, **setting: Any) -> Any:
        plugin = self.plugin
        try:
            # One that needs no memory is its own policy; each pool gets one of its own all the same.
            built = params.build(**setting) if hasattr(params, "build") else replace(params)
        except ValueError:
            raise  # for the user: the parameters do not fit
        except Exception as error:
            problem = f"build() raises {_said(error)}"
            raise PluginError(plugin.reference, problem, "mend that, then run again") from error
        missing = [name for name in _BUILT_NEEDS[plugin.group] if not hasattr(built, name)]
        if missing:
            raise PluginError(
                plugin.reference, f"build() returns a {type(built).__qualname__} that lacks {', '.join(missing)}",
                "tokenpools.policies.PolicyBase has them all" if plugin.group == "policies" else _wanted(plugin.group),
            )
        return built


# --------------------------------------------------------------------------------------------------------------------
# What a result says of them


def used(scenario: Any) -> list[Plugin]:
    """Return the plug-ins that a scenario runs, each once, in the order of their kinds."""
    parts = [("routers", scenario.pool.router)]
    parts += [("policies", one.params) for one in (*scenario.policies, *scenario.shadow)]
    for workload in scenario.workload:
        parts += [("arrivals", workload.arrivals), ("clients", workload.client)]
    found = {(group, params.kind): _LOADED[type(params)] for group, params in parts if type(params) in _LOADED}
    return [found[key] for key in sorted(found)]


def in_manifest(scenario: Any) -> dict[str, Any]:
    """Return what a manifest says of the plug-ins of a scenario; nothing where there are none."""
    rows = [
        {"group": one.group, "kind": one.kind, "class": one.reference, "source_sha256": one.source_hash()}
        for one in used(scenario)
    ]
    return {"plugins": rows} if rows else {}


def raised_by(scenario: Any, error: BaseException) -> str:
    """Return which plug-in raised an exception, and where; nothing where it was none of them."""
    steps = traceback.extract_tb(error.__traceback__)
    for one in used(scenario):
        module = sys.modules.get(one.params.__module__)
        files = {str(path) for path in _files(module)} if module is not None else set()
        own = [step for step in steps if step.filename in files]
        if own:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            return f"{one.reference} raises {text} ({Path(own[-1].filename).name}, line {own[-1].lineno})"
    return ""


def _package(module: str) -> str:
    """Return the package that a module is in, or the module itself where it is in none."""
    return module.rpartition(".")[0] or module


def _files(module: ModuleType) -> list[Path]:
    """Return the Python files that belong to a module: all of its package, or its own."""
    package = sys.modules.get(_package(module.__name__))
    folders = [Path(folder) for folder in getattr(package, "__path__", ())]
    if folders:
        return sorted(path for folder in folders for path in folder.rglob("*.py"))
    file = getattr(module, "__file__", None)
    return [Path(file)] if file else []


@lru_cache(maxsize=64)
def _source_hash(name: str, params: type) -> str:  # noqa: ARG001  (a class that was defined anew is hashed anew)
    module = sys.modules.get(name)
    files = [file for file in _files(module) if file.is_file()] if module is not None else []
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    if not files:  # a notebook, whose cells are in no file, or an archive
        own = {key: value for key, value in vars(module).items() if getattr(value, "__module__", None) == name}
        for key in sorted(own):
            digest.update(key.encode() + b"\0" + _text_of(own[key]) + b"\0")
    return digest.hexdigest()[:16]


def _text_of(thing: Any) -> bytes:
    """Return the source of a class or function, or its code where the source is nowhere."""
    import inspect

    try:
        return inspect.getsource(thing).encode()
    except (OSError, TypeError):
        members = [thing, *vars(thing).values()] if isinstance(thing, type) else [thing]
        return b"".join(marshal.dumps(one.__code__) for one in members if hasattr(one, "__code__"))
