"""Bytes of text files in blocks of whole lines, so that a file of any size passes through little memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from workloads.formats.errors import TraceError

BLOCK_BYTES = 8 << 20
LONGEST_LINE_BYTES = 16 << 20
"""A request with a million prefix blocks is shorter; a few bytes of gzip can be a line of any length."""
_BOM = b"\xef\xbb\xbf"


class Block(NamedTuple):
    """Whole lines of a file; ``first_line`` is the number of the first, from 1."""

    first_line: int
    data: bytes


def line_blocks(path: Path, size: int = BLOCK_BYTES) -> Iterator[Block]:
    """Yield a text file, plain or gzip, in blocks of about ``size`` bytes; a byte order mark is left out.

    Raises
    ------
    TraceError
        If the file cannot be read, is damaged, or is not text of lines: pickles are refused unopened, because reading
        one runs what it holds.
    """
    file = str(path)
    line = 1
    rest: list[bytes] = []  # of the last line, without an end so far
    waiting = 0
    begun = False
    try:
        with opened(path) as source:
            while data := source.read(size):
                if not begun:
                    begun = True
                    data = data.removeprefix(_BOM)
                if rest and rest[-1].endswith(b"\r"):  # perhaps half of CRLF, so it was not looked at
                    data, waiting = rest[-1] + data, waiting - len(rest[-1])
                    rest.pop()
                # A lone CR ends a line too, but one at the very end may be half of CRLF.
                cut = max(data.rfind(b"\n"), data.rfind(b"\r", 0, len(data) - 1)) + 1
                if cut:
                    block = b"".join([*rest, data[:cut]])
                    yield Block(line, block)
                    line += line_ends(block)
                    rest, waiting, data = [], 0, data[cut:]
                if data:
                    rest.append(data)
                    waiting += len(data)
                if waiting > LONGEST_LINE_BYTES:
                    problem = f"a line of more than {LONGEST_LINE_BYTES >> 20} MiB"
                    raise TraceError(file, line, problem, "give a file of one request per line")
    except OSError as error:  # gzip.BadGzipFile is one
        reason = error.strerror or str(error)
        raise TraceError(file, None, f"cannot be read ({reason})", "name a readable file") from None
    except (EOFError, zlib.error) as error:
        problem = "the gzip file ends too early" if isinstance(error, EOFError) else "the gzip file is damaged"
        raise TraceError(file, None, f"{problem} (after line {line})", "fetch or copy it again") from None
    if rest:
        yield Block(line, b"".join(rest))


def first_line(path: Path) -> bytes:
    """Return the first line of a text file; reading stops behind it.

    Raises
    ------
    TraceError
        As `line_blocks`; also if the file is empty.
    """
    block = next(line_blocks(path, 1 << 16), None)
    if block is None or not block.data.strip():
        raise TraceError(str(path), None, "the file is empty", "give a file with one request per line")
    return block.data.splitlines()[0]


def line_ends(data: bytes) -> int:
    """Return how many lines end in ``data``: at LF, CR and CRLF."""
    return data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n")


def opened(path: Path) -> BinaryIO:
    """Open a file, plain or gzip, for its bytes.

    Raises
    ------
    TraceError
        If it is packed otherwise, or a pickle.
    """
    with path.open("rb") as start:
        magic = start.read(4)
    if magic[:2] == b"\x1f\x8b":
        return cast("BinaryIO", gzip.open(path))
    if magic[:1] == b"\x80" and magic[1:2] <= b"\x05" and len(magic) > 1:
        problem = "is a Python pickle, which can run code when it is read, and was not read"
        raise TraceError(str(path), None, problem, "convert it to CSV where you trust it")
    if magic[:4] in (b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"\xfd7zX") or magic[:3] == b"BZh":
        raise TraceError(str(path), None, "is packed in a way that is not read here", "unpack it, or use gzip")
    return path.open("rb")
