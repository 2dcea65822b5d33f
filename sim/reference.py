"""The reference, generated from the code: what comes later is in it by itself."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import click

from policies.registry import POLICIES, ROUTERS
from sim.analysis.study import METRICS, MORE_IS_BETTER
from sim.analysis.summary import summarise
from sim.experiments.tables import markdown
from sim.records import request_schema, timeline_schema
from sim.scenario_model import Capacity, Event, Phase, Scenario, Workload
from sim.vary import SAMPLES, Range
from workloads.registry import ARRIVALS, CLIENTS, LENGTHS


def pages(app: click.Group) -> dict[str, str]:
    """Return the pages of the reference as Markdown, by file name."""
    return {
        "scenario.md": _scenario(),
        "policies.md": _registry("Policies", {kind: entry.params for kind, entry in POLICIES.items()})
        + _registry("Routers", {kind: entry.params for kind, entry in ROUTERS.items()}, level=1),
        "workloads.md": _registry("Arrivals", ARRIVALS)
        + _registry("Lengths", LENGTHS, level=1)
        + _registry("Clients", CLIENTS, level=1),
        "metrics.md": _metrics(),
        "commands.md": _commands(app),
    }


def _scenario() -> str:
    from sim.pool_model import Entitlement, Pool
    from sim.profiles import Profile

    models = (Scenario, Pool, Entitlement, Profile, Workload, Event, Capacity, Phase)
    parts = ["# Scenario\n\nThe fields of a scenario file. `tokenpools schema` prints the JSON schema for editors.\n"]
    for model in models:
        rows = [
            (f"`{name}`", _type(one.annotation), _default(one), one.description or "")
            for name, one in model.model_fields.items()
        ]
        parts.append(f"\n## {model.__name__}\n\n{_first(model)}\n\n{_table(rows)}\n")
    parts.append(_registry("What `vary` may be", SAMPLES))
    parts.append(f"\n### Range\n\n{_first(Range)}\n\n{_table(_fields(Range))}\n")
    return "".join(parts)


def _registry(title: str, kinds: Mapping[str, type], level: int = 1) -> str:
    parts = [f"\n{'#' * level} {title}\n"]
    for kind, params in kinds.items():
        parts.append(f"\n## {kind}\n\n{_doc(params)}\n")
        rows = list(_fields(params))
        if rows:
            parts.append(f"\n{_table(rows)}\n")
    return "".join(parts)


def _fields(params: type) -> Iterator[tuple[str, str, str, str]]:
    for one in dataclasses.fields(params):
        if one.name == "kind":
            continue
        default = ""
        if one.default is not dataclasses.MISSING:
            default = f"`{one.default}`"
        elif one.default_factory is not dataclasses.MISSING:
            default = f"`{one.default_factory()}`"
        bounds = ", ".join(f"{_SIGNS[key]} {value:g}" for key, value in one.metadata.items() if key in _SIGNS)
        about = str(one.metadata.get("description", ""))
        yield f"`{one.name}`", _type(one.type), default, f"{about} ({bounds})" if bounds else about


_SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def _metrics() -> str:
    rows = [(f"`{name}`", "more is better" if name in MORE_IS_BETTER else "") for name in METRICS]
    columns = inspect.getdoc(summarise) or ""
    schemas = {"requests.parquet": request_schema(), "timeline.parquet": timeline_schema()}
    tables = [
        f"\n## {title}\n\n{markdown(('column', 'type'), [(f'`{one.name}`', str(one.type)) for one in schema])}\n"
        for title, schema in schemas.items()
    ]
    return (
        "# Metrics\n\nWhat `--until`, `--fail-if` and `--metric` may name, and what a result holds.\n\n"
        f"{markdown(('metric', ''), rows)}\n\n## summary.csv\n\n```text\n{columns}\n```\n{''.join(tables)}"
    )


def _commands(app: click.Group) -> str:
    parts = ["# Commands\n"]
    context = click.Context(app, info_name="tokenpools")
    parts += [_command(app.commands[name], name, context) for name in sorted(app.commands)]
    return "".join(parts)


def _command(command: click.Command, name: str, parent: click.Context) -> str:
    context = click.Context(command, info_name=name, parent=parent)
    text = f"\n## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        text += "".join(_command(command.commands[sub], sub, context) for sub in sorted(command.commands))
    return text


def _default(one: Any) -> str:
    if one.is_required():
        return "required"
    value = one.get_default(call_default_factory=True)
    return f"`{value}`" if value is not None else "none"


def _type(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    if not isinstance(annotation, str) and "[" in str(annotation):
        text = str(annotation)
    text = re.sub(r"\b(typing|sim|policies|workloads|collections\.abc)(\.\w+)*\.", "", text)
    return f"`{text}`" if len(text) <= 80 else "see the schema"


def _table(rows: Any) -> str:
    cells = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    return markdown(("field", "type", "default", "what to give"), cells)


def _first(thing: type) -> str:
    return _doc(thing).split("\n\n")[0]


def _doc(thing: type) -> str:
    """Return a docstring without its sections: fields have a table of their own."""
    return re.split(r"\n\n\w+\n---", inspect.getdoc(thing) or "")[0]
