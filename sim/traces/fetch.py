"""Fetch public traces from their publishers: checked, resumed where a download broke off, licence shown."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pooch
import requests

from sim.errors import InputError
from sim.traces.catalogue import DataSet, RemoteFile

_CHUNK_BYTES = 1 << 16  # what came of a chunk that broke off is lost
_CONNECT_S, _READ_S = 10.0, 60.0
_SUMS = "SHA256SUMS"

Progress = Callable[[str, int, int | None], None]
"""Hears of a file's name, the bytes there are, and the bytes there will be if that is known."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """One file: where it is, its SHA-256, and whether that was known beforehand."""

    path: Path
    sha256: str
    checked: bool


def fetch(data_set: DataSet, folder: Path, *, on_progress: Progress | None = None) -> list[Fetched]:
    """Return the files of a data set under ``folder``, downloading those that are not there.

    A checksum that the catalogue does not know is written down at the first download, and checked from then on.

    Raises
    ------
    InputError
        If there is nothing to fetch, the network or the publisher does not answer, or a checksum differs.
    """
    if data_set.by_hand:
        raise InputError(data_set.home, "cannot be fetched", data_set.by_hand)
    pooch.get_logger().setLevel("ERROR")
    return [_fetch(file, folder, on_progress) for file in data_set.files]


def _fetch(file: RemoteFile, folder: Path, on_progress: Progress | None) -> Fetched:
    target = folder / file.path
    noted = _noted(target)
    known = file.sha256 or noted
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        pooch.retrieve(
            file.url,
            known_hash=None if known is None else f"sha256:{known}",
            fname=target.name,
            path=target.parent,
            downloader=_Resuming(target.with_name(f"{target.name}.part"), on_progress),
        )
        sha256 = known or _sha256(target)
        if known is None:
            with (target.parent / _SUMS).open("a", encoding="utf-8") as sums:
                sums.write(f"{sha256}  {target.name}\n")
    except ValueError as error:
        if "hash of downloaded file" not in str(error):
            raise
        problem = f"what {file.url} gave has another checksum than {known}"
        fix = "the publisher changed the file or it was damaged on the way: fetch again, and compare with their page"
        raise InputError(str(target), problem, fix) from None
    except requests.RequestException as error:
        response = error.response
        reason = f"the server answered {response.status_code}" if response is not None else _reason(error)
        fix = f"try again (what came is kept and resumed), or put the file there yourself: {target}"
        raise InputError(file.url, f"cannot be fetched ({reason})", fix) from None
    except OSError as error:
        raise InputError(
            str(target), f"cannot be written ({error.strerror or error})", "name a folder with TOKENPOOLS_CACHE"
        ) from None
    return Fetched(target, sha256, file.sha256 is not None)


def _reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    return "no connection" if isinstance(error, requests.ConnectionError) else "the connection broke off"


class _Resuming:
    """A downloader for pooch that goes on where the last one broke off, if the server can."""

    def __init__(self, part: Path, on_progress: Progress | None) -> None:
        self._part = part
        self._on_progress = on_progress

    def __call__(self, url: str, output_file: str | IO[Any], _: object, check_only: bool = False) -> None:
        """See pooch's documentation of downloaders."""
        del check_only
        part = self._part
        have = part.stat().st_size if part.exists() else 0
        headers = (
            {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
        )
        with requests.get(url, stream=True, timeout=(_CONNECT_S, _READ_S), headers=headers) as answer:
            if answer.status_code == requests.codes.requested_range_not_satisfiable:
                part.unlink()  # it was whole, or is of another file: the checksum would tell, a fresh start does
                self(url, output_file, None)
                return
            answer.raise_for_status()
            resumed = answer.status_code == requests.codes.partial_content
            have = have if resumed else 0
            length = answer.headers.get("Content-Length")
            total = have + int(length) if length is not None and length.isdigit() else None
            with part.open("ab" if resumed else "wb") as out:
                for chunk in answer.iter_content(_CHUNK_BYTES):
                    out.write(chunk)
                    have += len(chunk)
                    if self._on_progress is not None:
                        self._on_progress(part.name.removesuffix(".part"), have, total)
            if total is not None and have < total:
                raise requests.ConnectionError(f"{have} of {total} bytes came")
        if not isinstance(output_file, str):
            output_file.write(part.read_bytes())
            part.unlink()
        else:
            part.replace(output_file)


def _noted(target: Path) -> str | None:
    """Return the checksum that was written down when the file first came."""
    try:
        lines = (target.parent / _SUMS).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [line.split("  ", 1) for line in lines]
    return next((pair[0] for pair in reversed(found) if len(pair) == 2 and pair[1] == target.name), None)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
