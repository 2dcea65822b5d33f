"""Files and folders that appear whole or not at all; what a killed process left half-written, the next one removes.

Work goes on under a name of its own beside the place, which is renamed at the end. Whoever works holds a lock
(``flock``) on it for that long, and the kernel lets go of it with the process, however that ends: what nobody holds was
abandoned. Process ids would not do: they are used again, and a container does not see those of another.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows, whose process ids must do
    fcntl = None

_MARK = ".tokenpools-partial-"


@contextmanager
def whole_folder(folder: Path, *, among_many: bool = False) -> Iterator[Path]:
    """Yield a new folder that takes the place of ``folder`` at the end; after an error nothing is left of it.

    ``folder`` may be there and empty: POSIX replaces that in one step. Beside it, what killed processes left is looked
    for and removed; not ``among_many``, where looking takes longer than writing: who writes many looks once.

    Raises
    ------
    OSError : it cannot be written.
    """
    with _place_beside(folder, is_folder=True, look=not among_many) as partial:
        yield partial
        partial.rename(folder)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a name beside ``path``, of the same ending, that takes its place at the end, over what was there.

    Raises
    ------
    OSError : it cannot be written.
    """
    with _place_beside(path, is_folder=False) as partial:
        yield partial
        partial.replace(path)


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Yield a new folder in ``parent`` that is gone at the end, with what is in it.

    Raises
    ------
    OSError : it cannot be written.
    """
    with _place_beside(parent / "scratch", is_folder=True) as scratch:
        yield scratch


@contextmanager
def _place_beside(path: Path, *, is_folder: bool, look: bool = True) -> Iterator[Path]:
    place = path.absolute()
    if is_folder:
        place.parent.mkdir(parents=True, exist_ok=True)
    if look:
        remove_abandoned(place.parent)
    partial, lock = _begun(place, is_folder)
    try:
        yield partial
    finally:  # after an interrupt too
        _remove(partial)
        if lock is not None:
            os.close(lock)


def _begun(place: Path, is_folder: bool) -> tuple[Path, int | None]:
    """Make what is worked on and lock it; again if another process took it for abandoned in between."""
    partial = place.with_name(f"{_MARK}{os.getpid()}-{os.urandom(3).hex()}-{place.name}")
    while True:
        if is_folder:
            partial.mkdir()
        else:
            partial.touch()
        if fcntl is None:
            return partial, None
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(partial, os.O_RDONLY)
            with contextlib.suppress(OSError):  # a file system without locks: then nobody removes anything there
                fcntl.flock(lock, fcntl.LOCK_EX)
            if partial.exists():
                return partial, lock
            os.close(lock)


def remove_abandoned(folder: Path) -> None:
    """Remove what processes that are no more left half-written in a folder."""
    with contextlib.suppress(OSError):
        for name in [entry.name for entry in os.scandir(folder) if entry.name.startswith(_MARK)]:
            with contextlib.suppress(OSError):
                _remove_if_abandoned(folder / name)


def _remove_if_abandoned(path: Path) -> None:
    if fcntl is None:
        import psutil  # here, because few need it

        pid = path.name.removeprefix(_MARK).partition("-")[0]
        if not pid.isdecimal() or not psutil.pid_exists(int(pid)):
            _remove(path)
        return
    lock = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an error where somebody holds it
        _remove(path)
    finally:
        os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
