"""Requests of a measured run that did not end: which of them were load, and for how long."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.calibration.checked_tables import numbers


def past_the_gateway(file: Path, table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return what replicas had to do with of our own records, as they saw it come, and what to say of the rest."""
    sent_s = numbers(file, table, "forwarded_s", gaps=True)
    sent = np.isfinite(sent_s)
    notes = []
    if not sent.all():
        problem = f"{int((~sent).sum())} of {len(table)} requests never reached a replica (refused, or held)"
        notes.append(f"{problem}: no load, left out")
    held_s = float(np.nanmax(sent_s - numbers(file, table, "arrival_s", gaps=True))) if sent.any() else 0.0
    if held_s > 0:
        notes.append(f"the gateway held requests for up to {held_s:.3g} s: times count from when it sent them on")
    return table.assign(arrival_s=sent_s)[sent].reset_index(drop=True), notes


def with_guessed_outputs(
    file: Path, rows: pd.DataFrame, ended: NDArray[np.bool_]
) -> tuple[pd.DataFrame, str]:
    """Return the rows with an output for those that did not end and do not say how much they got, and what was taken.

    Where the file says when one was given up (``stopped_s``), it is what others get in that time, at least one token
    and no more than they have in the mean; else that mean.
    """
    done = rows[ended]
    mean = float(done.output_tokens.mean())
    guessed = rows.output_tokens.isna().to_numpy(bool)
    note = f"{int((~ended).sum())} of {len(rows)} requests did not finish: they are load, and not compared"
    if not guessed.any():
        return rows, note
    output = np.full(len(rows), round(mean), float)
    words = f"{int(guessed.sum())} of them get the mean output, {mean:.0f}"
    if "stopped_s" in rows:
        names = rows.row.tolist()
        stopped_s = numbers(file, rows, "stopped_s", gaps=True, fix="give times in seconds", rows=names)
        further = (done.output_tokens - 1).clip(lower=1)
        token_s = float(((done.finish_s - done.first_token_s) / further).median())
        first_s = float((done.first_token_s - done.arrival_s).median())
        lasted_s = stopped_s - rows.arrival_s.to_numpy(float) - first_s
        if token_s > 0:
            known = np.isfinite(lasted_s)
            output[known] = np.clip(1 + np.floor(lasted_s[known] / token_s), 1, max(1, round(mean)))
            words = f"{int(guessed.sum())} of them get the output that others have until then, {mean:.0f} at most"
    return rows.assign(output_tokens=rows.output_tokens.where(~guessed, output)), f"{note}; {words}"
