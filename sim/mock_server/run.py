"""Runs mock servers, one port a replica, until they are stopped: `tokenpools mock-server`."""

from __future__ import annotations

import asyncio
import select
import selectors
import signal
from collections.abc import Callable

from aiohttp import web

from sim.errors import InputError
from sim.mock_server.app import MockServer, ServerSettings


class _FineSelector(getattr(selectors, "EpollSelector", selectors.DefaultSelector)):  # type: ignore[misc]
    """Waits to the microsecond, where epoll's own timeout counts whole milliseconds: a tenth of an iteration."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0 and hasattr(self, "fileno"):
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        found: list[tuple[selectors.SelectorKey, int]] = super().select(timeout)
        return found


def fine_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop whose timers ring to the microsecond."""
    return asyncio.SelectorEventLoop(_FineSelector())


async def start(
    settings: ServerSettings, *, replicas: int = 1, host: str = "127.0.0.1", port: int = 0
) -> tuple[list[web.AppRunner], list[str]]:
    """Start servers on the running loop, on ports from ``port`` on (any free ones for 0); returns them and their URLs.

    Raises
    ------
    InputError : a port is taken, or is none.
    """
    runners: list[web.AppRunner] = []
    urls: list[str] = []
    for number in range(replicas):
        runner = web.AppRunner(
            MockServer(settings, number).application(), handler_cancellation=True, access_log=None,
            shutdown_timeout=1.0,
        )  # fmt: skip
        await runner.setup()
        runners.append(runner)
        mine = port + number if port else 0
        try:
            await web.TCPSite(runner, host, mine).start()
        except (OSError, OverflowError) as error:
            await stop(runners)
            raise InputError("--port", f"{host}:{mine} cannot be had ({error})", "give another --port") from None
        urls.append(f"http://{host}:{runner.addresses[0][1]}")
    return runners, urls


async def stop(runners: list[web.AppRunner]) -> None:
    """Stop servers; what is in flight is cut."""
    for runner in runners:
        await runner.cleanup()


def serve(
    settings: ServerSettings, *, replicas: int, host: str, port: int, say: Callable[[str], None]
) -> None:
    """Serve until SIGTERM or SIGINT; ``say`` hears each URL once it is served."""
    with asyncio.Runner(loop_factory=fine_loop) as runner:
        runner.run(_serve(settings, replicas, host, port, say))


async def _serve(settings: ServerSettings, replicas: int, host: str, port: int, say: Callable[[str], None]) -> None:
    runners, urls = await start(settings, replicas=replicas, host=host, port=port)
    stopped = asyncio.Event()
    for end in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(end, stopped.set)
    for number, url in enumerate(urls):
        say(f"replica {number}: {url}")
    say(
        f"to measure it: tokenpools calibrate --base-url {urls[0]} --max-num-seqs {settings.profile.max_num_seqs} "
        f"--max-num-batched-tokens {settings.profile.max_num_batched_tokens} --out found.yaml"
    )
    await stopped.wait()
    await stop(runners)
