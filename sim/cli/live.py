"""The commands of live mode; heavy imports wait until a command runs."""

from __future__ import annotations

import gc

import click


@click.command()
@click.argument("config")
@click.option("--check", is_flag=True, help="Check CONFIG and stop.")
@click.option(
    "--state", metavar="URL", envvar="TOKENPOOLS_STATE",
    help="Share the pool's state with other gateways, e.g. redis://127.0.0.1:6379/0; over state.url in CONFIG.",
)
def serve(config: str, check: bool, state: str | None) -> None:
    """Serve the OpenAI API in front of the upstreams that CONFIG names, under its policy.

    SIGTERM lets what is in flight finish. SIGHUP reads CONFIG again: entitlements, keys and policy change at once.
    """
    from sim.live.gateway.config_file import core_of_head, load_config, make_core, make_settings, recorded_head
    from sim.live.gateway.reload import Loaded
    from sim.live.gateway.run import serve as run_server

    def load() -> Loaded:
        again = load_config(config, state_url=state)
        make_core(again)  # a policy that does not fit the pool is refused here
        return Loaded(make_settings(again, config), recorded_head(again))

    loaded = load_config(config, state_url=state)
    settings, core = make_settings(loaded, config), make_core(loaded)
    if check:
        click.echo(f"{config}: good; {len(settings.upstreams)} upstreams, {len(settings.keys)} keys")
        return
    gc.enable()
    run_server(
        settings, core, recorded_head(loaded), load=load,
        core_of=lambda head, leaving: core_of_head(head, config, leaving, may_import=False),
    )


@click.command()
@click.argument("name")
@click.option("--entitlement", help="The entitlement that it opens; without it NAME.")
def key(name: str, entitlement: str | None) -> None:
    """Make an API key: the key itself, shown this once, and the line of CONFIG that lets it in."""
    import json

    from sim.errors import InputError
    from sim.live.gateway.authentication import hashed, new_key

    if not name.strip():
        raise InputError("NAME", "is empty", "give the client's name, e.g. chat-production")

    secret = new_key()
    click.echo(secret)
    line = {"name": name, "entitlement": entitlement or name, "sha256": hashed(secret).hex()}
    click.echo(f"  - {json.dumps(line)}")
    click.echo("the first line is for the client, and nobody keeps it; the second goes under keys: in CONFIG", err=True)


@click.command()
@click.argument("recording")
def parity(recording: str) -> None:
    """Tell the events of a gateway's RECORDING to a fresh core on the simulator's clock, and compare the decisions.

    Exit code 1 if one differs.
    """
    import sys
    from pathlib import Path

    from sim.judging.parity import check_parity

    found = check_parity(Path(recording))
    click.echo(found.words)
    for line in found.different:
        click.echo(line)
    if found.differing:
        sys.exit(1)


def register(app: click.Group) -> None:
    """Add the commands to the program."""
    app.add_command(serve)
    app.add_command(key)
    app.add_command(parity)
