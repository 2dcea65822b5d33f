"""Requests as tables: files with the columns of a simulated run's ``requests.parquet``, one after the other.

A file is written beside its place and renamed, so it is whole or absent; writing happens on a thread of its own. What a
full disk refuses is kept for the next try, up to a bound: serving goes on.

A gateway does not know whether a client will try again, nor which requests are the same one's: every row is ``final``
and its first arrival is its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from policies.api import EntitlementSpec
from sim.errors import InputError
from sim.live.observability.observer import RequestLog
from sim.records.schema import REASONS, Outcome, RequestColumns, requests_table
from sim.records.whole_files import whole_file

LOG = logging.getLogger("tokenpools.records")

EVERY_S = 60.0
MOST_ROWS = 20_000
"""Rows of one file at most; as many files may wait for a disk that has room again as `KEPT_FILES` says."""
KEPT_FILES = 10

_REASON = {name: index for index, name in enumerate(REASONS)}


class Tables:
    """An observer that writes what it hears to ``folder``, within its ``async with``.

    Parameters
    ----------
    policy : name for the column.
    every_s : between two files.
    write : writes a table to a path.

    Attributes
    ----------
    lost : rows that were thrown away because they could not be written for long.

    Raises
    ------
    InputError : the folder cannot be made.
    """

    def __init__(
        self, folder: Path, entitlements: Sequence[EntitlementSpec], policy: str, *, every_s: float = EVERY_S,
        write: Callable[[pa.Table, Path], None] | None = None,
    ) -> None:
        self._folder = folder
        self._entitlements = list(entitlements)
        self._index = {spec.name: index for index, spec in enumerate(entitlements)}
        self._policy = policy
        self._every_s = every_s
        self._write = _to_parquet if write is None else write
        self._run_id = f"live-{int(time.time())}-{os.getpid()}"
        self._numbers = count(1)
        self._rows: list[RequestLog] = []
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._complained = False
        self.lost = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(str(folder), f"cannot be made ({error.strerror})", "name another folder") from None

    def ended(self, log: RequestLog) -> None:
        """See `sim.live.observability.observer.Observer`. What has no entitlement is in no table."""
        if log.entitlement in self._index:
            self._rows.append(log)
            if len(self._rows) > MOST_ROWS * KEPT_FILES:
                del self._rows[:MOST_ROWS]
                self.lost += MOST_ROWS

    async def __aenter__(self) -> Tables:
        """Begin to write."""
        self._task = asyncio.get_running_loop().create_task(self._keep_writing())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Write the rest, after the file that is being written: its thread goes on, its rows would be there twice."""
        self._closing.set()
        if self._task is not None:
            await self._task
        while self._rows and await self.flush():
            pass
        if self._rows:
            LOG.error("%d rows could not be written to %s and are lost", len(self._rows), self._folder)

    async def flush(self) -> bool:
        """Write one file of what has come together; returns whether that went well."""
        rows = self._rows[:MOST_ROWS]
        if not rows:
            return True
        path = self._folder / f"{self._run_id}-{next(self._numbers):05}.parquet"
        try:
            await asyncio.to_thread(self._write_file, rows, path)
        except OSError as error:
            if not self._complained:
                LOG.error("%s cannot be written (%s); rows are kept for now", path, error.strerror or error)
            self._complained = True
            return False
        del self._rows[: len(rows)]
        self._complained = False
        return True

    async def _keep_writing(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), self._every_s)
            while self._rows and await self.flush() and len(self._rows) >= MOST_ROWS:
                pass

    def _write_file(self, rows: Sequence[RequestLog], path: Path) -> None:
        with whole_file(path) as partial:
            self._write(self._table(rows), partial)

    def _table(self, rows: Sequence[RequestLog]) -> pa.Table:
        n = len(rows)
        columns = RequestColumns(
            request_id=[row.request_id for row in rows],
            attempt=[row.attempt for row in rows],
            final=[True] * n,
            entitlement=[self._index[row.entitlement] for row in rows],
            entitlements=self._entitlements,
            prompt_tokens=[
                row.prompt_tokens if row.counted_prompt_tokens is None else row.counted_prompt_tokens for row in rows
            ],
            max_output_tokens=[row.max_output_tokens or 0 for row in rows],
            output_tokens=[row.output_tokens for row in rows],
            cached_tokens=[row.cached_tokens for row in rows],
            arrival_s=[row.arrival_s for row in rows],
            first_arrival_s=[row.arrival_s for row in rows],
            forwarded_s=[row.forwarded_s for row in rows],
            replica=[-1 if row.replica is None else row.replica for row in rows],
            first_token_s=[row.first_token_s for row in rows],
            finish_s=[row.finish_s for row in rows],
            outcome=[Outcome[row.outcome.name] for row in rows],
            reason=[-1 if row.reason is None else _REASON[row.reason] for row in rows],
            http_status=[row.http_status for row in rows],
            retry_after_s=[math.nan if row.retry_after_s is None else row.retry_after_s for row in rows],
            preemptions=[0] * n,
        )
        return requests_table(columns, run_id=self._run_id, policy=self._policy, variant={}, replication=0)


def _to_parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)
