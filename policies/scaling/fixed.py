"""No autoscaler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """As many replicas as the pool was given."""

    kind: Literal["none"] = "none"
