"""How long the coming and going of replicas takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """What it takes to start and to stop a replica.

    Attributes
    ----------
    start_up_s : from the decision until a replica takes requests.
    drain_s : the longest that a leaving replica waits for its requests; what still runs then is lost.
    look_s : between two looks at whether a draining replica is empty.
    gpus : of one replica.
    """

    start_up_s: float = 90.0
    drain_s: float = 300.0
    look_s: float = 1.0
    gpus: int = 1
