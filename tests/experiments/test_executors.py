"""The same bytes from every executor, and a worker killed in mid-sweep takes nothing with it."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from experiments.small import RATE, digest, scenario

from sim.errors import InputError
from sim.experiments.executors import Executor, Lost
from sim.experiments.sweep import Count, sweep

needs_dask = pytest.mark.skipif(find_spec("distributed") is None, reason="the dask extra is not installed")
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="the ray extra is not installed")
# Dask and Ray leave sockets and processes to the garbage collector, and warn of things that are not ours.
quiet = pytest.mark.filterwarnings("ignore")

ASKED = scenario(replications=5, vary={RATE: [5, 7]}, horizon_s=300)
CELLS = 20


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("here") / "s"
    sweep(ASKED, folder)
    return digest(folder)


def children(word: str) -> list[int]:
    """Descendants of this process that have a word in their command line."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if word in command:
                found.append(int(entry.name))

    def ours(pid: int) -> bool:
        while pid > 1:
            pid = parents.get(pid, 0)
            if pid == os.getpid():
                return True
        return False

    return [pid for pid in found if ours(pid)]


def killing(find: Callable[[], list[int]], killed: list[int]) -> Callable[[Count], None]:
    """Kill one worker once the third cell has come back and one is seen at work: between two tasks none is."""

    def hear(count: Count) -> None:
        if count.finished < 3 or killed:
            return
        for _ in range(20):
            if at_work := find():
                os.kill(at_work[0], signal.SIGKILL)
                killed.append(at_work[0])
                return
            time.sleep(0.005)

    return hear


def test_loky_gives_the_same_bytes_and_outlives_a_worker(tmp_path: Path, expected: str) -> None:
    killed: list[int] = []
    hear = killing(lambda: children("loky.backend.popen_loky_posix"), killed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # loky says that a worker stopped: it was killed
        result = sweep(ASKED, tmp_path / "s", executor=Executor(jobs=2), on_cell=hear)
    assert killed
    assert result.count == Count(finished=CELLS, kept=0, failed=0, total=CELLS)
    assert digest(tmp_path / "s") == expected


@pytest.fixture
def dask_cluster() -> Iterator[Any]:
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as cluster:
        yield cluster


@needs_dask
@quiet
def test_dask_gives_the_same_bytes_and_outlives_a_worker(tmp_path: Path, expected: str, dask_cluster: Any) -> None:
    killed: list[int] = []
    pids = [nanny.pid for nanny in dask_cluster.workers.values()]
    executor = Executor(kind="dask", address=dask_cluster.scheduler_address)
    result = sweep(ASKED, tmp_path / "s", executor=executor, on_cell=killing(lambda: pids, killed))
    assert killed
    assert result.count == Count(finished=CELLS, kept=0, failed=0, total=CELLS)
    assert digest(tmp_path / "s") == expected


@needs_ray
@quiet
def test_ray_gives_the_same_bytes_and_outlives_a_worker(tmp_path: Path, expected: str) -> None:
    killed: list[int] = []
    hear = killing(lambda: children("ray::call"), killed)
    result = sweep(ASKED, tmp_path / "s", executor=Executor(kind="ray", jobs=2), on_cell=hear)
    assert killed
    assert result.count == Count(finished=CELLS, kept=0, failed=0, total=CELLS)
    assert digest(tmp_path / "s") == expected


def slow_square(value: int) -> int:
    """Die on 7, like a cell that needs more memory than there is."""
    if value == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.02)
    return value * value


def test_a_task_that_kills_its_workers_is_lost_and_no_other() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answers = dict(Executor(jobs=2).map(slow_square, range(12)))
    assert isinstance(answers.pop(7), Lost)
    assert answers == {value: value * value for value in range(12) if value != 7}


@needs_dask
@quiet
def test_an_address_where_nobody_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.experiments.executors._ANSWER_WITHIN_S", 1)
    with pytest.raises(InputError, match="no Dask scheduler answers"):
        dict(Executor(kind="dask", address="tcp://127.0.0.1:1").map(slow_square, [1]))


@needs_ray
@quiet
def test_a_ray_address_where_nobody_listens_is_refused_at_once() -> None:
    started_s = time.monotonic()
    with pytest.raises(InputError, match=r"127.0.0.1:1: no Ray cluster answers .*; check --address, and set RAY_AUTH"):
        dict(Executor(kind="ray", address="127.0.0.1:1").map(slow_square, [1]))
    assert time.monotonic() - started_s < 30  # most of it the import of ray
