"""Random small scenarios, and runs of them that can be looked into."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from hypothesis import strategies as st

from policies.core import GatewayCore
from sim.cluster.engine_request import NEVER_S
from sim.cluster.engine_settings import EngineSettings
from sim.cluster.node import Node
from sim.cluster.replica import Replica
from sim.cluster.world import Outcomes, World, simulate
from sim.experiments.run import world_of
from sim.records.schema import REASONS, Outcome
from sim.scenario.load import Cell, expand, parse_scenario

Mapped = dict[str, Any]

LONGEST_TOKENS = 90
CLASSES = ("dedicated", "guaranteed", "elastic", "spot", "preemptible")
POLICIES: dict[str, Mapped] = {
    "none": {"kind": "none"},
    "bucket": {"kind": "rate-limit", "requests_per_min": 60, "tokens_per_min": 1500, "burst_s": 4},
    "window": {"kind": "rate-limit", "requests_per_min": 20, "tokens_per_min": 1500, "window": "sliding"},
    "paper": {"kind": "token-pool", "mode": "paper", "tick_s": 1, "max_request_tokens": 60, "bucket_s": 2},
    "robust": {"kind": "token-pool", "mode": "robust", "tick_s": 1, "max_request_tokens": 60},
    "frozen": {"kind": "token-pool", "mode": "robust", "weight_at": "admission", "metering": "completions"},
}

# --------------------------------------------------------------------------------------------------------------------
# Scenarios


@st.composite
def profiles(draw: Any) -> Mapped:
    slots = draw(st.integers(1, 6))
    block_tokens = draw(st.sampled_from([1, 4, 16]))
    longest = math.ceil(LONGEST_TOKENS / block_tokens)
    return {
        "step_time": {
            "kind": "linear",
            "base_s": draw(st.sampled_from([0.0, 0.02, 0.125])),
            "per_decode_sequence_s": draw(st.sampled_from([0.002, 0.03125])),
            "per_prefill_token_s": draw(st.sampled_from([0.001, 0.0078125])),
            "per_context_token_s": draw(st.sampled_from([0.0, 0.0003])),
            "per_prefill_pair_s": draw(st.sampled_from([0.0, 0.00001])),
        },
        "max_num_seqs": slots,
        "max_num_batched_tokens": draw(st.integers(slots, slots + 60)),
        "kv_blocks": draw(st.integers(longest, 3 * longest)),
        "block_tokens": block_tokens,
        "kv_bytes_per_token": draw(st.sampled_from([None, 1000.0])),
        "tokens_per_s": draw(st.sampled_from([None, 100.0])),
        "max_model_tokens": draw(st.sampled_from([None, LONGEST_TOKENS, 60])),
        "scheduling": draw(st.sampled_from(["fcfs", "priority"])),
    }


arrivals = st.one_of(
    st.fixed_dictionaries(
        {"kind": st.just("even"), "rate_per_s": st.sampled_from([1.0, 4.0]), "phase_s": st.just(0.0)}
    ),
    st.fixed_dictionaries({"kind": st.just("poisson"), "rate_per_s": st.sampled_from([0.5, 2.0, 8.0])}),
    st.fixed_dictionaries({"kind": st.just("gamma"), "rate_per_s": st.just(2.0), "cv": st.just(4.0)}),
)
lengths = st.one_of(
    st.fixed_dictionaries({"kind": st.just("constant"), "value": st.integers(1, 40)}),
    st.fixed_dictionaries({"kind": st.just("uniform"), "low": st.integers(1, 10), "high": st.integers(10, 45)}),
)
clients = st.one_of(
    st.just({"kind": "drop"}),
    st.fixed_dictionaries({
        "kind": st.just("retry"), "max_attempts": st.integers(2, 4), "honour_retry_after": st.booleans(),
        "delay_s": st.sampled_from([0.0, 0.5]), "retry_interrupted": st.booleans(),
    }),
)  # fmt: skip


@st.composite
def tenants(draw: Any, i: int, slots_each: float) -> tuple[Mapped, Mapped]:
    # Preemptible often, or nobody would ever be evicted.
    service_class = draw(st.sampled_from((*CLASSES, *CLASSES[-1:] * 3) if i == 0 else CLASSES))
    entitlement: Mapped = {
        "name": f"t{i}",
        "service_class": service_class,
        "ttft_slo_s": draw(st.sampled_from([None, 0.5, 20.0])),
        "from_s": draw(st.sampled_from([0.0] * 6 + [2.5])),
        "until_s": draw(st.sampled_from([None] * 6 + [6.0])),
    }
    if service_class in CLASSES[:3] and slots_each >= 1:
        entitlement["baseline"] = {"slots": math.floor(slots_each)}
        if draw(st.booleans()):
            entitlement["baseline"]["tokens_per_s"] = 15
    elif service_class in CLASSES[3:]:
        entitlement["limit"] = draw(
            st.sampled_from([{}, {}, {"slots": 2}, {"tokens_per_s": 20}, {"kv_bytes": 70_000}, {"kv_bytes": 40_000}])
        )
    workload: Mapped = {
        "entitlement": f"t{i}",
        "arrivals": draw(arrivals),
        "prompt_tokens": draw(lengths),
        "output_tokens": draw(lengths),
        "priority": draw(st.integers(0, 2)),
        "requests": draw(st.integers(1, 15)),
        "client": draw(clients),
    }
    if draw(st.booleans()):
        workload["max_output_tokens"] = draw(lengths)
    elif draw(st.booleans()):
        workload["ask_max_tokens"] = False
    return entitlement, workload


@st.composite
def scenarios(draw: Any, policies: tuple[str, ...] = tuple(POLICIES), *, drained: bool | None = None) -> Mapped:
    """Return a scenario file's mapping; ``drained`` runs end with the last request, others often before."""
    profile = draw(profiles())
    replicas = draw(st.integers(1, 3))
    count = draw(st.integers(1, 4))
    pairs = [draw(tenants(i, replicas * profile["max_num_seqs"] / count)) for i in range(count)]
    horizon_s = None if (draw(st.booleans()) if drained is None else drained) else draw(st.sampled_from([4.0, 12.0]))
    events: list[Mapped] = []
    for _ in range(draw(st.integers(0, 2))):
        at_s, back_s = draw(st.sampled_from([0.0, 1.0, 2.125])), draw(st.sampled_from([1.0, 1.5]))
        kind = draw(st.sampled_from(["slots", "kv_blocks", "fail"]))
        if kind == "fail":
            replica = draw(st.integers(0, replicas - 1))
            events += [{"at_s": at_s, "fail": replica}, {"at_s": at_s + back_s, "restore": replica}]
        else:
            most = replicas * profile["max_num_seqs" if kind == "slots" else "kv_blocks"]
            left = {kind: draw(st.integers(0, most))}
            events += [{"at_s": at_s, "capacity": left}, {"at_s": at_s + back_s, "capacity": "full"}]
    # In the end the pool is whole, or a run that waits for its last request would wait for ever.
    events += [{"at_s": 4.0, "capacity": "full"}, *({"at_s": 4.0, "restore": i} for i in range(replicas))]
    return {
        "version": 1,
        "seed": draw(st.integers(0, 99)),
        "horizon_s": horizon_s,
        "timeline_interval_s": 0.5,
        "record_decisions": True,
        "pool": {
            "profile": profile,
            "replicas": replicas,
            "router": draw(st.sampled_from(["round-robin", "least-outstanding-tokens"])),
            "entitlements": [entitlement for entitlement, _ in pairs],
            "default_max_output_tokens": draw(st.sampled_from([20, 45])),
        },
        "workload": [workload for _, workload in pairs],
        "events": events,
        "policies": [{"name": name, **POLICIES[name]} for name in [draw(st.sampled_from(policies))]],
    }


def cell_of(scenario: Mapping[str, Any]) -> Cell:
    """Return the one run of a scenario's mapping."""
    (cell,) = expand(parse_scenario(scenario, "random.yaml"))
    return cell


def total_slots(scenario: Mapped) -> int:
    return int(scenario["pool"]["replicas"] * scenario["pool"]["profile"]["max_num_seqs"])


# --------------------------------------------------------------------------------------------------------------------
# Runs that can be looked into


class WatchedReplica(Replica[Any]):
    """Checks itself after every boundary, with what any user of a replica can see."""

    def __init__(self, settings: EngineSettings, **heard: Any) -> None:
        super().__init__(settings, **heard)
        self.provisioned_blocks = self.kv.total_blocks
        self.provisioned_slots = self.max_num_seqs

    def boundary(self, now_s: float) -> None:
        running_before = self.running_count
        super().boundary(now_s)
        assert self.running_count <= self.max_num_seqs or self.running_count <= running_before
        assert 0 <= self.kv_used_blocks_at(now_s) <= self.kv.total_blocks
        assert self.waiting_count >= 0
        # What a gateway that holds requests sends on hearing of an end starts at this very instant.
        assert self.wake_s > now_s or self._inbox
        if self.wake_s == NEVER_S:  # idle: with nothing to do, or without means to do it
            assert self.running_count == 0
            assert self.kv_used_blocks_at(now_s) == 0
            short = self.max_num_seqs == 0 or self.kv.total_blocks < self.provisioned_blocks
            assert self.waiting_count == 0 or short


@dataclass
class Watch:
    """The parts of a run that `simulate` keeps to itself."""

    cores: list[GatewayCore] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    clocks: list[Any] = field(default_factory=list)

    def settle(self) -> None:
        """Let replicas come to rest: what was evicted last leaves at the next boundary."""
        while any(node.replica.wake_s < NEVER_S for node in self.nodes):
            self.clocks[0].step()


@contextmanager
def watched() -> Iterator[Watch]:
    watch = Watch()

    class WatchedCore(GatewayCore):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            watch.cores.append(self)

    class WatchedNode(Node):
        def __init__(self, clock: Any, *args: Any) -> None:
            super().__init__(clock, *args)
            watch.clocks.append(clock)
            watch.nodes.append(self)

    with (
        patch("sim.cluster.world.GatewayCore", WatchedCore),
        patch("sim.cluster.world.Node", WatchedNode),
        patch("sim.cluster.node.Replica", WatchedReplica),
    ):
        yield watch


@dataclass(frozen=True)
class Row:
    """An attempt, as the records have it."""

    request_id: str
    attempt: int
    final: bool
    entitlement: str
    prompt_tokens: int
    max_output_tokens: int
    output_tokens: int
    arrival_s: float
    first_arrival_s: float
    forwarded_s: float
    replica: int
    first_token_s: float
    finish_s: float
    outcome: Outcome
    reason: str
    http_status: int
    retry_after_s: float
    preemptions: int

    @property
    def workload(self) -> int:
        return int(self.request_id.removeprefix("t").split("-")[0])

    @property
    def number(self) -> int:
        return int(self.request_id.split("-")[1])


@dataclass(frozen=True)
class Run:
    """A finished run, and what was inside."""

    world: World
    outcomes: Outcomes
    rows: list[Row]
    watch: Watch

    def attempts(self) -> dict[str, list[Row]]:
        """Return the attempts of each request in order."""
        found: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            found[row.request_id].append(row)
        return found

    def of(self, entitlement: str, choose: Callable[[Row], bool]) -> int:
        return sum(choose(row) for row in self.rows if row.entitlement == entitlement)


def rows_of(outcomes: Outcomes) -> list[Row]:
    columns = outcomes.columns
    names = [e.name for e in columns.entitlements]
    special: dict[str, Callable[[Any], Any]] = {
        "entitlement": lambda i: names[i],
        "outcome": Outcome,
        "reason": lambda i: "" if i < 0 else REASONS[i],
    }
    each = [[special.get(name, lambda v: v)(v) for v in getattr(columns, name)] for name in Row.__dataclass_fields__]
    return [Row(*values) for values in zip(*each, strict=True)]


def play(scenario: Mapped) -> Run:
    """Run a scenario under watch."""
    world = world_of(cell_of(scenario))
    with watched() as watch:
        outcomes = simulate(world, record_decisions=True)
    return Run(world, outcomes, rows_of(outcomes), watch)
