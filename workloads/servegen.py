"""Requests drawn from measured per-client distributions, as ServeGen publishes them: a generator, not a trace.

A folder holds two files a client: ``chunk-N-trace.csv`` with rate, coefficient of variation and family of the gaps for
each window of time, and ``chunk-N-dataset.json`` with histograms of lengths for each longer stretch.

References
----------
Y. Xiang et al., "ServeGen: Workload characterization and generation of large language model serving in production",
2025; data in alibaba/ServeGen, Apache-2.0.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from workloads.bursts import Gamma, Weibull
from workloads.catalogue import locate
from workloads.coupling import coupled
from workloads.formats.errors import TraceError
from workloads.requests import Floats, Ints, Replayed, Streams

_NUMBER = r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
_HISTOGRAM = re.compile(
    rf"\{{(?:\s*{_NUMBER}\s*:\s*{_NUMBER}\s*(?:,\s*{_NUMBER}\s*:\s*{_NUMBER}\s*)*,?\s*)?\}}", re.ASCII
)
_PAIR = re.compile(rf"({_NUMBER})\s*:\s*({_NUMBER})", re.ASCII)
_FAMILIES = {"Gamma": Gamma, "Weibull": Weibull}
_LEAST_CV = 0.01
_MAX_TOKENS = 2**31 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Shares of lengths: ``tokens`` rising, ``share`` their cumulated share, ending at 1."""

    tokens: Ints
    share: Floats

    def at(self, u: Floats) -> Ints:
        """Return the lengths at quantiles ``u``."""
        return self.tokens[np.searchsorted(self.share, np.minimum(u, 1 - 2.0**-53), side="right")]


@dataclass(frozen=True, slots=True, eq=False)
class Client:
    """One client: windows of its arrivals, and the histograms of its lengths by the second they begin to hold."""

    starts_s: Floats
    rates_per_s: Floats
    cvs: Floats
    families: tuple[str, ...]
    window_s: float
    prompt: tuple[tuple[float, Histogram], ...]
    output: tuple[tuple[float, Histogram], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeGen:
    """Clients of a ServeGen folder: each window a renewal process of its rate and variation, lengths from histograms.

    ``client`` takes one of them, by the number of its files; left out, all of them together. The publisher has no
    joint lengths: ``rank_correlation`` says how prompts and outputs go together, 0 not at all and 1 in the same order.
    """

    kind: Literal["servegen"] = "servegen"
    folder: str = field(
        metadata={"min_length": 1, "description": "give a path, or a name, e.g. servegen-deepseek-r1"},
    )
    client: int | None = field(
        default=None,
        metadata={"ge": 0, "description": "give the number of one client, e.g. 12, or leave it out for all"},
    )
    rate_factor: float = field(
        default=1.0, metadata={"gt": 0, "le": 1e6, "description": "give a factor on every rate, e.g. 0.1"}
    )
    from_trace_s: float = field(
        default=0.0, metadata={"ge": 0, "description": "give the second of the recorded day to start at, e.g. 36000"}
    )
    rank_correlation: float = field(
        default=0.0,
        metadata={
            "ge": -1,
            "le": 1,
            "description": "give that of prompts and outputs, e.g. 0: independent, 1: ordered",
        },
    )

    def requests(
        self, stream: Streams, name: str, folder: Path | None, from_s: float, until_s: float, limit: int | None
    ) -> Replayed:
        """See `workloads.generate.Recorded`. Each client has streams of its own, each window one of those."""
        place = locate(self.folder, folder, want_folder=True)
        known = clients_in(place)
        if self.client is not None and self.client not in known:
            fix = f"give one of {known[0]} to {known[-1]}"
            raise TraceError(self.folder, None, f"there is no client {self.client}", fix)
        parts = []
        for number in known if self.client is None else [self.client]:
            client = read_client(place, number)
            key = f"{name}/client-{number}"
            trace_s = self._arrivals(client, stream(f"{key}/arrivals"), until_s - from_s)
            u, v = coupled(stream(f"{key}/prompt"), stream(f"{key}/output"), len(trace_s), self.rank_correlation)
            prompt, output = _lengths(client.prompt, trace_s, u), _lengths(client.output, trace_s, v)
            parts.append((from_s + trace_s - self.from_trace_s, prompt, output))
        arrival_s = np.concatenate([part[0] for part in parts])
        order = np.argsort(arrival_s, kind="stable")[: len(arrival_s) if limit is None else limit]
        return Replayed(
            arrival_s[order],
            np.concatenate([part[1] for part in parts])[order],
            np.concatenate([part[2] for part in parts])[order],
        )

    def _arrivals(self, client: Client, rng: np.random.Generator, duration_s: float) -> Floats:
        """Return times in the recorded day, sorted, from ``from_trace_s`` on."""
        parts = [np.empty(0)]
        of_windows = rng.spawn(len(client.starts_s))
        until_s = self.from_trace_s + duration_s
        for i, of_window in enumerate(of_windows):
            start_s, rate = float(client.starts_s[i]), float(client.rates_per_s[i]) * self.rate_factor
            end_s = start_s + client.window_s
            if rate <= 0 or end_s <= self.from_trace_s or start_s >= until_s:
                continue
            # Whole windows are drawn and then cut, so that neither end of the run moves what is between.
            law = _FAMILIES.get(client.families[i], Gamma)(rate_per_s=rate, cv=max(_LEAST_CV, float(client.cvs[i])))
            parts.append(law.times_s(of_window, start_s, end_s, None))
        times_s = np.concatenate(parts)
        return times_s[(times_s >= self.from_trace_s) & (times_s < until_s)]


def clients_in(folder: Path) -> list[int]:
    """Return the numbers of the clients in a folder, sorted.

    Raises
    ------
    TraceError
        If there is none.
    """
    found = (re.fullmatch(r"chunk-(\d{1,9})-trace\.csv", path.name) for path in folder.iterdir())
    numbers = sorted(int(match[1]) for match in found if match is not None)
    if not numbers:
        raise TraceError(str(folder), None, "there is no chunk-0-trace.csv", "name a folder of ServeGen clients")
    return numbers


@lru_cache(maxsize=512)
def read_client(folder: Path, number: int) -> Client:
    """Return one client.

    Raises
    ------
    TraceError
        If a file is missing or damaged, or a histogram is anything but numbers: then nothing of it is evaluated.
    """
    path = folder / f"chunk-{number}-trace.csv"
    rows: list[tuple[float, float, float, str]] = []
    for line, text in enumerate(_text(path).splitlines(), start=1):
        cells = text.split(",")
        try:
            start_s, rate, cv = (float(cell) for cell in cells[:3])
            family = cells[3].strip()
        except (ValueError, IndexError):
            raise TraceError(
                str(path), line, f"{text[:40]!r} is not a window", "give start,rate,cv,family,..."
            ) from None
        if not (0 <= start_s < math.inf and 0 <= rate < math.inf and 0 <= cv < math.inf):
            raise TraceError(str(path), line, "a number is negative or not finite", "fetch the file again")
        if family not in _FAMILIES and rate > 0:
            raise TraceError(str(path), line, f"family {family!r} is unknown", f"give {' or '.join(_FAMILIES)}")
        if rows and start_s <= rows[-1][0]:
            raise TraceError(str(path), line, "the window is not after that above", "sort the rows by their start")
        rows.append((start_s, rate, cv, family))
    if len(rows) < 2:
        raise TraceError(str(path), None, "has fewer than two windows", "fetch the file again")
    starts_s = np.array([row[0] for row in rows])
    lengths = _histograms(folder / f"chunk-{number}-dataset.json")
    return Client(
        starts_s,
        np.array([row[1] for row in rows]),
        np.array([row[2] for row in rows]),
        tuple(row[3] for row in rows),
        float(np.min(np.diff(starts_s))),
        *lengths,
    )


def parse_histogram(text: str, file: str, place: str) -> Histogram | None:
    """Return a histogram written as a Python dictionary of numbers, None for an empty one. Nothing is evaluated.

    Raises
    ------
    TraceError
        If it is anything else, code included.
    """
    if _HISTOGRAM.fullmatch(text.strip()) is None:
        problem = f"{place} is not a dictionary of numbers, and was not evaluated"
        raise TraceError(file, None, problem, "give {tokens: share, ...}")
    pairs = [(float(key), float(share)) for key, share in _PAIR.findall(text)]
    total = sum(share for _, share in pairs)
    if not pairs or total <= 0:
        return None
    if any(share < 0 or not 0 <= key <= _MAX_TOKENS for key, share in pairs):
        raise TraceError(file, None, f"{place} has a negative length or share", "fetch the file again")
    pairs.sort()
    share = np.cumsum([one for _, one in pairs]) / total
    share[-1] = 1.0
    return Histogram(np.maximum(np.array([key for key, _ in pairs]), 1).astype(np.int64), share)


def _histograms(path: Path) -> tuple[tuple[tuple[float, Histogram], ...], tuple[tuple[float, Histogram], ...]]:
    file = str(path)
    try:
        value = json.loads(_text(path))
        stretches = sorted((float(start), stretch) for start, stretch in value.items())
    except (ValueError, AttributeError, RecursionError):
        raise TraceError(file, None, "is not a JSON object of stretches", "fetch the file again") from None
    found: dict[str, list[tuple[float, Histogram]]] = {"input_tokens": [], "output_tokens": []}
    for start_s, stretch in stretches:
        for name, list_ in found.items():
            text = stretch.get(name) if isinstance(stretch, dict) else None
            if not isinstance(text, str):
                raise TraceError(file, None, f"{start_s:g}.{name} is missing", "fetch the file again")
            histogram = parse_histogram(text, file, f"{start_s:g}.{name}")
            if histogram is not None:
                list_.append((start_s, histogram))
    for name, list_ in found.items():
        if not list_:
            raise TraceError(file, None, f"every {name} is empty", "choose another client")
    return tuple(found["input_tokens"]), tuple(found["output_tokens"])


def _lengths(stretches: tuple[tuple[float, Histogram], ...], time_s: Floats, u: Floats) -> Ints:
    """Return lengths from the stretch in which each time falls; where that one is empty, from the one before."""
    starts_s = np.array([start_s for start_s, _ in stretches])
    which = np.maximum(np.searchsorted(starts_s, time_s, side="right") - 1, 0)
    tokens = np.empty(len(time_s), dtype=np.int64)
    for index, (_, histogram) in enumerate(stretches):
        mine = which == index
        tokens[mine] = histogram.at(u[mine])
    return tokens


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise TraceError(str(path), None, f"cannot be read ({reason})", "fetch the folder again") from None
