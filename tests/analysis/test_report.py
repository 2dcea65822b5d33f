"""The report, opened in a real browser where there is one."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from experiments.small import RATE, scenario

from sim.analysis.report import report_html, write_report
from sim.analysis.study import Study
from sim.experiments.run import run_scenario
from sim.experiments.sweep import sweep

# Chromium gives no page fewer than 500 pixels, but a frame; the page within tells the one around what it found.
HEAR = """<script>addEventListener("message", (e) => { document.body.dataset.seen = e.data; });</script>"""
LISTEN = """<script>
window.errors = [];
addEventListener("error", (e) => window.errors.push(e.message));
addEventListener("unhandledrejection", (e) => window.errors.push(String(e.reason)));
</script>"""
PROBE = """<script>(async () => {
  while (document.documentElement.dataset.ready !== "plots") await new Promise((r) => setTimeout(r, 50));
  const head = [...document.querySelectorAll("#table-summary th button")].find((b) => b.textContent === "offered");
  head.focus();
  head.click();
  const at = head.parentNode.cellIndex, rows = [...document.querySelectorAll("#table-summary tbody tr")];
  const metric = document.getElementById("metric");
  metric.value = "slo_attainment";
  metric.dispatchEvent(new Event("change"));
  parent.postMessage(JSON.stringify({
    offered: rows.map((row) => Number(row.cells[at].dataset.v)),
    sorted: head.parentNode.getAttribute("aria-sort"),
    svgs: document.querySelectorAll(".plot .main-svg").length,
    wide: document.documentElement.scrollWidth - innerWidth,
    title: document.title,
    y: document.querySelector("#plot-metric .ytitle")?.textContent,
    errors: window.errors,
  }), "*");
})();</script>"""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("report") / "s"
    sweep(scenario(replications=2, vary={RATE: [3, 9]}, title="<b>Bold</b> & co"), folder)
    return Study(folder)


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_needs_no_network_and_is_small(study: Study) -> None:
    text = report_html(study)
    assert len(text) < 5_000_000
    for tag, attributes in Page(text).tags:
        for name in ("src", "href"):
            assert not (attributes.get(name) or "").startswith(("http", "//")), (tag, attributes)
    assert "{{" not in text
    assert "<b>Bold" not in text
    assert "&lt;b&gt;Bold&lt;/b&gt; &amp; co" in text


def test_findings_come_before_plots_and_tables(study: Study) -> None:
    text = report_html(study)
    places = [text.index(f"<h2>{head}</h2>") for head in ("Findings", "By policy", "Policies compared", "Summary")]
    assert places == sorted(places)


def test_every_number_of_the_summary_is_in_the_page(study: Study) -> None:
    text = report_html(study)
    assert len(re.findall(r"<tr>", text.split("id='table-summary'")[1].split("</table>")[0])) == len(study.summary) + 1


def test_a_report_of_one_plain_run(tmp_path: Path) -> None:
    run_scenario(scenario(policies=["none"]), tmp_path / "r")
    page = write_report(Study(tmp_path / "r"), tmp_path / "r/report.html")
    assert "One policy: nothing to compare." in page.read_text()


def test_a_report_where_everything_failed(tmp_path: Path) -> None:
    missing = {"kind": "trace", "file": str(tmp_path / "gone.csv")}
    sweep(scenario(vary={"workload.batch.arrivals": [missing]}), tmp_path / "s")
    text = report_html(Study(tmp_path / "s"))
    assert "No run finished" in text
    assert "gone.csv" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_draws_it_without_an_error(study: Study, tmp_path: Path, width: int) -> None:
    write_report(study, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text().replace("<head>", f"<head>{LISTEN}", 1)
    (tmp_path / "inside.html").write_text(page.replace("</body>", f"{PROBE}</body>"))
    (tmp_path / "outside.html").write_text(
        f"<body>{HEAR}<iframe src=inside.html style='border:0;width:{width}px;height:900px'></iframe></body>"
    )
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}", "--allow-file-access-from-files", "--virtual-time-budget=20000",
        "--dump-dom", (tmp_path / "outside.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    match = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert match, done.stdout[:500]
    seen = json.loads(html.unescape(match[1]))
    assert seen["errors"] == []
    assert seen["svgs"] >= 4
    assert seen["wide"] <= 0  # nothing to scroll sideways but inside a table
    assert seen["sorted"] == "ascending"
    assert seen["offered"] == sorted(seen["offered"])
    assert seen["title"] == "<b>Bold</b> & co"
    if width > 640:
        assert seen["y"].startswith("SLO attainment")


def test_two_hundred_cells_are_reported_in_seconds(study: Study, tmp_path: Path) -> None:
    rates = [2 + i / 4 for i in range(50)]
    sweep(scenario(replications=2, vary={RATE: rates}, horizon_s=20), tmp_path / "s")
    started_s = time.perf_counter()
    page = write_report(Study(tmp_path / "s"), tmp_path / "report.html")
    assert time.perf_counter() - started_s < 10
    assert page.stat().st_size < 5_000_000
