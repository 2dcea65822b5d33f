"""What makes a scenario's events happen to real servers.

Nobody can make a server lose half its slots from outside, so whoever runs it says how: a file that the server looks at,
a command, or the gateway's own setting. Several may be combined.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import aiohttp

from sim.errors import RunError
from sim.live.gateway.headers import bearer
from sim.live.replicas.command import run_command

COMMAND_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveEvent:
    """An event of a scenario: what the pool has from ``at_s`` on, or what befalls a replica.

    Attributes
    ----------
    kind : capacity, fail, restore or slow.
    slots, kv_blocks : totals of the pool after a change of capacity.
    replica, factor : which one fails, returns or takes ``factor`` times as long.
    """

    at_s: float
    kind: str
    slots: int = 0
    kv_blocks: int = 0
    replica: int = 0
    factor: float = 1.0


class Hook(Protocol):
    """Makes events happen."""

    kinds: frozenset[str]

    async def happen(self, event: LiveEvent) -> None:
        """Make it happen.

        Raises
        ------
        RunError : it did not.
        """
        ...


class SlotsFile:
    """Writes the slots of a pool of one replica to a file, for a server that follows it."""

    kinds = frozenset({"capacity"})

    def __init__(self, path: Path) -> None:
        self._path = path

    async def happen(self, event: LiveEvent) -> None:
        """See `Hook`."""
        partial = self._path.with_name(f".{self._path.name}.partial")
        try:
            partial.write_text(f"{event.slots}\n", encoding="utf-8")
            partial.replace(self._path)
        except OSError as error:
            raise RunError(f"{self._path}: cannot be written ({error.strerror})") from None


class Command:
    """Runs a command; what happens is in its environment, as `environment` names it."""

    kinds = frozenset({"capacity", "fail", "restore", "slow"})

    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)

    async def happen(self, event: LiveEvent) -> None:
        """See `Hook`."""
        try:
            status = await run_command(self._words, environment(event), COMMAND_TIMEOUT_S)
        except TimeoutError:
            raise RunError(f"{self._words[0]}: not done after {COMMAND_TIMEOUT_S:g} s") from None
        except OSError as error:
            raise RunError(f"{self._words[0]}: cannot be run ({error.strerror})") from None
        if status:
            raise RunError(f"{self._words[0]}: ended with status {status} at the event of {event.at_s:g} s")


class GatewayCapacity:
    """Tells a gateway what its pool has left: it cannot see a replica's slots."""

    kinds = frozenset({"capacity"})

    def __init__(self, url: str, token: str | None = None) -> None:
        self._url = url
        self._headers = bearer(token)

    async def happen(self, event: LiveEvent) -> None:
        """See `Hook`."""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=COMMAND_TIMEOUT_S)) as session,
                session.post(self._url, json={"slots": event.slots}, headers=self._headers) as answer,
            ):
                if answer.status != 200:
                    raise RunError(f"{self._url}: answers {answer.status} to the event of {event.at_s:g} s")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise RunError(f"{self._url}: does not answer ({error or type(error).__name__})") from None


def environment(event: LiveEvent) -> Mapping[str, str]:
    """Return an event as variables of an environment."""
    return {
        "TOKENPOOLS_EVENT": event.kind,
        "TOKENPOOLS_SLOTS": str(event.slots),
        "TOKENPOOLS_KV_BLOCKS": str(event.kv_blocks),
        "TOKENPOOLS_REPLICA": str(event.replica),
        "TOKENPOOLS_FACTOR": f"{event.factor:g}",
    }


async def apply(events: Sequence[LiveEvent], hooks: Sequence[Hook], origin_s: float) -> None:
    """Make the events happen, each at its time.

    Raises
    ------
    RunError : one did not.
    """
    loop = asyncio.get_running_loop()
    for event in sorted(events, key=lambda one: one.at_s):
        await asyncio.sleep(max(0.0, origin_s + event.at_s - loop.time()))
        for hook in hooks:
            if event.kind in hook.kinds:
                await hook.happen(event)
