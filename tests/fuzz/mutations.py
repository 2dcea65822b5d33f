"""Changes of an input that know a little of what files look like: numbers, words, lines, brackets."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

TOKENS = tuple(
    token.encode("utf-8", "surrogatepass")
    for token in (
        "0", "-1", "1", "2", "-0.0", "0.5", "1e-308", "5e-324", "1e308", "1.8e308", "1e400", "-1e400", "NaN",
        "Infinity", ".inf", ".nan", "null", "~", "true", "[]", "{}", '""', "", " ", "\t", "\n", "\r", "\r\n", "\x00",
        "\ufeff", "\u2028", "\ud800", str(2**31 - 1), str(2**31), str(2**53), str(2**62), str(2**63 - 1), str(2**63),
        str(2**64 - 1), str(2**64), "9" * 30, "9" * 400, "9" * 5000, "-" + "9" * 400, "[" * 60, "[" * 2000,
        "[" * 300 + "]" * 300, "{" * 60, '{"a":' * 500, "&a [*a]", "*a", "<<: *a", "!!python/object:os.system x",
        "? ", "- ", "--- \n", "# ", "name", "kind", "none", "token-pool", "rate-limit", "trace", "poisson", "even",
        "lognormal", "full", "all", "../../etc/passwd", "/dev/zero", "%s", "2023-11-16 18:17:03.9799600",
        "2023-11-16T18:17:03+99:99", "0001-01-01 00:00:00", "9999-12-31 23:59:59", "1e5", "0x10", "1_000", "0o17",
        "12:30", "no", "5s",
    )
)  # fmt: skip
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_WORD = re.compile(rb"[A-Za-z_][\w.-]*")


def mutated(data: bytes, chance: random.Random, others: Sequence[bytes]) -> bytes:
    """Return an input changed in one to four places."""
    for _ in range(chance.choice((1, 1, 1, 2, 3, 4))):
        data = chance.choice(_CHANGES)(data, chance, others)
    return data


def _bit(data: bytes, chance: random.Random, _: Sequence[bytes]) -> bytes:
    if not data:
        return data
    changed = bytearray(data)
    changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _insert(data: bytes, chance: random.Random, _: Sequence[bytes]) -> bytes:
    at = chance.randint(0, len(data))
    return data[:at] + chance.choice(TOKENS) + data[at:]


def _number(data: bytes, chance: random.Random, _: Sequence[bytes]) -> bytes:
    return _replaced(data, chance, _NUMBER, chance.choice(TOKENS))


def _word(data: bytes, chance: random.Random, _: Sequence[bytes]) -> bytes:
    words = _WORD.findall(data)
    return _replaced(data, chance, _WORD, chance.choice(words if words and chance.random() < 0.5 else TOKENS))


def _replaced(data: bytes, chance: random.Random, pattern: re.Pattern[bytes], new: bytes) -> bytes:
    found = list(pattern.finditer(data))
    if not found:
        return data
    one = chance.choice(found)
    return data[: one.start()] + new + data[one.end() :]


def _cut(data: bytes, chance: random.Random, _: Sequence[bytes]) -> bytes:
    first, last = sorted((chance.randint(0, len(data)), chance.randint(0, len(data))))
    return data[:first] + data[last:] if last - first < 200 or chance.random() < 0.1 else data[:last]


def _line(data: bytes, chance: random.Random, others: Sequence[bytes]) -> bytes:
    lines = data.splitlines(keepends=True) or [b""]
    at = chance.randrange(len(lines))
    source = chance.choice(others).splitlines(keepends=True) or [b""] if chance.random() < 0.3 and others else lines
    change = chance.randrange(3)
    if change == 0:
        lines.insert(at, chance.choice(source))
    elif change == 1:
        del lines[at]
    else:
        lines[at] = chance.choice(source)
    return b"".join(lines)


_CHANGES = (_bit, _insert, _number, _number, _number, _word, _word, _cut, _line)
