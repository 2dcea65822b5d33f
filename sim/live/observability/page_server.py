"""Pages and APIs on an address of their own, on the loop that runs: beside a gateway's API, or in others' servers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import uvicorn

LOG = logging.getLogger("tokenpools.admin")

_CLOSE_S = 5.0


class _QuietServer(uvicorn.Server):
    """A server that leaves signals to whose process it is."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class PageServer:
    """An application on an address of its own, from `open` to `close`.

    Parameters
    ----------
    app : to serve, by ASGI.
    what : it is, for the log.
    more : options of uvicorn's, e.g. of certificates.

    Attributes
    ----------
    port : where it is, once it is; None where the address is taken, which the log says.
    """

    def __init__(self, app: Any, host: str, port: int, what: str, **more: Any) -> None:
        self._host = host
        self._what = what
        self._server = _QuietServer(uvicorn.Config(
            app, host=host, port=port, ws="none", lifespan="off", log_config=None, access_log=False,
            server_header=False, timeout_graceful_shutdown=1, limit_concurrency=64, proxy_headers=False, **more,
        ))  # fmt: skip
        self._task: asyncio.Task[None] | None = None
        self.port: int | None = None

    async def open(self) -> None:
        """Serve it."""
        self._task = asyncio.get_running_loop().create_task(self._serve())
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0.01)
        if self._server.started:
            self.port = self._server.servers[0].sockets[0].getsockname()[1]
            scheme = "https" if self._server.config.is_ssl else "http"
            LOG.info("%s on %s://%s:%d/", self._what, scheme, self._host, self.port)

    async def close(self) -> None:
        """Serve it no more."""
        if self._task is not None:
            self._server.should_exit = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._task, _CLOSE_S)

    async def _serve(self) -> None:
        try:
            await self._server.serve()
        except SystemExit:  # uvicorn's answer to an address that is taken
            LOG.error("%s: cannot be served, port %d of %s is taken", self._what, self._server.config.port, self._host)
