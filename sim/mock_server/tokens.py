"""Tokens without a model: four bytes of text are one, so that a text means the same tokens wherever it stands.

What the server writes has four bytes a token too, so an answer that comes back in the next turn's prompt has as many
tokens as it had.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

from workloads.requests import Prefix

BYTES_PER_TOKEN = 4
MESSAGE_TOKENS = 4
"""Tokens that a chat template puts around a message. [choice]"""

_WORDS = ("and", "the", "sun", "sea", "one", "two", "day", "way", "new", "old", "far", "low", "red", "dry", "sky")
_PIECES = tuple(f"{_WORDS[i * 7 % len(_WORDS)]} " for i in range(len(_WORDS)))


def text_tokens(text: str) -> list[int]:
    """Return the token ids of a text: a number for each four bytes of its UTF-8."""
    data = text.encode(errors="replace")
    return [
        int.from_bytes(data[start : start + BYTES_PER_TOKEN]) for start in range(0, len(data), BYTES_PER_TOKEN)
    ]


def chat_tokens(messages: Sequence[Any], tools: Any = None) -> list[int]:
    """Return the token ids of a conversation, with what a template adds; pictures and sounds count as their text."""
    found = text_tokens(str(tools)) if tools else []
    for message in messages:
        role = message.get("role", "") if isinstance(message, dict) else ""
        marks = zlib.crc32(str(role).encode())
        found += [marks + i for i in range(MESSAGE_TOKENS)]
        found += text_tokens(_text(message))
    return found


def _text(value: Any) -> str:
    """Return all text in a message, whatever its shape."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_text(one) for one in value)
    if isinstance(value, dict):
        return "".join(_text(one) for name, one in value.items() if name not in ("role", "type", "id"))
    return ""


def output_text(first: int, stop: int) -> str:
    """Return the text of output tokens ``first`` to before ``stop``."""
    return "".join(_PIECES[i % len(_PIECES)] for i in range(first, stop))


def prefix_of(tokens: Sequence[int], block_tokens: int) -> Prefix:
    """Return the full blocks of a prompt as a prefix cache names them: by all tokens up to a block's end."""
    name, lines = 0, []
    for end in range(block_tokens, len(tokens) + 1, block_tokens):
        name = hash((name, tuple(tokens[end - block_tokens : end])))
        lines.append((name, end))
    return tuple(lines)


def digest(tokens: Sequence[int]) -> int:
    """Return a number of 32 bits that is the same for the same tokens, in every process."""
    return zlib.crc32(b"".join((token & (2**64 - 1)).to_bytes(8) for token in tokens))
