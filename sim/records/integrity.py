"""What shows that a result is as it was written: a digest of each file in the manifest, and one of the manifest itself.

Parquet's own checksums reach the pages, wherever a file is taken; its footer, the summary and the manifest they do not
reach, these do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FILES, SEAL = "files", "seal"


def digest(path: Path) -> str:
    """Return ``sha256:`` and the digest of a file in hexadecimal.

    Raises
    ------
    OSError : it cannot be read.
    """
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the digests of those files that are there, by name."""
    return {name: digest(folder / name) for name in names if (folder / name).is_file()}


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping of JSON's types with a digest of all the rest under ``seal``."""
    return {**value, SEAL: _seal(value)}


def is_broken(value: Mapping[str, Any]) -> bool:
    """Return whether a mapping differs from what was sealed.

    One of an earlier version has neither seal nor digests, and nobody can say.
    """
    if SEAL not in value:
        return FILES in value
    return bool(value[SEAL] != _seal({key: item for key, item in value.items() if key != SEAL}))


def _seal(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
