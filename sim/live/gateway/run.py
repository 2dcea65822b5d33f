"""Runs a gateway process: `tokenpools serve`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from policies.core import GatewayCore
from sim.errors import RunError
from sim.live.accounts.bookkeeper import Bookkeeper
from sim.live.accounts.service import AccountMetrics, AccountsService
from sim.live.accounts.store import AccountStore, StoreError
from sim.live.gateway.changeover import CoreOf
from sim.live.gateway.descriptors import raise_limit
from sim.live.gateway.event_loop import loop_factory
from sim.live.gateway.reload import Loaded, Reloader
from sim.live.gateway.service import Service
from sim.live.gateway.settings import LOOPBACK, CheckInvariants, Settings
from sim.live.gateway.shadowing import Shadowing
from sim.live.loadgen.table_writer import Tables
from sim.live.observability.logs import set_up
from sim.live.observability.recording import Recording
from sim.live.observability.shadows import ShadowTally
from sim.live.observability.wiring import Observability
from sim.live.replicas.scaling import Scaling, Wanted, fleet_of

if TYPE_CHECKING:
    from sim.live.observability.invariants import InvariantWatch
    from sim.live.shared_state.leased import LeasedLog
    from sim.live.shared_state.replicated_core import SharedLog
    from sim.live.shared_state.response_owners import ResponseOwners

LOG = logging.getLogger("tokenpools.serve")

_JOIN_S = 5.0


def serve(
    settings: Settings, core: GatewayCore, about: Mapping[str, Any] | None = None, *,
    load: Callable[[], Loaded] | None = None, core_of: CoreOf | None = None, store: AccountStore | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, and return once what was in flight has ended.

    Parameters
    ----------
    about : pool, policy and seed as plain values, for the head of a recording.
    load, core_of : read the configuration again on SIGHUP, and make a core of it; None where it stays as it is.

    store : where keys, budgets and use are kept, of ``settings.accounts``; None where they are not.

    Raises
    ------
    RunError : other gateways that share the state have another configuration.
    """
    set_up(style=settings.logs.style, level=settings.logs.level)
    raise_limit()
    if settings.tls is None and settings.host not in LOOPBACK:
        LOG.warning("%s is reached in clear; give listen.tls, or let a proxy end TLS", settings.host)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(settings, core, about or {}, load, core_of, store))


async def _serve(
    settings: Settings, core: GatewayCore, about: Mapping[str, Any], load: Callable[[], Loaded] | None,
    core_of: CoreOf | None, store: AccountStore | None,
) -> None:
    shadowing = None
    if core_of is not None:
        tally = ShadowTally()
        shadowing = Shadowing(core_of, tally)
        core = shadowing.begin(core, about)
    if store is not None and settings.state is not None and core.hierarchy is not None:
        try:  # what an empty shared state begins with
            core.hierarchy.restore(store.balances())
        except StoreError as error:
            raise RunError(f"the store of accounts cannot be read: {error}") from None
    recording = None if settings.recording is None else Recording(settings.recording, core, about)
    log = _shared_log(settings, core_of, about)
    wanted = None if settings.scaling is None else _wanted(settings.scaling, settings, core)
    owners = _owners(settings)
    service = await Service.open(
        settings, core, log=log, scale=wanted, recorders=[] if recording is None else [recording], owners=owners
    )
    try:
        if log is not None:
            await _join(log, service)
        reloader = None
        if load is not None and core_of is not None:
            reloader = Reloader(
                service, load, Loaded(settings, about), core_of, log,
                None if shadowing is None else shadowing.change_over,
            )
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloader)
            LOG.info("kill -HUP %d reads the configuration again", os.getpid())
        async with contextlib.AsyncExitStack() as stack:
            observability = await stack.enter_async_context(Observability(service))
            if log is not None:
                from sim.live.shared_state.metrics import SharedMetrics

                observability.metrics.registry.register(SharedMetrics(log.status))
            if shadowing is not None:
                observability.metrics.registry.register(tally)
                observability.state.shadows = tally.rows
            watch = None
            if settings.check_invariants is not None:
                watch = _watched(settings.check_invariants, service, log)
                observability.metrics.registry.register(watch)
            books = None
            if store is not None and settings.accounts is not None:
                books = _books(store, service, log)
                reload = _unchanging if reloader is None else reloader.go_by_changes
                accounts = AccountsService(settings.accounts, store, service, books, reload)
                await stack.enter_async_context(accounts)
                observability.state.accounts = accounts.shown
            observability.metrics.registry.register(AccountMetrics(service, books))
            if settings.records is not None:
                tables = Tables(Path(settings.records), settings.entitlements, settings.policy)
                service.in_flight.observers.append(await stack.enter_async_context(tables))
            await service.run()
            if watch is not None and watch.stopped:
                raise RunError(f"stopped: {watch.first}")
    finally:
        if wanted is not None:
            await wanted.close()
        if log is not None:
            await log.close()
        if owners is not None:
            await owners.close()
        if recording is not None:
            recording.close()


def _books(store: AccountStore, service: Service, log: SharedLog | LeasedLog | None) -> Bookkeeper:
    """Return who keeps this gateway's books: of gateways that share a pool, the leader keeps the accounts."""
    in_redis = store.where.startswith(("redis", "unix"))
    return Bookkeeper(
        store, lambda: service.gateway.core, loop_s=asyncio.get_running_loop().time,
        writer=secrets.token_hex(4) if in_redis else "", mine=service.in_flight.is_own,
        writes_balances=(lambda: True) if log is None else (lambda: log.status().leads),
        restores=log is None,
    )


async def _unchanging() -> None:
    """Go by no changes: nobody knows how to read the configuration again."""


def _watched(how: CheckInvariants, service: Service, log: SharedLog | LeasedLog | None) -> InvariantWatch:
    """Let the checker hear every event."""
    from sim.live.observability.invariants import InvariantWatch

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    watch = InvariantWatch(
        how, lambda: service.gateway.core, stop, peers=lambda: getattr(log, "peers", None)
    )  # fmt: skip
    service.recorders.append(watch)
    return watch


def _wanted(scaling: Scaling, settings: Settings, core: GatewayCore) -> Wanted:
    """Return who is told how many replicas there should be, and tell it how many there should be at first."""
    wanted = Wanted(fleet_of(scaling, [urlsplit(one.base_url).port or 80 for one in settings.upstreams]))
    if settings.state is None:  # where the state is shared, the leader says it
        wanted(core.replicas_wanted)
    return wanted


def _shared_log(
    settings: Settings, core_of: CoreOf | None, head: Mapping[str, Any]
) -> SharedLog | LeasedLog | None:
    """Return the log of the shared state; redis-py is imported only where there is one."""
    if settings.state is None:
        return None
    from sim.live.shared_state.leased import LeasedLog
    from sim.live.shared_state.replicated_core import SharedLog

    loop, config, secret = asyncio.get_running_loop(), settings.state_config, settings.state_secrets
    if settings.state.share == "leases":
        return LeasedLog(settings.state, loop=loop, config=config, core_of=core_of, secret=secret)
    return SharedLog(settings.state, loop=loop, config=config, head=head or None, core_of=core_of, secret=secret)


def _owners(settings: Settings) -> ResponseOwners | None:
    """Return what gateways that share their state know of each other's stored responses."""
    if settings.state is None:
        return None
    from sim.live.shared_state.response_owners import ResponseOwners

    return ResponseOwners(
        settings.state, [one.base_url for one in settings.upstreams], settings.state_secrets
    )


async def _join(log: SharedLog | LeasedLog, service: Service) -> None:
    """Begin with the shared state if it is there. If not, the gateway serves nobody and is not ready until it is.

    Raises
    ------
    RunError : other gateways have another configuration.
    """
    service.app.waits_for = lambda: "" if log.has_joined else "the shared state was not reached yet"
    service.about = lambda: {"state": log.status()._asdict()}
    await log.joined(_JOIN_S)
    if not log.has_joined:
        LOG.warning("the shared state was not reached within %g s: %s", _JOIN_S, log.status().why)
