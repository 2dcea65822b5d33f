"""`tokenpools replay` against a server that misbehaves on request, over real sockets."""

from __future__ import annotations

import asyncio
import json
import math
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from live.gate import gateway, secret
from live.stand_in import Behaviour, StandIn, running
from typer.testing import CliRunner

from sim.analysis.compare import compare
from sim.analysis.study import Study
from sim.cli import app
from sim.errors import InputError, RunError
from sim.experiments.run import run_scenario
from sim.live.loadgen.api_keys import load_keys
from sim.live.loadgen.attempt import LiveAttempt
from sim.live.loadgen.completions_client import Completions, PromptKind
from sim.live.loadgen.event_hooks import Command, LiveEvent, SlotsFile, apply, environment
from sim.live.loadgen.replay import MOST_LAG_S, Target, in_front, live_events, replay_live, send_lag
from sim.live.replicas.engine_metrics import is_v0, read_gauges
from sim.records.schema import Outcome
from sim.scenario.load import Scenario, parse_scenario

MAPPING: dict[str, Any] = {
    "version": 1, "seed": 5, "horizon_s": 2.0, "timeline_interval_s": 0.25,
    "pool": {
        "profile": "dgx-spark-qwen3-8b-nvfp4",
        "entitlements": [
            {"name": "chat", "service_class": "guaranteed", "ttft_slo_s": 1, "baseline": {"slots": 4}},
            {"name": "batch-1", "service_class": "spot"},
        ],
    },
    "workload": [
        {"entitlement": "chat", "arrivals": {"kind": "poisson", "rate_per_s": 20}, "prompt_tokens": 12,
         "output_tokens": 5, "until_s": 1.5},
        {"entitlement": "batch-1", "arrivals": {"kind": "even", "rate_per_s": 10}, "prompt_tokens": 30,
         "output_tokens": 8, "until_s": 1.5},
    ],
    "policies": ["none"],
}  # fmt: skip


def scenario(**changes: Any) -> Scenario:
    return parse_scenario({**MAPPING, **changes}, "here")


def target(server: StandIn, **given: Any) -> Target:
    return Target(base_url=server.base_url, prompts=PromptKind(model="tiny"), keys={}, **given)


def asked(behaviour: Behaviour, **given: Any) -> LiveAttempt:
    """Send one attempt to a server that behaves like this."""
    attempt = LiveAttempt("chat-0", 1, 0, 0, 0.0, 0.0, 7, 5, 5)

    async def go(server: StandIn) -> None:
        async with Completions(server.base_url, origin_s=asyncio.get_running_loop().time(), **given) as completions:
            await completions.ask(attempt, PromptKind(model="tiny").body(attempt), "secret")

    with running(behaviour=behaviour) as server:
        asyncio.run(go(server))
        assert server.seen[0].headers["authorization"] == "Bearer secret"
        assert server.seen[0].headers["x-request-id"] == "chat-0#1"
    return attempt


def test_a_stream_is_followed_to_its_end() -> None:
    attempt = asked(Behaviour(ttft_s=0.05, gap_s=0.02))
    assert (attempt.outcome, attempt.http_status, attempt.delivered_tokens) == (Outcome.FINISHED, 200, 5)
    assert 0.05 <= attempt.first_token_s < attempt.finish_s
    assert attempt.finish_s - attempt.first_token_s >= 4 * 0.02
    assert 0 <= attempt.lag_s < 5
    assert attempt.connect_s > 0


def test_tokens_are_counted_by_the_usage_where_an_event_holds_several() -> None:
    assert asked(Behaviour(chunk_tokens=2)).delivered_tokens == 5
    assert asked(Behaviour(chunk_tokens=2, no_usage=True)).delivered_tokens == 3  # nothing better is known


@pytest.mark.parametrize(
    ("behaviour", "outcome", "status", "delivered"),
    [
        (Behaviour(status=429, retry_after="3"), Outcome.REFUSED, 429, 0),
        (Behaviour(status=503), Outcome.REFUSED, 503, 0),
        (Behaviour(status=500), Outcome.FAILED, 500, 0),
        (Behaviour(die="before"), Outcome.FAILED, 0, 0),
        (Behaviour(die="headers"), Outcome.FAILED, 200, 0),
        (Behaviour(die="2"), Outcome.FAILED, 200, 2),
        (Behaviour(half_line=2), Outcome.FAILED, None, 2),
        (Behaviour(no_done=True), Outcome.FAILED, 502, 5),
        (Behaviour(error_after=0), Outcome.REFUSED, 503, 0),  # status 200, and then: no
        (Behaviour(error_after=2), Outcome.FAILED, 503, 2),
        (Behaviour(garbage="http"), Outcome.FAILED, 0, 0),
    ],
)
def test_every_way_to_end_has_its_name(
    behaviour: Behaviour, outcome: Outcome, status: int | None, delivered: int
) -> None:
    attempt = asked(behaviour)
    assert (attempt.outcome, attempt.delivered_tokens) == (outcome, delivered)
    assert status is None or attempt.http_status == status
    assert attempt.finish_s > 0
    assert math.isnan(attempt.retry_after_s) == (behaviour.retry_after is None)
    assert math.isnan(attempt.forwarded_s) == (outcome is Outcome.REFUSED or status == 500 or status == 0)


def test_a_server_that_says_nothing_has_failed() -> None:
    attempt = asked(Behaviour(silent_after=1), timeout_s=0.2)
    assert (attempt.outcome, attempt.delivered_tokens) == (Outcome.FAILED, 1)
    assert attempt.finish_s < 5


def test_a_run_has_the_records_of_a_simulated_one(tmp_path: Path) -> None:
    out = tmp_path / "live"
    file = tmp_path / "scenario.yaml"
    file.write_text(yaml.safe_dump(MAPPING))
    with running(behaviour=Behaviour(ttft_s=0.02, gap_s=0.01)) as server:
        done = CliRunner().invoke(app, ["replay", str(file), "--base-url", server.base_url, "--out", str(out)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    assert "requests sent, late by" in done.output
    simulated = run_scenario(scenario(), tmp_path / "simulated")
    live = pd.read_parquet(out / "requests.parquet")
    made = simulated.requests.to_pandas()
    assert list(live.columns) == list(made.columns)
    for column in ("request_id", "entitlement", "prompt_tokens", "max_output_tokens", "arrival_s"):
        assert list(live[column]) == list(made[column])
    assert set(live.outcome) == {"finished"}
    assert list(live.output_tokens) == list(live.max_output_tokens)
    assert live.first_token_s.gt(live.arrival_s + 0.019).all()
    timeline = pd.read_parquet(out / "timeline.parquet")
    pool = timeline[timeline.scope == "pool"]
    assert set(pool.metric) >= {"running", "waiting", "kv_used_fraction", "in_flight", "capacity_slots", "tokens_per_s"}
    assert pool[pool.metric == "running"].value.max() > 0
    manifest = json.loads((out / "manifest.json").read_text())
    (cell,) = manifest["cells"]
    assert manifest["kind"] == "live"
    assert cell["send_lag"]["sent"] == len(live)
    assert manifest["valid"] == (cell["send_lag"]["p99_s"] <= MOST_LAG_S)
    assert done.exit_code == (0 if manifest["valid"] else 1)
    assert cell["wrong_lengths"] == 0
    for command in (["explain", str(out), "chat-0"], ["metrics", str(out), "--alone"]):
        with pytest.raises(InputError, match="a simulation does not repeat"):
            CliRunner().invoke(app, command, catch_exceptions=False)
    for command in (["plot", str(out)], ["report", str(out)], ["compare", str(tmp_path / "simulated"), str(out)]):
        assert CliRunner().invoke(app, command).exit_code == 0
    page = (out / "report.html").read_text()
    assert "<dt>measured</dt>" in page
    assert "tokenpools replay live.yaml --base-url URL --out again" in page
    assert not compare(Study(tmp_path / "simulated"), Study(out)).paired


def test_a_generator_that_is_late_says_so_and_the_run_is_not_valid(tmp_path: Path) -> None:
    def busy(self: PromptKind, attempt: LiveAttempt) -> bytes:
        time.sleep(0.05)
        return made(self, attempt)

    made = PromptKind.body
    file = tmp_path / "scenario.yaml"
    file.write_text(yaml.safe_dump(MAPPING))
    with running() as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(PromptKind, "body", busy)
        command = ["replay", str(file), "--base-url", server.base_url, "--out", str(tmp_path / "out")]
        done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "not valid: P99 above 5 ms" in done.output
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["valid"] is False


def test_lag_counts_every_send_but_no_connecting() -> None:
    attempts = [LiveAttempt("a", 1, 0, 0, 0.0, 0.0, 1, 1, 1, lag_s=lag_s) for lag_s in (0.001, 0.001, 0.02, math.nan)]
    lag = send_lag(attempts)
    assert (lag["sent"], lag["p50_s"], lag["max_s"]) == (3, 0.001, 0.02)
    assert lag["p99_s"] > MOST_LAG_S
    assert math.isnan(send_lag([])["p99_s"])


def test_a_key_that_the_server_does_not_know_ends_the_run() -> None:
    with running(api_key="right") as server:
        with pytest.raises(InputError, match="TOKENPOOLS_KEY"):
            replay_live(scenario(), target(server))
        assert len(server.seen) < 10


def test_events_need_somebody_who_makes_them_happen(tmp_path: Path) -> None:
    changed = scenario(events=[{"at_s": 0.5, "capacity": {"slots": 8}}, {"at_s": 1.0, "capacity": "full"}])
    assert [(e.at_s, e.kind, e.slots) for e in live_events(changed)] == [(0.5, "capacity", 8), (1.0, "capacity", 16)]
    with running() as server:
        with pytest.raises(InputError, match="--slots-file"):
            replay_live(changed, target(server))
        slots = tmp_path / "slots"
        run = replay_live(changed, target(server, hooks=[SlotsFile(slots)]))
    assert slots.read_text() == "16\n"
    pool = run.timeline.to_pandas().query("metric == 'capacity_slots'").set_index("t_s").value
    assert len(pool) > 2  # a busy machine may miss some
    assert all(value == (8 if 0.5 <= at_s < 1.0 else 16) for at_s, value in pool.items())


def test_a_command_hears_of_events_in_its_environment(tmp_path: Path) -> None:
    out = tmp_path / "said"
    command = Command(["sh", "-c", f'echo "$TOKENPOOLS_EVENT $TOKENPOOLS_SLOTS $TOKENPOOLS_REPLICA" >> {out}'])
    events = [LiveEvent(at_s=0.02, kind="fail", replica=1), LiveEvent(at_s=0.0, kind="capacity", slots=8)]

    async def go() -> None:
        await apply(events, [command], asyncio.get_running_loop().time())

    asyncio.run(go())
    assert out.read_text() == "capacity 8 0\nfail 0 1\n"
    with pytest.raises(RunError, match="ended with status 3"):
        asyncio.run(Command(["sh", "-c", "exit 3"]).happen(events[0]))
    with pytest.raises(RunError, match="cannot be run"):
        asyncio.run(Command([str(tmp_path / "nothing")]).happen(events[0]))
    assert environment(LiveEvent(at_s=0, kind="slow", factor=3.0))["TOKENPOOLS_FACTOR"] == "3"


def test_keys_come_from_a_file_or_the_environment_and_stay_out_of_errors(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text("{chat: sk-1}")
    around = {"TOKENPOOLS_KEY_BATCH_1": "sk-2", "TOKENPOOLS_KEY_CHAT": "sk-3"}
    assert load_keys(file, ["chat", "batch-1"], around) == {"chat": "sk-1", "batch-1": "sk-2"}
    assert load_keys(None, ["chat", "other"], {**around, "OPENAI_API_KEY": "sk-4"}) == {"chat": "sk-3", "other": "sk-4"}
    assert load_keys(None, ["chat"], {}) == {}
    file.write_text("{chta: sk-1}")
    with pytest.raises(InputError, match="did you mean chat"):
        load_keys(file, ["chat"], {})
    for text in ("sk-secret", "{chat: [sk-secret]}", "{sk-secret: "):
        file.write_text(text)
        with pytest.raises(InputError) as caught:
            load_keys(file, ["chat"], {})
        assert "sk-secret" not in str(caught.value)


def test_vllms_metrics_are_summed_over_its_engines() -> None:
    page = (
        "# HELP vllm:num_requests_running x\n"
        'vllm:num_requests_running{engine="0",model_name="m"} 3.0\n'
        'vllm:num_requests_running{engine="1",model_name="m"} 4.0\n'
        'vllm:num_requests_waiting_by_reason{engine="0"} 9.0\n'
        'vllm:kv_cache_usage_perc{engine="0",model_name="a b"} 0.5\n'
    )
    assert read_gauges(page) == (7.0, 0.0, 0.5)
    assert read_gauges("another_metric 3\n") is None
    assert not is_v0(page)
    assert is_v0(page + 'vllm:num_requests_swapped{model_name="m"} 0.0\n')


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["paper-exp1"], "name with --policy"),
        (["paper-exp2"], "--slots-file"),
        (["paper-exp1", "--policy", "none", "--token-ids", "9:3"], "no range of token ids"),
        (["paper-exp1", "--policy", "none", "--replications", "2"], "one replication"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(tmp_path: Path, arguments: list[str], says: str) -> None:
    with running() as server:
        command = ["replay", *arguments, "--base-url", server.base_url, "--out", str(tmp_path / "out")]
        done = CliRunner().invoke(app, command)
        assert done.exit_code != 0
        assert says in done.output + str(done.exception)
        assert not [seen for seen in server.seen if seen.method == "POST"]


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    nowhere = ["--base-url", "http://127.0.0.1:9", "--out", str(tmp_path / "x")]
    command = ["replay", "paper-exp1", "--policy", "none", *nowhere]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, InputError)
    assert "http://127.0.0.1:9/v1/models: does not answer" in str(done.exception)


@pytest.mark.parametrize(
    ("of_scenario", "of_gateway", "recorded"),
    [
        (["token-pool"], "none", "none"),  # who watches first runs none in front of the scenario that was advised
        (["token-pool", "none"], "none", "none"),  # and need not say which of several it is
        ([{"name": "mine", "kind": "token-pool"}], "mine", "mine"),
        (["token-pool"], "theirs", "token-pool"),  # a label of the gateway's own says nothing of its settings
        (["token-pool"], "os:system", "token-pool"),
        (["token-pool"], None, "token-pool"),
    ],
)
def test_records_say_the_policy_that_a_gateway_says_it_acts_by(
    of_scenario: list[Any], of_gateway: str | None, recorded: str
) -> None:
    found = in_front(scenario(policies=of_scenario), of_gateway)
    assert [one.name for one in found.policies] == [recorded]


def test_a_replay_before_a_gateway_that_only_watches_is_recorded_as_that(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**MAPPING, "policies": ["token-pool"], "horizon_s": 0.5}))
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump({name: secret("chat") for name in ("chat", "batch-1")}))
    with running() as server, gateway(server, admin={"port": 0}) as gate:
        pages = f"http://127.0.0.1:{gate.observability.port}"
        done = CliRunner().invoke(app, [
            "replay", str(tmp_path / "s.yaml"), "--base-url", gate.base_url, "--admin-url", pages, "--keys",
            str(tmp_path / "keys.yaml"), "--out", str(tmp_path / "out"),
        ])  # fmt: skip
    assert "the gateway acts by none, the scenario names token-pool; the records say none" in done.output
    assert set(pd.read_parquet(tmp_path / "out" / "requests.parquet").policy) == {"none"}
