"""Where cells run: in this process, or spread by loky, Dask or Ray. None of them is ours; each gets a thin adapter.

An adapter takes a function and a list of tasks and yields ``(position, answer)`` as answers come. The function must not
raise; what an adapter adds is `Lost`, for a task whose worker died each time it ran. A worker that dies takes nothing
else with it: what it had begun runs again elsewhere.
"""

from __future__ import annotations

import os
import pickle
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar

from sim.errors import InputError
from sim.extras import EXTRA_OF, needs
from tokenpools._worker import Unloadable, call, ignore_interrupts

Task = TypeVar("Task")
Answer = TypeVar("Answer")

KINDS = ("loky", "dask", "ray")
_TRIES = 3
_ANSWER_WITHIN_S = 10
_AHEAD = 3
"""Tasks handed out per worker: enough that none waits, few enough that a large sweep does not lie in memory."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A task whose worker died every time, for example for want of memory."""

    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Executor:
    """How to spread tasks.

    Attributes
    ----------
    kind : one of `KINDS`.
    jobs : worker processes; 1 with loky is this process itself.
    address : of a running Dask scheduler or Ray cluster; None starts one of ``jobs`` workers on this machine.
    """

    kind: str = "loky"
    jobs: int = 1
    address: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError("executor", f"unknown executor {self.kind!r}", f"give one of: {', '.join(KINDS)}")
        if self.address is not None and self.kind == "loky":
            raise InputError("executor", "loky has no address", "give --executor dask or --executor ray")
        module = {"loky": "joblib", "dask": "distributed", "ray": "ray"}[self.kind]
        if not self.here and find_spec(module) is None:
            raise InputError(f"--executor {self.kind}", *needs(EXTRA_OF.get(module, "all"), module))

    @property
    def here(self) -> bool:
        """Whether tasks run in this process."""
        return self.kind == "loky" and self.jobs == 1

    def map(self, function: Callable[[Task], Answer], tasks: Sequence[Task]) -> Iterator[tuple[int, Answer | Lost]]:
        """Yield ``(position, answer)`` in the order in which answers come."""
        if self.here or (len(tasks) <= 1 and self.address is None):
            return ((i, function(task)) for i, task in enumerate(tasks))
        adapter: _Adapter = {"loky": _loky, "dask": _dask, "ray": _ray}[self.kind]
        answers = adapter(call, _Packed(function, tasks), self)
        return ((i, Lost(answer.problem) if isinstance(answer, Unloadable) else answer) for i, answer in answers)


class _Packed(Sequence[bytes]):
    """Tasks in the form that `tokenpools._worker.call` reads, each made when it is handed out.

    cloudpickle takes along what no worker could import: classes of a notebook or of the script itself.
    """

    def __init__(self, function: Callable[[Any], Any], tasks: Sequence[Any]) -> None:
        self._function, self._tasks = function, tasks

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index: Any) -> Any:
        cloudpickle: Any = import_module("cloudpickle")
        try:
            return cloudpickle.dumps((self._function, self._tasks[index]))
        except (TypeError, ValueError, AttributeError, pickle.PicklingError) as error:
            raise InputError(
                "executor", f"a task cannot be sent to a worker ({error})", "set policies to plain values only"
            ) from error


class _Adapter(Protocol):
    def __call__(
        self, function: Callable[[Any], Any], tasks: Sequence[Any], executor: Executor, /
    ) -> Iterator[tuple[int, Any]]: ...


# --------------------------------------------------------------------------------------------------------------------
# loky


def _loky(function: Callable[[Any], Any], tasks: Sequence[Any], executor: Executor) -> Iterator[tuple[int, Any]]:
    """Run on processes of this machine.

    When a worker dies, loky gives up the whole pool. Everything unfinished that had been handed out then runs one at a
    time, so that the task that kills workers is told from those that were near it.
    """
    todo = deque(range(len(tasks)))
    suspects: deque[int] = deque()
    deaths = [0] * len(tasks)
    try:
        while todo or suspects:
            alone = bool(suspects)
            queue, ahead = (suspects, 1) if alone else (todo, executor.jobs * _AHEAD)
            lost = yield from _loky_until_a_death(function, tasks, queue, ahead, executor.jobs)
            if not alone:
                suspects.extend(lost)
                continue
            for i in lost:
                deaths[i] += 1
                if deaths[i] < _TRIES:
                    suspects.append(i)
                else:
                    yield i, Lost(f"its worker died {_TRIES} times, perhaps for want of memory")
    except BaseException:
        _leave_lost_tasks_unsaid()
        _loky_pool(executor.jobs).shutdown(wait=False, kill_workers=True)
        raise


@cache
def _leave_lost_tasks_unsaid() -> None:
    """Let loky's own thread pass in silence over tasks that it still looks for when the pool is taken from it.

    It may come to them after this returns, so from the first interrupt on that is so for the rest of the process.
    """
    say = threading.excepthook

    def said(args: threading.ExceptHookArgs) -> None:
        of_loky = args.thread is not None and args.thread.name.startswith("ExecutorManagerThread")
        if not (of_loky and args.exc_type is KeyError):
            say(args)

    threading.excepthook = said


def _loky_until_a_death(
    function: Callable[[Any], Any], tasks: Sequence[Any], queue: deque[int], ahead: int, jobs: int
) -> Any:
    """Run the queue, at most ``ahead`` tasks handed out; return the positions that were out when a worker died."""
    from concurrent.futures import FIRST_COMPLETED, Future, wait
    from concurrent.futures.process import BrokenProcessPool

    pool = _loky_pool(jobs)
    out: dict[Future[Any], int] = {}
    broken: list[int] = []
    while queue or out:
        while queue and len(out) < ahead and not broken:
            i = queue.popleft()
            try:
                out[pool.submit(function, tasks[i])] = i
            except BrokenProcessPool:
                broken.append(i)
        if broken and not out:
            break
        ended, _ = wait(out, return_when=FIRST_COMPLETED)
        for future in ended:
            i = out.pop(future)
            try:
                answer = future.result()
            except BrokenProcessPool:
                broken.append(i)
            else:
                yield i, answer
        if broken and ahead == 1:
            break
    return sorted(broken)


def _loky_pool(jobs: int) -> Any:
    loky: Any = import_module("joblib.externals.loky")
    _stop_workers_at_exit()
    # The processes stay for half a minute, so that the next batch of a sequence of sweeps need not start them again.
    return loky.get_reusable_executor(
        max_workers=jobs, timeout=30, initializer=ignore_interrupts, env={"OPENBLAS_NUM_THREADS": "1"}
    )


@cache
def _stop_workers_at_exit() -> None:
    """Have the end of the program not wait for idle processes, as loky itself would, for as long as they stay.

    What `atexit` has comes too late: Python first waits for the thread of loky's that waits for the processes.
    """
    reusable: Any = import_module("joblib.externals.loky.reusable_executor")

    def stop() -> None:
        if reusable._executor is not None:
            reusable._executor.shutdown(wait=False, kill_workers=True)

    register = getattr(threading, "_register_atexit", None)  # as loky does; the last to come goes first
    if register is not None:
        register(stop)


# --------------------------------------------------------------------------------------------------------------------
# Dask


def _dask(function: Callable[[Any], Any], tasks: Sequence[Any], executor: Executor) -> Iterator[tuple[int, Any]]:
    """Run on a Dask cluster; its scheduler runs what a dead worker had begun elsewhere, three times at most."""
    from contextlib import ExitStack

    dask: Any = import_module("distributed")
    with ExitStack() as stack:
        if executor.address is None:
            cluster: Any = stack.enter_context(
                dask.LocalCluster(
                    n_workers=executor.jobs, threads_per_worker=1, dashboard_address=None, silence_logs=50
                )
            )
        try:
            client = stack.enter_context(dask.Client(executor.address or cluster, timeout=_ANSWER_WITHIN_S))
        except OSError as error:
            raise InputError(str(executor.address), f"no Dask scheduler answers ({error})", "check --address") from None
        threads = sum(worker["nthreads"] for worker in client.scheduler_info(n_workers=-1)["workers"].values())
        waiting = iter(enumerate(tasks))
        place: dict[Any, int] = {}
        ended = dask.as_completed()

        def hand_out() -> None:
            for i, task in waiting:
                future = client.submit(function, task, pure=False)
                place[future.key] = i
                ended.add(future)
                return

        for _ in range(max(1, threads) * _AHEAD):
            hand_out()
        for future in ended:
            i = place.pop(future.key)
            try:
                yield i, future.result()
            except dask.KilledWorker:
                yield i, Lost("its workers died again and again, perhaps for want of memory")
            future.release()
            hand_out()


# --------------------------------------------------------------------------------------------------------------------
# Ray


def _ray(function: Callable[[Any], Any], tasks: Sequence[Any], executor: Executor) -> Iterator[tuple[int, Any]]:
    """Run on a Ray cluster, which runs what a dead worker had begun again, three times at most."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray: Any = import_module("ray")
    died = tuple(getattr(ray.exceptions, name) for name in ("WorkerCrashedError", "OutOfMemoryError", "NodeDiedError"))

    ours = not ray.is_initialized()
    if ours:
        try:
            if executor.address is not None:
                _knock(executor.address)
            if executor.address is None:
                ray.init(num_cpus=executor.jobs, include_dashboard=False, log_to_driver=False, logging_level=40)
            else:
                ray.init(address=executor.address, log_to_driver=False, logging_level=40)
        except (OSError, ValueError) as error:
            # To an address that is named Ray gives a token only where the user has said so.
            fix = "check --address, and set RAY_AUTH_MODE=token if the cluster asks for its token"
            raise InputError(str(executor.address), f"no Ray cluster answers ({error})", fix) from None
    try:
        remote = ray.remote(num_cpus=1, max_retries=_TRIES)(function)
        ahead = max(1, int(ray.cluster_resources().get("CPU", 1))) * _AHEAD
        waiting = deque(range(len(tasks)))
        out: dict[Any, int] = {}
        while waiting or out:
            while waiting and len(out) < ahead:
                i = waiting.popleft()
                out[remote.remote(tasks[i])] = i
            (reference, *_), _ = ray.wait(list(out), num_returns=1)
            i = out.pop(reference)
            try:
                yield i, ray.get(reference)
            except died:
                yield i, Lost("its workers died again and again, perhaps for want of memory")
    finally:
        if ours:
            ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at ``[ray://]HOST:PORT``: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():  # else "auto", and what else Ray may know
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_WITHIN_S).close()
