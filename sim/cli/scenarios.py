"""What a scenario may name, whether one is good, and a first one of one's own."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from sim.cli import completion, tables
from sim.cli.app import SCENARIOS, Overrides, Replications, ScenarioRef, Seed, above_zero, command, load
from sim.errors import InputError

Listed = Literal["scenarios", "policies", "routers", "profiles", "traces", "arrivals", "clients", "lengths"]


@command(panel=SCENARIOS)
def validate(
    scenario: ScenarioRef, overrides: Overrides = None, seed: Seed = None, replications: Replications = None
) -> None:
    """Check SCENARIO and say what it would run, and who is foreseen to be refused at a limit of its own."""
    from sim.experiments.demands import unread_traces
    from sim.experiments.own_limit import foreseen_losses
    from sim.scenario.idle_fields import idle_fields
    from sim.scenario.idle_slots import idle_slots
    from sim.scenario.load import expand, scenario_hash

    loaded = load(scenario, overrides, seed, replications)
    cells = expand(loaded)
    for words in unread_traces(cells):
        typer.echo(f"warning: {words}", err=True)
    typer.echo(f"{scenario}: good; {len(cells)} {'run' if len(cells) == 1 else 'runs'}, hash {scenario_hash(loaded)}")
    default_bounds = [
        words for cell in cells for words in idle_slots(cell.scenario.pool, (*cell.scenario.policies, *loaded.shadow))
    ]
    for words in dict.fromkeys([*default_bounds, *idle_fields([cell.scenario for cell in cells])]):
        typer.echo(f"warning: {words}", err=True)
    with contextlib.suppress(InputError):  # a trace that is not here: nothing is known of its demand
        for loss in foreseen_losses(loaded):
            typer.echo(f"warning: {loss}", err=True)


@command("list", panel=SCENARIOS)
def list_(
    what: Annotated[Listed, typer.Argument(metavar="WHAT", help=f"One of {', '.join(Listed.__args__)}.")],
) -> None:
    """List what a scenario may name."""
    from sim.scenario.catalogue import entries

    tables.show_rows(entries(what))


@command(panel=SCENARIOS)
def schema(
    of: Annotated[
        Literal["scenario", "gateway", "profile"],
        typer.Argument(metavar="[KIND]", help="scenario, gateway or profile."),
    ] = "scenario",
) -> None:
    """Print the JSON schema of a scenario, a gateway's configuration or a profile, for editors."""
    if of == "gateway":
        from sim.live.gateway.config_file import json_schema
    elif of == "profile":
        from sim.scenario.editor_schemas import profile_schema as json_schema
    else:
        from sim.scenario.load import json_schema

    typer.echo(json.dumps(json_schema(), indent=1))


def on_a_terminal() -> bool:
    """Return whether there is somebody to ask."""
    return sys.stdin.isatty() and sys.stdout.isatty()


@command(panel=SCENARIOS)
def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The file to write.")] = Path("scenario.yaml"),
    profile: Annotated[
        str | None,
        typer.Option("--profile", metavar="NAME", help="How fast a replica is.", autocompletion=completion.profiles),
    ] = None,
    replicas: Annotated[int | None, typer.Option("--replicas", min=1, help="Replicas in the pool.")] = None,
    tenants: Annotated[
        list[str] | None,
        typer.Option("--tenant", metavar="NAME:CLASS:SLOTS", help="A tenant, e.g. chat:guaranteed:6; repeat it."),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", callback=above_zero, metavar="PER_S", help="Requests per second of each tenant."),
    ] = None,
    policies: Annotated[
        list[str] | None,
        typer.Option("--policy", metavar="NAME", help="To compare; repeat it.", autocompletion=completion.policies),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it is there.")] = False,
) -> None:
    """Write a commented scenario for your own pool, to edit and run.

    What no option says is asked for on a terminal, and has a default elsewhere.
    """
    from sim.errors import InputError
    from sim.scenario.starter import DEFAULTS, Starter, parse_tenant, starter_text, write_starter

    if file.exists() and not overwrite:
        raise InputError(str(file), "is there already", "name another file, or give --overwrite")
    asks = on_a_terminal()

    def answer(question: str, default: str) -> str:
        return str(typer.prompt(question, default=default)) if asks else default

    profile = profile if profile is not None else answer("Profile of a replica", DEFAULTS.profile)
    many = replicas if replicas is not None else answer("Replicas", str(DEFAULTS.replicas))
    listed = tenants if tenants else answer("Tenants, as NAME:CLASS:SLOTS", ",".join(DEFAULTS.tenant_texts)).split(",")
    each = rate if rate is not None else answer("Requests per second of each tenant", f"{DEFAULTS.rate_per_s:g}")
    chosen = policies if policies else answer("Policies to compare", ",".join(DEFAULTS.policies)).split(",")
    made = Starter.of(profile, many, [parse_tenant(one) for one in listed], each, [one.strip() for one in chosen])
    write_starter(file, starter_text(made, file))
    typer.echo(f"wrote {file}; run it with: tokenpools run {file}", err=True)
