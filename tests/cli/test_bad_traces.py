"""Traces that nobody could mean: each command refuses them in one line that says where, what and what to give instead.

Nothing is left behind; what can be read in spite of all (a byte order mark, CRLF, a name that is not packed) is read.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from sim.cli import app
from sim.errors import TokenpoolsError

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def row(second: int, prompt: Any = 10, output: Any = 5) -> str:
    return f"2023-11-16 18:15:{second:02}.6805900,{prompt},{output}\n"


def line(second: int, **changed: Any) -> str:
    fields = {"time_ns": second * 10**9, "prompt_tokens": 4, "output_tokens": 2, "tenant": "", "service": "",
              "session": "", "turn": 0, "max_output_tokens": 0, "blocks": [], "block_tokens": 0}  # fmt: skip
    return json.dumps({**fields, **changed}) + "\n"


GOOD = HEAD + "".join(row(second) for second in range(20))
TELLING = (
    "request_id,client_id,tenant_id,slo_class,session_id,round_index,prefix_group,streaming,input_tokens,output_tokens,"
    "text_tokens,image_tokens,audio_tokens,video_tokens,reason_ratio,arrival_time_us,send_time_us"
)
"""By these columns a format is known, whatever else a file has."""
JSON_OF_4 = '"prompt_tokens": 4'

READ: dict[str, bytes] = {
    "bom.csv": b"\xef\xbb\xbf" + GOOD.encode(),
    "crlf.csv": GOOD.replace("\n", "\r\n").encode(),
    "old-mac.csv": GOOD.replace("\n", "\r").encode(),
    "no-end.csv": GOOD.rstrip("\n").encode(),
    "not-packed.csv.gz": GOOD.encode(),
    "zeros.csv": (HEAD + row(0) + row(1, 0, 0)).encode(),
    "same-time.csv": (HEAD + row(3) * 3).encode(),
    "half-a-character.jsonl": (line(0) + line(1, tenant="\ud800")).encode(),
    "terminal.jsonl": line(0, tenant="a\nb\x1b[31m").encode(),
    "long-name.jsonl": line(0, tenant="x" * 100_000).encode(),
}
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty.csv": (b"", "the file is empty"),
    "header.csv": (HEAD.encode(), "no row after the header"),
    "spaces.csv": (b"  \n\n \n", "the file is empty"),
    "zeros-only.csv": (b"\0" * 100, "name a format"),
    "utf-16.csv": (GOOD.encode("utf-16"), "name a format"),
    "no-header.csv": (row(0).encode() * 3, "name a format"),
    "two-columns-of-a-name.csv": (b"TIMESTAMP,ContextTokens,ContextTokens\n" + row(0).encode(), "name a format"),
    "nan.csv": ((HEAD + row(0) + row(1, "nan")).encode(), "row 3: ContextTokens 'nan' is not a whole number"),
    "inf.csv": ((HEAD + row(0) + row(1, "inf")).encode(), "row 3: ContextTokens 'inf'"),
    "negative.csv": ((HEAD + row(0) + row(1, -5)).encode(), "row 3: ContextTokens '-5' is out of range"),
    "float.csv": ((HEAD + row(0) + row(1, "3.7")).encode(), "row 3: ContextTokens '3.7'"),
    "1e308.csv": ((HEAD + row(0) + row(1, "1e308")).encode(), "row 3: ContextTokens '1e308'"),
    "thirty-digits.csv": ((HEAD + row(0) + row(1, "9" * 30)).encode(), "row 3: ContextTokens '999"),
    "hexadecimal.csv": ((HEAD + row(0) + row(1, "0x1F")).encode(), "row 3: ContextTokens '0x1F'"),
    "thousands.csv": ((HEAD + row(0) + row(1, '"1,000"')).encode(), "row 3: ContextTokens '1,000'"),
    "arabic-digits.csv": ((HEAD + row(0) + row(1, "١٢")).encode(), "row 3: ContextTokens '١٢'"),
    "empty-cell.csv": ((HEAD + row(0) + row(1, "")).encode(), "row 3"),
    "short-row.csv": ((HEAD + row(0) + "2023-11-16 18:15:05.0,1\n").encode(), "row 3"),
    "long-row.csv": ((HEAD + row(0) + "2023-11-16 18:15:05.0,1,2,3\n").encode(), "row 3"),
    "wide.csv": (
        f"{TELLING},{','.join(f'column_{i}' for i in range(200))}\n{'1,' * 14}1\n".encode(), "15 columns instead of 217"
    ),
    "torn.csv": (GOOD[:-9].encode(), "row 21"),
    "open-quote.csv": ((HEAD + '2023-11-16 18:15:05.0,"1,2\n').encode(), "row 2"),
    "unsorted.csv": ((HEAD + row(9) + row(3)).encode(), "row 3: time 2023-11-16 18:15:03.6805900 is before"),
    "month-13.csv": ((HEAD + "2023-13-45 99:99:99,1,2\n").encode(), "does not exist"),
    "february-30.csv": ((HEAD + "2023-02-30 10:00:00,1,2\n").encode(), "does not exist"),
    "torn.csv.gz": (gzip.compress(GOOD.encode())[:-12], "gzip file"),
    "damaged.csv.gz": (gzip.compress(GOOD.encode())[:30] + b"x" * 40, "gzip file"),
    "nothing.csv.gz": (gzip.compress(b""), "the file is empty"),
    "bomb.csv.gz": (gzip.compress(b"a" * (40 << 20)), "a line of more than 16 MiB"),
    "mixed-types.jsonl": ((line(0) + line(1, prompt_tokens="seven")).encode(), "row 2: prompt_tokens 'seven'"),
    "null.jsonl": ((line(0) + line(1, prompt_tokens=None)).encode(), "row 2: prompt_tokens"),
    "true.jsonl": ((line(0) + line(1, prompt_tokens=True)).encode(), "row 2: prompt_tokens 'True'"),
    "nan.jsonl": ((line(0) + line(1).replace(JSON_OF_4, '"prompt_tokens": NaN')).encode(), "row 2: prompt_tokens"),
    "1e400.jsonl": ((line(0) + line(1).replace(JSON_OF_4, '"prompt_tokens": 1e400')).encode(), "row 2: prompt_tokens"),
    "negative.jsonl": ((line(0) + line(1, output_tokens=-1)).encode(), "row 2: output_tokens '-1'"),
    "half-a-nanosecond.jsonl": ((line(0) + line(1, time_ns=1.5)).encode(), "row 2: time_ns '1.5'"),
    "before-1970.jsonl": ((line(0) + line(1, time_ns=-(10**18))).encode(), "row 2: time_ns '-1"),
    "torn.jsonl": ((line(0) + line(1)[:20]).encode(), "row 2"),
    "no-object.jsonl": (b'"a"\n', "no-object.jsonl"),
    "lists.jsonl": (b"[1, 2]\n[3]\n", "is not JSON"),
    "deep.jsonl": ((line(0) + "[" * 100_000).encode(), "row 2: '[[["),
    "blocks-of-two-sizes.jsonl": (
        (line(0, blocks=[1], block_tokens=4) + line(1, blocks=[1], block_tokens=16)).encode(), "row 2: block_tokens"
    ),
    "pickle.jsonl": (b"\x80\x04\x95", "pickle"),
    "torn.parquet": (b"PAR1", "torn.parquet"),
    "random.parquet": (b"PAR1" + bytes(range(256)) + b"PAR1", "give a Parquet file"),
}  # fmt: skip
COMMANDS = ("inspect", "convert", "validate", "run", "advise")


def called(folder: Path, command: str, file: Path) -> tuple[Any, Path]:
    """Return the outcome of a command over a trace, and where its result would be."""
    out = folder / "out.jsonl"
    scenario = folder / "s.yaml"
    scenario.write_text(yaml.safe_dump({
        "version": 1, "policies": ["none"],
        "pool": {
            "profile": {"step_time": {"kind": "linear", "base_s": 0.02}, "max_num_seqs": 8,
                        "max_num_batched_tokens": 512, "kv_blocks": 1000},
            "entitlements": [{"name": "chat", "service_class": "spot"}],
        },
        "workload": [{"entitlement": "chat", "arrivals": {"kind": "trace", "file": str(file)}}],
    }))  # fmt: skip
    words = {
        "inspect": ["trace", "inspect", str(file)],
        "convert": ["trace", "convert", str(file), "--out", str(out)],
        "validate": ["validate", str(scenario)],
        "run": ["run", str(scenario), "--out", str(out)],
        "advise": ["advise", str(file), "--out", str(out), "--replicas", "1", "--draws", "2", "--check-draws", "5"],
    }[command]
    return CliRunner().invoke(app, words), out


@pytest.mark.parametrize("name", REFUSED)
def test_each_command_says_where_what_and_what_to_give_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    content, expected = REFUSED[name]
    file = tmp_path / name
    file.write_bytes(content)
    for command in COMMANDS:
        done, out = called(tmp_path, command, file)
        assert isinstance(done.exception, TokenpoolsError), (command, done.exception, done.output)  # exit code 2
        said = str(done.exception)
        assert "\n" not in said
        assert len(said) < 1000
        assert name in said, command
        assert expected in said, command
        assert "; " in said, f"{command} names no remedy"
        assert not out.exists(), command
        assert sorted(one.name for one in tmp_path.iterdir()) == sorted((name, "s.yaml")), command


@pytest.mark.parametrize("name", READ)
def test_what_can_be_read_is_and_nothing_of_it_reaches_the_terminal(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(READ[name])
    for command in ("inspect", "convert", "validate", "run"):
        done, _ = called(tmp_path, command, file)
        assert done.exit_code == 0, (command, done.exception, done.output)
        assert "\x1b" not in done.output
        assert max(map(len, done.output.splitlines())) < 1000
        out = tmp_path / "out.jsonl"
        if out.is_file():
            out.unlink()
