"""A client that tries once more."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tokenpools.workloads import Chance


@dataclass(frozen=True, slots=True, kw_only=True)
class OnceMore:
    """Tries a refused request once more, after a fixed wait."""

    kind: Literal["once-more"] = "once-more"
    wait_s: float = field(default=2.0, metadata={"ge": 0, "description": "give the seconds to wait, e.g. 2.0"})

    def next_attempt_s(
        self, outcome: str, http_status: int, retry_after_s: float | None, attempt: int, now_s: float,
        chance: Chance | None = None,
    ) -> float | None:
        """Return when it comes again."""
        return now_s + self.wait_s if outcome == "refused" and attempt == 1 else None
