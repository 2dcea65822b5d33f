"""The commands of live mode; heavy imports wait until a command runs."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sim.cli.app import FAILED, LIVE, command

_Config = Annotated[str, typer.Argument(metavar="CONFIG", help="The gateway's configuration, a YAML file.")]


@command(panel=LIVE)
def serve(
    config: _Config,
    check: Annotated[bool, typer.Option("--check", help="Check CONFIG and stop.")] = False,
    state: Annotated[
        str | None,
        typer.Option(
            "--state", metavar="URL", envvar="TOKENPOOLS_STATE", show_envvar=False,
            help="Share the pool's state with other gateways, e.g. redis://127.0.0.1:6379/0; over state.url in CONFIG.",
        ),
    ] = None,
    check_invariants: Annotated[
        bool, typer.Option("--check-invariants", help="Check the core's books while serving; over CONFIG's own word.")
    ] = False,
) -> None:  # fmt: skip
    """Serve the OpenAI API in front of the upstreams that CONFIG names, under its policy.

    SIGTERM lets what is in flight finish. SIGHUP reads CONFIG again: entitlements, keys and policy change at once.
    """
    from sim.live.gateway.config_file import core_of_head, load_config, make_core, make_settings, recorded_head
    from sim.live.gateway.reload import Loaded
    from sim.live.gateway.run import serve as run_server
    from sim.live.gateway.settings import CheckInvariants
    from sim.live.gateway.tls import check as check_tls

    def load() -> Loaded:
        again = load_config(config, state_url=state)
        make_core(again)  # a policy that does not fit the pool is refused here
        return Loaded(make_settings(again, config), recorded_head(again))

    loaded = load_config(config, state_url=state)
    settings, core = make_settings(loaded, config), make_core(loaded)
    check_tls(settings.tls, config)
    if check_invariants and settings.check_invariants is None:
        settings = replace(settings, check_invariants=CheckInvariants())
    if check:
        typer.echo(f"{config}: good; {len(settings.upstreams)} upstreams, {len(settings.keys)} keys")
        return
    gc.enable()
    run_server(
        settings,
        core,
        recorded_head(loaded),
        load=load,
        core_of=lambda head, leaving: core_of_head(head, config, leaving, may_import=False),
    )


@command(panel=LIVE)
def key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The client's name.")],
    entitlement: Annotated[
        str | None, typer.Option("--entitlement", help="The entitlement that it opens; without it NAME.")
    ] = None,
) -> None:
    """Make an API key: the key itself, shown this once, and the line of CONFIG that lets it in."""
    import json

    from sim.errors import InputError
    from sim.live.gateway.authentication import hashed, new_key

    if not name.strip():
        raise InputError("NAME", "is empty", "give the client's name, e.g. chat-production")

    secret = new_key()
    typer.echo(secret)
    line = {"name": name, "entitlement": entitlement or name, "sha256": hashed(secret).hex()}
    typer.echo(f"  - {json.dumps(line)}")
    typer.echo("the first line is for the client, and nobody keeps it; the second goes under keys: in CONFIG", err=True)


@command(panel=LIVE)
def parity(recording: Annotated[str, typer.Argument(metavar="RECORDING", help="A gateway's recording.")]) -> None:
    """Tell the events of a gateway's RECORDING to a fresh core on the simulator's clock, and compare the decisions.

    Exit code 1 if one differs.
    """
    from sim.judging.parity import check_parity

    found = check_parity(Path(recording))
    typer.echo(found.words)
    for line in found.different:
        typer.echo(line)
    if found.differing:
        sys.exit(FAILED)
