"""`tokenpools ui`: one page over a folder of results, in a real browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from analysis.browser import CHROMIUM, browser
from typer.testing import CliRunner

from sim.analysis.results_index import results_in, write_index
from sim.cli import app
from sim.errors import InputError
from sim.experiments.run import run_scenario
from sim.scenario.load import parse_scenario

TREE = {
    "version": 1, "timeline_interval_s": 5,
    "pool": {
        "profile": {"step_time": {"kind": "linear", "base_s": 0.02}, "max_num_seqs": 8, "max_num_batched_tokens": 512,
                    "kv_blocks": 1000},
        "entitlements": [{"name": "chat", "service_class": "spot", "ttft_slo_s": 1.0}],
    },
    "workload": [{"entitlement": "chat", "arrivals": {"kind": "poisson", "rate_per_s": 2}, "prompt_tokens": 16,
                  "output_tokens": 16}],
    "policies": ["none", {"kind": "rate-limit", "requests_per_min": 60, "burst_s": 1}],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two results, one of them deeper, one damaged, and something that is none."""
    above = tmp_path_factory.mktemp("results & more")
    for number, (name, title) in enumerate((("first", "A <b>first</b> one"), ("of today/second", "The second"))):
        tree = {**TREE, "title": title, "horizon_s": 20 + number}
        place = above / name
        place.parent.mkdir(exist_ok=True)
        run_scenario(parse_scenario(tree, "s.yaml"), place)
    (above / "of today" / "second" / "report.html").write_text("<p>report</p>")
    (above / "broken").mkdir()
    (above / "broken" / "manifest.json").write_text("{")
    (above / "nothing").mkdir()
    return above


def test_results_at_any_depth_are_listed_and_damaged_ones_say_why(folder: Path) -> None:
    found = {one.place: one for one in results_in(folder)}
    assert set(found) == {"first", "of today/second", "broken"}
    assert found["broken"].problem
    second = found["of today/second"]
    assert (second.title, second.links) == ("The second", {"report": "of today/second/report.html"})
    assert (second.runs, second.failed) == (2, 0)
    assert second.attained["none"] == 1.0
    assert 0.2 < (second.attained["rate-limit"] or 0) < 0.9


def test_the_command_writes_the_page_and_nothing_from_a_title_is_markup(folder: Path) -> None:
    done = CliRunner().invoke(app, ["ui", str(folder)])
    assert done.exit_code == 0, done.output
    assert "3 results" in done.output
    text = (folder / "index.html").read_text()
    assert "A &lt;b&gt;first&lt;/b&gt; one" in text
    assert 'href="of%20today/second/report.html"' in text
    assert not re.search(r"(src|href)=\"?https?:", text)


def test_a_folder_that_is_none_and_a_page_elsewhere_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        write_index(tmp_path / "nowhere")
    with pytest.raises(InputError, match="lead nowhere"):
        write_index(folder, tmp_path / "index.html")
    (tmp_path / "empty").mkdir()
    path, number = write_index(tmp_path / "empty")
    assert number == 0
    assert "No results here yet" in path.read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_browser_shows_finds_and_follows(folder: Path, tmp_path: Path, width: int, scheme: str) -> None:
    path, _ = write_index(folder)
    with browser(tmp_path) as tab:
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        tab.open(path.as_uri(), width=width)
        assert not tab.said
        assert tab.js("document.documentElement.scrollWidth <= innerWidth")
        shown = "[...document.querySelectorAll('tbody tr')].filter((row) => !row.hidden).length"
        assert tab.js(shown) == 3
        tab.js("document.getElementById('find').value = 'SECOND'")
        tab.js("document.getElementById('find').dispatchEvent(new Event('input'))")
        assert tab.js(shown) == 1
        assert tab.js("document.getElementById('counted').textContent").startswith("1 of 3")
        assert tab.js("document.querySelector('tbody tr:not([hidden]) a').href").endswith(
            "of%20today/second/report.html"
        )
        assert tab.js("getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)" if scheme == "light" else "rgb(22, 24, 27)"
        )
