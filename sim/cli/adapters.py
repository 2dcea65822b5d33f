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


@command(panel=LIVE)
def operator(
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="The namespace to look after; without it all of them.")
    ] = None,
    peering: Annotated[
        str | None,
        typer.Option("--peering", help="The KopfPeering by which operators agree who works; without it this one does."),
    ] = None,
    priority: Annotated[
        int | None, typer.Option("--priority", help="The highest works; without it a random one, as pods need.")
    ] = None,
    liveness: Annotated[str, typer.Option("--liveness", help="Where it says that it lives.")] = (
        "http://0.0.0.0:8081/healthz"
    ),
) -> None:  # fmt: skip
    """Look after the TokenPools and TokenEntitlements of a Kubernetes cluster: statuses, leases, configuration, scale.

    The cluster is that of the pod's service account, or of ~/.kube/config.
    """
    import kopf  # noqa: F401  (first: what is not installed shows here)

    from sim.adapters.operator.run import run

    run(namespace, peering, priority, liveness)
