"""What pictures, sounds and embeddings cost, in tokens: estimates from what a request holds of them.

A picture's tokens follow from its pixels, which its header tells; a sound's and an embedding's from their bytes. What
is only an address costs the configured number. None of it is exact: engines differ.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from typing import Any

from sim.live.gateway.settings import Estimate, Tokenizer

_HEADER_CHARACTERS = 2**18
"""Of a picture in base64 that are decoded to find its size: metadata may come first."""
_MOST_PICTURE_TOKENS = 16_384
"""Engines scale down what would be more. [choice]"""
SOUND_TOKENS_PER_S = 25
"""[choice]"""
_SOUND_WINDOW_TOKENS = 30 * SOUND_TOKENS_PER_S
"""Of 30 s of sound, which is what a sequence of a speech model takes."""
_PICTURES = frozenset((
    "image", "image_url", "input_image", "image_pil", "image_embeds", "image_generation_call", "computer_screenshot",
))  # fmt: skip
_SOUNDS = frozenset(("audio", "audio_url", "input_audio", "audio_embeds"))
_OTHER = frozenset(("video", "video_url", "input_video", "file", "input_file"))


def media_tokens(part: dict[str, Any], rule: Estimate | Tokenizer) -> int | None:
    """Return what a part of a message costs; None where it is text."""
    kind = part.get("type")
    if type(kind) is not str:
        return None
    if kind in _PICTURES:
        return picture_tokens(_data(part), rule)
    if kind in _SOUNDS:
        return sound_tokens(len(_data(part)) * 3 // 4, rule)
    if kind in _OTHER:
        return max(rule.media_tokens, len(_data(part)) * 3 // 4 // rule.audio_bytes_per_token)
    return None


def picture_tokens(data: str, rule: Estimate | Tokenizer) -> int:
    """Return what a picture in base64 costs; one whose size is not to be found costs ``media_tokens``."""
    size = _picture_size(data) if data else None
    if size is None:
        return rule.media_tokens
    return max(1, min(_MOST_PICTURE_TOKENS, math.ceil(size[0] * size[1] / rule.pixels_per_token)))


def sound_tokens(size_bytes: int, rule: Estimate | Tokenizer) -> int:
    """Return what so many bytes of sound cost."""
    return max(1, size_bytes // rule.audio_bytes_per_token) if size_bytes else rule.media_tokens


def sound_sequences(tokens: int) -> int:
    """Return how many sequences a sound makes: a long one is cut into windows, each of which has a text of its own."""
    return -(-tokens // _SOUND_WINDOW_TOKENS)


def embedding_tokens(data: str, rule: Estimate | Tokenizer) -> int:
    """Return how many tokens' embeddings a text in base64 holds."""
    size_bytes = len(data.rstrip("=")) * 3 // 4
    return max(1, math.ceil(size_bytes / rule.embedding_bytes_per_token))


def _data(part: dict[str, Any]) -> str:
    """Return the base64 that a part holds, empty where it holds an address."""
    for value in part.values():
        inner = value
        if isinstance(value, dict):
            inner = next((value[name] for name in ("data", "url", "file_data") if type(value.get(name)) is str), None)
        if type(inner) is str:
            _, comma, rest = inner.partition(",") if inner.startswith("data:") else ("", "", inner)
            if comma or (len(rest) > 256 and "://" not in rest[:16]):
                return rest
    return ""


def _picture_size(data: str) -> tuple[int, int] | None:
    """Return width and height as a picture's header says; no pixel is decoded."""
    from PIL import Image  # matplotlib brings it; loaded with the first picture

    head = data[:_HEADER_CHARACTERS]
    try:
        raw = base64.b64decode(head[: len(head) // 4 * 4], validate=False)
        formats = ("PNG", "JPEG", "GIF", "WEBP", "BMP")
        with Image.open(io.BytesIO(raw), formats=formats) as picture:
            return picture.size
    except (binascii.Error, OSError, ValueError, SyntaxError, Image.DecompressionBombError, Warning):
        return None
