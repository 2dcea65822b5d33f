"""`tokenpools trace`: fetch, inspect and convert. Bodies load, call one function and print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli import completion
from sim.cli.app import TRAFFIC, command, group
from sim.errors import InputError

if TYPE_CHECKING:
    from workloads.trace import Columns


trace = group(
    "trace", panel=TRAFFIC, about="Fetch public traces, see what a trace is like, and convert between formats."
)

_Format = Annotated[
    str | None, typer.Option("--format", metavar="NAME", help="The format; without it, it is recognised.")
]
_Columns = Annotated[
    str | None,
    typer.Option(
        "--columns", metavar="ROLE=COLUMN,...",
        help="Columns of a plain table: time, prompt, output; limit, tenant, service, session, turn, time_unit.",
    ),
]  # fmt: skip
_Sort = Annotated[bool, typer.Option("--sort", help="Take rows in any order, and sort them in memory.")]
_Seed = Annotated[int, typer.Option("--seed", help="Of what is drawn or spread.")]


@command(of=trace)
def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAMES]...", help="Data sets.", autocompletion=completion.data_sets),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where to keep them; without it the cache folder.")
    ] = None,
) -> None:
    """Fetch public traces by NAME, each with a checksum; without a name, list them."""
    from sim.scenario.validation_errors import suggestion
    from sim.traces.catalogue import DATA_SETS
    from workloads.catalogue import cache_folder

    if not names:
        width = max(map(len, DATA_SETS))
        for name, one in DATA_SETS.items():
            typer.echo(f"{name:<{width}}  {one.title}; {one.licence}" + (" (not fetched)" if one.by_hand else ""))
        return
    for name in names:
        if name not in DATA_SETS:
            raise InputError(name, "no such data set", suggestion(name, DATA_SETS))
    from sim.traces.fetch import fetch as fetch_files
    from sim.traces.meter import Meter

    for name in names:
        data_set = DATA_SETS[name]
        typer.echo(f"{name}: {data_set.title}. Licence: {data_set.licence}, see {data_set.home}", err=True)
        with Meter() as meter:
            for file in fetch_files(data_set, folder or cache_folder(), on_progress=meter):
                note = "" if file.checked else f"  (no checksum was known; it is sha256:{file.sha256})"
                typer.echo(f"{file.path}{note}")


@command(of=trace)
def inspect(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A path or a name.", autocompletion=completion.traces)
    ],
    format_: _Format = None,
    columns: _Columns = None,
    sort: _Sort = False,
    seed: _Seed = 0,
    as_published: Annotated[
        bool, typer.Option("--as-published", help="Leave times that the publisher rounded as they are.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a mapping instead of a table.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw it too, as PNG or SVG.")
    ] = None,
) -> None:  # fmt: skip
    """Say what SOURCE, a path or a name, is like: rate, burstiness, lengths, tenants, prefix reuse."""
    import json

    from sim.traces.convert import rows_of
    from sim.traces.report import as_mapping, as_table
    from sim.traces.sources import open_source
    from sim.traces.statistics import measure

    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise InputError(str(plot), "is neither PNG nor SVG", "name a file ending in .png or .svg")
    opened = open_source(source, format_, _columns(columns), seed=seed, in_order=not sort)
    found = measure(rows_of([opened], spread=not as_published, seed=seed))
    bin_s = opened.layout.bin_s if opened.layout is not None else 0.0
    note = "" if not bin_s or as_published else f"times rounded to {bin_s:g} s are spread over it"
    if opened.layout is None:
        note = f"a day drawn with seed {seed} from measured distributions, not a trace"
    if as_json:
        typer.echo(json.dumps(as_mapping(found, source, opened.format, note), indent=2))
    else:
        typer.echo(as_table(found, source, opened.format, note))
    if plot is not None:
        from sim.traces.plots import save_trace_plot

        try:
            save_trace_plot(found, source, plot)
        except OSError as error:
            problem = f"cannot be written ({error.strerror})"
            raise InputError(str(plot), problem, "name a file in a folder that exists") from None
        typer.echo(f"wrote {plot}", err=True)


@command(of=trace)
def convert(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCES...", help="Paths or names.", autocompletion=completion.traces),
    ],
    format_: _Format = None,
    columns: _Columns = None,
    sort: _Sort = False,
    seed: _Seed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="What to write; .gz is packed.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="NAME", help="The format to write; without it tokenpools' own, by the ending of FILE."
        ),
    ] = None,
    spread: Annotated[bool, typer.Option("--spread", help="Spread times that the publisher rounded.")] = False,
    from_s: Annotated[
        float, typer.Option("--from-s", help="Begin this many seconds after the first row.")
    ] = 0.0,
    until_s: Annotated[
        float | None, typer.Option("--until-s", help="End this many seconds after the first row.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it is there.")] = False,
    same_ids: Annotated[
        bool,
        typer.Option("--same-ids", help="Blocks and sessions of one id are the same in all SOURCES."),
    ] = False,
    fitting: Annotated[
        bool, typer.Option("--fit", help="Write the workload that matches instead, and how well it does.")
    ] = False,
) -> None:  # fmt: skip
    """Write SOURCES, paths or names, as one trace in another format; several are merged on one clock."""
    from sim.traces.convert import convert as convert_sources
    from sim.traces.convert import layout_for
    from sim.traces.sources import open_source

    opened = [open_source(one, format_, _columns(columns), seed=seed, in_order=not sort) for one in sources]
    if fitting:
        from sim.traces.fitted import fitted

        text, report = fitted(opened, from_s=from_s, until_s=until_s, seed=seed)
        typer.echo(report, err=out is None)
        if out is None:
            typer.echo(text, nl=False)
            return
        from sim.traces.fitted import write_text

        write_text(out, text, overwrite=overwrite)
        typer.echo(f"wrote {out}", err=True)
        return
    if out is None:
        raise InputError("--out", "missing", "name the file to write")
    layout = layout_for(out, to)
    done = convert_sources(
        opened, out, layout, from_s=from_s, until_s=until_s, spread=spread, seed=seed, overwrite=overwrite,
        same_ids=same_ids,
    )
    if done.lost:
        typer.echo(f"left out, {layout.name} has no place for it: {', '.join(done.lost)}", err=True)
    if done.dropped:
        typer.echo(f"left out: {done.dropped:,} requests that failed", err=True)
    if done.clipped:
        typer.echo(f"raised: {done.clipped:,} counts of 0 tokens count as 1", err=True)
    if done.unanswered:
        typer.echo(f"unanswered: {done.unanswered:,} requests have lengths of others of their tenant", err=True)
    typer.echo(f"wrote {done.rows:,} requests to {' and '.join(map(str, done.files))}", err=True)


def _columns(text: str | None) -> Columns | None:
    """Return the column map of ``role=column,...``."""
    if text is None:
        return None
    from dataclasses import fields

    from sim.scenario.validation_errors import suggestion
    from workloads.formats.times import NS_PER
    from workloads.trace import Columns

    known = [field.name for field in fields(Columns)]
    given: dict[str, Any] = {}
    for part in text.split(","):
        role, equals, column = part.partition("=")
        if not equals or not column:
            raise InputError("--columns", f"got {part!r}", "give role=column, e.g. time=at,prompt=in,output=out")
        if role not in known:
            raise InputError("--columns", f"unknown role {role!r}", suggestion(role, known))
        given[role] = column
    for role in ("time", "prompt", "output"):
        if role not in given:
            raise InputError("--columns", f"{role} is missing", f"give its column, e.g. {role}=name")
    if given.get("time_unit", "s") not in (*NS_PER, "datetime"):
        units = ", ".join((*NS_PER, "datetime"))
        raise InputError("--columns", f"unknown unit {given['time_unit']!r}", f"give time_unit as one of {units}")
    return Columns(**given)
