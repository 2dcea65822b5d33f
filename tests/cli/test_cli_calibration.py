"""Options of the calibration commands, from a command line's side."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from calibration.lawful_tables import write_tables
from typer.testing import CliRunner

from sim.cli import app
from sim.scenario.profile import load_profile


def invoke(*words: object) -> tuple[int, str]:
    shown = CliRunner().invoke(app, [str(word) for word in words])
    return shown.exit_code, shown.output + (str(shown.exception) if shown.exception else "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "tp2"
    found.mkdir()
    write_tables(found)
    meta = {"gpu": "NVIDIA H100 80GB HBM3", "model": "Qwen/Qwen3-32B", "vllm_version": "0.19.0", "cuda_version": "13"}
    (tmp_path / "meta.yaml").write_text(yaml.safe_dump(meta))
    return found


def test_kernels_take_links_and_the_cache_in_tokens(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.yaml"
    code, said = invoke("calibrate", "kernels", folder, "--kv-tokens", 160_000, "--out", out)
    assert code == 0, said
    assert "without the links" not in said
    profile = load_profile(str(out))
    assert (profile.kv_blocks, profile.gpus) == (10_000, 2)
    assert profile.step_time.links.all_reduces == 128
    law = ("--link-latency-s", "1e-5", "--link-bytes-per-s", "5e10")
    code, said = invoke("calibrate", "kernels", folder, "--kv-blocks", 9000, *law, "--out", out)
    assert load_profile(str(out)).step_time.links.bytes_per_s == 5e10
    code, said = invoke("calibrate", "kernels", folder, "--kv-blocks", 9000, "--no-links", "--out", out)
    assert "made without the links between its 2 GPUs" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--kv-blocks", 9000, "--kv-tokens", 16_000), "1000 blocks, beside --kv-blocks 9000"),
        (("--kv-blocks", 9000, "--gpus", 4), "holds the tables of 2 GPUs, not of 4"),
        (("--kv-blocks", 9000, "--link-latency-s", "1e-5"), "without a bandwidth"),
    ],
)
def test_kernels_name_what_does_not_fit(folder: Path, options: tuple[object, ...], message: str) -> None:
    code, said = invoke("calibrate", "kernels", folder, *options)
    assert code != 0
    assert message in said.replace("\n", " ")


def test_settings_of_a_profile_may_be_changed_and_wrong_ones_are_named(tmp_path: Path) -> None:
    file = tmp_path / "run.csv"
    rows = ["arrival_s,prompt_tokens,output_tokens,first_token_s,finish_s", "0,100,10,0.5,1.0", "1,100,10,1.5,2.0"]
    file.write_text("\n".join([*rows, "3,100,10,,"]))
    code, said = invoke("validate-profile", "h100-llama-3.1-8b", file, "--set", "request_overhead_s=0.4")
    assert code == 0
    assert "1 of 3 requests did not finish" in said
    assert "chance %" in said
    wrong = {"nothing=1": "unknown field", "kv_blocks": "is no NAME=VALUE", "kv_blocks=x": "kv_blocks"}
    for setting, message in wrong.items():
        code, said = invoke("validate-profile", "h100-llama-3.1-8b", file, "--set", setting)
        assert code != 0
        assert message in said
    code, said = invoke("calibrate", "records", file, "--kv-tokens", 99_000, "--without", "weight_s")
    assert "--term weight_s: no term of a fitted step time" in said


def test_the_list_of_profiles_says_errors_and_ranges() -> None:
    code, said = invoke("list", "profiles")
    assert code == 0
    assert said.count("error: ") >= 15
    assert "measured for concurrency 4 to 64" in " ".join(said.split())


def test_a_fit_begins_from_a_whole_profile(tmp_path: Path) -> None:
    file, shipped = tmp_path / "run.csv", load_profile("b200-llama-3.1-70b-fp8-tp2")
    table = ["arrival_s,prompt_tokens,output_tokens,first_token_s,finish_s"]
    table += [f"{at},{100 + 37 * at},{20 + at},{at + 0.03 + at / 1e3},{at + 0.2 + at / 80}" for at in range(40)]
    file.write_text("\n".join(table))
    start = tmp_path / "start.yaml"
    start.write_text(yaml.safe_dump(shipped.model_dump(mode="json", exclude_none=True) | {"block_tokens": 32}))
    out = tmp_path / "out.yaml"
    code, said = invoke(
        "calibrate", "records", file, "--profile", start, "--kv-tokens", 64_000, "--max-num-seqs", 8, "--out", out
    )
    assert code == 0, said
    found, expected = (
        one.model_dump(mode="json", exclude={"name", "source", "error", "calibration", "step_time"})
        for one in (load_profile(str(out)), shipped)
    )
    assert found == expected | {"block_tokens": 32, "kv_blocks": 2000, "max_num_seqs": 8}
    code, said = invoke("calibrate", "records", file, "--kv-tokens", 64_000, "--gpus", 4, "--out", out)
    assert code == 0, said
    assert load_profile(str(out)).gpus == 4


def test_a_sweep_of_several_layouts_writes_a_profile_of_each(tmp_path: Path) -> None:
    file, out = tmp_path / "sweep.csv", tmp_path / "profiles"
    rows = ["concurrency,prompt_tokens,output_tokens,ttft_s,tpot_s,gpus,kv_blocks"]
    for gpus, blocks in ((1, 9000), (4, 60_000)):
        for clients in (1, 4, 16):
            for prompt in (512, 2048):
                ttft_s = 0.02 + prompt * (1 + clients / 8) * 6e-5 / gpus
                rows.append(f"{clients},{prompt},128,{ttft_s},{0.004 + (0.02 + clients / 2e3) / gpus},{gpus},{blocks}")
    file.write_text("\n".join([*rows, ",,,,,2,25000"]))
    code, said = invoke("calibrate", "sweep", file, "--max-num-batched-tokens", 8192, "--out", out)
    assert code == 0, said
    assert "no point of this layout" in said
    found = {path.name: load_profile(str(path)) for path in out.iterdir()}
    assert {name: (each.gpus, each.kv_blocks) for name, each in found.items()} == {
        "gpus-1.yaml": (1, 9000), "gpus-2.yaml": (2, 25_000), "gpus-4.yaml": (4, 60_000),
    }  # fmt: skip
    weights = [found[f"gpus-{n}.yaml"].step_time.iteration_s(0, 0.0, 1, 600) for n in (1, 2, 4)]
    assert weights == sorted(weights, reverse=True)
    assert {each.max_num_batched_tokens for each in found.values()} == {8192}
    code, said = invoke("calibrate", "sweep", file, "--gpus", 2)
    assert "--gpus: 2, and" in said
    code, said = invoke("calibrate", "sweep", file)
    assert "--out: missing, and" in said
    code, said = invoke("calibrate", "sweep", file, "--without", "weight_s", "--out", out)
    assert "no term of this fit; did you mean weights_s" in " ".join(said.split())
    code, said = invoke("calibrate", "sweep", file, "--expert-share", 0.25, "--without", "base_s", "--out", out)
    assert code == 0, said
    step_time = load_profile(str(out / "gpus-4.yaml")).step_time
    assert (step_time.expert_share, step_time.base_s) == (0.25, 0.0)
    assert step_time.experts_s > 0
    linear = tmp_path / "linear.yaml"
    profile = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "kv_blocks": 99, "step_time": {"kind": "linear"}}
    profile["step_time"] |= {"base_s": 0.01}
    linear.write_text(yaml.safe_dump(profile))
    code, said = invoke("calibrate", "sweep", file, "--profile", linear, "--expert-share", 0.25, "--out", out)
    assert "--expert-share: given, and the step time of" in said
    assert "begin from one of kind fitted" in " ".join(said.split())


def test_what_a_replay_recorded_is_a_run(tmp_path: Path) -> None:
    scenario = tmp_path / "s.yaml"
    scenario.write_text(yaml.safe_dump({
        "version": 1, "policies": ["none"], "horizon_s": 30,
        "pool": {"profile": "h100-llama-3.1-8b", "entitlements": [{"name": "chat", "service_class": "elastic"}]},
        "workload": [{"entitlement": "chat", "arrivals": {"kind": "poisson", "rate_per_s": 2}, "prompt_tokens": 300,
                      "output_tokens": 60}],
    }))  # fmt: skip
    assert invoke("run", scenario, "--out", tmp_path / "r")[0] == 0
    code, said = invoke("validate-profile", "h100-llama-3.1-8b", tmp_path / "r")
    assert code == 0, said
    errors = [float(line.split()[4]) for line in said.splitlines() if line.startswith("e2e")]
    assert len(errors) == 4
    assert max(map(abs, errors)) < 1


def test_tables_that_end_before_the_engine_does_are_said(folder: Path, tmp_path: Path) -> None:
    words = ("calibrate", "kernels", folder, "--kv-blocks", 9000, "--out", tmp_path / "out.yaml")
    said = "the tables end at 2048 tokens and 128 sequences of an iteration"
    assert said in invoke(*words)[1]  # an H100's default is 8,192 and 1,024
    assert said not in invoke(*words, "--max-num-batched-tokens", 2048, "--max-num-seqs", 128)[1]
