"""The store of accounts at a running gateway: its books, its admin API, and what it has to hear of changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sim.errors import RunError
from sim.live.accounts.api import AccountsApi
from sim.live.accounts.bookkeeper import Bookkeeper
from sim.live.accounts.keys import public
from sim.live.accounts.merge import nodes_of
from sim.live.accounts.store import AccountStore, StoreError
from sim.live.gateway.error_responses import ApiError
from sim.live.gateway.service import Service
from sim.live.gateway.settings import LOOPBACK, Accounts
from sim.live.gateway.tls import server_options
from sim.live.observability.page_server import PageServer

LOG = logging.getLogger("tokenpools.accounts")


@dataclass(slots=True, eq=False)
class AccountsService:
    """What the store does at a gateway, within its ``async with``.

    Parameters
    ----------
    reload : reads configuration and store again; it raises where they cannot be used.
    port : of the API, once it is served.
    """

    settings: Accounts
    store: AccountStore
    service: Service
    books: Bookkeeper
    reload: Callable[[], Awaitable[None]]
    port: int | None = None
    _version: int = 0
    _server: PageServer | None = None
    _tasks: tuple[asyncio.Task[None], ...] = ()

    async def __aenter__(self) -> AccountsService:
        """Begin; the core goes on from what the store has.

        Raises
        ------
        RunError : the store cannot be read.
        """
        try:
            self.books.begin()
            self._version = self.store.version()
        except StoreError as error:
            raise RunError(f"the store of accounts cannot be read: {error}") from None
        self.service.recorders.append(self.books)
        self.service.app.unavailable = self._unavailable
        loop = asyncio.get_running_loop()
        self._tasks = (loop.create_task(self._look()),)
        if self.settings.api is not None:
            await self._serve_api()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop, and write what is not written."""
        for task in self._tasks:
            task.cancel()
        if self._server is not None:
            await self._server.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.books.write()
        if self.books.status().unwritten:
            LOG.error("%d accounts were not written: %s", self.books.status().unwritten, self.books.status().why)

    def _unavailable(self) -> ApiError | None:
        if self.settings.when_away == "open" or not self.books.is_away:
            return None
        return ApiError(
            503, "state_unavailable", "The store of accounts is out of reach.", kind="server_error", retry_after_s=1.0
        )

    async def _look(self) -> None:
        """Write what waits, and go by what another process has changed."""
        while True:
            await asyncio.sleep(self.settings.poll_s)
            await self.look()

    async def shown(self) -> Mapping[str, Any]:
        """Return the keys, without hashes, and what was used today; empty while the store is out of reach."""
        day = datetime.now(UTC).strftime("%Y-%m-%d")

        def read() -> dict[str, Any]:
            return {
                "keys": [public(one) for one in self.store.all_keys()],
                "use": [{**row._asdict(), **use._asdict()} for row, use in self.store.use(day, day).items()],
            }

        try:
            return await asyncio.to_thread(read)
        except StoreError:
            return {}

    async def look(self) -> None:
        """Do it once."""
        self.books.write()
        try:
            version = await asyncio.to_thread(self.store.version)
        except StoreError:
            return
        if version != self._version:
            self._version = version
            try:
                await self.reload()
            except Exception as error:
                LOG.error("keys and budgets stay as they were: %s", error)

    async def changed(self) -> None:
        """Go by a change that was just written."""
        self._version = self.store.version()
        await self.reload()

    async def _serve_api(self) -> None:
        api, service = self.settings.api, self.service
        assert api is not None
        app = AccountsApi(
            self.store, api.token_digest, changed=self.changed,
            entitlements=lambda: [one.name for one in service.settings.entitlements],
            nodes=lambda: nodes_of(service.settings, service.gateway.core), state=self.budget_states,
        ).app()
        self._server = PageServer(
            app, api.host, api.port, "admin API of keys and budgets",
            **server_options(None if api.host in LOOPBACK else service.settings.tls),
        )
        await self._server.open()
        self.port = self._server.port

    def budget_states(self) -> list[dict[str, Any]]:
        """Return how all budgets stand."""
        gateway = self.service.gateway
        hierarchy = gateway.core.hierarchy
        if hierarchy is None:
            return []
        return [{**one._asdict(), "remaining": one.remaining} for one in hierarchy.all_budgets(gateway.now_s())]


class AccountMetrics(Collector):
    """How budgets and their store stand, read when somebody asks."""

    def __init__(self, service: Service, books: Bookkeeper | None) -> None:
        self._service = service
        self._books = books

    def collect(self) -> Iterator[Metric]:
        """Return every gauge and counter."""
        gateway = self._service.gateway
        hierarchy = gateway.core.hierarchy
        states = [] if hierarchy is None else hierarchy.all_budgets(gateway.now_s())
        labels = ["node", "unit", "period"]
        for name, text in (
            ("limit", "Of a budget, with what was carried over."),
            ("used", "Of a budget in this period, with what is reserved."),
        ):
            family = GaugeMetricFamily(f"tokenpools_budget_{name}", text, labels=labels)
            for one in states:
                family.add_metric([one.node, one.unit, one.per], one.limit if name == "limit" else one.used)
            yield family
        if self._books is None:
            return
        status = self._books.status()
        yield GaugeMetricFamily(
            "tokenpools_accounts_away_seconds", "For how long the store of accounts could not be written.",
            value=status.away_for_s,
        )
        yield GaugeMetricFamily(
            "tokenpools_accounts_unwritten", "Accounts and rows of use that wait to be written.", value=status.unwritten
        )
        yield CounterMetricFamily(
            "tokenpools_accounts_times_away", "Times that the store went out of reach.", value=status.times_away
        )
