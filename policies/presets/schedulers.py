"""Inference schedulers and Kubernetes: products that queue at the gateway and know how full it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from policies.bands import Bands
from policies.class_slots import ClassName, ClassSlots
from policies.cohort import Cohort
from policies.fair_queue import Drr, FairQueue
from policies.parts.orders import FirstCome, RecentUse
from policies.parts.saturation import InFlightShare, QueueAndKv

_VERSION = {"description": "the version that was read"}
_WEIGHTS = {"description": "give shares by entitlement, e.g. {chat: 2}; others have 1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmD:
    """llm-d's router with flow control: ``bands`` with its detectors, first come first served inside a band.

    Utilisation: mean of max(waiting / 5, KV / 0.8) over replicas, 1 where a report is older than ``stale_s``: llm-d
    scrapes every 50 ms and takes 0.2 s, here a pool scrapes every ``scrape_interval_s`` (1 s), and it is 5 s. [choice]
    Concurrency: 100 requests in flight a replica. Bands hold 5000 requests for 60 s at most.

    Source: llm-d-router, flow control (2026-08-22).
    """

    kind: Literal["llm-d"] = "llm-d"
    version: Literal["2026-08-22"] = field(default="2026-08-22", metadata=_VERSION)
    detector: Literal["utilisation", "concurrency"] = field(
        default="utilisation", metadata={"description": "utilisation or concurrency"}
    )
    priorities: Mapping[str, int] = field(
        default_factory=dict, metadata={"description": "give priorities by entitlement, e.g. {chat: 10}; else by class"}
    )
    stale_s: float = field(default=5.0, metadata={"gt": 0, "description": "give the age that is too old, in s, e.g. 5"})
    ceilings: Literal["static", "holdback", "soft-reflective"] = field(
        default="static", metadata={"description": "static, holdback or soft-reflective"}
    )
    evict: bool = field(default=False, metadata={"description": "give true to evict running requests of bands below 0"})

    def expand(self) -> Bands:
        """Return the policy that this stands for."""
        signal = QueueAndKv(queue=5.0, kv=0.8, stale_s=self.stale_s)
        return Bands(
            saturation=signal if self.detector == "utilisation" else InFlightShare(requests_per_replica=100),
            ceilings=self.ceilings, max_ceiling=1.0, priorities=self.priorities, order=FirstCome(), evict=self.evict,
            queue_requests=5000, timeout_s=60.0, timeout_status=429,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Smg:
    """SMG's priority scheduler: ``class-slots`` with its reserves, queues, timeouts and starvation limits.

    Reserves are max(32, 0), max(128, 25 %), 10 % and 0 of the slots, shrunk alike where they sum to more than there
    are, which in a pool of less than 160 slots leaves nothing free for the lower two classes. Its limits per tenant are
    ``smg-tenants``; the product connects the two as little.

    Source: sglang model gateway, priority scheduler and ``slots.rs`` (2026-08-07).
    """

    kind: Literal["smg"] = "smg"
    version: Literal["2026-08-07"] = field(default="2026-08-07", metadata=_VERSION)
    classes: Mapping[str, ClassName] = field(
        default_factory=dict,
        metadata={"description": "give classes by entitlement, e.g. {chat: interactive}; else by service class"},
    )

    def expand(self) -> ClassSlots:
        """Return the policy that this stands for."""
        return ClassSlots(
            classes=self.classes, floors=(32, 128, 0, 0), shares=(0.0, 0.25, 0.1, 0.0), queues=(64, 256, 512, 1024),
            timeouts_s=(30.0, 30.0, 60.0, 300.0), starved_s=(5.0, 5.0, 30.0, 120.0),
            can_preempt=(True, True, False, False),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Dynamo:
    """NVIDIA Dynamo's router queue: ``drr`` over entitlements, charged for uncached prompt tokens only.

    Dynamo's classes are a header's family and a bucket of prompt lengths; here each entitlement is one. The cost is
    fixed when a request joins the queue; what was cached is known only at the end here and given back then. The quantum
    is not a published default: 1024. [choice] Left out: its thresholds for rejection (see ``cap``, status 529), its
    strict priorities.

    Source: Dynamo 1.3 (2026), ``policy_queue.rs``.
    """

    kind: Literal["dynamo"] = "dynamo"
    version: Literal["1.3"] = field(default="1.3", metadata=_VERSION)
    quantum: float = field(default=1024.0, metadata={"gt": 0, "description": "give prompt tokens a turn, e.g. 1024"})
    weights: Mapping[str, float] = field(default_factory=dict, metadata=_WEIGHTS)

    def expand(self) -> Drr:
        """Return the policy that this stands for."""
        return Drr(
            charge="prompt", input_weight=1.0, cached_weight=0.0, quantum=self.quantum, weights=self.weights,
            timeout_s=None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Kthena:
    """Volcano kthena's fairness: whoever used least in the last five minutes, input + 2 * output, is next.

    With its semaphore, which lets in what the pool's slots allow; its default dequeues 100 requests a second whatever
    the pool can take. Waiting ends after 60 s with 504. Left out: the weight on the number of requests (0 by default).

    Source: volcano-sh/kthena (2026), ``docs/proposal/fairness-scheduling-improvements.md`` and the router's queue.
    """

    kind: Literal["kthena"] = "kthena"
    version: Literal["2026"] = field(default="2026", metadata=_VERSION)
    window_s: float = field(default=300.0, metadata={"gt": 0, "description": "give seconds to look back, 300 or 3600"})

    def expand(self) -> FairQueue:
        """Return the policy that this stands for."""
        return FairQueue(
            order=RecentUse(window_s=self.window_s), charge="end", input_weight=1.0, output_weight=2.0, timeout_s=60.0,
            timeout_status=504,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class K8sApf:
    """Kubernetes API Priority and Fairness with slots as seats: ``cohort``, borrowing adjusted every 10 s.

    Demand decays by 0.977 a period; half of the nominal seats are lent, and any number may be borrowed. [choice: both]
    Each entitlement is a level with one flow in it, so of its 64 queues only the hand of 6 is ever used, 50 deep: 300
    may wait. Among those queues a flow picks the shortest and they are served in turn, which is first come, first
    served. Left out: shuffle sharding of several flows in a level, and seats by work.

    Source: KEP-1040, ``apiserver/pkg/util/flowcontrol`` (Kubernetes 1.26 and later).
    """

    kind: Literal["k8s-apf"] = "k8s-apf"
    version: Literal["1.26"] = field(default="1.26", metadata=_VERSION)
    shares: Mapping[str, float] = field(default_factory=dict, metadata=_WEIGHTS)
    lend: float = field(
        default=0.5, metadata={"ge": 0, "le": 1, "description": "give the part of nominal seats that is lent, 0.5"}
    )
    borrow: float | None = field(
        default=None, metadata={"ge": 0, "description": "give what may be borrowed, in nominal seats; left out, any"}
    )

    def expand(self) -> Cohort:
        """Return the policy that this stands for."""
        return Cohort(
            shares=self.shares, period_s=10.0, decay=0.977, lend=self.lend, borrow=self.borrow,
            queue_requests=1_000_000, queue_each=6 * 50, timeout_s=60.0, timeout_status=429,
        )
