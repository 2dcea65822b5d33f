"""The parameters of the plain routers; apart from these, which mypyc may compile, because pydantic looks into them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRobin:
    """Each ready replica in turn."""

    kind: Literal["round-robin"] = "round-robin"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastOutstandingTokens:
    """The ready replica that owes the fewest tokens: prompt + max_output_tokens of what is in flight there."""

    kind: Literal["least-outstanding-tokens"] = "least-outstanding-tokens"
