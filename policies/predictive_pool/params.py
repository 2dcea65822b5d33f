"""What a scenario can set about predictive pools: each part is a field, and each can be left out by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from policies.parts.waits import TIMEOUT_STATUS, Waits


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictivePool(Waits):
    """Promises kept by a queue that knows deadlines, and by predictions in place of what clients may use at most.

    What an entitlement was promised goes first, by class and deadline; what is left goes to bursts, then to spot, then
    to preemptible, in fair parts. A request waits as long as it can still meet its objective, and is refused once it
    cannot. Who has no objective waits for ``timeout_s``.
    """

    kind: Literal["predictive-pool"] = "predictive-pool"
    hold: bool = field(
        default=True,
        metadata={"description": "true: wait as long as the objective can be met; false: refuse what has no room"},
    )
    reserve: Literal["predicted", "max-tokens"] = field(
        default="predicted",
        metadata={"description": "predicted: KV cache for the answer that is likely; max-tokens: for the longest"},
    )
    quantile: float = field(
        default=0.5, metadata={"gt": 0, "lt": 1, "description": "give the quantile of answers to reserve, e.g. 0.5"}
    )
    answers: int = field(
        default=200, metadata={"gt": 0, "description": "give how many of its last answers an entitlement is judged by"}
    )
    overbook: float = field(
        default=0.1,
        metadata={"ge": 0, "description": "give the share of KV cache that sheddable classes may have above all, 0.1"},
    )
    take_back: bool = field(
        default=True,
        metadata={"description": "true: running preemptible requests are evicted where a promise would be late"},
    )
    headroom: float | None = field(
        default=1.0,
        metadata={
            "ge": 0, "description": "give the standard deviations of demand to keep free where loans are slow, or null"
        },
    )
    late: float = field(
        default=0.1,
        metadata={"ge": 0, "lt": 1, "description": "give the share of promised requests that may be late, e.g. 0.1"},
    )
    cached_weight: float = field(
        default=0.1,
        metadata={"ge": 0, "le": 1, "description": "give what a cached prompt token counts, e.g. 0.1; 1: like any"},
    )
    trickle: float = field(
        default=0.05,
        metadata={"ge": 0, "lt": 1, "description": "give the share of the work that goes to lower classes, e.g. 0.05"},
    )
    share_by: Literal["tree", "entitlement"] = field(
        default="tree",
        metadata={"description": "tree: parts for parents, shared among their entitlements; entitlement: one each"},
    )
    parents: Mapping[str, str] = field(
        default_factory=dict,
        metadata={"description": "give parents by entitlement, e.g. {key-1: team-a}; left out, the tenant is it"},
    )
    capacity: Literal["learnt", "declared"] = field(
        default="learnt",
        metadata={"description": "learnt: let in as fast as prompts are taken in; declared: by the profile's tokens/s"},
    )
    prefill_ahead_s: float = field(
        default=0.3,
        metadata={"gt": 0, "description": "give the seconds of prompts that may wait at a replica, e.g. 0.3"},
    )
    margin: float = field(default=1.2, metadata={"gt": 0, "description": "give a factor on predictions, e.g. 1.2"})
    bucket_s: float = field(
        default=10.0, metadata={"gt": 0, "description": "give how many seconds of its promise may be saved up, e.g. 10"}
    )
    timeout_status: Literal[408, 429, 504] = field(default=429, metadata=TIMEOUT_STATUS)
    tick_s: float = field(default=0.25, metadata={"gt": 0, "description": "give seconds between looks, e.g. 0.25"})

    def __post_init__(self) -> None:
        if self.parents and self.share_by != "tree":
            raise ValueError(
                f"parents are given and change nothing, since share_by is {self.share_by}; give share_by: tree, or "
                "leave them out"
            )
