"""Measurements that nobody could mean: each command refuses them in one line, and writes nothing.

The line says where, what was found and what to give instead.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from calibration.lawful_tables import write_tables
from typer.testing import CliRunner

from sim.cli import app
from sim.errors import TokenpoolsError

Change = Callable[[pd.DataFrame], pd.DataFrame]
EPOCH_S = 1.7e9


def refused(folder: Path, *words: object) -> str:
    """Return the line with which a command refuses; nothing else may come of it."""
    before = sorted(folder.rglob("*"))
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(done.exception, TokenpoolsError), (done.exception, done.output)  # exit code 2
    said = str(done.exception)
    assert "\n" not in said
    assert said.isprintable()
    assert len(said) < 1000
    assert "; " in said, f"no remedy: {said}"
    assert sorted(folder.rglob("*")) == before
    return said


def cell(name: str, value: object, row: int = 5) -> Change:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        changed = table.astype({name: object})
        changed.loc[row, name] = value
        return changed

    return change


def times(factor: float, *names: str) -> Change:
    return lambda table: table.assign(**{name: table[name] * factor for name in names})


def later(name: str, seconds: float) -> Change:
    return lambda table: table.assign(**{name: table[name] + seconds})


def without(name: str) -> Change:
    return lambda table: table.drop(columns=name)


def renamed(name: str, other: str) -> Change:
    return lambda table: table.rename(columns={name: other})


def twice(table: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([table, table])


def none_of(table: pd.DataFrame) -> pd.DataFrame:
    return table.head(0)


# ----------------------------------------------------------------------------------------------------------------- runs

ROWS = [(float(i), 100 + 37 * i, 20 + i, i + 0.03 + i / 1e3, i + 0.2 + i / 80) for i in range(24)]
RUN = pd.DataFrame(ROWS, columns=["arrival_s", "prompt_tokens", "output_tokens", "first_token_s", "finish_s"])
STAMPS = ("arrival_s", "first_token_s", "finish_s")

RUNS: dict[str, tuple[Change | str | bytes, str]] = {
    "empty": ("", "is empty"),
    "spaces": ("  \n\n", "is empty"),
    "header": (none_of, "has no row after the header"),
    "zeros": (b"\0" * 100, "has no row after the header"),
    "semicolons": (RUN.to_csv(index=False, sep=";"), "has no column arrival_s"),
    "semicolons, commas wanted": (RUN.to_csv(index=False, sep=";"), "separate its cells by commas"),
    "UTF-16": (RUN.to_csv(index=False).encode("utf-16"), "is UTF-16; save it as UTF-8"),
    "Latin-1": (RUN.assign(note="é").to_csv(index=False).encode("latin-1"), "is no UTF-8"),
    "thousands": (cell("prompt_tokens", "1,234"), "row 7: prompt_tokens '1,234' is no number"),
    "a row in milliseconds": (
        lambda t: t.assign(**{name: np.where(t.index == 5, 1e3 * t[name], t[name]) for name in STAMPS}),
        "row 7: 35 s to the first token and 9.48 s between two, where"),
    "nanoseconds since 1970": (
        lambda t: t.assign(**{name: (1e9 * (t[name] + EPOCH_S)).astype(np.int64) for name in STAMPS}),
        "which are no seconds since 1970; give all times in seconds"),
    "two runs": (lambda t: pd.concat([t, t + 24.0, t + 48.0, t.assign(prompt_tokens=t.prompt_tokens + 1)]),
                 "row 74: arrivals begin anew, as of another run"),
    "cached twice": (lambda t: t.assign(cached_tokens=16, prefix_hit_tokens=32), "cached_tokens and prefix_hit_tokens"),
    "cached, and names": (
        lambda t: t.assign(cached_tokens=16, hash_ids=[str([*range(-(-p // 512))]) for p in t.prompt_tokens]),
        "leave one of them out"),
    "optional column twice": (
        RUN.assign(a=16, b=64).to_csv(index=False).replace("a,b\n", "cached_tokens,cached_tokens\n"),
        "has two columns cached_tokens"),
    "renamed": (renamed("first_token_s", "first_token_ms"), "has no column first_token_s"),
    "renamed, nearest": (renamed("first_token_s", "first_token_ms"), "did you mean first_token_ms?"),
    "twice the column": ("arrival_s,prompt_tokens,prompt_tokens,output_tokens,first_token_s,finish_s\n0,1,2,3,.1,.2\n",
                         "has two columns prompt_tokens"),
    "nobody finished": (cell("finish_s", np.nan, slice(None)), "holds no request that finished"),  # type: ignore[arg-type]
    "infinite prompt": (cell("prompt_tokens", np.inf), "row 7: prompt_tokens 'inf' is not finite"),
    "infinite arrival": (cell("arrival_s", np.inf), "row 7: arrival_s 'inf' is not finite"),
    "negative prompt": (cell("prompt_tokens", -5), "row 7: prompt_tokens '-5' is below 1"),
    "no prompt": (cell("prompt_tokens", 0), "row 7: prompt_tokens '0' is below 1"),
    "negative output": (cell("output_tokens", -3), "row 7: output_tokens '-3' is below 0"),
    "half a token": (cell("prompt_tokens", 10.5), "row 7: prompt_tokens '10.5' is no whole number"),
    "a billion tokens": (cell("prompt_tokens", 10**9), "row 7: prompt_tokens '1000000000' is more than 1e+08"),
    "text": (cell("finish_s", "soon"), "row 7: finish_s 'soon' is no number"),
    "milliseconds": (times(1e3, *STAMPS), "has 9.91 s between two tokens in the median"),
    "microseconds": (times(1e6, *STAMPS), "times in another unit than seconds"),
    "thousands of seconds": (times(1e-3, *STAMPS), "times in another unit than seconds"),
    "answers in milliseconds": (times(1e3, "first_token_s", "finish_s"), "times in another unit than seconds"),
    "durations": (lambda t: t.assign(first_token_s=t.first_token_s - t.arrival_s, finish_s=t.finish_s - t.arrival_s),
                  "row 3: a request was answered before it came"),
    "ends early": (later("finish_s", -0.5), "ended before its first token"),
    "arrivals on another clock": (later("arrival_s", EPOCH_S), "mixes clocks: first tokens and arrivals"),
    "ends on another clock": (later("finish_s", EPOCH_S), "mixes clocks: first and last tokens"),
    "one on another clock": (cell("arrival_s", EPOCH_S), "arrivals are 1.7e+09 s apart (row 7)"),
    "one row on another clock": (
        lambda t: t.assign(**{name: np.where(t.index == 5, t[name] + EPOCH_S, t[name]) for name in STAMPS}),
        "mixes clocks: arrivals are 1.7e+09 s apart (row 7)"),
    "more cached than asked": (lambda t: t.assign(cached_tokens=150), "row 2 found 150 cached tokens of a prompt of"),
    "less than nothing cached": (lambda t: t.assign(cached_tokens=-1), "row 2: cached_tokens '-1' is below 0"),
    "text cached": (lambda t: t.assign(cached_tokens="x"), "row 2: cached_tokens 'x' is no number"),
    "blocks of another length": (lambda t: t.assign(hash_ids="[1]"), "row 14 has 1 hash_ids of 512 tokens for a"),
    "blocks without names": (lambda t: t.assign(hash_ids='["a"]'), "row 2: hash_ids are no list of whole numbers"),
    "blocks of no size": (lambda t: t.assign(hash_ids="[1]", block_tokens=0), "row 2: block_tokens '0' is below 1"),
    "blocks of two sizes": (lambda t: t.assign(hash_ids="[1]", block_tokens=[512] * 23 + [16]), "of 16 and of 512"),
}  # fmt: skip


def run_file(folder: Path, content: Change | str | bytes) -> Path:
    file = folder / "run.csv"
    if callable(content):
        content = content(RUN).to_csv(index=False)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_cannot_be_is_refused_by_every_command_that_reads_one(tmp_path: Path, name: str) -> None:
    content, expected = RUNS[name]
    file = run_file(tmp_path, content)
    for words in (
        ("validate-profile", "h100-llama-3.1-8b", file),
        ("calibrate", "records", file, "--kv-blocks", 9000, "--out", tmp_path / "out.yaml"),
    ):
        said = refused(tmp_path, *words)
        assert expected in said
        assert said.startswith(str(file))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["[1]", "{}"], "holds no JSON mapping"),
        ([json.dumps(dict(zip(RUN, row, strict=True))) for row in ROWS[:3]] + ["3"], "holds no JSON mapping"),
        (["{"], "cannot be read"),
        (['{"ttfts": [0.1], "input_lens": [1, 2], "output_lens": [3], "itls": [[0.1]], "start_times": [0]}'],
         "cannot be read"),
    ],
)  # fmt: skip
def test_json_that_is_no_run_is_refused(tmp_path: Path, lines: list[str], expected: str) -> None:
    file = tmp_path / "run.jsonl"
    file.write_text("\n".join(lines))
    assert expected in refused(tmp_path, "validate-profile", "h100-llama-3.1-8b", file)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    torn, other = tmp_path / "torn.csv.gz", tmp_path / "other.csv.gz"
    torn.write_bytes(gzip.compress(RUN.to_csv().encode())[:-12])
    other.write_bytes(b"no gzip")
    for file in (tmp_path, tmp_path / "none.csv", torn, other):
        assert "cannot be read" in refused(tmp_path, "validate-profile", "h100-llama-3.1-8b", file)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--set", "kv_blocks=8", "--set", "max_model_tokens=null"),
         "a request of 951 + 43 tokens, and the KV cache of the profile 128 tokens"),
        (("--set", "max_model_tokens=200"), "and the profile takes 200 at most"),
        (("--set", "gpus=0"), "gpus: input should be greater than 0"),
        (("--set", "data_parallel=3", "--set", "gpus=2"), "gpus: 2 beside data_parallel: 3"),
        (("--set", "data_parallel=2", "--set", "gpus=3"), "gpus: 3 do not divide among 2 ranks"),
        (("--set", "data_parallel=1000000"), "data_parallel: input should be less than or equal to 1024"),
        (("--set", "kv_blocks.x=1"), "kv_blocks holds no fields"),
        (("--set", "kv_blocks=["), "is no NAME=VALUE"),
        (("--set", "step_time.weights_s=.nan"), "step_time.weights_s: input should be a finite number"),
        (("--scenario", "nobody"), "nobody: no such file or shipped scenario"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(tmp_path: Path, options: tuple[str, ...], expected: str) -> None:
    file = run_file(tmp_path, RUN.to_csv(index=False))
    assert expected in refused(tmp_path, "validate-profile", "h100-llama-3.1-8b", file, *options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--kv-blocks", 8), "the KV cache of the profile 128 tokens"),
        (("--kv-blocks", 9000, "--share", 0.01), "3 measurements for 4 terms"),
        (("--kv-blocks", 9000, "--max-num-batched-tokens", 8), "8 is below"),
        (("--kv-blocks", 9000, "--max-num-seqs", 64, "--max-num-batched-tokens", 8), "8 is below --max-num-seqs (64)"),
        (("--kv-blocks", 9000, "--gpu", "h100"), "--gpu: unknown GPU h100; did you mean H100-SXM?"),
        (("--profile", "h100-lama-3.1-8b"), "did you mean h100-llama-3.1-8b?"),
        (("--profile", "h100-llama-3.1-8b", "--gpu", "H100-SXM"), "--gpu: given beside --profile"),
        (("--kv-blocks", 9000, "--term", "weight_s"), "did you mean weights_s?"),
        (("--kv-blocks", 9000, *(word for name in ("weights_s", "per_token_s", "per_context_token_s",
                                                   "per_prefill_iteration_s") for word in ("--without", name))),
         "nothing to fit"),
    ],
)  # fmt: skip
def test_a_fit_that_cannot_be_is_refused(tmp_path: Path, options: tuple[object, ...], expected: str) -> None:
    file = run_file(tmp_path, RUN.to_csv(index=False))
    if expected == "8 is below":  # vLLM itself runs no more sequences at once than tokens
        done = CliRunner().invoke(app, ["calibrate", "records", str(file), *map(str, options), "--share", "0.01"])
        assert "--max-num-seqs 8" in done.output
        return
    assert expected in refused(tmp_path, "calibrate", "records", file, *options, "--out", tmp_path / "out.yaml")


def test_a_run_that_identifies_nothing_is_refused_and_names_what_would(tmp_path: Path) -> None:
    file = run_file(tmp_path, lambda table: pd.concat([table.head(1)] * 24))
    said = refused(tmp_path, "calibrate", "records", file, "--kv-blocks", 9000, "--out", tmp_path / "out.yaml")
    assert "does not identify weights_s" in said
    assert "leave all but one out, or add requests sent to an idle engine" in said


def test_what_is_odd_but_may_be_is_said(tmp_path: Path) -> None:
    odd = {
        "24 rows repeat another in every column": twice,
        "1 of 24 rows have no arrival or no prompt": cell("prompt_tokens", np.nan),
        "1 requests ended: too few": lambda table: table.head(1),
    }
    for expected, change in odd.items():
        done = CliRunner().invoke(app, ["validate-profile", "h100-llama-3.1-8b", str(run_file(tmp_path, change))])
        assert done.exit_code == 0, done.output
        assert expected in done.output


# --------------------------------------------------------------------------------------------------------------- sweeps

POINTS = [(c, p, 50, 0.02 + p * 3e-5 * c, 0.007 + 1e-4 * c) for c in (1, 2, 4, 8) for p in (200, 800)]
SWEEP = pd.DataFrame(POINTS, columns=["concurrency", "prompt_tokens", "output_tokens", "ttft_s", "tpot_s"])
SWEEPS: dict[str, tuple[Change | str | bytes, str]] = {
    "empty": ("", "is empty"),
    "header": (none_of, "has no row after the header"),
    "one row": (lambda t: t.head(1), "1 points for 5 terms"),
    "one client": (lambda t: t[t.concurrency == 1], "2 points for 5 terms"),
    "renamed": (renamed("ttft_s", "ttft_ms"), "has no column ttft_s"),
    "twice the column": ("concurrency,concurrency,prompt_tokens,output_tokens,ttft_s,tpot_s\n1,1,1,1,1,1\n",
                         "has two columns concurrency"),
    "missing": (cell("ttft_s", np.nan), "row 7: ttft_s is missing"),
    "infinite": (cell("tpot_s", np.inf), "row 7: tpot_s 'inf' is not finite"),
    "negative": (cell("ttft_s", -1), "row 7: ttft_s '-1.0' is not above 0"),
    "no client": (cell("concurrency", 0), "row 7: concurrency '0' is below 1"),
    "half a client": (cell("concurrency", 1.5), "row 7: concurrency '1.5' is no whole number"),
    "clients in words": (cell("concurrency", "four"), "row 7: concurrency 'four' is no number"),
    "a billion clients": (cell("concurrency", 10**9), "row 7: concurrency '1000000000' is more than 20000"),
    "one token": (lambda t: t.assign(output_tokens=1), "row 2: output_tokens '1' is below 2"),
    "milliseconds": (times(1e3, "ttft_s", "tpot_s"), "has 7.3 s between two tokens"),
    "thousands of seconds": (times(1e-3, "ttft_s", "tpot_s"), "times in another unit than seconds"),
    "first tokens in milliseconds": (times(1e3, "ttft_s"), "row 2: ttft_s 26 beside tpot_s 0.0071 (1 clients, 20"),
    "one token in milliseconds": (cell("tpot_s", 7.1, 0), "row 2: ttft_s 0.026 beside tpot_s 7.1"),
    "several layouts": (lambda t: t.assign(tp=[1, 2] * 4), "in the column tp how many GPUs share the model (1, 2)"),
    "another layout": (lambda t: t.assign(GPUs=4), "call the column gpus"),
    "several GPUs": (lambda t: t.assign(gpu=["A100", "H100"] * 4), "points of 2 engines (column gpu: A100, H100)"),
    "several engines": (lambda t: t.assign(gpus=2, precision=["fp8", "fp4"] * 4), "column precision: fp4, fp8"),
    "JSON": (SWEEP.to_json(orient="records"), "is JSON, and no CSV table"),
    "UTF-16": (SWEEP.to_csv(index=False).encode("utf-16"), "is UTF-16; save it as UTF-8"),
    "GuideLLM's": ("Run Info,Run Info\n1,2\n", "give its JSON (--output kind=json,path=FILE) to calibrate records"),
    "a run": (RUN.to_csv(index=False), "has no column concurrency, ttft_s, tpot_s"),
    "contradicts itself": (lambda t: pd.concat([t, t.assign(ttft_s=5 * t.ttft_s)], ignore_index=True),
                           "rows 2 and 10 are one point (1/200/50) and give ttft_s 0.026 and 0.13"),
}  # fmt: skip


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    content, expected = SWEEPS[name]
    file = tmp_path / "sweep.csv"
    text = content(SWEEP).to_csv(index=False) if callable(content) else content
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    said = refused(tmp_path, "calibrate", "sweep", file, "--kv-blocks", 9000, "--out", tmp_path / "out.yaml")
    assert expected in said
    assert "sweep" in said


# -------------------------------------------------------------------------------------------------------------- kernels

META = {"gpu": "NVIDIA H100 80GB HBM3", "model": "Qwen/Qwen3-32B", "vllm_version": "0.19.0", "cuda_version": "13"}
TABLES = {"dense": "tokens", "attention": "kv_prefill", "per_sequence": "sequences"}
KERNELS: dict[str, tuple[Change | str, str]] = {
    "empty": ("", "is empty"),
    "header": (none_of, "has no row after the header"),
    "twice": (twice, "measured before ("),
    "text": (cell("time_us", "fast", 2), "row 4: time_us 'fast' is no number"),
    "infinite": (cell("time_us", np.inf, 2), "row 4: time_us 'inf' is not finite"),
    "no time": (cell("time_us", 0, 2), "is not above 0"),
    "milliseconds": (times(1e-3, "time_us"), "which no kernel of one layer takes"),
    "renamed": (renamed("time_us", "time_ms"), "has the columns"),
}


def kernels(folder: Path, meta: Any = META, name: str = "tp2") -> Path:
    found = folder / name
    found.mkdir(parents=True)
    write_tables(found)
    if meta is not None:
        (folder / "meta.yaml").write_text(meta if isinstance(meta, str) else yaml.safe_dump(meta))
    return found


def refuses(folder: Path, *options: object) -> str:
    words = ("calibrate", "kernels", folder, "--kv-blocks", 9000, *options, "--out", folder / "out.yaml")
    return refused(folder.parent, *words)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", KERNELS)
def test_a_table_of_kernels_that_cannot_be_is_refused(tmp_path: Path, table: str, name: str) -> None:
    content, expected = KERNELS[name]
    file = kernels(tmp_path) / f"{table}.csv"
    file.write_text(content if isinstance(content, str) else content(pd.read_csv(file)).to_csv(index=False))
    said = refuses(file.parent)
    assert expected in said
    assert file.name in said


@pytest.mark.parametrize("table", TABLES)
def test_places_of_kernels_that_cannot_be_are_refused(tmp_path: Path, table: str) -> None:
    file, place = kernels(tmp_path) / f"{table}.csv", TABLES[table]
    good = pd.read_csv(file)
    values = ((-4, "is below 0"), (1.5, "is no whole number"), ("x", "is no number"), (np.nan, "is missing"))
    for value, expected in values:
        cell(place, value, 2)(good).to_csv(file, index=False)
        assert f"row 4: {place}" in (said := refuses(file.parent))
        assert expected in said


def test_tables_with_holes_or_of_one_row_are_refused(tmp_path: Path) -> None:
    folder = kernels(tmp_path)
    for table, keep, expected in (
        ("attention", lambda t: t.head(1), "has 1 of the usual values of prefill_chunk"),
        ("attention", lambda t: t.drop(index=500), "has no row of prefill_chunk"),
        ("dense", lambda t: t.head(1), "holds one size of iteration"),
        ("dense", lambda t: t.drop(index=8), "has no row of layer layernorm at tokens 64"),
        ("per_sequence", lambda t: t.head(1), "holds one size of iteration"),
    ):
        file = folder / f"{table}.csv"
        good = file.read_text()
        keep(pd.read_csv(file)).to_csv(file, index=False)
        assert expected in refuses(folder)
        file.write_text(good)
    for factor in (1e3, 1e-3):
        for table in TABLES:
            file = folder / f"{table}.csv"
            times(factor, "time_us")(pd.read_csv(file)).to_csv(file, index=False)
        assert "no " in refuses(folder)
        write_tables(folder)
    (folder / "attention.csv").unlink()
    assert "attention.csv: cannot be read" in refuses(folder)
    assert "is no folder" in refused(tmp_path, "calibrate", "kernels", tmp_path / "none", "--kv-blocks", 9000)


@pytest.mark.parametrize(
    ("name", "meta", "options", "expected"),
    [
        ("tp2", META, ("--gpus", 4), "holds the tables of 2 GPUs, not of 4"),
        ("tp2", META | {"tp_degrees": [1, 4]}, (), "is named for 2 GPUs, and meta.yaml was written for tables of 1, 4"),
        ("all", META | {"tp_degrees": [1, 4]}, ("--gpus", 2), "was profiled for 1, 4 GPUs, not for 2"),
        ("tp3", META, (), "3 GPUs do not divide the 64 attention heads of Qwen/Qwen3-32B"),
        ("tp2", META | {"tp_degrees": 2}, (), "tp_degrees is no list"),
        ("tp2", META | {"skew_fit": "x"}, (), "skew_fit is not a mapping"),
        ("tp2", META | {"skew_fit": {"enabled": True, "per_tp": {2: {"alpha_default": 7}}}}, (), "alpha_default is 7"),
        ("tp2", META | {"model": "Qwen/Qwen4-32B"}, (), "meta.yaml names Qwen/Qwen4-32B, which is not known"),
        ("tp2", META | {"model": "Qwen/Qwen4-32B"}, (), "did you mean qwen3-32b?"),
        ("tp2", META | {"model": 7}, (), "meta.yaml names 7, which is not known"),
        ("tp2", "a: [", (), "meta.yaml: cannot be read"),
        ("tp2", META, ("--expert-parallel", 2), "hold no moe.csv"),
        ("tp2", META, ("--link-bytes-per-s", 900), "give bytes and not gigabytes per second"),
        ("tp2", META, ("--link-bytes-per-s", "inf"), "no link between GPUs"),
        ("tp2", META, ("--link-bytes-per-s", 1e10, "--link-latency-s", "inf"), "inf s is no link's"),
        ("tp2", META, ("--link-gpu", "h100"), "did you mean H100-SXM?"),
        ("tp2", META, ("--link-gpu", "H100-SXM", "--no-links"), "--link-gpu: given beside --no-links"),
        ("tp2", META, ("--max-num-seqs", 64, "--max-num-batched-tokens", 8), "8 is below --max-num-seqs (64)"),
    ],
)  # fmt: skip
def test_tables_that_contradict_what_is_said_of_them_are_refused(
    tmp_path: Path, name: str, meta: Any, options: tuple[object, ...], expected: str
) -> None:
    assert expected in refuses(kernels(tmp_path, meta, name), *options)


EXPERTS = [(t, e, 10.0 + e + 0.01 * t) for t in (1, 16, 256, 2048) for e in (8, 64, 128) if e <= 8 * t]


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        (EXPERTS, ("--expert-parallel", 256), "256 ranks share 128 experts"),
        (EXPERTS, ("--experts", 4), "8 experts of a token, of 4 in a layer"),
        (EXPERTS[:1], (), "holds one number of tokens, or of experts"),
        (EXPERTS + EXPERTS, (), "measured before (tokens 1, activated_experts 8)"),
        ([(1, "x", 3.0)], (), "row 2: activated_experts 'x' is no number"),
        ([], (), "has no row after the header"),
    ],
)
def test_tables_of_experts_that_cannot_be_are_refused(
    tmp_path: Path, rows: list[Any], options: tuple[object, ...], expected: str
) -> None:
    folder = kernels(tmp_path, META | {"model": "Qwen/Qwen3-30B-A3B-Instruct-2507"}, "tp1")
    pd.DataFrame(rows, columns=["tokens", "activated_experts", "time_us"]).to_csv(folder / "moe.csv", index=False)
    assert expected in refuses(folder, *options)


LINKS = pd.DataFrame(
    [(g, b, 5 + b / 1e5) for g in (2, 4) for b in (1024, 65536, 2**20)], columns=["gpus", "bytes", "all_reduce_us"]
)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (none_of, "has no row after the header"),
        (without("gpus"), "does not say between how many GPUs"),
        (without("bytes"), "has no column bytes"),
        (without("all_reduce_us"), "has no column all_reduce_us"),
        (lambda t: t[t.gpus == 4], "holds no times between 2 GPUs, but 4"),
        (cell("gpus", "two", 1), "row 3: gpus 'two' is no number"),
        (cell("gpus", 2.5, 1), "row 3: gpus '2.5' is no whole number"),
        (cell("gpus", np.nan, 1), "row 3: gpus is missing"),
        (cell("all_reduce_us", np.inf, 1), "row 3: all_reduce_us 'inf' is not finite"),
        (cell("bytes", -1, 1), "row 3: bytes '-1' is not above 0"),
        (lambda t: t.head(1), "holds one size of message for 2 GPUs"),
        (times(1e3, "all_reduce_us"), "has 0.00501 s for 1024 bytes, which no all-reduce takes"),
        (times(1e-3, "all_reduce_us"), "correct the unit of all_reduce_us"),
        (times(1e9, "bytes"), "faster than any link"),
        (times(2**-10, "bytes"), "slower than any link; give the message size in bytes"),
        (cell("all_reduce_us", 5650.0, 1), "row 3: 0.00565 s for 65536 bytes, ten times what a larger message takes"),
        (lambda t: t.assign(median_ms=t.all_reduce_us), "has median_ms of 1e+03 times all_reduce_us in the median"),
        (lambda t: t.assign(ranks=4), "has columns ranks and gpus that differ"),
    ],
)
def test_a_table_of_links_that_cannot_be_is_refused(tmp_path: Path, change: Change, expected: str) -> None:
    file = tmp_path / "links.csv"
    change(LINKS).to_csv(file, index=False)
    said = refuses(kernels(tmp_path), "--link-table", file)
    assert expected in said
    assert file.name in said


# ------------------------------------------------------------------------------------------------------ models and GPUs

LLAMA = {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
         "vocab_size": 128256, "intermediate_size": 14336}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "options", "expected"),
    [
        ("llama-9", (), "did you mean llama-2-7b?"),
        ("", (), "unknown, and no file"),
        ("llama-3.1-8b", ("--gpu", "h100"), "did you mean H100-SXM?"),
        ("llama-3.1-8b", ("--gpus", 3), "3 GPUs do not divide the model's 32 attention heads"),
        ("llama-3.1-405b", (), "leave -"),
        ([], (), "is not a mapping"),
        ({"text_config": 5}, (), "text_config is not a mapping"),
        (LLAMA | {"hidden_size": "x"}, (), "hidden_size is x, and no whole number"),
        (LLAMA | {"hidden_size": float("nan")}, (), "hidden_size is nan"),
        (LLAMA | {"num_attention_heads": 0}, (), "num_attention_heads is 0"),
        (LLAMA | {"num_hidden_layers": -3}, (), "num_hidden_layers is -3"),
        (LLAMA | {"num_attention_heads": 5000}, (), "5000 heads share a hidden_size of 4096"),
        (LLAMA | {"num_experts": 8}, (), "num_experts_per_tok is missing"),
    ],
)
def test_a_model_that_cannot_be_is_refused(
    tmp_path: Path, config: Any, options: tuple[object, ...], expected: str
) -> None:
    file = tmp_path / "config.json"
    if not isinstance(config, str):
        file.write_text(json.dumps(config))
    words = ("calibrate", "model", config if isinstance(config, str) else file, "--gpu", "H100-SXM", *options)
    assert expected in refused(tmp_path, *words, "--out", tmp_path / "out.yaml")


def test_profiles_of_what_nobody_ships_are_called_nearest_only() -> None:
    for words, expected in (
        (("Foo-13B",), "no shipped profile is of Foo-13B (none says 13b, foo)"),
        (("Llama-3.1-70B", "H300"), "no shipped profile is of Llama-3.1-70B on H300 (none says h300)"),
        (("Qwen3-32B", "H100-SXM"), "no shipped profile is of Qwen3-32B on H100-SXM:"),
        (("",), "no shipped profile is of nothing"),
    ):
        done = CliRunner().invoke(app, ["profiles", *words])
        assert done.exit_code == 0
        assert expected in done.output
        assert "tokenpools calibrate makes one" in done.output
    done = CliRunner().invoke(app, ["profiles", "meta-llama/Llama-3.1-70B-Instruct", "H200-SXM"])
    assert "no shipped profile" not in done.output


# --------------------------------------------------------------------------------------------- engines of several ranks

LINKED = {"kind": "fitted", "weights_s": 0.01,
          "links": {"ranks": 2, "bytes_per_token": 8192, "all_reduces": 64, "bytes_per_s": 1e10}}  # fmt: skip


@pytest.mark.parametrize(
    ("profile", "pool", "expected"),
    [
        ({"gpus": 0}, {}, "pool.profile.gpus: input should be greater than 0"),
        ({"gpus": 2, "data_parallel": 3}, {}, "gpus: 2 beside data_parallel: 3, and each rank has a GPU of its own"),
        ({"gpus": 1, "data_parallel": 2}, {}, "gpus: 1 beside data_parallel: 2"),
        ({"gpus": 5, "data_parallel": 2}, {}, "gpus: 5 do not divide among 2 ranks"),
        ({"data_parallel": 10**9}, {}, "data_parallel: input should be less than or equal to 1024"),
        ({"gpus": 3, "tensor_parallel": 2}, {}, "gpus: 3 beside tensor_parallel 2"),
        ({"gpus": 2, "tensor_parallel": 2, "data_parallel": 2}, {}, "give 4, or leave it out"),
        ({"expert_parallel": True}, {}, "nobody to share with"),
        ({"expert_parallel": 8, "data_parallel": 2}, {}, "expert_parallel: input should be true or false, got 8"),
        ({"gpus": 4, "pipeline_parallel": 3}, {}, "gpus: 4 do not divide among 3 stages"),
        ({"tensor_parallel": 4, "step_time": LINKED}, {}, "tensor_parallel: 4, and step_time.links are of 2 ranks"),
        ({"gpus": 1, "step_time": LINKED}, {}, "gpus: 1, and step_time.links join 2"),
        ({"tensor_parallel": 2}, {"gpus_per_replica": 4}, "gpus_per_replica: 4, and the profile is of 2"),
        ({"ranks": 4}, {}, "pool.profile.ranks: unknown field"),
        ("h100-lama-3.1-8b", {}, "did you mean h100-llama-3.1-8b?"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(tmp_path: Path, profile: Any, pool: Any, expected: str) -> None:
    engine = {"step_time": {"kind": "linear", "base_s": 0.02}, "max_num_seqs": 8, "max_num_batched_tokens": 512,
              "kv_blocks": 1000}  # fmt: skip
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump({
        "version": 1, "policies": ["none"], "horizon_s": 5,
        "pool": {"profile": profile if isinstance(profile, str) else engine | profile,
                 "entitlements": [{"name": "chat", "service_class": "spot"}], **pool},
        "workload": [{"entitlement": "chat", "arrivals": {"kind": "poisson", "rate_per_s": 1}}],
    }))  # fmt: skip
    for words in (("run", file, "--out", tmp_path / "out"), ("validate", file)):
        assert expected in refused(tmp_path, *words)


def test_a_step_time_in_milliseconds_is_asked_about(tmp_path: Path) -> None:
    profile = tmp_path / "slow.yaml"
    profile.write_text(
        "step_time: {kind: fitted, weights_s: 7}\nmax_num_seqs: 8\nmax_num_batched_tokens: 512\nkv_blocks: 1000\n"
    )
    done = CliRunner().invoke(app, ["validate-profile", str(profile), str(run_file(tmp_path, RUN.to_csv(index=False)))])
    assert "takes 7 s for a token of one request: are the times of its step_time in seconds?" in done.output


# ------------------------------------------------------------------------------------------- servers and measured data


@pytest.mark.parametrize(
    ("url", "options", "expected"),
    [
        ("127.0.0.1:9", (), "is no http:// or https:// address"),
        ("", (), "is no http:// or https:// address"),
        ("ftp://127.0.0.1", (), "is no http:// or https:// address"),
        ("http://127.0.0.1:9", (), "does not answer"),
        ("http://127.0.0.1:9", ("--token-ids", "9:3"), "no range of token ids"),
        ("http://127.0.0.1:9", ("--gpu", "H100"), "did you mean H100-SXM?"),
        ("http://127.0.0.1:9", ("--max-num-seqs", 64, "--max-num-batched-tokens", 8), "8 is below --max-num-seqs (64)"),
    ],
)
def test_a_server_that_is_none_is_refused(tmp_path: Path, url: str, options: tuple[object, ...], expected: str) -> None:
    words = ("calibrate", "endpoint", "--base-url", url, *options, "--out", tmp_path / "out.yaml")
    assert expected in refused(tmp_path, *words)


@pytest.mark.parametrize("option", [(), ("--arms",), ("--silicon",), ("--silicon-fit",), ("--light-load",)])
def test_measured_data_that_are_torn_or_absent_are_refused(tmp_path: Path, option: tuple[str, ...]) -> None:
    assert "kvwarden" in (said := refused(tmp_path, "hardware-check", *option, "--data", tmp_path)) or "folder" in said
    files = ("lmsys-arena-vtc/measured_by_policy.csv.gz", "silicon-sample/silicon_sample_half.csv.gz",
             "kvwarden-vllm-0.19/sweeps.csv.gz", "kvwarden-vllm-0.19/tenant_arms.csv.gz")  # fmt: skip
    arms = tmp_path / "kvwarden-vllm-0.19" / "arms.yaml"
    for content in (b"", b"a,b\n1,2\n", b"\x1f\x8b\0\0", gzip.compress(b"a,b\n1,2\n")):
        for file in files:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_bytes(content)
        arms.write_text("a: [")
        assert ".csv.gz" in refused(tmp_path, "hardware-check", *option, "--data", tmp_path)
