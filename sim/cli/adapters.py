"""The commands of doors other than our own gateway; heavy imports wait until a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from sim.cli.app import LIVE, command


@command(panel=LIVE)
def ext_proc(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="The processor's configuration, a YAML file.")],
    check: Annotated[bool, typer.Option("--check", help="Check CONFIG and stop.")] = False,
) -> None:
    """Serve Envoy's external processing (gRPC): admission, and the choice of the endpoint, under CONFIG's policy.

    SIGTERM says so to the health checks, and lets streams go on for CONFIG's drain_s.
    """
    from sim.adapters.envoy.config import ext_proc_config
    from sim.adapters.envoy.server import serve  # first: what is not installed shows here

    found = ext_proc_config(config)
    found.core()  # a policy that does not fit the pool is refused here
    if check:
        typer.echo(f"{config}: good; {found.pool.replicas} replicas, {len(found.destinations)} destinations")
        return
    serve(found)
