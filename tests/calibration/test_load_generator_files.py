"""Files that load generators themselves wrote, with what a load test meets: refusals, cuts, hits, several runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from sim.calibration.measured import read_run
from sim.calibration.validate import validate_profile
from sim.cli import app
from sim.errors import InputError
from sim.experiments.run import run_scenario
from sim.scenario.load import parse_scenario
from sim.scenario.profile import Profile, parse_profile

WRITTEN = Path(__file__).parent / "run_files"


def test_what_the_server_turned_away_was_no_load() -> None:
    file = WRITTEN / "vllm-bench-0.33.0-refused.json"
    run, written = read_run(file), json.loads(file.read_text())
    assert written["errors"].count("Bad Request") == 5
    assert len(run.requests) == run.ended.sum() == 11
    # The client counts some 3,000 tokens of a prompt that the server never counted.
    assert run.requests.prompt_tokens.max() < 900
    assert "5 of 16 requests were turned away (Bad Request): no load, left out" in run.notes


@pytest.mark.parametrize(
    ("error", "rows"), [("Service Unavailable", 11), ("Traceback (most recent call last):\n  x\nTimeoutError", 12)]
)
def test_a_request_that_ran_into_a_timeout_was_load(error: str, rows: int, tmp_path: Path) -> None:
    written = json.loads((WRITTEN / "vllm-bench-0.33.0-refused.json").read_text())
    written["errors"][0] = error
    run = read_run(saved(tmp_path / "run.json", written))
    assert (len(run.requests), run.ended.sum()) == (rows, 11)


def saved(file: Path, written: Any) -> Path:
    file.write_text(json.dumps(written))
    return file


def test_what_was_cancelled_is_load_until_then() -> None:
    file = WRITTEN / "aiperf-0.13.0-cancelled.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    cut = np.array([row["metadata"]["was_cancelled"] for row in rows])
    run = read_run(file)
    assert run.ended.tolist() == (~cut).tolist()
    assert cut.sum() == 3
    # aiperf knows a prompt that it gave up by its own tokenizer alone, which makes 3.5 tokens of the server's one.
    of_client = np.array([row["metrics"]["error_isl"]["value"] for row in rows if row["metadata"]["was_cancelled"]])
    done = [row["metrics"] for row in rows if not row["metadata"]["was_cancelled"]]
    names = ("usage_prompt_tokens", "input_sequence_length")
    of_server, counted = (sum(each[name]["value"] for each in done) for name in names)
    ratio = of_server / counted
    assert ratio < 0.5
    assert run.requests.prompt_tokens[cut] == pytest.approx(of_client * ratio, abs=0.51)
    # After 0.8 s others have some 12 of their 40 tokens.
    assert ((run.requests.output_tokens[cut] >= 5) & (run.requests.output_tokens[cut] <= 20)).all()
    assert any("get the output that others have until then" in note for note in run.notes)


def test_what_prompts_found_in_the_cache_is_read() -> None:
    file = WRITTEN / "aiperf-0.13.0-turns.jsonl"
    rows = [json.loads(line)["metrics"] for line in file.read_text().splitlines()]
    hits = [row["usage_prompt_cache_read_tokens"]["value"] for row in rows]
    assert sum(hits) == 512
    run = read_run(file)
    assert run.requests.cached_tokens is not None
    assert sorted(run.requests.cached_tokens.tolist()) == sorted(hits)


def guidellm(change: Callable[[Any], None]) -> Any:
    written = json.loads((WRITTEN / "guidellm-0.8.1.json").read_text())
    change(written["benchmarks"][0])
    return written


def test_guidellm_hits_yaml_and_requests_that_were_never_sent(tmp_path: Path) -> None:
    def change(benchmark: Any) -> None:
        for each in benchmark["requests"]["successful"]:
            each["cached_tokens"] = 16
        unsent = {"prompt_tokens": None, "output_tokens": None, "request_start_time": None, "info": {}}
        benchmark["requests"]["incomplete"] = [unsent]

    written = guidellm(change)
    run = read_run(saved(tmp_path / "run.json", written))
    assert run.requests.cached_tokens is not None
    assert run.requests.cached_tokens.tolist() == [16] * 5
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(written))
    again = read_run(tmp_path / "run.yaml")
    assert again.latencies.first_token_s.tolist() == run.latencies.first_token_s.tolist()


def test_a_sample_of_requests_is_no_run(tmp_path: Path) -> None:
    def change(benchmark: Any) -> None:
        benchmark["metrics"] = {"request_totals": {"successful": 9, "total": 9}}

    with pytest.raises(InputError, match=r"holds 5 of 9 requests, and all of them were load; .* without sample_size"):
        read_run(saved(tmp_path / "run.json", guidellm(change)))


AIPERF = (WRITTEN / "aiperf-0.13.0.jsonl").read_text()
BENCH = (WRITTEN / "vllm-bench-0.32.0.json").read_text().strip()


def unstreamed() -> str:
    rows = [json.loads(line) for line in AIPERF.splitlines()]
    for row in rows:
        row["metrics"].pop("time_to_first_token")
    return "\n".join(map(json.dumps, rows))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("appended.json", f"{BENCH}\n{BENCH}\n", r"holds 2 results, each a run of its own; .* without --append-result"),
        ("profile_export_raw.jsonl", json.dumps({"metadata": {"request_start_ns": 5}, "responses": []}),
         r"raw export\); give profile_export\.jsonl"),
        ("profile_export_aiperf.json", '{"aiperf_version": "0.13.0", "request_throughput": {}}', "is aiperf's summary"),
        ("profile_export_aiperf.csv", "Metric,avg,min,max\nx,1,2,3\n", r"is aiperf's CSV.*give profile_export\.jsonl"),
        ("benchmarks.csv", "Run Info,Run Info\n1,2\n", r"is GuideLLM's CSV.*give its JSON"),
        ("whole.jsonl", unstreamed(), r"answers were not streamed; measure with streaming"),
        ("cut.jsonl", AIPERF[:-100], r"line 6 is no JSON: .*; leave the line out: the run was cut off"),
        ("twice.jsonl", '{"arrival_s": 0, "arrival_s": 1}', "'arrival_s' appears twice"),
        ("otlp.json", '{"resourceSpans": [{"scopeSpans": [{"spans": [{"attributes": [{"key": "gen_ai.latency.e2e", '
                      '"value": {}}]}]}]}]}', "holds no span of a request"),
    ],
)  # fmt: skip
def test_what_is_no_run_is_named(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_run(tmp_path / name)


def test_a_result_folder_stands_for_its_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a folder, without requests\.parquet, requests\.jsonl or profile_export"):
        read_run(tmp_path)
    (tmp_path / "profile_export.jsonl").write_text(AIPERF)
    run = read_run(tmp_path)
    assert (run.name, len(run.requests)) == (tmp_path.name, 4)
    assert "2 requests of the warm-up are left out" in run.notes


# ---------------------------------------------------------------------------------------------------------- our records

PROFILE = {
    "step_time": {"kind": "linear", "base_s": 0.02, "per_prefill_token_s": 1e-4}, "max_num_seqs": 4,
    "max_num_batched_tokens": 512, "kv_blocks": 1000,
}  # fmt: skip


def result(folder: Path, **changes: Any) -> Path:
    """Return the folder of a run of 12 s at some 3 requests a second."""
    tree = {
        "version": 1, "seed": 3, "horizon_s": 12, "policies": ["none"],
        "pool": {"profile": PROFILE, "oversubscribed": True, "replicas": changes.pop("replicas", 1),
                 "entitlements": [{"name": "a", "service_class": "spot"}]},
        "workload": [{"entitlement": "a", "arrivals": {"kind": "poisson", "rate_per_s": 3}, "prompt_tokens": 100,
                      "output_tokens": 20}],
    } | changes  # fmt: skip
    run_scenario(parse_scenario(tree, "r.yaml"), folder)
    return folder


def profile() -> Profile:
    return parse_profile(PROFILE, "profile")


def test_several_runs_of_a_result_are_not_one_load(tmp_path: Path) -> None:
    folder = result(tmp_path / "two", policies=["none", {"kind": "rate-limit", "requests_per_min": 3000}])
    with pytest.raises(InputError, match=r"holds 2 runs \(policies none, rate-limit; 1 replications\)"):
        read_run(folder)


def test_refused_requests_of_a_result_were_no_load(tmp_path: Path) -> None:
    run = read_run(result(tmp_path / "r", policies=[{"kind": "rate-limit", "requests_per_min": 30}]))
    assert any("never reached a replica (refused, or held): no load, left out" in note for note in run.notes)
    table = pd.read_parquet(tmp_path / "r" / "requests.parquet")
    assert len(run.requests) == (table.outcome != "refused").sum() < len(table) - 9
    assert validate_profile(profile(), run)[0].error.abs().max() < 0.02


def test_two_replicas_of_a_result_are_not_simulated_as_one(tmp_path: Path) -> None:
    run = read_run(result(tmp_path / "r", replicas=2))
    with pytest.raises(InputError, match=r"was served by 2 replicas, and one is simulated; give the --scenario"):
        validate_profile(profile(), run)


def test_what_a_result_says_was_cut_off_did_not_end(tmp_path: Path) -> None:
    file = result(tmp_path / "r") / "requests.parquet"
    table = pd.read_parquet(file)
    table["outcome"] = table.outcome.astype(str).where(table.index != 5, "cancelled")
    table.to_parquet(tmp_path / "cut.parquet")
    run = read_run(tmp_path / "cut.parquet")
    assert not run.ended[5]
    assert run.ended[:5].all()


def test_a_gateways_wait_is_no_part_of_an_engines_latency(tmp_path: Path) -> None:
    file = result(tmp_path / "r") / "requests.parquet"
    table = pd.read_parquet(file)
    table.assign(arrival_s=table.arrival_s - 3.0).to_parquet(tmp_path / "held.parquet")
    run = read_run(tmp_path / "held.parquet")
    assert any("held requests for up to 3 s" in note for note in run.notes)
    assert validate_profile(profile(), run)[0].error.abs().max() < 0.02
    through = read_run(tmp_path / "held.parquet", behind_gateway=True)
    first_s = through.latencies.first_token_s - through.requests.arrival_s
    assert np.nanmin(first_s) > 3.0


def test_runs_of_llmservingsim_that_were_joined_are_refused(tmp_path: Path) -> None:
    def rows(begin_s: float) -> list[dict[str, float | None]]:
        return [
            {"input_toks": 100, "output_toks": 11, "arrival_time": 0.5 * i, "queued_ts": begin_s + 0.5 * i,
             "first_token_ts": begin_s + 0.5 * i + 0.2, "last_token_ts": begin_s + 0.5 * i + 0.7}
            for i in range(40)
        ]  # fmt: skip

    file, one = tmp_path / "requests.jsonl", rows(5e4)
    one[3] |= {"queued_ts": None, "first_token_ts": None, "last_token_ts": None}
    file.write_text("\n".join(map(json.dumps, one)))
    assert read_run(tmp_path).ended.sum() == 39
    file.write_text("\n".join(map(json.dumps, rows(5e4) + rows(5.03e4))))
    with pytest.raises(InputError, match=r"came to the queue 300 s before one that had arrived earlier"):
        read_run(tmp_path)


def test_columns_that_are_nearly_ones_that_are_read_are_said(tmp_path: Path) -> None:
    table = pd.DataFrame({
        "arrival_s": [0.0, 1.0], "prompt_tokens": [99, 99], "output_tokens": [9, 9], "first_token_s": [0.1, 1.1],
        "finish_s": [0.3, 1.3], "cache_tokens": [16, 16],
    })  # fmt: skip
    table.to_csv(tmp_path / "run.csv", index=False)
    said = CliRunner().invoke(app, ["validate-profile", "h100-llama-3.1-8b", str(tmp_path / "run.csv")]).output
    assert "column cache_tokens is not read; did you mean cached_tokens?" in said


def test_traces_that_vllm_made_know_the_arrival_and_the_queue() -> None:
    file = WRITTEN / "vllm-0.32.0-traces.jsonl"
    run, queued = read_run(file), read_run(file, ttft_from="queue")
    # What vLLM was told: 4 ms and one more a request to the queue, 10 more a request in it, 50 of prefill, 20 a token,
    # and 2 ms until its answer is looked at.
    i = np.arange(8)
    assert run.requests.prompt_tokens.tolist() == (100 + i).tolist()
    assert run.requests.output_tokens.tolist() == (10 + i).tolist()
    assert run.latencies.first_token_s - run.requests.arrival_s == pytest.approx(0.056 + 0.011 * i, abs=1e-6)
    assert run.latencies.finish_s - run.latencies.first_token_s == pytest.approx(0.02 * (9 + i), abs=1e-6)
    assert queued.latencies.first_token_s - queued.requests.arrival_s == pytest.approx(0.05 + 0.01 * i, abs=1e-6)


def test_a_span_that_was_sent_twice_counts_once_and_two_engines_are_said(tmp_path: Path) -> None:
    lines = (WRITTEN / "vllm-0.32.0-traces.jsonl").read_text().splitlines()
    other = lines[1].replace("4e72ebec", "00000000")  # of service.instance.id
    (tmp_path / "run.jsonl").write_text("\n".join([lines[0], other, other]))
    run = read_run(tmp_path / "run.jsonl")
    assert len(run.requests) == 8
    assert "3 spans stand there twice, and count once" in run.notes
    assert any(note.startswith("spans of 2 processes or machines, simulated as one engine") for note in run.notes)
