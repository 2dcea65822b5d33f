"""The commands of live mode; heavy imports wait until a command runs."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.app import FAILED, LIVE, command
from sim.errors import RunError

if TYPE_CHECKING:
    from policies.core import GatewayCore
    from sim.live.gateway.config_file import ServeConfig
    from sim.live.gateway.reload import Loaded

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
    from sim.live.accounts.merge import merged
    from sim.live.accounts.store import StoreError, is_missing, open_store
    from sim.live.gateway.config_file import load_config
    from sim.live.gateway.core_from_config import core_of_head, make_core, recorded_head
    from sim.live.gateway.reload import Loaded
    from sim.live.gateway.run import serve as run_server
    from sim.live.gateway.settings import CheckInvariants
    from sim.live.gateway.settings_from_config import make_settings
    from sim.live.gateway.tls import check as check_tls
    from sim.scenario.idle_slots import idle_slots

    loaded = load_config(config, state_url=state)
    accounts = make_settings(loaded, config).accounts
    store = None
    if accounts is not None and not (check and is_missing(accounts.store)):
        store = open_store(accounts.store, accounts.password)

    def load() -> Loaded:
        return read(load_config(config, state_url=state))[0]

    def read(found: ServeConfig) -> tuple[Loaded, GatewayCore]:
        if store is not None:
            return merged(found, store, config)
        core = make_core(found)  # a policy that does not fit the pool is refused here
        return Loaded(make_settings(found, config), recorded_head(found)), core

    try:
        (settings, head), core = read(loaded)
    except StoreError as error:
        raise RunError(f"the store of accounts is out of reach: {error}") from None
    check_tls(settings.tls, config)
    for words in idle_slots(loaded.pool, (loaded.policy, *loaded.shadow)):
        typer.echo(f"warning: {words}", err=True)
    if check_invariants and settings.check_invariants is None:
        settings = replace(settings, check_invariants=CheckInvariants())
    if check:
        if store is not None:
            store.close()
        typer.echo(f"{config}: good; {len(settings.upstreams)} upstreams, {len(settings.keys)} keys")
        return
    if store is not None:
        store.claim()
    gc.enable()
    run_server(
        settings,
        core,
        head,
        store=store,
        load=load,
        core_of=lambda head, leaving: core_of_head(head, config, leaving, may_import=False),
    )


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
