"""Files of measured runs: every program's own form gives the same run, and a damaged one is named in a line."""

from __future__ import annotations

import json
import math
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sim.calibration.from_records import calibrate_records, terms_for
from sim.calibration.measured import MeasuredRun, errors, read_run
from sim.calibration.noise import RUNS, averaged, perturbed, verdict
from sim.calibration.on_scenario import validate_scenario
from sim.calibration.single_replica import Requests, replay
from sim.calibration.validate import judge, validate_profile
from sim.engine.links import Links
from sim.engine.step_fitted import FittedStepTime
from sim.engine.step_time import LinearStepTime
from sim.errors import InputError
from sim.scenario.load import parse_scenario
from sim.scenario.profile import Profile

RUN = [(0.0, 100, 11, 0.30, 0.80), (0.5, 200, 21, 0.90, 1.90), (2.0, 50, 5, 2.10, 2.30)]
"""Arrival, prompt and output tokens, first and last token."""
EPOCH_S = 1.7e9


def bench(**changes: Any) -> Any:
    found = {
        "input_lens": [r[1] for r in RUN], "output_lens": [r[2] for r in RUN],
        "ttfts": [r[3] - r[0] for r in RUN], "itls": [[(r[4] - r[3]) / (r[2] - 1)] * (r[2] - 1) for r in RUN],
        "errors": [""] * 3, "start_times": [EPOCH_S + r[0] for r in RUN], "request_rate": 2.0,
    }  # fmt: skip
    return found | changes


def guidellm() -> Any:
    rows = [
        {
            "prompt_tokens": p, "output_tokens": o, "request_start_time": EPOCH_S + a,
            "time_to_first_token_ms": 1e3 * (f - a), "request_end_time": EPOCH_S + e,
        }
        for a, p, o, f, e in RUN
    ]  # fmt: skip
    cut = {"prompt_tokens": 70, "output_tokens": 3, "request_start_time": EPOCH_S + 2.2}
    return {"benchmarks": [{"requests": {"successful": rows, "incomplete": [cut], "errored": []}}]}


def aiperf() -> str:
    lines = [
        {
            "metadata": {"request_start_ns": int(1e9 * (EPOCH_S + a)), "benchmark_phase": "profiling"},
            "metrics": {
                "time_to_first_token": {"value": 1e3 * (f - a), "unit": "ms"},
                "request_latency": {"value": 1e3 * (e - a), "unit": "ms"},
                "input_sequence_length": {"value": p}, "output_sequence_length": {"value": o},
            },
        }
        for a, p, o, f, e in RUN
    ]  # fmt: skip
    warm = {"metadata": {"request_start_ns": 5, "benchmark_phase": "warmup"}, "metrics": {}}
    return "\n".join(json.dumps(line) for line in [warm, *lines])


def otlp(skew_s: float = 0.0) -> Any:
    spans = []
    for a, p, o, f, e in RUN:
        values = {
            "gen_ai.usage.prompt_tokens": {"intValue": str(p)}, "gen_ai.usage.completion_tokens": {"intValue": str(o)},
            "gen_ai.latency.time_to_first_token": {"doubleValue": f - a}, "gen_ai.latency.e2e": {"doubleValue": e - a},
        }  # fmt: skip
        spans.append(
            {
                "name": "llm_request", "startTimeUnixNano": str(int(1e9 * (EPOCH_S + a))),
                "endTimeUnixNano": str(int(1e9 * (EPOCH_S + e + skew_s))),
                "attributes": [{"key": key, "value": value} for key, value in values.items()],
            }
        )  # fmt: skip
    other = {"name": "http", "startTimeUnixNano": "1", "endTimeUnixNano": "2", "attributes": []}
    return {"resourceSpans": [{"scopeSpans": [{"spans": [other, *spans]}]}]}


def table() -> pd.DataFrame:
    return pd.DataFrame(RUN, columns=["arrival_s", "prompt_tokens", "output_tokens", "first_token_s", "finish_s"])


@pytest.mark.parametrize("form", ["csv", "parquet", "jsonl", "bench", "guidellm", "aiperf", "otlp"])
def test_every_form_gives_the_same_run(form: str, tmp_path: Path) -> None:
    suffix = {"csv": "csv", "parquet": "parquet", "jsonl": "jsonl", "aiperf": "jsonl"}.get(form, "json")
    file = tmp_path / f"run.{suffix}"
    if form == "csv":
        table().to_csv(file, index=False)
    elif form == "parquet":
        table().to_parquet(file)
    elif form == "jsonl":
        table().to_json(file, orient="records", lines=True)
    else:
        made = {"bench": bench, "guidellm": guidellm, "otlp": otlp}.get(form)
        file.write_text(aiperf() if made is None else json.dumps(made()))
    run = read_run(file)
    ended = run.ended
    assert ended.sum() == 3
    assert len(run.requests) == (4 if form == "guidellm" else 3)
    assert run.requests.arrival_s[ended] == pytest.approx([r[0] for r in RUN], abs=1e-6)
    assert run.requests.prompt_tokens[ended].tolist() == [r[1] for r in RUN]
    assert run.latencies.first_token_s[ended] == pytest.approx([r[3] for r in RUN], abs=1e-6)
    assert run.latencies.finish_s[ended] == pytest.approx([r[4] for r in RUN], abs=1e-6)
    assert "count from the arrival" in run.notes[0]


def test_requests_that_failed_are_load_in_every_form(tmp_path: Path) -> None:
    def ended(written: Any) -> list[bool]:
        file = tmp_path / ("run.jsonl" if isinstance(written, str) else "run.json")
        file.write_text(written if isinstance(written, str) else json.dumps(written))
        return read_run(file).ended.tolist()

    assert ended(bench(errors=["", "timeout", ""])) == [True, False, True]
    assert ended(bench(ttfts=[RUN[0][3], 0.4, 0.0])) == [True, True, False]  # nothing came
    lines = [json.loads(line) for line in aiperf().splitlines()]
    lines[2]["error"], lines[3]["metadata"]["was_cancelled"] = {"code": 500}, True
    assert ended("\n".join(map(json.dumps, lines))) == [True, False, False]
    made = guidellm()
    groups = made["benchmarks"][0]["requests"]
    groups["errored"] = [groups["successful"].pop(1)]
    assert ended(made) == [True, False, True, False]  # by arrival: the one that was cut came at 2.2 s
    made["benchmarks"] *= 2
    with pytest.raises(InputError, match="holds 2 benchmarks, each a run of its own"):
        ended(made)


def test_all_at_once_is_known_without_times(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    for changes, known in (({"request_rate": "inf"}, True), ({"request_rate": "inf", "max_concurrency": 8}, False),
                           ({"request_rate": 2.0}, False)):  # fmt: skip
        file.write_text(json.dumps(bench(start_times=None, errors=None, **changes)))
        if known:
            run = read_run(file)
            assert run.requests.arrival_s.tolist() == [0.0, 0.0, 0.0]
            assert run.latencies.first_token_s == pytest.approx([r[3] - r[0] for r in RUN])
        else:
            with pytest.raises(InputError, match="nobody knows when requests were sent"):
                read_run(file)


@pytest.mark.parametrize(("unit", "in_a_second"), [("s", 1), ("sec", 1), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)])
def test_aiperf_names_its_units(unit: str, in_a_second: float, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in aiperf().splitlines()]
    for line, (arrival_s, _, _, first_s, _) in zip(lines[1:], RUN, strict=True):
        line["metrics"]["time_to_first_token"] = {"value": in_a_second * (first_s - arrival_s), "unit": unit}
    file = tmp_path / "run.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    assert read_run(file).latencies.first_token_s == pytest.approx([r[3] for r in RUN], abs=1e-6)


WRITTEN = Path(__file__).parent / "run_files"
"""What the programs themselves wrote of a few requests to ``tokenpools mock-server``, shortened by whole requests."""


def servingsim(drift: float = 0.0, engine_s: float = 5e4) -> list[dict[str, float]]:
    """Rows of LLMServingSim: arrivals on the client's clock, the rest on the engine's, which may run faster."""
    rows = []
    for i in range(20):
        arrival_s = 0.5 * i
        queued_s = engine_s + (1 + drift) * (arrival_s + 0.002)
        rows.append({
            "input_toks": 100, "output_toks": 11, "arrival_time": arrival_s, "queued_ts": queued_s,
            "first_token_ts": queued_s + 0.2, "last_token_ts": queued_s + 0.7,
        })  # fmt: skip
    return rows


def test_two_clocks_are_aligned_where_they_run_alike_and_refused_where_they_drift(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    for drift in (0.0, 0.001):
        file.write_text("\n".join(map(json.dumps, servingsim(drift))))
        run = read_run(file)
        # The fastest hand-over counts as none, so the drift of ten seconds is in the last first token at most.
        ttft_s = run.latencies.first_token_s - run.requests.arrival_s
        assert ttft_s.min() == pytest.approx(0.2, abs=1e-9)
        assert ttft_s.max() == pytest.approx(0.2 + 9.5 * drift, abs=1e-6)
    for drift in (-0.5, 0.3):
        file.write_text("\n".join(map(json.dumps, servingsim(drift))))
        with pytest.raises(InputError, match=r"clocks that drift apart by 0\.[35]0 s a second; give arrival_time and"):
            read_run(file)


@pytest.mark.parametrize(
    ("arrival_s", "first_s", "said"),
    [
        (EPOCH_S, 15.2, "mixes clocks: first tokens and arrivals are 1.7e+09 s apart (row 2); give all times"),
        (15.0, EPOCH_S, "mixes clocks"),
        (15.2, 15.0, "row 2: a request was answered before it came (15 s against 15.2 s); give all times on one clock"),
    ],
)
def test_times_of_different_clocks_are_refused(tmp_path: Path, arrival_s: float, first_s: float, said: str) -> None:
    columns = ["arrival_s", "prompt_tokens", "output_tokens", "first_token_s", "finish_s"]
    rows = [(arrival_s + i, 100, 11, first_s + i, first_s + i + 0.5) for i in range(12)]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "run.csv", index=False)
    with pytest.raises(InputError, match=re.escape(said)):
        read_run(tmp_path / "run.csv")


def test_a_file_of_vllm_bench_itself() -> None:
    file = WRITTEN / "vllm-bench-0.32.0.json"
    run, written = read_run(file), json.loads(file.read_text())
    assert len(run.requests) == run.ended.sum() == written["completed"] == 12
    assert run.requests.prompt_tokens.sum() == written["total_input_tokens"]
    assert run.requests.output_tokens.sum() == written["total_output_tokens"]
    ttft_s = run.latencies.first_token_s - run.requests.arrival_s
    assert 1e3 * ttft_s.mean() == pytest.approx(written["mean_ttft_ms"])
    e2e_s = run.latencies.finish_s - run.requests.arrival_s
    assert e2e_s == pytest.approx(written["latencies"], abs=1e-5)
    tpot_s = (run.latencies.finish_s - run.latencies.first_token_s) / (run.requests.output_tokens - 1)
    assert 1e3 * tpot_s.mean() == pytest.approx(written["mean_tpot_ms"], rel=0.01)


def test_a_file_of_guidellm_itself() -> None:
    file = WRITTEN / "guidellm-0.8.1.json"
    run = read_run(file)
    written = json.loads(file.read_text())["benchmarks"][0]["requests"]["successful"]
    assert run.requests.prompt_tokens.tolist() == [each["prompt_tokens"] for each in written]
    assert run.requests.output_tokens.tolist() == [20] * 5
    ttft_s = run.latencies.first_token_s - run.requests.arrival_s
    assert 1e3 * ttft_s == pytest.approx([each["time_to_first_token_ms"] for each in written], abs=1e-3)
    # Its TPOT counts the last token, not the end of the connection some milliseconds later.
    tpot_s = (run.latencies.finish_s - run.latencies.first_token_s) / 19
    assert 1e3 * tpot_s == pytest.approx([each["inter_token_latency_ms"] for each in written], abs=1e-3)


def test_a_file_of_aiperf_itself() -> None:
    file = WRITTEN / "aiperf-0.13.0.jsonl"
    run = read_run(file)
    written = [json.loads(line)["metrics"] for line in file.read_text().splitlines()[2:]]  # two are warm-up
    assert len(run.requests) == run.ended.sum() == 4
    # Its own tokenizer makes 65 tokens of what the server counts as 20, and knows nothing of the chat template.
    assert written[0]["output_sequence_length"]["value"] != written[0]["usage_completion_tokens"]["value"]
    assert run.requests.output_tokens.tolist() == [each["usage_completion_tokens"]["value"] for each in written]
    assert run.requests.prompt_tokens.tolist() == [each["usage_prompt_tokens"]["value"] for each in written]
    e2e_s = run.latencies.finish_s - run.requests.arrival_s
    assert 1e3 * e2e_s == pytest.approx([each["request_latency"]["value"] for each in written], abs=1e-3)
    cut = [json.loads(line) for line in file.read_text().splitlines()]
    cut[2]["metadata"]["was_cancelled"] = True
    assert read_cut(cut).ended.sum() == 3


def read_cut(lines: list[Any]) -> MeasuredRun:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.jsonl"
        file.write_text("\n".join(json.dumps(line) for line in lines))
        return read_run(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bench(ttfts=None), "has no ttfts; run vllm bench serve with --save-detailed"),
        (bench(start_times=None), "has no start_times"),
        ({"benchmarks": [{}, {}]}, "holds 2 benchmarks"),
        (otlp(skew_s=-900.0), "has clock skew"),
        ({"resourceSpans": [{"scopeSpans": [{"spans": []}]}]}, "holds no span of a request"),
        ({"benchmarks": [{"requests": {"successful": [{"prompt_tokens": 3}]}}]}, "cannot be read .*request_start_time"),
        ([], "holds no JSON mapping"),
        ({"hello": 1}, "has no column arrival_s"),
    ],
)
def test_a_damaged_file_is_named(content: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        read_run(file)


def test_clocks_and_prefixes_that_cannot_be_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    for change, message in (
        ({"arrival_s": table().arrival_s + EPOCH_S}, r"mixes clocks: .* 1\.7e\+09 s apart"),
        ({"cached_tokens": [0, 201, 0]}, "row 2 found 201 cached tokens of a prompt of 200"),
        ({"hash_ids": [[1], [1, 2], [3]]}, r"row 2 has 2 hash_ids of 512 tokens for a prompt of 200"),
        ({"finish_s": "soon"}, "row 1: finish_s 'soon' is no number; give times in seconds"),
    ):
        table().assign(**change).to_json(file, orient="records", lines=True)
        with pytest.raises(InputError, match=message):
            read_run(file)


def test_blocks_of_prompts_have_one_size_and_as_many_as_a_prompt_needs(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    named = table().assign(hash_ids=[[1], [1, 2], [3]], block_tokens=100)
    for change, message in (
        ({"block_tokens": [100, 200, 100]}, "names blocks of 100 and of 200 tokens; give one size in block_tokens"),
        ({"hash_ids": [[1], [1], [3]]}, "row 2 has 1 hash_ids of 100 tokens for a prompt of 200"),
    ):
        named.assign(**change).to_json(file, orient="records", lines=True)
        with pytest.raises(InputError, match=message):
            read_run(file)
    named.assign(hash_ids=[[1], [1, 2], []]).to_json(file, orient="records", lines=True)  # nobody says of the last
    found = read_run(file).requests.prefixes
    assert found is not None
    assert [end for _, end in found.of(1)] == [100, 200]
    assert not found.of(2)


def test_what_a_reader_of_a_file_must_know(tmp_path: Path) -> None:
    folder = tmp_path / "replayed"
    folder.mkdir()
    cut = [(3.0, 70, math.nan, 3.2, math.nan), RUN[0]]
    pd.concat([table(), pd.DataFrame(cut, columns=table().columns)]).to_parquet(folder / "requests.parquet")
    run = read_run(folder)
    assert run.name == "replayed"
    assert run.notes[1:] == (
        "4 requests ended: too few to know a P99, or what of an error is chance",
        "1 rows repeat another in every column: if a file was joined twice, drop them",
        "1 of 5 requests did not finish: they are load, and not compared; 1 of them get the mean output, 12",
    )
    assert run.requests.output_tokens.tolist() == [11, 11, 21, 5, 12]
    known = pd.DataFrame([(3.0, 70, 8, 3.2, math.nan)], columns=table().columns)
    pd.concat([table(), known]).to_parquet(folder / "requests.parquet")
    assert read_run(folder).notes[-1] == "1 of 4 requests did not finish: they are load, and not compared"


def test_the_queue_may_be_where_first_tokens_count_from(tmp_path: Path) -> None:
    rows = [
        {"input_toks": p, "output_toks": o, "arrival_time": EPOCH_S + a, "queued_ts": a + 0.01 * (i + 1),
         "first_token_ts": f, "last_token_ts": e}
        for i, (a, p, o, f, e) in enumerate(RUN)
    ]  # fmt: skip
    file = tmp_path / "requests.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    from_arrival, from_queue = read_run(file), read_run(file, ttft_from="queue")
    assert from_arrival.requests.arrival_s == pytest.approx([0, 0.5, 2.0], abs=1e-6)
    assert from_queue.requests.arrival_s == pytest.approx([0, 0.51, 2.02], abs=1e-6)
    table().to_csv(tmp_path / "run.csv", index=False)
    with pytest.raises(InputError, match="does not say when requests came to the queue"):
        read_run(tmp_path / "run.csv", ttft_from="queue")


# ---------------------------------------------------------------------------------------- load, hits, terms, verdicts

STEP = FittedStepTime(weights_s=0.01, per_token_s=1e-4)


def engine(**changes: Any) -> Profile:
    return Profile(
        **{"step_time": STEP, "max_num_seqs": 8, "max_num_batched_tokens": 2048, "kv_blocks": 9000} | changes
    )


def made_by(profile: Profile, n: int = 60, **more: Any) -> MeasuredRun:
    rng = np.random.default_rng(3)
    asked = Requests(np.cumsum(rng.exponential(0.2, n)), rng.integers(50, 1500, n), rng.integers(20, 120, n), **more)
    return MeasuredRun("made", asked, replay(profile, asked))


def write(run: MeasuredRun, file: Path, **more: Any) -> Path:
    asked = run.requests
    columns = {"arrival_s": asked.arrival_s, "prompt_tokens": asked.prompt_tokens, "output_tokens": asked.output_tokens}
    made = {"first_token_s": run.latencies.first_token_s, "finish_s": run.latencies.finish_s}
    pd.DataFrame(columns | made | more).to_json(file, orient="records", lines=True)
    return file


def test_unfinished_requests_are_load_and_not_compared(tmp_path: Path) -> None:
    run = made_by(engine())
    cut = np.where(np.arange(60) % 3 == 0, np.nan, run.latencies.finish_s)
    again = read_run(write(run, tmp_path / "run.jsonl", finish_s=cut))
    assert (len(again.requests), int(again.ended.sum())) == (60, 40)
    assert "20 of 60 requests did not finish" in again.notes[1]
    found, _ = validate_profile(engine(), again)
    assert found.error.abs().max() < 0.01  # dropped, they would leave a faster run
    arrivals = np.where(np.isnan(cut), np.nan, run.requests.arrival_s)
    dropped = read_run(write(run, tmp_path / "less.jsonl", finish_s=cut, arrival_s=arrivals))
    less, _ = validate_profile(engine(), dropped)
    assert less.error.abs().max() > 0.05


def test_measured_hits_and_named_blocks_are_simulated(tmp_path: Path) -> None:
    hits = np.full(60, 48)
    run = made_by(engine(), cached_tokens=hits)
    again = read_run(write(run, tmp_path / "run.jsonl", cached_tokens=hits))
    assert validate_profile(engine(), again)[0].error.abs().max() < 0.01
    prompts = run.requests.prompt_tokens.tolist()
    names = [[1] if p <= 512 else [1, 2] if p <= 1024 else [1, 2, 3 + i] for i, p in enumerate(prompts)]
    shared = read_run(write(run, tmp_path / "hashed.jsonl", hash_ids=names))
    fast = replay(engine(prefix_caching=True), shared.requests).first_token_s
    assert fast.sum() < replay(engine(), shared.requests).first_token_s.sum() - 0.5


def test_terms_are_added_left_out_and_named() -> None:
    assert terms_for(engine(), without=["weights_s"])[0].name == "per_token_s"
    assert terms_for(engine(), extra=["request_overhead_s"])[-1].name == "request_overhead_s"
    with pytest.raises(InputError, match=r"--term per_tokens_s: no term of a fitted step time.*per_token_s"):
        terms_for(engine(), without=["per_tokens_s"])
    links = Links(ranks=2, bytes_per_token=8192, all_reduces=64, latency_s=1e-5, bytes_per_s=1e10)
    two = engine(gpus=2, step_time=FittedStepTime(weights_s=0.01, per_token_s=1e-4, links=links))
    assert "links.scale" in [term.name for term in terms_for(two)]


def test_links_and_overheads_are_found_in_a_run() -> None:
    links = Links(ranks=2, bytes_per_token=8192, all_reduces=64, latency_s=1e-5, bytes_per_s=1e10)
    step_time = FittedStepTime(weights_s=0.01, per_token_s=2e-5, links=links)
    slow = replace(step_time, links=replace(links, scale=2.0))
    truth = engine(gpus=2, request_overhead_s=0.05, step_time=slow)
    start = engine(gpus=2, step_time=step_time)
    wanted = ("links.scale", "request_overhead_s")
    terms = [term for term in terms_for(start, extra=["request_overhead_s"]) if term.name in wanted]
    found = calibrate_records(start, made_by(truth), terms=terms, share=1.0)
    assert found.fit.values["links.scale"] == pytest.approx(2.0, rel=0.05)
    assert found.profile.request_overhead_s == pytest.approx(0.05, rel=0.1)
    assert found.profile.calibration is not None
    assert found.profile.calibration.noise_floor.keys() >= {"ttft_mean", "e2e_p99"}
    assert {"concurrency", "chunk_tokens", "context_tokens_each"} <= found.profile.calibration.ranges.keys()
    assert "chance" in found.profile.error


def test_a_verdict_within_chance_is_refused() -> None:
    run = made_by(engine())
    copies = perturbed(engine())
    assert len(copies) == RUNS
    assert len({each.step_time.weights_s for each in copies}) == RUNS
    found = averaged([errors(run.requests, run.latencies, replay(each, run.requests)) for each in copies])
    assert (found.floor < 0.01).all()
    assert verdict(0.02, 0.001, 0.03) is True
    assert verdict(0.04, 0.001, 0.03) is False
    assert verdict(0.0301, 0.01, 0.03) is None
    assert verdict(float("nan"), 0.0, 1.0) is False
    assert judge(found, 0.05)
    near = found.assign(error=0.05, floor=0.01)
    with pytest.raises(InputError, match=r"no verdict: ttft is off by \+5\.00 % .* too near to 5 %"):
        judge(near, 0.05)


def test_a_run_may_be_held_against_a_scenario_of_several_replicas() -> None:
    profile = engine(step_time=LinearStepTime(base_s=0.02, per_prefill_token_s=1e-4))
    tree = {
        "version": 1, "seed": 1, "horizon_s": 20, "policies": ["none"],
        "pool": {
            "profile": profile.model_dump(mode="json"), "oversubscribed": True, "replicas": 2, "router": "round-robin",
            "entitlements": [{"name": "a", "service_class": "spot"}],
        },
        "workload": [
            {
                "entitlement": "a", "arrivals": {"kind": "poisson", "rate_per_s": 2}, "prompt_tokens": 9,
                "output_tokens": 9,
            }
        ],
    }  # fmt: skip
    run = made_by(profile)
    columns = (run.requests.arrival_s, run.requests.prompt_tokens, run.requests.output_tokens)
    halves = [Requests(columns[0][i::2], columns[1][i::2], columns[2][i::2]) for i in (0, 1)]
    first, finish = np.empty(60), np.empty(60)
    for i, half in enumerate(halves):
        made = replay(profile, half)
        first[i::2], finish[i::2] = made.first_token_s, made.finish_s
    two = MeasuredRun("two", run.requests, type(run.latencies)(first, finish))
    found, _ = validate_scenario(parse_scenario(tree, "two.yaml"), two)
    assert found.error.abs().max() < 0.005
    refusing = tree | {"policies": [{"kind": "rate-limit", "requests_per_min": 3}]}
    with pytest.raises(InputError, match=r"refuses .* that the measured run served"):
        validate_scenario(parse_scenario(refusing, "two.yaml"), two)
