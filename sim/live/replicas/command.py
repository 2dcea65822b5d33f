"""Runs a command that somebody else has written, for a bounded time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence


async def run_command(words: Sequence[str], more: Mapping[str, str], timeout_s: float) -> int:
    """Return the exit code of a command whose environment has ``more`` besides ours. No shell reads it.

    Raises
    ------
    TimeoutError : it still ran after ``timeout_s``. Whenever this returns or raises, the process has ended.
    OSError : it cannot be run.
    """
    process = await asyncio.create_subprocess_exec(
        *words, env={**os.environ, **more}, stdin=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(timeout_s):
            return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
