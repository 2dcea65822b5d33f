"""Traces that are merged share no block and no session by accident, since each publisher numbers from 0."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sim.cli.app import app
from sim.traces.sources import merged
from workloads.formats.rows import Blocks, Labels, Rows, join_rows

Id = st.integers(0, 2**64 - 1)


def rows(ids: list[int], sessions: list[str] | None = None) -> Rows:
    count = len(ids)
    session = None if sessions is None else Labels(np.arange(count, dtype=np.int32), tuple(sessions))
    return Rows(
        np.arange(count, dtype=np.int64), np.ones(count, dtype=np.int64), np.ones(count, dtype=np.int64),
        session=session,
        blocks=Blocks(
            np.array(ids, dtype=np.uint64).view(np.int64), np.arange(1, count + 1), 512,
            any(one >= 2**63 for one in ids),
        ),
    )  # fmt: skip


def blocks_of(*traces: list[int], same_ids: bool = False) -> list[list[int]]:
    """Return the blocks of each trace after all were merged."""
    named = [(f"t{index}", [rows(ids)]) for index, ids in enumerate(traces)]
    whole = join_rows(list(merged(named, same_ids=same_ids)))
    assert whole.blocks is not None
    assert whole.service is not None
    lists, services = whole.blocks.lists(), whole.service.texts()
    return [[ids[0] for ids, of in zip(lists, services, strict=True) if of == name] for name, _ in named]


@given(st.lists(st.lists(Id, min_size=1, max_size=8, unique=True), min_size=2, max_size=5))
def test_what_differs_in_a_trace_differs_after_it_was_merged(traces: list[list[int]]) -> None:
    for before, after in zip(traces, blocks_of(*traces), strict=True):
        assert len(set(after)) == len(before)


@given(st.lists(st.lists(st.integers(0, 2**40), min_size=1, max_size=8), min_size=2, max_size=5))
def test_what_is_numbered_from_zero_is_shared_by_no_two_traces(traces: list[list[int]]) -> None:
    found = blocks_of(*traces)
    for index, one in enumerate(found):
        for other in found[:index]:
            assert not set(one) & set(other)
        assert [one.index(each) for each in one] == [traces[index].index(each) for each in traces[index]]


def test_parts_of_one_trace_keep_their_ids_where_that_is_said() -> None:
    assert blocks_of([0, 1], [1, 2], same_ids=True) == [[0, 1], [1, 2]]


def test_sessions_are_kept_apart_too() -> None:
    named = [("a", [rows([1, 2], ["x", ""])]), ("b", [rows([1, 2], ["x", "y"])])]
    whole = join_rows(list(merged(named)))
    assert whole.session is not None
    assert sorted(whole.session.texts()) == ["", "1/x", "2/x", "2/y"]


def test_two_mooncake_files_from_zero_share_nothing_unless_told(tmp_path: Path) -> None:
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file in files:
        lines = [{"timestamp": 1000 * n, "input_length": 1024, "output_length": 5, "hash_ids": [0, n]} for n in (1, 2)]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def shared(*options: str) -> set[int]:
        out = tmp_path / "both.jsonl"
        command = ["trace", "convert", *map(str, files), "--to", "mooncake", "--out", str(out), "--overwrite", *options]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        read = [json.loads(line) for line in out.read_text().splitlines()]
        assert len(read) == 4
        first, second = (set().union(*(one["hash_ids"] for one in read[start::2])) for start in (0, 1))
        return first & second

    assert shared() == set()
    assert shared("--same-ids") == {0, 1, 2}


@pytest.mark.parametrize("count", [1, 2])
def test_one_trace_alone_keeps_its_ids(tmp_path: Path, count: int) -> None:
    file, out = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    file.write_text(json.dumps({"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [7, 9]}) + "\n")
    done = CliRunner().invoke(app, ["trace", "convert", *[str(file)] * count, "--to", "mooncake", "--out", str(out)])
    assert done.exit_code == 0, done.output
    first = json.loads(out.read_text().splitlines()[0])["hash_ids"]
    assert (first == [7, 9]) == (count == 1)
