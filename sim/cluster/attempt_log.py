"""The attempts of a run: objects while they may change, then columns, so that a million of them take little memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.api import EntitlementSpec
from sim.cluster.attempt import Attempt
from sim.records.attempt_table import attempt_columns
from sim.records.schema import RequestColumns

Rows = NDArray[np.int64]
_COLUMNS = [field.name for field in fields(RequestColumns) if field.name != "entitlements"]


class AttemptLog:
    """Turns those of the attempts that no longer change into columns, whenever it is told to look.

    Parameters
    ----------
    attempts : all that have come, in order; what has become columns is taken out.
    unsettled : those that are still open, or whose client may come again.
    workload_entitlements, entitlements : see `sim.records.attempt_table.attempt_columns`.
    """

    def __init__(
        self,
        attempts: list[Attempt],
        unsettled: Callable[[], set[Attempt]],
        workload_entitlements: Sequence[str],
        entitlements: Sequence[EntitlementSpec],
    ) -> None:
        self._attempts = attempts
        self._unsettled = unsettled
        self._workload_entitlements = workload_entitlements
        self._entitlements = entitlements
        self._rows: Rows = np.empty(0, np.int64)  # of those that were there at the last look
        self._count = 0
        self._columns: dict[str, NDArray[Any]] = {}

    def look(self) -> None:
        """Set down what has ended of the attempts that were there at the last look.

        What came since stays: an engine may still count a preemption of one that has just ended.
        """
        before = len(self._rows)
        rows = self._all_rows()
        done = np.zeros(len(rows), dtype=np.bool_)
        unsettled = map(self._unsettled().__contains__, self._attempts)
        done[:before] = ~np.fromiter(unsettled, dtype=np.bool_, count=before)
        self._set_down(rows[done], list(compress(self._attempts, done)))
        self._attempts[:] = compress(self._attempts, ~done)
        self._rows = rows[~done]

    def columns(self) -> RequestColumns:
        """Return all attempts as columns, in the order in which they came, and keep none."""
        self._set_down(self._all_rows(), self._attempts)
        self._attempts.clear()
        columns, self._columns = self._columns, {}
        values: dict[str, Any] = {name: column[: self._count] for name, column in columns.items()}
        return RequestColumns(entitlements=self._entitlements, **values)

    def _all_rows(self) -> Rows:
        """Return the row of every attempt that is still here, those that came since the last look included."""
        new = len(self._attempts) - len(self._rows)
        self._count += new
        return np.concatenate([self._rows, np.arange(self._count - new, self._count)])

    def _set_down(self, rows: Rows, attempts: Sequence[Attempt]) -> None:
        """Put attempts into their rows of the columns, which grow by doubling: what is not yet used takes no memory."""
        found = attempt_columns(attempts, self._workload_entitlements, self._entitlements, Attempt.numbers)
        parts = {name: np.asarray(getattr(found, name)) for name in _COLUMNS}
        room = len(self._columns["request_id"]) if self._columns else 0
        if room < self._count or not self._columns:  # also where nobody came
            for name, part in parts.items():
                column = np.empty(max(self._count, 2 * room), part.dtype)
                if room:
                    column[:room] = self._columns[name]
                self._columns[name] = column
        for name, part in parts.items():
            self._columns[name][rows] = part
