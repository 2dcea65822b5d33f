"""The report, opened in a real browser where there is one."""

from __future__ import annotations

import base64
import itertools
import re
import time
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from analysis.browser import CHROMIUM, Tab, browser
from experiments.small import RATE, scenario

from sim.analysis.report import report_html, table, write_report
from sim.analysis.study import Study
from sim.experiments.run import run_scenario
from sim.experiments.sweep import sweep
from sim.scenario.load import load_scenario, parse_scenario

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
A4_PX = 688  # 210 mm less two margins of 14 mm, at 96 pixels an inch


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


def test_a_long_table_goes_to_paper_in_part(study: Study) -> None:
    text = report_html(study)
    assert "rows, as sorted on the screen" not in text
    assert table(pd.DataFrame({"a": range(101)}), "x").startswith("<p class='note paper'>The first 100 of 101 rows")
    assert ":nth-child(n+101)" in text


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


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("browser")) as one:
        yield one


@pytest.fixture(scope="module")
def url(study: Study) -> str:
    return write_report(study, study.folder / "report.html").as_uri()


OFFERED = """[...document.querySelectorAll("#table-summary th button")].find((one) => one.textContent === "offered")"""
COLUMN = f"""[...document.querySelectorAll("#table-summary tbody tr")].map(
    (row) => Number(row.cells[{OFFERED}.parentNode.cellIndex].dataset.v))"""
FOCUSED = """(() => {
    const one = document.activeElement, box = one.getBoundingClientRect(), look = getComputedStyle(one);
    const seen = box.width > 0 && box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
    const name = one.id || one.getAttribute("aria-label") || one.textContent.trim();
    return { tag: one.tagName, name, seen: seen && look.outlineStyle !== "none" };
})()"""


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_draws_it_without_an_error(tab: Tab, url: str, width: int) -> None:
    tab.open(url, width=width)
    assert tab.js("document.querySelectorAll('.plot .main-svg').length") >= 4
    assert tab.js("document.documentElement.scrollWidth - innerWidth") <= 0  # wide tables scroll within themselves
    assert tab.js("document.title") == "<b>Bold</b> & co"
    tab.js("metric.value = 'slo_attainment'; metric.dispatchEvent(new Event('change'))")
    if width > 640:
        assert tab.js("document.querySelector('#plot-metric .ytitle').textContent").startswith("SLO attainment")
    tab.js(f"{OFFERED}.click()")
    assert tab.js(COLUMN) == sorted(tab.js(COLUMN))
    assert tab.said == []
    assert [one for one in tab.asked if not one.startswith(("file:", "data:", "blob:"))] == []


@needs_chromium
def test_a_value_that_is_no_number_has_its_place_on_the_axis(tab: Tab, tmp_path: Path) -> None:
    asked = scenario(horizon_s=20, policies=["token-pool"], vary={"pool.scrape_interval_s": [1, 10], RATE: [2]})
    sweep(asked, tmp_path / "s")
    tab.open(write_report(Study(tmp_path / "s"), tmp_path / "r.html").as_uri(), width=1280)
    ticks = "[...document.querySelectorAll('#plot-metric .xtick')].map((one) => one.textContent)"
    assert len(tab.js(ticks)) > 2
    changed = scenario(horizon_s=20, policies=["token-pool"], vary={"timeline_interval_s": [None, 1, 10]})
    sweep(changed, tmp_path / "t")
    tab.open(write_report(Study(tmp_path / "t"), tmp_path / "t.html").as_uri(), width=1280)
    assert tab.js(ticks) == ["null", "1", "10"]


CROWD = ["a-very-long-tenant-name-that-somebody-generated-from-a-department-and-a-cost-centre", "<b>team</b> & co",
         "客服-团队", *(f"team-{number:03d}" for number in range(97))]  # fmt: skip


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of a pool of a hundred tenants."""
    folder = tmp_path_factory.mktemp("crowd")
    tree = {
        "version": 1, "title": "A crowd", "horizon_s": 10, "timeline_interval_s": 2, "policies": ["none", "cap"],
        "pool": {
            "profile": {"step_time": {"kind": "linear", "base_s": 0.02}, "max_num_seqs": 16,
                        "max_num_batched_tokens": 512, "kv_blocks": 1000},
            "entitlements": [{"name": name, "service_class": "spot"} for name in CROWD],
        },
        "workload": [{"entitlement": name, "arrivals": {"kind": "poisson", "rate_per_s": 0.4}, "prompt_tokens": 16,
                      "output_tokens": 8} for name in CROWD],
    }  # fmt: skip
    run_scenario(parse_scenario(tree, "s.yaml"), folder / "r")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        return write_report(Study(folder / "r"), folder / "r" / "report.html")


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_hundred_tenants_fit(crowd: Path, tmp_path: Path, width: int, scheme: str) -> None:
    with browser(tmp_path) as tab:
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        tab.open(crowd.as_uri(), width=width)
        assert tab.said == []
        assert tab.js("document.documentElement.scrollWidth <= innerWidth")
        boxes = """((id, what) => [...document.querySelectorAll(`#${id} ${what}`)].map((one) => {
            const { left, right, top, bottom } = one.getBoundingClientRect(); return [left, right, top, bottom]; }))"""
        (legend,) = tab.js(f"{boxes}('plot-metric', '.legend')")
        ticks = tab.js(f"{boxes}('plot-metric', '.xtick text')")
        assert 10 < len(ticks) <= 61
        assert all(legend[3] <= top for _, _, top, _ in ticks), "names run into the legend"
        lefts = sorted(left for left, *_ in ticks)
        assert min(b - a for a, b in itertools.pairwise(lefts[:-1])) > 8, "names run into each other"
        plot = tab.js(f"{boxes}('plot-outcomes', '.nsewdrag')")[0]
        assert plot[1] - plot[0] > 0.3 * width, "names leave no room for the bars"


@needs_chromium
def test_no_button_of_a_plot_sends_the_numbers_away(tab: Tab, url: str) -> None:
    tab.open(url, width=1280)
    names = set(tab.js("[...document.querySelectorAll('.modebar-btn')].map((one) => one.dataset.title)"))
    assert {"Zoom", "Pan"} <= names
    assert not [name for name in names if re.search("share|cloud|send|edit", name, re.IGNORECASE)]


@needs_chromium
def test_all_of_it_can_be_reached_with_the_keyboard(tab: Tab, url: str) -> None:
    tab.open(url, width=1280)
    tab.press("Tab")
    assert tab.js(FOCUSED) == {"tag": "A", "name": "To the findings", "seen": True}
    tab.press("Enter")
    assert tab.js("location.hash") == "#findings"
    assert tab.js("document.getElementById('findings').getBoundingClientRect().top") < 100
    met: list[dict[str, Any]] = []
    while len(met) < 100:
        tab.press("Tab")
        one = tab.js(FOCUSED)
        if one["tag"] == "BODY":
            break
        met.append(one)
    assert [one for one in met if not one["seen"]] == []
    names = [one["name"] for one in met]
    assert names[:3] == ["metric", "tenant", "log"]
    assert {"variant", "run", "differences", "summary", "download", "The resolved scenario"} <= set(names)
    buttons = sum(one["tag"] == "BUTTON" for one in met)
    assert buttons == tab.js("document.querySelectorAll('button').length")


@needs_chromium
def test_keys_choose_sort_scroll_and_unfold(tab: Tab, url: str) -> None:
    tab.open(url, width=1280)
    title = "document.querySelector('#plot-metric .ytitle').textContent"
    before = tab.js(title)
    tab.js("metric.focus()")
    tab.press("ArrowDown")
    assert tab.js(title) != before
    tab.js(f"{OFFERED}.focus()")
    for key, order in (("Enter", "ascending"), (" ", "descending")):
        tab.press(key)
        assert tab.js(f"{OFFERED}.parentNode.getAttribute('aria-sort')") == order
        assert tab.js(COLUMN) == sorted(tab.js(COLUMN), reverse=order == "descending")
    tab.open(url, width=390)
    region = "document.querySelector('[aria-label=summary]')"
    tab.js(f"{region}.focus()")
    tab.press("ArrowRight")
    assert tab.js(f"new Promise((done) => setTimeout(() => done({region}.scrollLeft), 300))") > 0
    tab.js("document.querySelector('summary').focus()")
    tab.press("Enter")
    assert tab.js("document.querySelector('details').open")


@needs_chromium
def test_it_prints_on_paper(tab: Tab, url: str) -> None:
    tab.open(url, width=1280)
    wide = tab.js("document.querySelector('#plot-metric .main-svg').getBoundingClientRect().width")
    pages = re.findall(rb"/Type\s*/Page\b", tab.pdf())
    assert 3 <= len(pages) <= 12
    # Afterwards the screen is as it was.
    assert tab.js("document.querySelector('#plot-metric .main-svg').getBoundingClientRect().width") == wide
    tab.open(url, width=A4_PX)
    tab.call("Emulation.setEmulatedMedia", media="print")
    try:
        tab.js("dispatchEvent(new Event('beforeprint'))")
        assert tab.js("Math.max(...[...document.querySelectorAll('body *')].map("
                      "(one) => one.getBoundingClientRect().right)) - innerWidth") <= 0  # fmt: skip
        shown = "[...document.querySelectorAll('{}')].filter((one) => one.getClientRects().length).length"
        for name in (".modebar", ".screen", ".skip", "th button"):
            assert tab.js(shown.format(name)) == 0, name
        assert tab.js(shown.format("#metric")) == 1  # says what the plot shows
        heads = "[...document.querySelectorAll('th[data-head]')].map((th) => getComputedStyle(th, '::before').content)"
        assert '"offered"' in tab.js(heads)
    finally:
        tab.call("Emulation.setEmulatedMedia", media="")


def test_two_hundred_cells_are_reported_in_seconds(study: Study, tmp_path: Path) -> None:
    rates = [2 + i / 4 for i in range(50)]
    sweep(scenario(replications=2, vary={RATE: rates}, horizon_s=20), tmp_path / "s")
    started_s = time.process_time()
    page = write_report(Study(tmp_path / "s"), tmp_path / "report.html")
    assert time.process_time() - started_s < 10
    assert page.stat().st_size < 5_000_000


def test_metrics_are_in_the_report_where_there_are_some(study: Study, tmp_path: Path) -> None:
    from sim.judging.judge import judge

    assert "Fairness, refusals, cost" not in report_html(study)
    folder = tmp_path / "r"
    run_scenario(scenario(), folder)
    judge(folder)
    text = report_html(Study(folder))
    assert "Fairness, refusals, cost" in text
    assert text.count("<th scope=col", text.index("Fairness, refusals, cost")) > 10


@needs_chromium
def test_a_dark_screen_gets_a_dark_page_and_paper_a_white_one(tab: Tab, url: str) -> None:
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    try:
        tab.open(url, width=1280)
        page = tab.js("getComputedStyle(document.body).backgroundColor")
        assert page == "rgb(22, 24, 27)"
        plot = "document.getElementById('plot-metric').layout"
        assert tab.js(f"{plot}.paper_bgcolor") == "#16181b"
        # Text of page and plots stands out from what is behind it (WCAG AA: 4.5).
        assert tab.js(_CONTRAST) > 4.5
        tab.js("dispatchEvent(new Event('beforeprint'))")
        assert tab.js(f"{plot}.paper_bgcolor") == "#fff"
        tab.js("dispatchEvent(new Event('afterprint'))")
        assert tab.js(f"{plot}.paper_bgcolor") == "#16181b"
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
        white = f"{plot}.paper_bgcolor === '#fff'"
        follows = f"(done) => {{ const look = () => {white} ? done(1) : setTimeout(look, 20); look() }}"
        assert tab.js(f"new Promise({follows})") == 1  # the plots follow while the page is open
    finally:
        tab.call("Emulation.setEmulatedMedia", features=[])


_CONTRAST = """(() => {
  const light = (text) => {
    const [r, g, b] = text.match(/\\d+/g).slice(0, 3).map((x) => x / 255).map(
      (x) => (x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = light(getComputedStyle(document.body).backgroundColor);
  return Math.min(...[...document.querySelectorAll("h1, p, td, dt, a, .note, svg text")].filter(
    (one) => one.textContent.trim() && one.getClientRects().length).map((one) => {
    const style = getComputedStyle(one), shown = light(one.closest("svg") ? style.fill : style.color);
    return (Math.max(shown, behind) + 0.05) / (Math.min(shown, behind) + 0.05);
  }));
})()"""


def test_a_run_shows_shares_debts_and_weights_and_a_sweep_does_not(tmp_path: Path, study: Study) -> None:
    assert "Shares and priorities" not in report_html(study)  # it is a sweep
    run_scenario(load_scenario("five-classes", overrides=["horizon_s=70", "policies=[token-pool]"]), tmp_path / "r")
    text = report_html(Study(tmp_path / "r"))
    pictures = [attributes for tag, attributes in Page(text).tags if tag == "img"]
    assert [str(one["alt"]).split()[0] for one in pictures] == ["Share", "Share", "Debt", "Weight"]
    for one in pictures:
        assert base64.b64decode(str(one["src"]).partition("base64,")[2]).startswith(b"\x89PNG")
