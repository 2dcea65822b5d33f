"""Every format: recognised, read in blocks as in one piece, written and read again, and refused with its row."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workloads.formats import lines
from workloads.formats.errors import TraceError
from workloads.formats.layouts import LAYOUTS
from workloads.formats.read import layout_of, load, own_layout, read_trace
from workloads.formats.rows import Blocks, Labels, Rows, join_rows, without_silent
from workloads.formats.write import lost, write_trace

DATA = os.environ.get("TOKENPOOLS_DATA")
real = pytest.mark.skipif(DATA is None, reason="TOKENPOOLS_DATA names no folder of real traces")
SUFFIX = {"csv": ".csv", "jsonl": ".jsonl", "parquet": ".parquet", "document": ".json"}
COLUMNS = ("time_ns", "prompt_tokens", "output_tokens", "max_output_tokens", "turn")


def everything(path, layout=None):
    return without_silent(join_rows(list(read_trace(path, layout or layout_of(path)))))


def plain(rows):
    """All that rows say, as comparable values."""
    columns = {name: None if (c := getattr(rows, name)) is None else c.tolist() for name in COLUMNS}
    labels = {n: None if (c := getattr(rows, n)) is None else c.texts() for n in ("tenant", "service", "session")}
    blocks = None if rows.blocks is None else (rows.blocks.block_tokens, rows.blocks.lists())
    return columns | labels | {"blocks": blocks, "dated": rows.dated}


def label_column(draw, n, names):
    codes = draw(st.lists(st.integers(0, len(names) - 1), min_size=n, max_size=n))
    return Labels(np.array(codes, dtype=np.int32), names)


@st.composite
def rows_of(draw, step_ns=1, start_ns=0):
    n = draw(st.integers(1, 12))
    steps = draw(st.lists(st.integers(0, 10**13 // step_ns), min_size=n, max_size=n))
    counts = st.lists(st.integers(1, 200_000), min_size=n, max_size=n)
    lists = draw(st.lists(st.lists(st.integers(0, 2**40), max_size=4), min_size=n, max_size=n))
    return Rows(
        start_ns + np.cumsum(steps, dtype=np.int64) * step_ns,
        np.array(draw(counts)),
        np.array(draw(counts)),
        dated=start_ns > 0,
        max_output_tokens=np.array(draw(counts)),
        tenant=label_column(draw, n, ("a", "b,c", 'd"e', "ü")),
        service=label_column(draw, n, ("chat", "code")),
        session=label_column(draw, n, ("s1", "s2", "s3")),
        turn=np.array(draw(counts)),
        blocks=Blocks(
            np.array([i for one in lists for i in one], dtype=np.int64),
            np.cumsum([len(one) for one in lists], dtype=np.int64),
            512,
        ),
    )


# What each format can keep, and the step of its clock.
KEEPS = {
    "azure-llm": (1, set()),
    "azure-multimodal": (1, set()),
    "burstgpt": (1, {"service"}),
    "burstgpt-sessions": (1, {"service", "session"}),
    "mooncake": (10**6, {"blocks"}),
    "qwen-bailian": (1, {"service", "turn"}),
    "arena-vtc": (1, {"tenant"}),
    "trace-v2": (1000, {"tenant", "service", "session", "turn"}),
    "vllm-bench": (1, set()),
    "guidellm": (1, set()),
    "openai-log": (1, {"tenant", "service", "max_output_tokens"}),
    "llmservingsim-bench": (1, set()),
    "plain-csv": (1, {"tenant", "service", "session", "turn", "max_output_tokens"}),
    "plain-jsonl": (1, {"tenant", "service", "session", "turn", "max_output_tokens", "blocks"}),
    "plain-parquet": (1, {"tenant", "service", "session", "turn", "max_output_tokens", "blocks"}),
}


def test_every_format_is_in_the_round_trips():
    only_read = {name for name, layout in LAYOUTS.items() if layout.container == "log"}  # test_logs.py
    assert set(KEEPS) == set(LAYOUTS) - only_read


@pytest.mark.parametrize("name", KEEPS)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_writing_and_reading_lose_nothing_that_the_format_has(tmp_path, name, data):
    layout = LAYOUTS[name]
    step_ns, keeps = KEEPS[name]
    # Half a year of nanoseconds is exact as double seconds; a Unix time is not, and formats in Unix seconds say so.
    dated = layout.unit in ("datetime", "us", "ns", "ms")
    rows = data.draw(rows_of(step_ns=step_ns, start_ns=1_700_000_000 * 10**9 if dated else 0))
    packed = layout.container in ("csv", "jsonl") and data.draw(st.booleans())
    path = tmp_path / f"t{SUFFIX[layout.container]}{'.gz' if packed else ''}"
    assert write_trace([rows], path, layout) == len(rows)
    if rows.blocks.ids.size or name != "plain-jsonl":
        assert layout_of(path).name == name
    got = plain(everything(path, layout))
    want = plain(without_silent(rows))
    if name == "mooncake":
        want["blocks"] = None if want["blocks"] is None else (512, rows.blocks.lists())
    if name == "qwen-bailian":
        got.pop("blocks"), want.pop("blocks")
        # Conversations are told by who continues whom: their names change, their members do not.
        for one in (got, want):
            one["session"] = [one["session"].index(s) for s in one["session"]]
        keeps = keeps | {"session"}
    if name == "guidellm":  # has as many benchmarks as services, numbered: what comes at one instant is grouped by them
        got.pop("service"), want.pop("service")
        got, want = one_instant_in_any_order(got, keeps), one_instant_in_any_order(want, keeps)
    for column in got:
        if column in ("time_ns", "prompt_tokens", "output_tokens", "dated") or column in keeps:
            assert got[column] == want[column], column
        else:
            assert got[column] is None, column


def one_instant_in_any_order(columns, keeps):
    listed = [c for c in columns if c in keeps | {"time_ns", "prompt_tokens", "output_tokens"} and columns[c]]
    listed = [c for c in listed if isinstance(columns[c], list)]
    rows = sorted(zip(*(columns[c] for c in listed), strict=True), key=repr)
    rows.sort(key=lambda row: row[listed.index("time_ns")])
    return columns | {c: list(column) for c, column in zip(listed, zip(*rows, strict=True), strict=True)}


def test_what_a_format_has_no_place_for_is_said():
    one = np.array([1])
    rows = Rows(np.array([1_500]), one, one, tenant=Labels(np.zeros(1, np.int32), ("a",)), turn=one)
    assert lost(rows, LAYOUTS["azure-llm"]) == ["tenant", "turn", "the clock: times are dated from 1970-01-01"]
    assert lost(rows, LAYOUTS["trace-v2"]) == ["times below 1 us"]
    assert lost(rows, LAYOUTS["plain-jsonl"]) == []


SAMPLES = {
    "azure-llm": "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,2162,5\n",
    "azure-multimodal": "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n2025-01-01 00:00:00.5,2,900,5\n",
    "burstgpt": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,API log\n",
    "burstgpt-sessions": "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,"
    "Log Type\n"
    "5,7,1.5,GPT-4,1,2,3,Conversation log\n",
    "mooncake": '{"timestamp": 27000, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 2353]}\n',
    "qwen-bailian": '{"chat_id": 159, "parent_chat_id": -1, "timestamp": 61.114, "input_length": 521,'
    ' "output_length": 132, "type": "text", "turn": 2, "hash_ids": [1089, 1090]}\n',
    "arena-vtc": "req_id,tenant,prompt_len,output_len,req_time\n0,arena-model-13,13,199,0.0\n",
    "openai-log": '{"id": "c-1", "object": "chat.completion", "created": 1741570283, "model": "gpt-4o", "user": "acme",'
    ' "usage": {"prompt_tokens": 1117, "completion_tokens": 46, "total_tokens": 1163}}\n',
}


@pytest.mark.parametrize("name", SAMPLES)
def test_what_publishers_write_is_recognised(tmp_path, name):
    path = tmp_path / "t"
    path.write_text(SAMPLES[name])
    assert layout_of(path).name == name
    assert len(everything(path)) == 1


def test_a_time_zone_is_taken_off(tmp_path):
    path = tmp_path / "t.csv"
    rows = "\n".join(f"2024-05-10 {at},1,1" for at in ("01:00:00.5+01:00", "00:00:01Z", "05:30:02+05:30"))
    path.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}\n")
    assert (everything(path).time_ns / 1e9 - 1715299200).tolist() == [0.5, 1.0, 2.0]


def test_dates_with_and_without_a_zone_do_not_mix(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00+00:00,1,1\n2024-05-10 00:00:01,1,1\n")
    with pytest.raises(TraceError, match="row 3: time '2024-05-10 00:00:01' has no time zone, unlike the first row"):
        everything(path)


def test_failures_of_burstgpt_are_left_out_and_counted(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(SAMPLES["burstgpt"] + "6,ChatGPT,10,0,10,API log\n7,GPT-4,9,1,10,API log\n")
    rows = everything(path)
    assert rows.prompt_tokens.tolist() == [472, 9]
    assert (rows.dropped, rows.clipped) == (1, 0)


def test_conversations_of_bailian_are_followed_to_their_first_request(tmp_path):
    path = tmp_path / "t.jsonl"
    ids = [(10, -1), (11, -1), (12, 10), (13, 12), (14, 11)]
    rest = {"input_length": 5, "output_length": 5, "type": "t", "turn": 1, "hash_ids": []}
    lines = [json.dumps({"chat_id": own, "parent_chat_id": parent, "timestamp": own} | rest) for own, parent in ids]
    path.write_text("\n".join(lines))
    assert everything(path).session.texts() == ["10", "11", "10", "10", "11"]


def test_answers_of_openai_in_their_wrappings(tmp_path):
    path = tmp_path / "log.jsonl"
    answer = {"id": "a", "created": 1741570283, "model": "m", "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
    log = [
        {"request": {"max_tokens": 50, "user": "acme"}, "response": answer},
        {"custom_id": "b", "response": {"status_code": 200, "body": answer | {"id": "b"}}},
        {"response": {"id": "c", "created_at": 1741570290, "usage": {"input_tokens": 9, "output_tokens": 1}}},
    ]
    path.write_text("\n".join(map(json.dumps, log)))
    rows = everything(path)
    assert rows.prompt_tokens.tolist() == [7, 7, 9]
    assert rows.output_tokens.tolist() == [3, 3, 1]
    assert rows.max_output_tokens.tolist() == [50, 0, 0]
    assert rows.tenant.texts() == ["acme", "", ""]


def test_results_of_measuring_tools(tmp_path):
    vllm = tmp_path / "v.json"
    result = {"start_times": [2.5, 1.5, 3.0], "input_lens": [10, 20, 30], "output_lens": [1, 2, 0]}
    vllm.write_text(json.dumps(result | {"errors": ["", "", "timed out"], "total_input_tokens": 60}))
    rows = everything(vllm)
    assert rows.time_ns.tolist() == [1_500_000_000, 2_500_000_000]
    assert rows.prompt_tokens.tolist() == [20, 10]
    vllm.write_text(json.dumps({"total_input_tokens": 60, "input_lens": [1]}))
    with pytest.raises(TraceError, match="there is no start_times; measure with --save-result --save-detailed"):
        everything(vllm)


def mooncake(timestamp="0", prompt="1", output="1", blocks="[]"):
    return f'{{"timestamp": {timestamp}, "input_length": {prompt}, "output_length": {output}, "hash_ids": {blocks}}}\n'


ARENA = "req_id,tenant,prompt_len,output_len,req_time\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (mooncake() + '{"timestamp": }', "row 2: .* is not JSON"),
        (mooncake(prompt="-1"), "row 1: input_length '-1' is out of"),
        (mooncake(prompt="1.5"), "row 1: input_length '1.5' is not a"),
        (mooncake(timestamp="NaN"), "row 1: timestamp 'NaN' is not a"),
        (mooncake(blocks='["x"]'), "row 1: hash_ids is .* not a list"),
        (mooncake(timestamp="9") + "\n" + mooncake(timestamp="8"), "row 3: time 8 is before"),
        (ARENA + "0,a,1,1,0\n1,a,1,1,1\n0,a,1,1,2\n", "row 4: req_id '0' is that of a"),
        (ARENA + "x,a,1,1,0\ny,a,1,1,1\nx,a,1,1,2\n", "row 4: req_id 'x' is that of a"),
        (ARENA + "0,a,1,1,-1\n", "row 2: req_time '-1' is out of range"),
        (ARENA + "0,a,1,1,inf\n", "row 2: req_time 'inf' is not a number"),
        (ARENA, "there is no row after the header"),
        ("lambda: __import__('os')\n1\n", "row 1: the columns are"),
        ('{"weird": 1}\n', "row 1: the keys are"),
    ],
)
def test_bad_rows_are_named(tmp_path, text, problem):
    path = tmp_path / "t"
    path.write_text(text)
    with pytest.raises(TraceError, match=problem) as error:
        everything(path)
    assert "\n" not in str(error.value)


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_refused_and_nothing_in_it_runs(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "t.csv"
    path.write_bytes(pickle.dumps(Bomb(), protocol=protocol))
    with pytest.raises(TraceError, match="is a Python pickle, which can run code when it is read, and was not read"):
        everything(path)
    assert not Path("exploded").exists()


def test_damaged_gzip_files(tmp_path):
    path = tmp_path / "t.csv.gz"
    whole = gzip.compress((SAMPLES["azure-llm"] + "2024-05-10 00:00:01+00:00,1,1\n" * 5000).encode())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TraceError, match="the gzip file ends too early"):
        everything(path, LAYOUTS["azure-llm"])
    path.write_bytes(whole[:40] + b"\xff\xff\xff\xff" + whole[44:])
    with pytest.raises(TraceError):
        everything(path, LAYOUTS["azure-llm"])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=rows_of(start_ns=1_700_000_000 * 10**9),
    size=st.integers(1, 400),
    blank=st.booleans(),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_blocks_of_any_size_give_the_same_rows_and_row_numbers(tmp_path, monkeypatch, rows, size, blank, end):
    path = tmp_path / "t.csv"
    write_trace([rows], path, LAYOUTS["plain-csv"])
    text = path.read_text().replace("\n", (end * 2 if blank else end))
    path.write_text(text, newline="")
    monkeypatch.setattr(lines.line_blocks, "__defaults__", (size,))
    layout = LAYOUTS["plain-csv"]
    assert plain(everything(path, layout)) | {"blocks": None} == plain(rows) | {"blocks": None}
    path.write_text(text + "1,a,b" + end, newline="")
    bad = 1 + (len(rows) + 1) * (2 if blank else 1)
    with pytest.raises(TraceError, match=f"row {bad}: 3 columns instead of"):
        everything(path, layout)


def test_a_plain_table_of_other_names_needs_a_map(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("who,when,n_in,n_out,note\nacme,1500,10,20,x\nzeta,2750,11,21,y\n")
    with pytest.raises(TraceError, match="row 1: the columns are 'who,when,n_in,n_out,note'; name a format"):
        layout_of(path)
    layout = own_layout({"time": "when", "prompt": "n_in", "output": "n_out", "tenant": "who"}, "csv", unit="ms")
    rows = everything(path, layout)
    assert rows.time_ns.tolist() == [1_500_000_000, 2_750_000_000]
    assert rows.tenant.texts() == ["acme", "zeta"]
    with pytest.raises(ValueError, match="columns has no output"):
        own_layout({"time": "when", "prompt": "n_in"}, "csv", unit="ms")
    wrong = own_layout({"time": "at", "prompt": "n_in", "output": "n_out"}, "csv", unit="ms")
    with pytest.raises(TraceError, match="row 1: the columns are 'who,when,n_in,n_out,note'; name them at,n_in,n_out"):
        everything(path, wrong)


def test_a_short_cut_of_a_long_file_reads_little_of_it(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    monkeypatch.setattr(lines.line_blocks, "__defaults__", (4096,))
    row = "".join(f"{i},a,1,1,{i}\n" for i in range(20_000))
    path.write_text("req_id,tenant,prompt_len,output_len,req_time\n" + row + "damaged\n")
    rows, zero_ns = load(path, LAYOUTS["arena-vtc"], from_s=10.0, until_s=20.0)
    assert rows.time_ns.tolist() == [i * 10**9 for i in range(10, 20)]
    assert zero_ns == 0
    with pytest.raises(TraceError, match="row 20002"):
        load(path, LAYOUTS["arena-vtc"])


@real
@pytest.mark.parametrize(
    ("file", "name", "count", "span_s"),
    [  # counts and spans as in the description of the data
        ("azure-llm-2023/AzureLLMInferenceTrace_code.csv", "azure-llm", 8_819, 58 * 60),
        ("azure-llm-2023/AzureLLMInferenceTrace_conv.csv", "azure-llm", 19_366, 58 * 60),
        ("mooncake-fast25/conversation_trace.jsonl", "mooncake", 12_031, 59 * 60),
        ("lmsys-arena-vtc/trace.csv.gz", "arena-vtc", 1_500, 600),
        ("vllm-0.19-sharegpt/RTX4090_Llama-3.1-8B/requests.jsonl", "llmservingsim-bench", 300, 30),
    ],
)
def test_the_published_files(tmp_path, file, name, count, span_s):
    path = Path(DATA) / file
    assert layout_of(path).name == name
    rows = everything(path)
    assert len(rows) == count
    assert (rows.time_ns[-1] - rows.time_ns[0]) / 1e9 == pytest.approx(span_s, rel=0.03)
    # Any to any: what is written in our own format is read the same.
    copy = tmp_path / "copy.jsonl"
    write_trace([rows], copy, LAYOUTS["plain-jsonl"])
    assert plain(everything(copy)) == plain(rows)
