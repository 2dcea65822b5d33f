"""Every command that the documents show: those in blocks are run, in order, those within sentences are parsed."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from sim.cli import app, tree

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = {
    "run tournament --jobs": "minutes; tests/studies/test_tournament.py runs a small one",
    "tournament --load": "minutes; tests/studies/test_tournament.py runs a small one",
    "tournament --tune": "minutes; tests/studies/test_tournament.py tunes two policies",
    "tournament --verify": "needs a tournament; likewise",
    "run tournament --policy": "takes no --set to make it shorter",
    "trace fetch": "needs a network; tests/traces/test_fetch.py has a server of its own",
    "reproduce": "tests/studies/test_paper_reproduction.py",
    "ext-proc": "does not end by itself; tests/adapters",
    "operator": "does not end by itself; tests/adapters",
    "serve": "does not end by itself; tests/live",
    "trace inspect gateway.jsonl": "needs a log; tests/docs/test_from_logs_document.py",
    "advise gateway.jsonl": "likewise",
    "units advice": "likewise",
    "shadow http": "likewise",
    "mock-server": "does not end by itself; tests/docs/test_mock_server_document.py",
    "replay": "needs a server; tests/live/loadgen/test_replay.py",
    "calibrate --base-url": "needs a server; tests/docs/test_live_document.py, tests/calibration/test_from_server.py",
    "calibrate records run.csv": "needs a run; tests/docs/test_profiles_document.py",
    "calibrate sweep sweep.csv": "likewise",
    "calibrate sweep layouts.csv": "likewise",
    "calibrate kernels": "likewise",
    "calibrate aiconfigurator": "needs an extra; tests/calibration/test_from_aiconfigurator.py",
    "validate-profile mine.yaml": "needs a profile; tests/docs/test_profiles_document.py",
    "validate-profile eight.yaml": "likewise",
    "run mine-two.yaml": "likewise",
    "parity": "needs a recording; tests/docs/test_live_document.py",
}
# Shorter than shown: a minute of the documentation's time is not worth a minute of every test run.
SHORTER = {"run", "sweep", "plan"}
SHORTER_BY = ("--set", "horizon_s=95", "--set", "timeline_interval_s=5")
FEWER = {"run paper-exp1": ("--replications", "3")}  # of 20: that a command runs, three show as well
MAY_FAIL = ("--until",)  # what these ask for need not be reached in the shorter run
_PREFIX = r"(?:\.venv/bin/)?tokenpools "


def lines_of(path: Path) -> list[list[str]]:
    """Return the commands in a document's blocks, fenced or indented."""
    text = path.read_text()
    fenced = re.findall(r"^ *```(?:sh|bash)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    outside = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    fenced += re.findall(rf"^ {{4,}}({_PREFIX}.*(?:\\\n.*)*)$", outside, re.MULTILINE)
    lines = [line for block in fenced for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if re.match(rf"\s*{_PREFIX}", line)]


def inline_of(path: Path) -> Iterator[str]:
    text = re.sub(r"^ *```.*?^ *```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`]+)`", text):
        if re.match(_PREFIX, code):
            yield " ".join(code.split())


def parse(arguments: list[str]) -> None:
    """Raise `typer.TyperException` where there is no such command or option, or an argument is missing."""
    command: Any = tree()
    words = list(arguments)
    while isinstance(command, TyperGroup) and words:
        if words[0].startswith("-") and "endpoint" in command.commands:  # tokenpools calibrate --base-url URL
            words.insert(0, "endpoint")
        if words[0] not in command.commands and "make" in command.commands:  # tokenpools key NAME
            words.insert(0, "make")
        name = words.pop(0)
        if name in {word for option in command.params for word in option.opts}:
            return  # an option of the group itself: --version, --install-completion
        if name not in command.commands:
            raise typer.BadParameter(f"no command {name}: {' '.join(arguments)}")
        command = command.commands[name]
    command.make_context("tokenpools", words)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_in_a_block_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in lines_of(path):
        if next((why for name, why in NOT_RUN.items() if " ".join(arguments).startswith(name)), None):
            parse(arguments)
            continue
        on_cluster = "dask" in arguments or "ray" in arguments  # tests/experiments/test_clusters.py
        if on_cluster or ("TOKENPOOLS_DATA" not in os.environ and needs_data(arguments)):
            parse(arguments)
            continue
        arguments = [os.path.expandvars(one) for one in arguments]
        if arguments[0] in SHORTER:
            arguments += SHORTER_BY
        arguments += FEWER.get(" ".join(arguments[:2]), ())
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0 or (done.exit_code == 1 and set(MAY_FAIL) & set(arguments)), (arguments, done.output)


def needs_data(arguments: list[str]) -> bool:
    words = ("azure", "TOKENPOOLS_DATA", "hardware-check", "mooncake", "servegen")
    return any(word in " ".join(arguments) for word in words)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_in_a_sentence_is_one(path: Path) -> None:
    for code in inline_of(path):
        words = shlex.split(code)[1:]
        if "..." in words:
            words = words[: words.index("...")]
        # In a sentence a command may be named without its arguments, a group without its commands.
        try:
            parse(words)
        except typer.TyperException as error:
            if type(error).__name__ not in ("MissingParameter", "NoArgsIsHelpError"):
                raise


def test_what_was_typed_in_the_transcript_can_still_be_typed() -> None:
    text = (ROOT / "docs" / "transcript.md").read_text()
    typed = re.findall(r"^\$ tokenpools (.*)$", text, re.MULTILINE)
    assert len(typed) >= 20
    for line in typed:
        parse(shlex.split(re.split(r" (?:\d?>|\|)", line)[0]))


def test_commands_are_found_where_they_are() -> None:
    assert len(lines_of(ROOT / "docs/experiments.md")) >= 12
    assert lines_of(ROOT / "docs/traffic.md")[0][:2] == ["trace", "fetch"]
    assert ["list", "scenarios"] in lines_of(ROOT / "README.md")
    assert "tokenpools schema" in list(inline_of(ROOT / "README.md"))
    with pytest.raises(typer.TyperException, match="No such option"):
        parse(["sweep", "paper-exp1", "--policies", "none"])
