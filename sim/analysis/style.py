"""How every figure looks: sizes, colours that survive greyscale and colour-blindness, and files with stable bytes.

Figures are made through matplotlib's objects; pyplot's global state is never touched.
"""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
import pyarrow as pa
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

WIDTH_IN = 9.0
Width = Literal["screen", "column", "page"]
"""What a figure is for: a screen, or one or two columns of a paper."""

_PAPER_IN = {"screen": WIDTH_IN, "column": 3.5, "page": 7.16}  # IEEE's templates; ACM's differ by less than 0.2
_WIDTH: ContextVar[Width] = ContextVar("width", default="screen")

PNG_DPI = 150
LOG_FROM = 30.0
MAX_COLUMNS = 3
MOST_LEGEND = 0.4
"""The share of a figure that a legend may take from its panels."""
MOST_LABEL = 60
"""Characters of a name in a legend; who generated longer ones finds them in the tables."""
TIME_LABEL = "simulated time (s)"
LIVE_TIME_LABEL = "time (s)"

LIMIT = "#8c510a"
INK = "#222222"
MUTED = "#666666"
SHADE = "#000000"

Arguments = ParamSpec("Arguments")
Drawn = TypeVar("Drawn")
Phase = tuple[float, float, str]
Looks = Mapping[str, "Look"]

# A README shows figures about 900 pixels wide, that is at 100 pixels per inch of this width: 9 pt is 12 pixels.
RC: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "figure.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "path.simplify": True,
    "svg.hashsalt": "tokenpools",
}


_PAPER_RC: Any = {
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "figure.titlesize": 8.5,
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,  # submission systems refuse Type 3 fonts
}


@dataclass(frozen=True, slots=True)
class Look:
    """One entitlement's colour, and what tells it apart where colour does not: line, marker and hatch."""

    colour: str
    line: Any
    marker: str
    hatch: str


# Okabe and Ito, "Color Universal Design", 2008; yellow is left out because it fades on white.
LOOKS = (
    Look("#0072B2", "-", "o", ""),
    Look("#E69F00", (0, (5, 1.5)), "s", "///"),
    Look("#009E73", (0, (1.2, 1.2)), "^", "..."),
    Look("#D55E00", (0, (5, 1.5, 1.2, 1.5)), "D", "xxx"),
    Look("#CC79A7", (0, (8, 1.5)), "v", "\\\\\\"),
    Look("#56B4E9", (0, (3, 1, 1, 1, 1, 1)), "P", "+++"),
    Look("#000000", (0, (1, 3)), "X", "ooo"),
)


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Give each name its look, by alphabet, so that all figures of one result agree."""
    found = {}
    for i, name in enumerate(sorted(set(names))):
        # An eighth name has the first one's colour again, with another line, marker and hatch.
        second = LOOKS[(i + i // len(LOOKS)) % len(LOOKS)]
        found[name] = Look(LOOKS[i % len(LOOKS)].colour, second.line, second.marker, second.hatch)
    return found


def looks_of(requests: pa.Table, timeline: pa.Table | None = None) -> dict[str, Look]:
    """Return one look for each entitlement, and for each tenant that of its first entitlement."""
    pairs = requests.select(["entitlement", "tenant"]).group_by(["entitlement", "tenant"]).aggregate([]).to_pylist()
    owned = sorted((pair["entitlement"], pair["tenant"]) for pair in pairs)
    names = {entitlement for entitlement, _ in owned}
    if timeline is not None:
        rows = timeline.select(["scope", "name"]).group_by(["scope", "name"]).aggregate([]).to_pylist()
        names |= {row["name"] for row in rows if row["scope"] == "entitlement"}
    fixed = looks(names)
    for entitlement, tenant in owned:
        fixed.setdefault(tenant, fixed[entitlement])
    return fixed


def styled(plot: Callable[Arguments, Drawn]) -> Callable[Arguments, Drawn]:
    """Decorate a function that draws, so that what it draws has this module's settings."""

    @functools.wraps(plot)
    def draw(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Drawn:
        with mpl.rc_context(RC if _WIDTH.get() == "screen" else RC | _PAPER_RC):
            return plot(*args, **kwargs)

    return draw


def panels(titles: Sequence[str], *, height_in: float, title: str, y_label: str) -> tuple[Figure, list[Axes]]:
    """Return a figure with one panel for each title, at most three to a row, all with the same axes."""
    columns = 1 if narrow() else min(len(titles), MAX_COLUMNS)
    rows = math.ceil(len(titles) / columns)
    flatter = 0.8 if _WIDTH.get() == "page" else 1.0
    figure = Figure(figsize=(width_in(), height_in * rows * flatter), layout="constrained")
    figure.suptitle(textwrap.fill(title, round(100 * width_in() / WIDTH_IN)))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    axes: list[Axes] = list(grid.flat)
    for spare in axes[len(titles) :]:
        spare.remove()
    axes = axes[: len(titles)]
    for i, (axis, panel_title) in enumerate(zip(axes, titles, strict=True)):
        axis.set_title(panel_title)
        if i % columns == 0:
            axis.set_ylabel(y_label)
        if i + columns >= len(titles):  # nothing below
            axis.set_xlabel(TIME_LABEL)
            axis.tick_params(labelbottom=True)
    return figure, axes


def legend_below(figure: Figure, axes: Sequence[Axes], note: str = "", more: Sequence[Artist] = ()) -> None:
    """Put one legend for all panels, and a note under it, beneath the figure; ``more`` are further handles.

    A figure gets taller by a legend that would leave the panels less than half of it.
    """
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    found |= {str(handle.get_label()): handle for handle in more}
    if not found:
        note_below(figure, note)
        return
    height_in = float(figure.get_figheight())
    legend = _widest_legend(figure, found, 0.0)
    legend_in = legend.get_window_extent().height / float(figure.get_dpi())
    if legend_in > MOST_LEGEND * height_in:
        figure.set_figheight(height_in + legend_in)
    legend.remove()
    below = note_below(figure, note)
    legend = _widest_legend(figure, found, below)
    extent = legend.get_window_extent().transformed(figure.transFigure.inverted())
    _keep_above(figure, below + extent.height + 0.06 / float(figure.get_figheight()))


def _widest_legend(figure: Figure, found: Mapping[str, Any], below: float) -> Legend:
    """Return a legend with as many columns as the figure has room for.

    Constrained layout makes room for one legend or for one label, not for a legend above a label: it is measured.
    """
    labels = [_cut(label) for label in found]
    for columns in range(min(len(found), 6), 0, -1):
        legend = figure.legend(
            list(found.values()), labels, loc="lower center", ncols=columns, handlelength=3.2,
            bbox_to_anchor=(0.5, below), borderaxespad=0.3,
        )  # fmt: skip
        if columns == 1 or legend.get_window_extent().width <= 0.98 * figure.get_window_extent().width:
            break
        legend.remove()
    return legend


def _cut(text: str) -> str:
    return text if len(text) <= MOST_LABEL else f"{text[: MOST_LABEL - 1]}\u2026"


def note_below(figure: Figure, note: str) -> float:
    """Write a note along the lower edge and keep the rest of the figure above it; return the share it takes."""
    if not note:
        return 0.0
    text = textwrap.fill(note, round(140 * width_in() / WIDTH_IN))
    height_in = float(figure.get_figheight())
    figure.text(0.5, 0.05 / height_in, text, ha="center", va="bottom", fontsize=8, color=MUTED)
    share = (0.16 * (text.count("\n") + 1) + 0.08) / height_in  # 8 pt lines and a margin
    _keep_above(figure, share)
    return share


def _keep_above(figure: Figure, share: float) -> None:
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(rect=(0.0, share, 1.0, 1.0 - share))


def shade(axis: Axes, phases: Sequence[Phase], *, label: bool = True) -> None:
    """Draw phases (from and until in seconds, and a name) as bands behind the data."""
    for from_s, until_s, name in phases:
        axis.axvspan(from_s, until_s, color=SHADE, alpha=0.07, linewidth=0, zorder=0)
        if label and name:
            place = axis.get_xaxis_transform()
            centre = (from_s + until_s) / 2
            axis.text(centre, 0.985, name, transform=place, ha="center", va="top", fontsize=8, color=MUTED)


def seconds(value: float) -> str:
    """Return three significant digits without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def log_if_wide(axis: Axes, values: Iterable[float], *, along: str = "y") -> bool:
    """Make an axis logarithmic when its positive values span more than `LOG_FROM`; say whether it did."""
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    if not positive or max(positive) / min(positive) <= LOG_FROM:
        return False
    scale, ticks = (axis.set_yscale, axis.yaxis) if along == "y" else (axis.set_xscale, axis.xaxis)
    scale("log")
    if along == "y" and max(positive) / min(positive) < 1000:
        ticks.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ticks.set_minor_formatter(NullFormatter())
    return True


def nice_window_s(span_s: float, wanted: int = 30) -> float:
    """Return a round length (1, 2 or 5 times a power of ten, or 10) that cuts a span into about ``wanted``."""
    if not span_s > 0:
        return 1.0
    exact = span_s / wanted
    power = 10.0 ** math.floor(math.log10(exact))
    return float(power * min((1, 2, 5, 10), key=lambda step: (abs(np.log(step * power / exact)), step)))


@contextmanager
def drawn_for(width: Width) -> Iterator[None]:
    """Draw and save what is drawn within for this width: figures for a paper keep their text at 7 to 8 points."""
    token = _WIDTH.set(width)
    try:
        yield
    finally:
        _WIDTH.reset(token)


def width_in() -> float:
    """Return how wide figures are now, in inches."""
    return _PAPER_IN[_WIDTH.get()]


def narrow() -> bool:
    """Return whether figures have the width of one column of a paper, where panels go below each other."""
    return _WIDTH.get() == "column"


@styled
def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write ``name.png`` and ``name.svg``, and ``name.pdf`` for a paper; equal figures give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    figure.savefig(paths[0], dpi=PNG_DPI, metadata={"Software": None})
    figure.savefig(paths[1], metadata={"Date": None, "Creator": None})
    if _WIDTH.get() != "screen":
        paths.append(folder / f"{name}.pdf")
        figure.savefig(paths[-1], metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return paths
