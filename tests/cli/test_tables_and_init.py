"""Tables that fit, a first scenario, results that are replaced."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from experiments.small import TREE
from typer.testing import CliRunner

from sim.analysis.summary import summary_table
from sim.analysis.text_tables import TextTable
from sim.cli import app, tree
from sim.cli.help_pages import PANELS
from sim.errors import InputError
from sim.records.result_folder import replacing
from sim.scenario.load import load_scenario

NUMBERS = tuple(f"number {i}" for i in range(8))
WIDE = TextTable(
    ("policy", "tenant", *NUMBERS),
    tuple((f"token-pool-{i}", f"guaranteed-tenant-{i}", *("123.4",) * 8) for i in range(3)),
    2,
    ("number 7", "number 0"),
)


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 300])
def test_a_table_fits_and_shows_what_matters_most(width: int) -> None:
    text = WIDE.text(width)
    assert "number 7" in text.splitlines()[0]
    if width >= 40:
        assert max(map(len, text.splitlines())) <= width
    names = [line.split()[1] for line in text.splitlines()[2:]]
    assert len(set(names)) == 3, "shortened names are still told apart"


def test_all_columns_without_a_width_and_in_their_order() -> None:
    assert [head for head in NUMBERS if head in WIDE.text()] == list(NUMBERS)
    assert WIDE.text(70).index("number 0") < WIDE.text(70).index("number 7")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(TREE))
    return tmp_path


def test_a_run_prints_eighty_columns_and_more_if_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (40, 80):
        monkeypatch.setenv("COLUMNS", str(width))
        done = CliRunner().invoke(app, ["run", "s.yaml", "--out", f"o{width}"], catch_exceptions=False)
        assert max(map(len, done.stdout.splitlines())) <= width
    done = CliRunner().invoke(app, ["run", "s.yaml", "--out", "wide", "--wide"], catch_exceptions=False)
    assert "TPOT p99 ms" in done.stdout


@pytest.mark.parametrize("width", [40, 80])
def test_on_a_terminal_rich_draws_no_wider_than_it(folder: Path, width: int) -> None:
    code = f"import os; os.environ['COLUMNS'] = '{width}'\nfrom sim.cli import main\nmain()"
    main, other = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code, "run", "s.yaml", "--out", "o", "--no-progress"],
        stdout=other,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(other)
        shown = b""
        while True:
            try:
                part = os.read(main, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        assert process.wait(timeout=60) == 0
    os.close(main)
    import re

    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in shown.decode().splitlines()]
    assert "offered" in lines[0]
    assert max(map(len, lines)) <= width
    assert "more columns with --wide" in lines[-1]


def test_the_help_page_is_in_groups_and_plain_when_piped() -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    heads = [f"{panel}:" for panel in PANELS]
    assert [line for line in shown.splitlines() if line in heads] == heads
    assert set(tree().commands) <= {line.split()[0] for line in shown.splitlines() if line.startswith("  ")}


def test_a_first_scenario_is_good_and_is_not_overwritten(folder: Path) -> None:
    made = CliRunner().invoke(
        app,
        ["init", "mine.yaml", "--tenant", "yes:guaranteed:3", "--tenant", "b c:spot:2", "--rate", "2"],
        catch_exceptions=False,
    )
    assert made.exit_code == 0, made.output
    found = load_scenario("mine.yaml")
    assert [(one.name, one.service_class.value) for one in found.pool.entitlements] == [
        ("yes", "guaranteed"), ("b c", "spot"),
    ]  # fmt: skip
    text = Path("mine.yaml").read_text()
    assert text.count("#") > 8
    again = CliRunner().invoke(app, ["init", "mine.yaml"])
    assert "give --overwrite" in str(again.exception)
    assert Path("mine.yaml").read_text() == text
    assert CliRunner().invoke(app, ["init", "mine.yaml", "--overwrite"]).exit_code == 0
    assert CliRunner().invoke(app, ["validate", "mine.yaml"]).exit_code == 0


def test_on_a_terminal_what_no_option_says_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.cli.scenarios.on_a_terminal", lambda: True)
    answers = "dgx-spark-qwen3-8b-nvfp4\n\n chat:guaranteed:6, batch:spot:4 \n0.25\ntoken-pool, none\n"
    done = CliRunner().invoke(app, ["init", "mine.yaml", "--replicas", "2"], input=answers.replace("\n\n", "\n"))
    assert done.exit_code == 0, done.output
    asked = ["Profile of a replica [", "Tenants, as NAME:CLASS:SLOTS [", "Requests per second", "Policies to compare ["]
    assert all(question in done.output for question in asked)
    assert "Replicas [" not in done.output  # an option said it
    found = load_scenario("mine.yaml")
    assert found.pool.replicas == 2
    assert [(one.name, str(one.service_class)) for one in found.pool.entitlements] == [
        ("chat", "guaranteed"), ("batch", "spot"),
    ]  # fmt: skip
    assert [one.arrivals.rate_per_s for one in found.workload] == [0.25, 0.25]  # type: ignore[union-attr]
    assert [one.name for one in found.policies] == ["token-pool", "none"]
    plain = CliRunner().invoke(app, ["init", "defaults.yaml"], input="\n" * 5)
    assert plain.exit_code == 0, plain.output
    silent = CliRunner().invoke(app, ["init", "nobody.yaml"], input="")  # the terminal is closed: nothing is written
    assert silent.exit_code != 0
    assert not Path("nobody.yaml").exists()
    wrong = CliRunner().invoke(app, ["init", "wrong.yaml"], input="h1000\n\n\n\n\n")
    assert "no such profile" in str(wrong.exception)
    assert not Path("wrong.yaml").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tenant", "chat"], "give name:class:slots"),
        (["--tenant", "chat:gold:3"], "unknown class"),
        (["--tenant", "chat:spot:nan"], "give name:class:slots"),
        (["--tenant", "a:spot:1", "--tenant", "a:spot:1"], "is there twice"),
        (["--tenant", "a:guaranteed:100000"], "are promised and the pool has"),
        (["--profile", "h1000"], "no such profile"),
        (["--policy", "token-pol"], "did you mean token-pool"),
    ],
)
def test_a_first_scenario_that_cannot_be_is_refused(folder: Path, options: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["init", "mine.yaml", *options])
    assert isinstance(done.exception, InputError)
    assert words in str(done.exception)
    assert not Path("mine.yaml").exists()


def test_overwrite_replaces_a_result_when_the_new_one_is_whole(folder: Path) -> None:
    def run(*options: str) -> str:
        return str(CliRunner().invoke(app, ["run", "s.yaml", "--out", "o", *options]).exception)

    assert run() == "None"
    before = Path("o/summary.csv").read_bytes()
    assert "is not empty" in run()
    assert "replications" in run("--overwrite", "--set", "replications=0")
    assert Path("o/summary.csv").read_bytes() == before
    assert run("--overwrite", "--seed", "99") == "None"
    assert Path("o/summary.csv").read_bytes() != before
    assert sorted(one.name for one in folder.iterdir()) == ["o", "s.yaml"]
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("years")
    with pytest.raises(InputError, match="is no result"), replacing(Path("mine"), True):
        pass
    assert Path("mine/thesis.tex").read_text() == "years"

    def interrupted() -> None:
        with replacing(Path("o"), True) as place:
            place.mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert Path("o/summary.csv").exists()
    assert not [one for one in folder.iterdir() if one.name.startswith(".")]


def test_laws_are_listed() -> None:
    for what, name in (("arrivals", "poisson"), ("clients", "retry"), ("lengths", "lognormal")):
        assert f"\n{name}" in "\n" + CliRunner().invoke(app, ["list", what]).stdout


def test_an_empty_summary_is_said() -> None:
    assert summary_table([]) is None
