"""No admission control: everything is let in, and queues where it is served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from policies.base import PolicyBase


@dataclass(frozen=True, slots=True, kw_only=True)
class NoControl:
    """Lets everything in."""

    kind: Literal["none"] = "none"


class NoControlPolicy(PolicyBase):
    """See `policies.api.AdmissionPolicy`; remembers nothing."""
