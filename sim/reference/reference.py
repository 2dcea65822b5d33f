"""The reference, generated from the code: what comes later is in it by itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from typer import Context
from typer.core import TyperGroup

from policies.registry import PARTS, POLICIES, ROUTERS, SCALERS
from sim.analysis.markdown_tables import markdown
from sim.analysis.study import METRICS, MORE_IS_BETTER
from sim.analysis.summary import summarise
from sim.records.schema import request_schema, timeline_schema
from sim.reference.reference_types import Row, nested, rows
from sim.scenario.model import Scenario
from sim.scenario.vary import SAMPLES
from workloads.registry import ARRIVALS, CLIENTS, LENGTHS

_HELP_WIDTH = 110


def pages(app: TyperGroup) -> dict[str, str]:
    """Return the pages of the reference as Markdown, by file name."""
    policies = {
        "Policies": {kind: entry.params for kind, entry in POLICIES.items()},
        **{f"Parts of policies: {name}": kinds for name, kinds in PARTS.items()},
        "Routers": {kind: entry.params for kind, entry in ROUTERS.items()},
        "Autoscalers": {kind: entry.params for kind, entry in SCALERS.items()},
    }
    return {
        "scenario.md": _scenario(),
        "policies.md": "# Policies, routers and autoscalers\n" + _registries(policies),
        "workloads.md": "# Workloads\n"
        + _registries({"Arrivals": ARRIVALS, "Lengths": LENGTHS, "Clients": CLIENTS})
        + _traces(),
        "profiles.md": _profiles(),
        "scenarios.md": _scenarios(),
        "metrics.md": _metrics(),
        "commands.md": _commands(app),
    }


def _scenario() -> str:
    parts = ["# Scenario\n\nThe fields of a scenario file. `tokenpools schema` prints the JSON schema for editors.\n"]
    parts += [_section(model) for model in (Scenario, *_own(Scenario))]
    parts.append(_registries({"What `vary` may be": SAMPLES}))
    return "".join(parts)


def _own(thing: type) -> list[type]:
    """Return what a scenario is made of, but for what belongs to a kind of policy, workload or step time."""
    kinds = [*ARRIVALS.values(), *LENGTHS.values(), *CLIENTS.values(), *SAMPLES.values(), *_step_times().values()]
    kinds += [entry.params for entries in (POLICIES, ROUTERS, SCALERS) for entry in entries.values()]
    kinds += [kind for part in PARTS.values() for kind in part.values()]
    elsewhere = {one for kind in kinds for one in nested(kind)}
    return [one for one in nested(thing) if one not in elsewhere]


def _step_times() -> Mapping[str, type]:
    from sim.engine.step_time import STEP_TIMES

    return STEP_TIMES


def _registries(groups: Mapping[str, Mapping[str, type]]) -> str:
    """Return a heading for each registry, a section for each kind in it, and then what these hold."""
    parts = []
    shown: set[type] = set()
    for title, kinds in groups.items():
        parts.append(f"\n## {title}\n")
        parts += [_section(params, kind, level=3) for kind, params in kinds.items()]
        held = dict.fromkeys(one for params in kinds.values() for one in nested(params) if one not in shown)
        shown |= set(held)
        parts += [_section(one, level=3) for one in held]
    return "".join(parts)


def _section(thing: type, title: str | None = None, level: int = 2) -> str:
    found = list(rows(thing))
    table = f"\n{_table(found)}\n" if found else ""
    return f"\n{'#' * level} {title or thing.__name__}\n\n{_doc(thing)}\n{table}"


def _profiles() -> str:
    from sim.scenario.profile import load_profile, shipped_profiles

    body = []
    for name in shipped_profiles():
        one = load_profile(name)
        holds = f"{one.max_num_seqs:,}", f"{one.kv_blocks:,}"
        body.append((f"`{name}`", f"`{one.step_time.kind}`", *holds, one.source, one.error))
    heads = ("profile", "step time", "sequences", "KV blocks", "source", "error")
    cells = [tuple(" ".join(cell.replace("|", "\\|").split()) for cell in row) for row in body]
    return f"# Profiles\n\nThose that are shipped.\n\n{markdown(heads, cells)}\n" + _registries(
        {"Step times": _step_times()}
    )


def _scenarios() -> str:
    from sim.scenario.catalogue import entries, scenario_comment

    parts = ["# Scenarios\n\nThose that are shipped, each with what it shows.\n"]
    for name, title in entries("scenarios"):
        parts.append(f"\n## {name}\n\n{title}\n\n```text\n{scenario_comment(name).strip()}\n```\n")
    return "".join(parts)


def _traces() -> str:
    from sim.scenario.catalogue import entries

    body = [(f"`{name}`", f"`{file}`") for name, file in entries("traces")]
    return f"\n## Traces\n\n{markdown(('name', 'file'), body)}\n"


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


def _commands(app: TyperGroup) -> str:
    parts = ["# Commands\n"]
    context = Context(app, info_name="tokenpools", max_content_width=_HELP_WIDTH, help_option_names=["-h", "--help"])
    parts += [_command(app.commands[name], name, context) for name in sorted(app.commands)]
    return "".join(parts)


def _command(command: Any, name: str, parent: Context) -> str:
    context = Context(command, info_name=name, parent=parent, terminal_width=_HELP_WIDTH)
    command.rich_markup_mode = None  # the plain page, which comes as text
    text = f"\n## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, TyperGroup):
        text += "".join(_command(command.commands[sub], sub, context) for sub in sorted(command.commands))
    return text


def _table(found: list[Row]) -> str:
    cells = [tuple(cell.replace("|", "\\|") for cell in row) for row in found]
    return markdown(("field", "type", "default", "what to give"), cells)


def _doc(thing: type) -> str:
    """Return a docstring without its sections: fields have a table of their own."""
    return re.split(r"\n\n\w+\n---", inspect.getdoc(thing) or "")[0]
