"""Prefixes found again: what is shared, what is evicted first, and how much of a real trace a cache finds."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from policies.api import Finished
from sim.cluster.engine_request import EngineRequest
from sim.cluster.engine_settings import EngineSettings
from sim.cluster.replica import Replica
from sim.cluster.world import simulate
from sim.engine.step_time import LinearStepTime
from sim.experiments.run import run_scenario, world_of
from sim.scenario.load import expand, parse_scenario
from workloads.catalogue import locate
from workloads.formats.read import layout_of, load
from workloads.requests import ENDLESS

DATA = Path(os.environ.get("TOKENPOOLS_DATA", "nowhere"))
STEP = LinearStepTime(base_s=1.0, per_prefill_token_s=0.01)


class Engine:
    """One replica of blocks of 4 tokens, driven by hand."""

    def __init__(self, kv_blocks: int = 1000) -> None:
        self.now_s = 0.0
        self.wake_s = float("inf")
        self.first_s: dict[EngineRequest, float] = {}
        settings = EngineSettings(
            step_time=STEP, max_num_seqs=8, max_num_batched_tokens=1000, kv_blocks=kv_blocks, block_tokens=4,
            prefix_caching=True,
        )  # fmt: skip
        self.replica: Replica[EngineRequest] = Replica(settings, listener=self, arm=self.arm)

    def arm(self, at_s: float) -> None:
        self.wake_s = at_s

    def on_first_token(self, request: EngineRequest, now_s: float) -> None:
        self.first_s[request] = now_s

    def on_finish(self, request: EngineRequest, now_s: float) -> None:
        pass

    def send(self, prompt: int, output: int, *prefix: tuple[int, int]) -> EngineRequest:
        request = EngineRequest(prompt, output)
        request.prefix = prefix
        self.replica.submit(request, self.now_s)
        return request

    def drain(self) -> None:
        while self.wake_s < float("inf"):
            self.step()

    def step(self) -> None:
        self.now_s, self.wake_s = self.wake_s, float("inf")
        self.replica.boundary(self.now_s)

    def cached(self, prompt: int, *prefix: tuple[int, int]) -> int:
        """Send a request, let it end, and return what it found."""
        request = self.send(prompt, 1, *prefix)
        self.drain()
        return request.cached_tokens


def test_a_hit_shortens_the_prefill_and_leaves_the_last_token():
    engine = Engine()
    for prompt, found in ((101, 0), (101, 100), (100, 96), (30, 28), (200, 100)):
        began_s = engine.now_s
        request = engine.send(prompt, 1, (1, prompt))
        engine.drain()
        assert request.cached_tokens == found, prompt
        assert engine.first_s[request] - began_s == pytest.approx(1 + 0.01 * (prompt - found))


def test_only_full_blocks_of_the_same_text_are_found():
    engine = Engine()
    engine.cached(40, (1, 10), (2, 40))
    assert engine.cached(40, (1, 10), (3, 40)) == 8  # the third block holds two tokens of the other's own
    assert engine.cached(60, (1, 10), (2, 40)) == 40
    assert engine.cached(60, (4, 60)) == 0


def test_an_answer_is_found_by_who_repeats_it():
    engine = Engine()
    engine.send(20, 21, (1, ENDLESS))
    engine.drain()
    assert engine.cached(60, (1, ENDLESS)) == 40  # 20 and 20 of 21: the last token was never read
    engine.send(20, 21, (2, 20))
    engine.drain()
    assert engine.cached(60, (2, ENDLESS)) == 20


def test_blocks_in_use_by_several_count_once():
    engine = Engine(kv_blocks=30)
    requests = [engine.send(81, 40, (1, 80), (10 + i, ENDLESS)) for i in range(3)]
    engine.step()
    engine.step()
    assert [r.cached_tokens for r in requests] == [0, 80, 80]
    assert engine.replica.running_count == 3
    assert engine.replica.kv.used_blocks == 20 + 3
    engine.drain()
    assert engine.replica.kv.used_blocks == 0
    assert engine.replica.preemptions > 0  # 20 + 3 * 10 blocks at the end, and there are 30


def test_the_least_recently_used_goes_first_and_tails_before_heads():
    engine = Engine(kv_blocks=30)
    for name in (1, 2):
        engine.cached(40, (name, 40))  # ten blocks each
    engine.cached(40, (1, 40))  # used again
    engine.cached(60, (3, 60))  # takes the ten that are free and empty, and five of 2, the last ones
    assert engine.cached(41, (2, 40)) == 20
    engine = Engine(kv_blocks=30)
    for name in (1, 2, 1):
        engine.cached(40, (name, 40))
    engine.cached(80, (3, 80))
    # 2 is gone. Of 1, the last block was computed again, as that of a whole number of blocks always is, in a block that
    # was empty: so one of the ten that it had is left over.
    assert engine.cached(41, (1, 40)) == 40
    assert engine.cached(41, (2, 40)) == 0


def test_a_crash_and_a_change_of_capacity_forget_everything():
    engine = Engine()
    for forget in (
        lambda: engine.replica.fail(engine.now_s),
        lambda: engine.replica.set_kv_blocks(900, engine.now_s),
    ):
        engine.cached(41, (1, 41))
        assert engine.cached(41, (1, 41)) == 40
        forget()
        engine.drain()
        assert engine.cached(41, (1, 41)) == 0


def scenario(arrivals: object, **profile: object) -> dict[str, object]:
    return {
        "version": 1,
        "pool": {
            "profile": {
                "step_time": {
                    "kind": "linear", "base_s": 0.006, "per_prefill_token_s": 2e-6, "per_decode_sequence_s": 1e-5,
                },
                "max_num_seqs": 2048, "max_num_batched_tokens": 65536, "kv_blocks": 10**8, "prefix_caching": True,
            } | profile,
            "entitlements": [{"name": "a", "service_class": "elastic", "baseline": {"slots": 1}}],
        },
        "workload": [
            {"entitlement": "a", "arrivals": arrivals}
            | ({} if arrivals["kind"] == "trace" else {"prompt_tokens": 50, "output_tokens": 70, "requests": 40})
        ],
        "policies": ["none"],
    }  # fmt: skip


SESSIONS = {"kind": "sessions", "rate_per_s": 0.5, "mean_turns": 5, "mean_think_s": 3, "system_tokens": 333}


def test_a_conversation_finds_all_that_was_said_before(tmp_path):
    run = run_scenario(parse_scenario(scenario(SESSIONS), "test"), tmp_path / "out")
    rows = pq.read_table(run.folder / "requests.parquet").to_pylist()
    assert len(rows) > 100
    prompt = {r["request_id"]: r["prompt_tokens"] for r in rows}
    for row in rows:
        chain, _, turn = row["request_id"].partition(".")
        before = prompt[chain if turn == "2" else f"{chain}.{int(turn) - 1}"] + 70 - 1 if turn else None
        if before is not None:
            assert row["cached_tokens"] == before // 16 * 16, row["request_id"]
        else:
            assert row["cached_tokens"] in (0, 320)


def test_what_was_found_is_told_to_the_core_and_costs_nobody_who_does_not_look():
    (cell,) = expand(parse_scenario(scenario(SESSIONS), "test"))
    run = simulate(world_of(cell), record_decisions=True)
    told = [event.cached_tokens for _, event, _ in run.decisions if isinstance(event, Finished)]
    assert sum(told) == run.columns.cached_tokens.sum() > 0
    (cell,) = expand(parse_scenario(scenario(SESSIONS, prefix_caching=False), "test"))
    assert simulate(world_of(cell)).columns.cached_tokens.sum() == 0


@pytest.mark.skipif(not DATA.is_dir(), reason="TOKENPOOLS_DATA does not name the public traces")
def test_an_endless_cache_finds_what_the_trace_repeats():
    name = "mooncake-fast25/conversation"
    path = locate(name, DATA)
    rows, _ = load(path, layout_of(path, None))
    seen: set[int] = set()
    repeated = 0
    for prompt, blocks in zip(rows.prompt_tokens.tolist(), rows.blocks.lists(), strict=True):
        tokens = 0
        for i, block in enumerate(blocks):
            if block not in seen:
                break
            tokens = min(512 * (i + 1), prompt)
        seen.update(blocks)
        repeated += min(tokens, prompt - 1) // 16 * 16
    (cell,) = expand(parse_scenario(scenario({"kind": "trace", "file": name}), "test"))
    found = simulate(world_of(cell)).columns.cached_tokens.sum()
    assert found == repeated
