"""Run what docs/reproduction.md and docs/does-debt-matter.md report, and bring their tables and pictures up to date.

From the repository: ``python docs/regenerate.py``; about three minutes on one core. The prose is written by hand: read
it again when a number has moved.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from sim.analysis import style
from sim.analysis.markdown_tables import with_block
from sim.studies import debt_ablation as ablation
from sim.studies.paper_reproduction import reproduce
from sim.studies.paper_sensitivity import sensitivity

DOCS = Path(__file__).parent
IMAGES = DOCS / "images"
COLOURS = 128


def main() -> None:
    """Bring both documents up to date."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "reproduction"
        table = reproduce(out).table
        for picture in sorted((out / "figures").glob("*.png")):
            shrink(picture, IMAGES / f"reproduction-{picture.name}")
    write("reproduction.md", {"acceptance": table, "sensitivity": sensitivity()})

    found = ablation.ablation()
    save(ablation.figure(found), "does-debt-matter.png")
    write("does-debt-matter.md", {
        "effects": ablation.effects(found.measured),
        "outage": ablation.in_the_outage(found.measured),
        "stretches": ablation.by_stretch(found.measured, found.scenario),
        "mechanism": ablation.mechanism(found),
        "coefficients": ablation.coefficients(),
        "arrivals": ablation.arrival_laws(),
        "levels": ablation.levels(found.measured),
    })  # fmt: skip


def write(name: str, blocks: Mapping[str, str]) -> None:
    """Replace the blocks of one document."""
    path = DOCS / name
    text = path.read_text(encoding="utf-8")
    for block, content in blocks.items():
        text = with_block(text, block, content)
    path.write_text(text, encoding="utf-8")


def save(figure: Figure, name: str) -> None:
    """Write one figure among the pictures."""
    with tempfile.TemporaryDirectory() as scratch:
        png, _ = style.save(figure, Path(scratch), "figure")
        shrink(png, IMAGES / name)


def shrink(picture: Path, target: Path) -> None:
    """Copy a picture with few colours, so that the repository stays small."""
    with Image.open(picture) as image:
        image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    main()
