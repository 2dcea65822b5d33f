"""The Azure format: real files, every kind of bad row with its line, and one reader checked against the other."""

from __future__ import annotations

import csv
import os
import pickle
import sys
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workloads.formats.errors import TraceError
from workloads.formats.layouts import LAYOUTS
from workloads.formats.read import read_trace
from workloads.formats.rows import join_rows
from workloads.formats.times import parse_time_ns

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
GOOD = ["2023-11-16 18:17:03.9799600,4808,10", "2023-11-16 18:17:04.0319600,3180,8", "2023-11-16 18:17:04.0319600,0,0"]

real = pytest.mark.skipif("TOKENPOOLS_DATA" not in os.environ, reason="TOKENPOOLS_DATA names no folder of real traces")


@pytest.fixture(scope="session")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("azure") / "trace.csv"


def read_azure_csv(path):
    return join_rows(list(read_trace(path, LAYOUTS["azure-llm"])))


def seconds(rows):
    return rows.since_s(int(rows.time_ns[0]))


def read(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_azure_csv(path)


def outcome(path, text):
    """What reading gives, as a comparable value: the columns, or row and problem."""
    try:
        rows = read(path, text)
    except TraceError as error:
        return error.args[1:]
    return rows.time_ns.tolist(), rows.prompt_tokens.tolist(), rows.output_tokens.tolist(), rows.clipped


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "\n", "\n\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_good_rows(path, end, last, start):
    rows = read(path, start + end.join([HEADER, *GOOD]) + last.replace("\n", end))
    assert rows.time_ns[0] == 1_700_158_623_979_960_000
    assert seconds(rows).tolist() == [0.0, 0.052, 0.052]
    assert len(rows) == 3


def test_a_count_of_0_becomes_1_and_is_counted(path):
    rows = read(path, "\n".join([HEADER, *GOOD]))
    assert rows.prompt_tokens.tolist() == [4808, 3180, 1]
    assert rows.output_tokens.tolist() == [10, 8, 1]
    assert rows.clipped == 2


BAD_ROWS = [
    ("2023-11-16 25:17:05,1,1", "time '2023-11-16 25:17:05' does not exist"),
    ("2023-02-30 18:17:05,1,1", "time '2023-02-30 18:17:05' does not exist"),
    ("2023-11-16,1,1", "time '2023-11-16' is not readable"),
    ("0001-11-16 18:17:05,1,1", "time '0001-11-16 18:17:05' is out of range"),
    ("NaN,1,1", "time 'NaN' is not readable"),
    (",1,1", "time '' is not readable"),
    ("2023-11-16 18:17:05,-3,1", "ContextTokens '-3' is out of range"),
    ("2023-11-16 18:17:05,3,-1", "GeneratedTokens '-1' is out of range"),
    ("2023-11-16 18:17:05,99999999999,1", "ContextTokens '99999999999' is out of range"),
    ("2023-11-16 18:17:05,,1", "ContextTokens is missing"),
    ("2023-11-16 18:17:05,1,", "GeneratedTokens is missing"),
    ("2023-11-16 18:17:05,NaN,1", "ContextTokens 'NaN' is not a whole number"),
    ("2023-11-16 18:17:05,12.5,1", "ContextTokens '12.5' is not a whole number"),
    ("2023-11-16 18:17:05,0x10,1", "ContextTokens '0x10' is not a whole number"),
    ("2023-11-16 18:17:05,1e3,1", "ContextTokens '1e3' is not a whole number"),
    ("2023-11-16 18:17:05,٣,1", "ContextTokens '٣' is not a whole number"),
    ("2023-11-16 18:17:05," + "9" * 5000 + ",1", "ContextTokens '" + "9" * 37 + "...' is not a whole number"),
    ("2023-11-16 18:17:05,1", "2 columns instead of 3"),
    ("2023-11-16 18:17:05,1,1,1", "4 columns instead of 3"),
    ("2023-11-16 18:17:03,1,1", "time 2023-11-16 18:17:03 is before that of the row above"),
]


@pytest.mark.parametrize(("bad", "problem"), BAD_ROWS, ids=[bad[:32] for bad, _ in BAD_ROWS])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("after", [[], ["also,bad"]], ids=["alone", "first"])
def test_the_first_bad_row_is_named_by_its_line(path, bad, problem, end, blank, after):
    lines = [HEADER, GOOD[0], *[""] * blank, GOOD[1], bad, *after]
    with pytest.raises(TraceError) as error:
        read(path, end.join(lines))
    shown = str(error.value)
    assert shown.startswith(f"{path}: row {4 + blank}: {problem}; ")
    assert "\n" not in shown
    assert str(pickle.loads(pickle.dumps(error.value))) == shown


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "the file is empty"),
        (" \n\n", "the file is empty"),
        (HEADER + "\n\n", "there is no row after the header"),
        ("a,b\n1,2\n", "row 1: the columns are 'a,b'; name them TIMESTAMP,ContextTokens,GeneratedTokens"),
        ("\n".join(GOOD), "row 1: the columns are '2023-11-16 18:17:03.9799600,4808,10'"),
        (HEADER + ",Extra\n", "row 1: the columns are"),
        (b"\x00\xff\xfe\x89PNG", "row 1: the columns are"),
    ],
)
def test_a_file_of_another_kind(path, text, place):
    with pytest.raises(TraceError) as error:
        read(path, text)
    assert str(error.value).startswith(f"{path}: {place}")
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(TraceError, match=r"none\.csv: cannot be read"):
        read_azure_csv(tmp_path / "none.csv")
    with pytest.raises(TraceError, match="cannot be read"):
        read_azure_csv(tmp_path)


@st.composite
def damaged(draw):
    text = "\n".join(GOOD) + "\n"
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        put = draw(st.text("0123456789-: .,\r\n\t\"'xNaT+é\0", max_size=3))
        text = text[:at] + put + text[at + draw(st.integers(0, 3)) :]
    return text


@given(body=damaged())
@example(body="2023-11-16 18:17:03.123456789, 1 ,2\n")
@example(body="2023-11-16 18:17:60,1,2\n")
@example(body="2023-11-16 18:17:03.,1,2\n")
@example(body="2023-11-16 18:17:03.1234567890,1,2\n")
@example(body="2023-11-16 18:17:03,00012,2\r2023-11-16 18:17:03,5,6")
@example(body="2262-11-16 18:17:03,1,2\n")
@example(body="2023-11-16,1,2\n2023-11-16 18:17:03,1,2\n")
def test_the_fast_reader_and_the_careful_one_agree_on_any_text(path, body):
    # A blank after the header's last name is accepted, and sends the same rows to the careful reader.
    assert outcome(path, f"{HEADER}\n{body}") == outcome(path, f"{HEADER} \n{body}")


@given(data=st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_trace_error(path, data):
    outcome(path, data)
    outcome(path, HEADER.encode() + b"\n" + data)


@given(when=st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)))
def test_times_are_exact_to_the_microsecond(when):
    since = when - datetime(1970, 1, 1)
    whole = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    assert parse_time_ns(when.isoformat(sep=" ", timespec="microseconds")) == whole * 1000


@real
@pytest.mark.parametrize(("service", "count", "cv"), [("code", 8819, 13.0), ("conv", 19366, 1.1)])
def test_the_published_files(service, count, cv):
    file = Path(os.environ["TOKENPOOLS_DATA"]) / "azure-llm-2023" / f"AzureLLMInferenceTrace_{service}.csv"
    rows = read_azure_csv(file)
    with file.open(newline="") as text:
        plain = list(csv.DictReader(text))
    assert len(rows) == len(plain) == count
    assert rows.clipped == 0
    assert rows.prompt_tokens.tolist() == [int(row["ContextTokens"]) for row in plain]
    assert rows.output_tokens.tolist() == [int(row["GeneratedTokens"]) for row in plain]
    when = [datetime.fromisoformat(row["TIMESTAMP"][:-1]) for row in plain]  # the seventh digit is always 0
    assert seconds(rows) == pytest.approx([(at - when[0]).total_seconds() for at in when], abs=1e-9)
    gaps_s = np.diff(seconds(rows))
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(cv, rel=0.05)  # as the data set's description says


def test_time_for_a_million_rows_is_shown(path, capsys):
    since_midnight = np.arange(1_000_000) // 300
    body = "\r\n".join(
        f"2023-11-16 {s // 3600:02}:{s // 60 % 60:02}:{s % 60:02}.9799600,4808,10" for s in since_midnight.tolist()
    )
    path.write_text(f"{HEADER}\r\n{body}", newline="")
    start_s = time.perf_counter()
    rows = read_azure_csv(path)
    taken_s = time.perf_counter() - start_s
    assert seconds(rows)[-1] == 3333.0
    with capsys.disabled():
        sys.stdout.write(f"\n  a million trace rows: {taken_s:.2f} s\n")
