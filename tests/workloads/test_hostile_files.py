"""Files that somebody made to hurt, or that broke: one line that names the place, little time, little memory."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workloads.formats import documents
from workloads.formats.errors import TraceError
from workloads.formats.layouts import LAYOUTS
from workloads.formats.lines import LONGEST_LINE_BYTES, line_blocks
from workloads.formats.read import layout_of, read_trace
from workloads.formats.rows import Rows, join_rows
from workloads.formats.write import write_trace
from workloads.trace import Trace

PLAIN = LAYOUTS["plain-jsonl"]


def read(path: Path) -> Rows:
    return join_rows(list(read_trace(path, layout_of(path))))


def lines(tmp_path: Path, *rows: dict[str, Any] | str) -> Path:
    file = tmp_path / "t.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def row(at_ns: int = 0, **more: Any) -> dict[str, Any]:
    columns = {"tenant": "", "service": "", "session": "", "turn": 0, "max_output_tokens": 0, "block_tokens": 0}
    return {"time_ns": at_ns, "prompt_tokens": 4, "output_tokens": 2, "blocks": [], **columns, **more}


@pytest.mark.parametrize(
    ("name", "fill"),
    [("t.csv.gz", b"x"), ("t.json.gz", b"["), ("t.jsonl.gz", b"{"), ("t.gz", b'"'), ("t.gz", b"\r"), ("t.gz", b" ")],
)
def test_a_small_gzip_that_unpacks_to_one_endless_line_is_refused_at_once(
    name: str, fill: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "_MAX_BYTES", 16 << 20)
    file = tmp_path / name
    file.write_bytes(gzip.compress(fill * (60 << 20), 9))
    assert file.stat().st_size < 70_000
    began = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(TraceError) as caught:
            read(file)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert time.process_time() - began < 10  # it was 200 s
    assert most < 40 * LONGEST_LINE_BYTES


@pytest.mark.parametrize("size", [7, 64, 1000])
@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_lines_come_whole_however_the_file_is_read(size: int, end: bytes, tmp_path: Path) -> None:
    whole = [b"x" * n for n in (0, 1, 5, 6, 7, 8, 50, 0, 0, 3, 200)]
    file = tmp_path / "t"
    file.write_bytes(end.join(whole))
    blocks = list(line_blocks(file, size))
    assert b"".join(block.data for block in blocks) == end.join(whole)
    assert all(block.data.endswith(end) for block in blocks[:-1])
    for block in blocks:
        before = b"".join(one.data for one in blocks if one.first_line < block.first_line)
        assert block.first_line == 1 + len(before.split(end)) - 1


def test_detection_costs_time_in_proportion_to_the_first_line(tmp_path: Path) -> None:
    def cost_s(count: int) -> float:
        file = lines(tmp_path, {**row(), "x": "y" * count})
        began = time.process_time()
        assert layout_of(file) is PLAIN
        return time.process_time() - began

    cost_s(1000)
    assert cost_s(8 << 20) < 40 * max(cost_s(1 << 20), 0.005)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(blocks=[1], block_tokens=2**62)], "block_tokens is '4611686018427387904'"),
        ([row(blocks=[1], block_tokens=0)], "block_tokens is '0'"),
        ([row(blocks=[1], block_tokens=16), row(blocks=[2], block_tokens=32)], "row 2: block_tokens is 32, and 16"),
        ([row(int("9" * 400))], "out of range"),
        (['{"time_ns": ' + "9" * 400 + ', "prompt_tokens": 1, "output_tokens": 1}'], "row 1: time_ns"),
        (['{"time_ns": ' + "9" * 5000 + "}"], "row 1"),
        (['{"time_ns": ' + "[" * 2000 + "]" * 2000 + "}"], "row 1"),
        ([row(), '{"a": ' + "[" * 2000 + "]" * 2000 + "}"], "row 2"),
        ([row(), "[" * 100_000], "row 2"),
        ([row(blocks=[2**64], block_tokens=16)], "not a list of whole numbers"),
        ([row(blocks=[2**64 - 1, -1], block_tokens=16)], "numbers below 0 beside"),
        ([row(blocks=[2**64 - 1], block_tokens=16), row(blocks=[-1], block_tokens=16)], "numbers below 0 beside"),
        ([row(0), row(9 * 10**18)], "more than 146 years"),
    ],
)
def test_numbers_beyond_what_a_trace_can_hold_are_named(rows: list[Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError) as caught:
        read(lines(tmp_path, *rows))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
@pytest.mark.parametrize("text", ["9" * 400, "-" + "9" * 400, "1e400", "1e-308"])
def test_times_in_every_unit_are_read_or_refused(unit: str, text: str, tmp_path: Path) -> None:
    from workloads.trace import Columns

    file = tmp_path / "t.jsonl"
    file.write_text(f'{{"at": {text}, "in": 1, "out": 1}}\n')
    trace = Trace(file=str(file), columns=Columns(time="at", prompt="in", output="out", time_unit=unit))
    if text == "1e-308":
        assert trace.read(None).rows.time_ns.tolist() == [0]
    else:
        with pytest.raises(TraceError, match=r"out of range|not a number"):
            trace.read(None)


def test_an_origin_is_a_time() -> None:
    for text in ("1e30", "1e400", "9" * 400, "nan", "-1e30"):
        with pytest.raises(ValueError, match="is no time"):
            Trace(file="x", origin=text)


def ids_back(path: Path) -> list[list[int]]:
    rows = read(path)
    assert rows.blocks is not None
    return rows.blocks.lists()


@pytest.mark.parametrize("ids", [[[2**64 - 1, 7], [2**63]], [[2**63 - 1], [5]], [[-1], [-(2**63)]]])
def test_ids_of_64_bits_come_back_from_every_format(ids: list[list[int]], tmp_path: Path) -> None:
    file = lines(tmp_path, *(row(i, blocks=one, block_tokens=16) for i, one in enumerate(ids)))
    assert ids_back(file) == ids
    table = pa.table({
        **{name: [row()[name]] * len(ids) for name in row() if name not in ("blocks", "block_tokens", "time_ns")},
        "time_ns": list(range(len(ids))), "block_tokens": [16] * len(ids),
        "blocks": pa.array(ids, pa.list_(pa.int64() if min(map(min, ids)) < 0 else pa.uint64())),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "t.parquet")
    assert ids_back(tmp_path / "t.parquet") == ids
    for name in ("out.jsonl", "out.parquet"):
        layout = LAYOUTS["plain-" + name.rpartition(".")[2]]
        write_trace(read_trace(file, PLAIN), tmp_path / name, layout)
        assert ids_back(tmp_path / name) == ids


def test_request_ids_of_64_bits_are_told_apart(tmp_path: Path) -> None:
    def bailian(*names: object) -> Path:
        return lines(tmp_path, *(
            {"chat_id": name, "parent_chat_id": -1, "timestamp": 0.0, "input_length": 1, "output_length": 1,
             "type": "text", "turn": 1, "hash_ids": [2**64 - 1]} for name in names
        ))  # fmt: skip

    assert len(read(bailian(2**64 - 1, 2**64 - 2, 2**63))) == 3
    with pytest.raises(TraceError, match="row 2: chat_id '18446744073709551615' is that of a row above"):
        read(bailian(2**64 - 1, 2**64 - 1))


@pytest.mark.parametrize("parent", [[0], {"id": 0}, [[]]])
def test_a_parent_that_can_name_no_request_is_refused(parent: object, tmp_path: Path) -> None:
    plain = {"timestamp": 0.0, "input_length": 1, "output_length": 1, "type": "text", "turn": 1, "hash_ids": [1]}
    file = lines(tmp_path, *({"chat_id": at, "parent_chat_id": of} | plain for at, of in ((0, -1), (1, parent))))
    with pytest.raises(TraceError, match=r"row 2: parent_chat_id .* names no request; give the id of a row above"):
        read(file)


def test_a_csv_cell_of_any_length_is_read_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text('time_ns,prompt_tokens,output_tokens,max_output_tokens,tenant,service,session,turn\n'
                    f'0,1,1,0,"{"x" * 200_000}",,,\nx,,,,,,,\n')  # fmt: skip
    with pytest.raises(TraceError, match="row 2"):
        read(file)
    file.write_text('"' + "x" * 200_000 + '",b\n')
    with pytest.raises(TraceError):
        list(read_trace(file, LAYOUTS["plain-csv"]))


BAD_DOCUMENTS: list[Any] = [
    {"benchmarks": 5},
    {"benchmarks": [5]},
    {"benchmarks": [{"requests": {"successful": [5]}}]},
    {"benchmarks": [{"requests": {"successful": [], "errored": 5}}]},
    {"start_times": [1.0], "input_lens": [1], "output_lens": [1], "errors": 5},
    {"start_times": [1.0, 2.0], "input_lens": [1, 1], "output_lens": [1, 1], "errors": [""]},
    {"start_times": [1.0, "x"], "input_lens": [1, 1], "output_lens": [1, 1]},
    {"start_times": [[]], "input_lens": [1], "output_lens": [1]},
    {"start_times": [10**400], "input_lens": [1], "output_lens": [1]},
]


@pytest.mark.parametrize("value", BAD_DOCUMENTS, ids=range(len(BAD_DOCUMENTS)))
def test_results_of_another_shape_are_refused(value: Any, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text(json.dumps(value))
    with pytest.raises(TraceError):
        read(file)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_flipped_bit_of_a_page_of_a_parquet_trace_is_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    n = 4000
    rows = Rows(np.arange(n) * 10**9, rng.integers(1, 2**31 - 1, n), rng.integers(1, 2**31 - 1, n))
    file = tmp_path / "t.parquet"
    write_trace([rows], file, LAYOUTS["plain-parquet"])
    data = file.read_bytes()
    group = pq.ParquetFile(file).metadata.row_group(0)
    chunk = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == "prompt_tokens")
    start = chunk.data_page_offset + 64
    missed = 0
    for bit in rng.integers(8 * start, 8 * (start + chunk.total_compressed_size // 2), 40).tolist():
        file.write_bytes(flipped(data, bit))
        try:
            missed += read(file).prompt_tokens.tolist() == rows.prompt_tokens.tolist() or 1
        except TraceError:
            continue
    assert missed == 0


