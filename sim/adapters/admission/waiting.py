"""Waiting on an asyncio loop for the verdict on a request that is held."""

from __future__ import annotations

import asyncio
from functools import partial

from sim.adapters.admission.errors import held_long
from sim.adapters.admission.requests import Admissions, Entry


async def verdict(admissions: Admissions, entry: Entry, held_s: float) -> None:
    """Wait until a request may go on; whoever stops waiting has left.

    Raises
    ------
    RefusedError : it is not let in, or was held for longer than ``held_s``.
    """
    if entry.replica_id is not None:
        return
    waiter = asyncio.get_running_loop().create_future()
    entry.wake = partial(_set, waiter)
    try:
        async with asyncio.timeout(held_s):
            await waiter
    except TimeoutError:
        if entry.is_held:
            admissions.cancel(entry, sent=False)
            raise held_long() from None
    except BaseException:
        admissions.cancel(entry, sent=False)
        raise
    finally:
        entry.wake = None
    if entry.error is not None:
        raise entry.error


def _set(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
