"""Logs of servers as traces: the gateway's own, LiteLLM's spend logs, vLLM's request logs."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policies.api import Reason, ServiceClass
from policies.base import PolicyBase
from sim.experiments.demands import demands
from sim.experiments.run import run_scenario
from sim.live.loadgen.attempt import LiveAttempt
from sim.live.loadgen.completions_client import PromptKind
from sim.live.observability.logs import JsonFormatter, as_fields
from sim.live.observability.observer import NEVER_S, Ended, RequestLog
from sim.scenario.load import parse_scenario
from workloads.formats.errors import TraceError
from workloads.formats.layouts import LAYOUTS, recognised
from workloads.formats.read import layout_of, load, read_trace
from workloads.formats.rows import Rows, join_rows
from workloads.formats.write import write_trace
from workloads.trace import Columns, Trace

T0_NS = 1_795_896_000 * 10**9  # 2026-11-28 20:00:00 UTC


def rows_of(path: Path, name: str) -> Rows:
    layout = layout_of(path)
    assert layout.name == name
    return join_rows(list(read_trace(path, layout)))


def tenants(rows: Rows) -> list[str]:
    assert rows.tenant is not None
    return rows.tenant.texts()


def seconds(rows: Rows) -> list[float]:
    return rows.since_s(T0_NS).tolist()


# --------------------------------------------------------------------------------------------------------- gateway


def gateway_line(at_s: float, took_s: float, **changed: Any) -> str:
    """Return a line as the gateway's own formatter writes it."""
    import logging

    fields: dict[str, Any] = {
        "request_id": "r", "client_request_id": "", "key_name": "k", "tenant": "t", "entitlement": "chat",
        "service_class": ServiceClass.ELASTIC, "endpoint": "/v1/completions", "model": "m", "stream": True,
        "attempt": 1,
        "prompt_tokens": 100, "counted_prompt_tokens": None, "max_output_tokens": 64, "output_tokens": 50,
        "cached_tokens": 0, "arrival_s": 5.0, "forwarded_s": 5.0, "first_token_s": 5.5, "finish_s": 5.0 + took_s,
        "replica": 0, "tries": 1, "outcome": Ended.FINISHED, "reason": None, "needed": 0.0, "available": 0.0,
        "http_status": 200, "retry_after_s": None, "error": "",
    }  # fmt: skip
    log = RequestLog(**(fields | changed))
    record = logging.LogRecord("tokenpools.requests", logging.INFO, "f", 1, "finished 200", (), None)
    record.created = T0_NS / 1e9 + at_s + took_s
    record.msecs = (record.created % 1) * 1000
    record.fields = as_fields(log)
    return JsonFormatter().format(record)


REFUSED = {
    "outcome": Ended.REFUSED, "reason": Reason.CONCURRENCY, "http_status": 429, "output_tokens": 0,
    "forwarded_s": NEVER_S, "first_token_s": NEVER_S, "replica": None, "tries": 0,
}  # fmt: skip


def test_the_gateways_log_is_demand_and_refusals_are_part_of_it(tmp_path: Path) -> None:
    lines = [
        '{"time": "2026-11-28T20:00:00.000Z", "level": "info", "logger": "tokenpools.serve", "message": "up"}',
        gateway_line(1.0, 0.0, **REFUSED),
        gateway_line(2.0, 0.5, counted_prompt_tokens=90, output_tokens=20),
        "some library that prints",
        gateway_line(2.5, 0.0, endpoint="/v1/models", prompt_tokens=0, output_tokens=0),
        # It came first and ended last.
        gateway_line(0.5, 4.0, entitlement="batch", max_output_tokens=None, output_tokens=700),
        gateway_line(3.0, 0.0, attempt=2, **REFUSED),
        gateway_line(4.0, 0.0, **(REFUSED | {"http_status": 401, "entitlement": "", "tenant": ""})),
        '{"time": "2026-11-28T20:00:09.0',
    ]
    path = tmp_path / "gateway.jsonl"
    path.write_text("\n".join(lines))
    rows = rows_of(path, "gateway-log")
    assert seconds(rows) == pytest.approx([0.5, 1.0, 2.0], abs=1e-3)
    assert tenants(rows) == ["batch", "chat", "chat"]
    assert rows.prompt_tokens.tolist() == [100, 100, 90]
    assert rows.output_tokens.tolist() == [700, 20, 20]  # of the one refused: as chat's only answer
    assert rows.max_output_tokens is not None
    assert rows.max_output_tokens.tolist() == [0, 64, 64]
    assert rows.unanswered == 1
    assert rows.dropped == 2
    assert rows.clipped == 0  # a refusal is no answer of 0 tokens


def test_a_limit_cuts_what_a_refused_request_is_given(tmp_path: Path) -> None:
    path = tmp_path / "gateway.jsonl"
    path.write_text("\n".join([
        gateway_line(0.0, 1.0, output_tokens=500, max_output_tokens=512),
        gateway_line(2.0, 0.0, **(REFUSED | {"max_output_tokens": 30})),
    ]))  # fmt: skip
    assert rows_of(path, "gateway-log").output_tokens.tolist() == [500, 30]


def test_a_log_of_refusals_only_needs_a_length(tmp_path: Path) -> None:
    path = tmp_path / "gateway.jsonl"
    path.write_text("\n".join(gateway_line(float(i), 0.0, **(REFUSED | {"max_output_tokens": None})) for i in range(5)))
    with pytest.raises(TraceError, match="none of its 5 requests is answered") as found:
        rows_of(path, "gateway-log")
    assert "unanswered_output_tokens" in str(found.value)
    trace = Trace(file=str(path), unanswered_output_tokens=77)
    rows, _ = load(path, trace.layout(path))
    assert rows.output_tokens.tolist() == [77] * 5


UP = '{"time": "x", "level": "info", "logger": "tokenpools.serve", "message": "up"}'


@pytest.mark.parametrize("text", ["", "\n\n", UP])
def test_a_log_without_a_request_says_so(tmp_path: Path, text: str) -> None:
    path = tmp_path / "gateway.jsonl"
    path.write_text(text)
    with pytest.raises(TraceError, match=r"no line of it tells of a request|the file is empty"):
        rows_of(path, "gateway-log")


def test_a_constant_for_what_is_known_anyway_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("time_ns,prompt_tokens,output_tokens\n1,2,3\n")
    with pytest.raises(TraceError, match="tells the lengths of all requests"):
        Trace(file=str(path), unanswered_output_tokens=5).layout(path)


def test_logs_are_only_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only read"):
        write_trace([], tmp_path / "x.log", LAYOUTS["vllm-log"])


# --------------------------------------------------------------------------------------------------------- LiteLLM

SPEND = {
    "request_id": "a", "call_type": "acompletion", "api_key": "hash", "spend": 0.1, "total_tokens": 30,
    "prompt_tokens": 10, "completion_tokens": 20, "startTime": "2026-11-28T20:00:01.500Z",
    "endTime": "2026-11-28T20:00:04Z", "model": "openai/m", "model_group": "m", "user": "ann", "metadata": "{}",
    "cache_hit": "False", "team_id": "red", "session_id": "s1", "status": "success", "proxy_server_request": "{}",
}  # fmt: skip
FAILED = {"status": "failure", "prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def spend(**changed: Any) -> dict[str, Any]:
    return SPEND | changed


ENTRIES = [
    spend(request_id="d", startTime="2026-11-28 20:00:09+00", metadata=json.dumps({"status": "failure"}), **FAILED),
    spend(request_id="c", startTime="2026-11-28 21:00:03.25+01:00", team_id="", completion_tokens=5),
    spend(request_id="b", startTime="2026-11-28 20:00:02.123456", proxy_server_request='{"max_tokens": 40}'),
    spend(request_id="e", cache_hit="True", completion_tokens=20),
    spend(request_id="f", metadata='{"error_information": {"error_code": "401"}}', **FAILED),
    spend(),
]


def write_spend(path: Path, how: str) -> Path:
    if how == "csv":
        with path.open("w", newline="") as out:
            writer = csv.DictWriter(out, list(SPEND))
            writer.writeheader()
            writer.writerows([one | {"metadata": one["metadata"] + "\n"} for one in ENTRIES])  # a cell of two lines
    elif how == "json":
        path.write_text(json.dumps(ENTRIES, indent=1))
    else:
        with gzip.open(path, "wt") as packed:
            packed.write("\n".join(map(json.dumps, ENTRIES)))
    return path


@pytest.mark.parametrize("how", ["csv", "json", "jsonl.gz"])
def test_spend_logs_are_read_whatever_they_were_exported_as(tmp_path: Path, how: str) -> None:
    rows = rows_of(write_spend(tmp_path / f"spend.{how}", how), "litellm-spend-log")
    assert seconds(rows) == pytest.approx([1.5, 2.123456, 3.25, 9.0])
    assert tenants(rows) == ["red", "red", "ann", "red"]
    assert rows.output_tokens[:3].tolist() == [20, 20, 5]
    assert rows.output_tokens[3] == 20  # drawn from the answers to red
    assert rows.prompt_tokens.tolist() == [10, 10, 10, 10]
    assert rows.max_output_tokens is not None
    assert rows.max_output_tokens.tolist() == [0, 40, 0, 0]
    assert (rows.unanswered, rows.dropped) == (1, 2)


def test_columns_are_those_of_the_published_table() -> None:
    text = (Path(__file__).parents[2] / "workloads/formats/litellm_log.py").read_text()
    for column in ("startTime", "completion_tokens", "team_id", "proxy_server_request", "model_group", "cache_hit"):
        assert column in SPEND
        assert f'"{column}"' in text


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"startTime": "yesterday"}, "startTime is 'yesterday'"),
        ({"completion_tokens": -4}, "completion_tokens is '-4'"),
        ({"prompt_tokens": "ten"}, "prompt_tokens is 'ten'"),
    ],
)
def test_a_bad_entry_is_named(tmp_path: Path, changed: dict[str, Any], problem: str) -> None:
    path = tmp_path / "spend.json"
    path.write_text(json.dumps([spend(), spend(**changed)]))
    with pytest.raises(TraceError, match=problem) as found:
        rows_of(path, "litellm-spend-log")
    assert "row 2" in str(found.value)


# ------------------------------------------------------------------------------------------------------------ vLLM

PREFIX = "(APIServer pid=71) INFO 11-28 20:00:{:02} [request_logger.py:66] "
DEBUG = "(APIServer pid=71) DEBUG 11-28 20:00:{:02} [request_logger.py:57] "
PARAMS = "SamplingParams(n=1, temperature=0.7, stop=[], ignore_eos=False, max_tokens={}, min_tokens=0, logprobs=None)"


def vllm_lines() -> list[str]:
    return [
        "INFO 11-28 19:59:50 [__init__.py:216] Automatically detected platform cuda.",
        DEBUG.format(1) + "Request chatcmpl-1 details: prompt: 'it\\'s [1, 2]', prompt_token_ids: [5, 6, 7, 8], "
        "prompt_embeds shape: None.",
        PREFIX.format(1) + f"Received request chatcmpl-1: params: {PARAMS.format(100)}, lora_request: None.",
        PREFIX.format(2) + f"Received request cmpl-2-0: params: {PARAMS.format(9)}, lora_request: "
        "LoRARequest(lora_name='legal', lora_int_id=1, lora_path='x').",
        DEBUG.format(3) + "Generated response chatcmpl-1 (streaming complete) details: output_token_ids: [1, 2, 3]",
        PREFIX.format(3) + "Generated response chatcmpl-1 (streaming complete): output: 'a longer text than three', "
        "finish_reason: stop",
        PREFIX.format(4) + "Generated response cmpl-2: output: 'sixteen letters!', finish_reason: length",
        PREFIX.format(5) + f"Received request chatcmpl-3: params: {PARAMS.format(2)}, lora_request: None.",
        'INFO:     127.0.0.1:51234 - "POST /v1/chat/completions HTTP/1.1" 200 OK',
    ]


def test_vllms_log_tells_what_it_can(tmp_path: Path) -> None:
    path = tmp_path / "vllm.log"
    path.write_text("\n".join(vllm_lines()))
    rows = rows_of(path, "vllm-log")
    assert (rows.time_ns - rows.time_ns[0]).tolist() == [0, 10**9, 4 * 10**9]
    assert tenants(rows) == ["", "legal", ""]
    assert rows.prompt_tokens.tolist() == [4, 4, 4]  # the second and third: as the only one that was counted
    assert rows.output_tokens.tolist() == [3, 4, 2]  # ids; 16 letters; nobody answered, drawn and cut at its limit
    assert rows.max_output_tokens is not None
    assert rows.max_output_tokens.tolist() == [100, 9, 2]
    assert rows.unanswered == 2
    assert not rows.dated


def test_without_prompts_vllms_log_needs_a_length(tmp_path: Path) -> None:
    path = tmp_path / "vllm.log"
    path.write_text("\n".join(line for line in vllm_lines() if "details: prompt" not in line))
    with pytest.raises(TraceError, match="none of its 3 requests is of a counted prompt"):
        rows_of(path, "vllm-log")
    trace = Trace(file=str(path), unanswered_prompt_tokens=50)
    rows, _ = load(path, trace.layout(path))
    assert rows.prompt_tokens.tolist() == [50, 50, 50]


def test_a_year_ends_and_a_clock_goes_back_over_a_months_end(tmp_path: Path) -> None:
    def line(number: int, stamp: str) -> str:
        return (
            f"INFO {stamp} [request_logger.py:66] Received request c-{number}: prompt: 'abcd', "
            f"params: {PARAMS.format(3)}, prompt_token_ids: [1, 2], lora_request: None.\n"
            f"INFO {stamp} [request_logger.py:66] Generated response c-{number}: output: 'abc', finish_reason: stop"
        )

    path = tmp_path / "vllm.log"
    path.write_text("\n".join(line(i, at) for i, at in enumerate(
        ("12-31 23:59:59", "01-01 00:00:01", "03-01 00:00:01", "02-29 23:59:58", "03-01 00:00:03")
    )))  # fmt: skip
    rows = rows_of(path, "vllm-log")
    gaps_s = np.diff(rows.time_ns) // 10**9
    assert gaps_s.tolist() == [2, 59 * 86_400 + 23 * 3600 + 59 * 60 + 57, 3, 2]  # the clock's own order


def test_the_same_log_is_the_same_demand(tmp_path: Path) -> None:
    path = tmp_path / "gateway.jsonl"
    rng = np.random.default_rng(1)
    answered_tokens = rng.integers(1, 60, 300).tolist()
    path.write_text("\n".join(
        gateway_line(float(i), 0.0, **REFUSED) if i % 3 else gateway_line(float(i), 0.1, output_tokens=tokens)
        for i, tokens in enumerate(answered_tokens)
    ))  # fmt: skip
    first, second = (join_rows(list(read_trace(path, LAYOUTS["gateway-log"]))) for _ in range(2))
    assert first.output_tokens.tolist() == second.output_tokens.tolist()
    drawn = first.output_tokens[first.filled]
    answered = first.output_tokens[~first.filled]  # type: ignore[operator]
    assert set(drawn.tolist()) <= set(answered.tolist())
    assert abs(drawn.mean() - answered.mean()) < 4 * answered.std() / np.sqrt(len(answered))


# -------------------------------------------------------------------------------------------- times without a zone


def test_dates_are_recognised_in_a_table_that_names_no_unit(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("at,in,out\n2026-11-28T20:00:01Z,5,6\n2026-11-28T20:00:02.5Z,5,6\n")
    layout = Columns(time="at", prompt="in", output="out").layout("csv")
    rows = join_rows(list(read_trace(path, layout)))
    assert seconds(rows) == [1.0, 2.5]
    assert rows.dated
    path.write_text("at,in,out\n2026-11-28 20:00:01,5,6\n2026-11-28T20:00:02+02,5,6\n")
    with pytest.raises(TraceError, match="time zone"):
        list(read_trace(path, layout))


def test_openai_answers_may_be_dated(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    path.write_text(json.dumps({
        "request": {"max_tokens": 9}, "response": {"usage": {"prompt_tokens": 3, "completion_tokens": 4}},
        "timestamp": "2026-11-28T20:00:01.25+00:00",
    }))  # fmt: skip
    rows = rows_of(path, "openai-log")
    assert seconds(rows) == [1.25]


def test_the_limit_of_a_log_is_what_policies_see_and_replay_sends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gateway.jsonl"
    path.write_text("\n".join(gateway_line(float(i), 0.1, max_output_tokens=640, output_tokens=5) for i in range(4)))
    asked = parse_scenario({
        "version": 1, "horizon_s": 20,
        "pool": {"profile": "h100-llama-3.1-8b", "entitlements": [{"name": "chat", "service_class": "spot"}]},
        "workload": [{"entitlement": "chat", "arrivals": {"kind": "trace", "file": str(path)}}],
        "policies": ["none"],
    }, "test")  # fmt: skip
    (demand,) = demands(asked, 0)
    assert demand.max_output_tokens.tolist() == [640] * 4
    assert demand.output_tokens.tolist() == [5] * 4
    seen: list[int | None] = []

    real = PolicyBase.decide

    def decide(self: PolicyBase, request: Any, *more: Any, **named: Any) -> Any:
        seen.append(request.max_output_tokens)
        return real(self, request, *more, **named)

    monkeypatch.setattr(PolicyBase, "decide", decide)
    run_scenario(asked)
    assert seen == [640] * 4
    attempt = LiveAttempt("r", 1, 0, 0, 0.0, 0.0, 100, 5, int(demand.max_output_tokens[0]))
    sent = json.loads(PromptKind(model="m").body(attempt))
    assert (sent["max_tokens"], sent["min_tokens"]) == (640, 4)


# ----------------------------------------------------------------------------------------------------------- Envoy


def envoy(at: str, code: int, **more: Any) -> str:
    return json.dumps({"start_time": f"2026-11-28T20:00:{at}Z", "response_code": code, **more})


def test_envoys_access_log_is_read_by_its_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_text("\n".join([
        envoy("01.000", 200, tenant="red", model="m", input_tokens=10, output_tokens=20, max_tokens=40),
        "[2026-11-28 20:00:01.500][12][warning] something of Envoy's own",
        envoy("03.000", 429, tenant="red", model="m", input_tokens="-", output_tokens="-"),
        envoy("02.500", 200, tenant="blue", genai_tokens_input="7", genai_tokens_output=3, genai_model_name="n"),
        envoy("04.000", 200, path="/v1/models"),
        envoy("05.000", 401, tenant="red"),
        envoy("06.000", 0, tenant="blue", input_tokens=9),
        '{"torn": ',
    ]))  # fmt: skip
    with path.open() as lines:
        layout = recognised(lines.readline())
    assert layout is not None
    assert layout.name == "envoy-access-log"
    rows = rows_of(path, "envoy-access-log")
    assert tenants(rows) == ["red", "blue", "red", "blue"]
    assert rows.prompt_tokens.tolist() == [10, 7, 10, 9]  # the refused one's as others of red
    assert rows.output_tokens.tolist() == [20, 3, 20, 3]
    assert (rows.unanswered, rows.dropped) == (2, 2)


def test_a_bad_count_in_envoys_log_is_named(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_text(envoy("01", 200, input_tokens=-1, output_tokens=2))
    with pytest.raises(TraceError, match="input_tokens is '-1'"):
        rows_of(path, "envoy-access-log")
