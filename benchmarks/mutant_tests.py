"""Runs an area's tests against one planted fault after another, cheaply.

Three things make a mutant cost seconds instead of minutes. The tests run once unharmed under coverage with a context
for each, so that later only those run that come by the mutated statement, the quickest files first. This process loads
the libraries once and forks for each mutant: a child imports our own modules and the chosen tests, nothing else. And a
mutant has a time limit from what its tests took unharmed.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

SLACK_S = 20.0
"""A mutant whose tests take three times as long as the unharmed ones, and this, hangs: it counts as found."""
MEMORY_BYTES = 6 << 30
OPTIONS = ("-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "-W", "ignore::pytest.PytestAssertRewriteWarning")


class Reached(NamedTuple):
    """What the unharmed tests did: seconds of each, who came by a line of a file, and the libraries they loaded."""

    took_s: Mapping[str, float]
    lines: Mapping[str, Mapping[int, Sequence[str]]]
    modules: Sequence[str]


class Verdict(NamedTuple):
    """What became of a mutant: who killed it (or nothing), the tests asked, and seconds."""

    killed_by: str
    tests: int
    took_s: float


class _Recorder:
    """Gives every test a coverage context and a duration. What a fixture reaches, all of its file may depend on."""

    def __init__(self, coverage: Any) -> None:
        self._coverage = coverage
        self.took_s: dict[str, float] = {}

    def pytest_runtest_setup(self, item: Any) -> None:
        self._coverage.switch_context(f"{item.nodeid}|setup")

    def pytest_runtest_call(self, item: Any) -> None:
        self._coverage.switch_context(f"{item.nodeid}|call")

    def pytest_runtest_teardown(self, item: Any) -> None:
        self._coverage.switch_context(f"{item.nodeid}|setup")

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.took_s[report.nodeid] = self.took_s.get(report.nodeid, 0.0) + report.duration


class _Chooser:
    """Keeps the chosen tests, the quickest file first, and remembers the first that failed."""

    def __init__(self, chosen: set[str], took_s: Mapping[str, float]) -> None:
        self._chosen, self._took_s = chosen, took_s
        self.failed = ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        for item in items:  # no second try: who fails has found something
            item.own_markers[:] = [marker for marker in item.own_markers if marker.name != "flaky"]
        kept = [item for item in items if item.nodeid in self._chosen]
        of_file: dict[str, float] = {}
        for item in kept:
            name = item.nodeid.partition("::")[0]
            of_file[name] = of_file.get(name, 0.0) + self._took_s[item.nodeid]
        items[:] = sorted(kept, key=lambda item: of_file[item.nodeid.partition("::")[0]])

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid


def in_child(work: Any, limit_s: float | None, output: Path) -> Any:
    """Return what ``work`` returned in a fork of this process, or None where it took too long or died."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(read_end)
            os.setsid()
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
            with output.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            found = json.dumps(work()).encode()
            with os.fdopen(write_end, "wb") as pipe:
                pipe.write(found)
        finally:
            os._exit(0)
    os.close(write_end)
    try:
        return _answer(read_end, limit_s)
    finally:
        os.close(read_end)
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _answer(read_end: int, limit_s: float | None) -> Any:
    until_s = None if limit_s is None else time.monotonic() + limit_s
    parts: list[bytes] = []
    while True:
        left_s = None if until_s is None else max(0.0, until_s - time.monotonic())
        if not select.select([read_end], [], [], left_s)[0]:
            return None
        part = os.read(read_end, 1 << 20)
        if not part:
            return json.loads(b"".join(parts)) if parts else None
        parts.append(part)


def unharmed(tree: Path, tests: Sequence[str], files: Sequence[str], log: Path) -> Reached:
    """Run all of an area's tests under coverage.

    Raises
    ------
    SystemExit : one of them fails without any fault.
    """

    def work() -> Any:
        import coverage

        with tempfile.TemporaryDirectory() as folder:
            measured = coverage.Coverage(
                data_file=f"{folder}/data", config_file=False, include=[str(tree / name) for name in files]
            )
            recorder = _Recorder(measured)
            measured.start()
            code = pytest.main([*OPTIONS, *tests], plugins=[recorder])
            measured.stop()
            measured.save()
            data = measured.get_data()
            lines = {name: data.contexts_by_lineno(str(tree / name)) for name in files}
        return int(code), recorder.took_s, lines, _libraries(tree)

    found = in_child(work, None, log)
    if found is None or found[0]:
        raise SystemExit(f"error: the tests fail without any fault; see {log}")
    _, took_s, lines, modules = found
    return Reached(took_s, {name: {int(k): v for k, v in one.items()} for name, one in lines.items()}, modules)


def _libraries(tree: Path) -> list[str]:
    """Return modules that are neither ours nor pytest's business."""
    ours = {path.name for path in tree.iterdir()} | {"conftest", "__main__"}
    ours |= {path.stem for path in (tree / "tests").iterdir()} | {path.stem for path in (tree / "benchmarks").iterdir()}
    return [
        name for name, module in list(sys.modules.items())
        if name.partition(".")[0] not in ours and "pytest" not in name and getattr(module, "__spec__", None)
    ]  # fmt: skip


def load_libraries(modules: Sequence[str]) -> None:
    """Import what the tests will need, once for all children; what cannot be had alone, they import themselves."""
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception:
            continue


def statement_of(source: str, line: int) -> range:
    """Return the lines of the innermost statement at a line; of a compound one its head only."""
    best = range(line, line + 1)
    size = len(source)
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.stmt | ast.ExceptHandler):
            continue
        body = getattr(node, "body", None)
        end = body[0].lineno - 1 if isinstance(body, list) and body else node.end_lineno or node.lineno
        end = max(end, node.lineno)
        if node.lineno <= line <= end and end - node.lineno < size:
            best, size = range(node.lineno, end + 1), end - node.lineno
    return best


def chosen_tests(reached: Reached, tree: Path, path: str, source: str, line: int, most_s: float) -> set[str]:
    """Return the tests that come by a statement, the quick ones, as far as ``most_s`` go.

    What runs at import, or in a fixture, or in a file that caches what it computes, many may depend on: then all the
    tests, or all of the file.
    """
    contexts = {one for at in statement_of(source, line) for one in reached.lines.get(path, {}).get(at, ())}
    if ("" in contexts and not contexts - {""}) or not contexts:
        wanted = set(reached.took_s)
    else:
        wanted = set()
        for context in contexts - {""}:
            node, _, phase = context.rpartition("|")
            file = node.partition("::")[0]
            if phase == "setup" or "cache" in (tree / file).read_text():
                wanted |= {other for other in reached.took_s if other.partition("::")[0] == file}
            else:
                wanted.add(node)
    kept: set[str] = set()
    left_s = most_s
    for name in sorted(wanted & set(reached.took_s), key=lambda one: reached.took_s[one]):
        left_s -= reached.took_s[name]
        if left_s < 0 and kept:
            break
        kept.add(name)
    return kept


def try_mutant(reached: Reached, tree: Path, path: str, source: str, line: int, most_s: float, log: Path) -> Verdict:
    """Plant one fault, ask the tests that come by it, and take it back."""
    target = tree / path
    original, stat = target.read_text(), target.stat()
    chosen = chosen_tests(reached, tree, path, original, line, most_s)
    limit_s = 3 * sum(reached.took_s[name] for name in chosen) + SLACK_S
    began_s = time.monotonic()

    def work() -> Any:
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        chooser = _Chooser(chosen, reached.took_s)
        files = sorted({name.partition("::")[0] for name in chosen})
        code = pytest.main(["-x", *OPTIONS, *files], plugins=[chooser])
        return int(code), chooser.failed or ("" if code == 0 else "collection")

    try:
        target.write_text(source)
        # What Python kept of a module is known by its time: another one now, the old one again afterwards.
        os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**12))
        found = in_child(work, limit_s, log)
    finally:
        target.write_text(original)
        os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    took_s = time.monotonic() - began_s
    if found is None:
        return Verdict("too slow or dead", len(chosen), took_s)
    return Verdict("" if found[0] == 0 else found[1], len(chosen), took_s)
