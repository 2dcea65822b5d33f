"""The figure of docs/routing.md, drawn from the numbers of its table."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg

from sim.studies.routing import Measured, figure

PAGE = Path(__file__).parents[2] / "docs" / "routing.md"


def published() -> list[Measured]:
    text = PAGE.read_text(encoding="utf-8").split("<!-- begin routers -->")[1].split("<!-- end routers -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.strip().splitlines()[2:]]
    found = []
    for router, reports, hits, ttft, in_time in rows:
        p99_s, low_s, high_s = (float(one) for one in re.findall(r"\d+\.\d+", ttft))
        found.append(Measured(
            router=router, scrape_s=0.5 if reports == "not read" else float(reports.split()[0]),
            hit_rate=float(hits.split()[0]) / 100, ttft_p99_s=p99_s, low_s=low_s, high_s=high_s,
            in_time=float(in_time.split()[0]) / 100,
        ))  # fmt: skip
    return found


def test_no_label_lies_on_another_or_on_a_point() -> None:
    drawn = figure(published())
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    labels = drawn.axes[0].texts
    assert len(labels) == 9
    boxes = [(one.get_text(), one.get_window_extent(canvas.get_renderer())) for one in labels]
    assert [(a, b) for (a, one), (b, other) in combinations(boxes, 2) if one.overlaps(other)] == []
    points = [
        (str(line.get_label()), x, y)
        for line in drawn.axes[0].lines for x, y in drawn.axes[0].transData.transform(line.get_xydata())
    ]
    assert len(points) == 13
    assert [(text, name) for text, box in boxes for name, x, y in points if box.contains(x, y)] == []
