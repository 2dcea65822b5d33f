"""What stands beside a run of its engine is used, said, and never silently contradicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from sim.calibration.profile_file import write_profile
from sim.calibration.run_engine import RunEngine, engine_of
from sim.calibration.single_replica import Requests, replay
from sim.cli import app
from sim.engine.step_fitted import FittedStepTime
from sim.errors import InputError
from sim.scenario.profile import Profile

ENGINE = Profile(
    step_time=FittedStepTime(weights_s=0.01, per_token_s=1e-4), max_num_seqs=8, max_num_batched_tokens=512,
    kv_blocks=900, gpus=2, data_parallel=2,
)  # fmt: skip
KWARGS = {
    "max_num_seqs": 8, "max_num_batched_tokens": 512, "tensor_parallel_size": 1, "data_parallel_size": 2,
    "enable_expert_parallel": False, "max_model_len": None,
}  # fmt: skip
CACHE = {"num_gpu_blocks": 900, "block_size": 16, "num_kv_tokens": 14400}


def published(folder: Path, meta: Any = None) -> Path:
    """Write a run as LLMServingSim publishes them, of two ranks, with what it says of their engine."""
    folder.mkdir()
    rng = np.random.default_rng(5)
    n = 60
    asked = Requests(np.cumsum(rng.exponential(0.02, n)), rng.integers(40, 500, n), rng.integers(20, 90, n))
    made = replay(ENGINE, asked)
    rows = [
        {
            "request_id": f"bench-{i}", "input_toks": int(asked.prompt_tokens[i]),
            "output_toks": int(asked.output_tokens[i]),
            "arrival_time": 1.7e9 + float(asked.arrival_s[i]), "queued_ts": 500 + float(asked.arrival_s[i]),
            "scheduled_ts": 500 + float(asked.arrival_s[i]), "first_token_ts": 500 + float(made.first_token_s[i]),
            "last_token_ts": 500 + float(made.finish_s[i]),
        }
        for i in range(n)
    ]  # fmt: skip
    (folder / "requests.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = {"engine_kwargs": KWARGS, "kv_cache": CACHE} if meta is None else meta
    (folder / "meta.json").write_text(said if isinstance(said, str) else json.dumps(said))
    return folder / "requests.jsonl"


def validated(run: Path, profile: Profile, *options: str) -> Any:
    write_profile(profile, run.parent / "profile.yaml")
    return CliRunner().invoke(app, ["validate-profile", str(run.parent / "profile.yaml"), str(run), *options])


def test_a_run_of_ranks_is_met_by_their_profile_whatever_slots_it_was_written_for(tmp_path: Path) -> None:
    run = published(tmp_path / "run")
    wide = ENGINE.model_copy(update={"max_num_seqs": 64, "kv_blocks": 5000})
    done = validated(run, wide, "--at-most", "1")
    assert done.exit_code == 0, done.output
    assert "max_num_seqs 8 (the profile has 64), kv_blocks 900 (the profile has 5000)" in done.stderr
    assert "warning: the run's" not in done.stderr
    kept = validated(run, wide, "--set", "max_num_seqs=64", "--set", "block_tokens=8", "--at-most", "1")
    assert kept.exit_code == 1
    assert "taken from" not in kept.stderr


def test_ranks_that_a_profile_has_not_are_named(tmp_path: Path) -> None:
    run = published(tmp_path / "run")
    one = ENGINE.model_copy(update={"gpus": 1, "data_parallel": 1})
    done = validated(run, one)
    assert done.exit_code == 0, done.output
    assert "warning: the run's engine had data_parallel 2, and the profile has 1" in done.stderr
    assert "expert_parallel" not in done.stderr


def test_a_fit_begins_from_what_the_run_says(tmp_path: Path) -> None:
    run = published(tmp_path / "run")
    done = CliRunner().invoke(app, ["calibrate", "records", str(run), "--out", str(tmp_path / "made.yaml")])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "made.yaml").read_text()
    assert "max_num_seqs: 8\n" in text
    assert "kv_blocks: 900\n" in text


def test_nothing_beside_a_run_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text("{ another program's")
    assert engine_of(tmp_path / "run.csv").settings == {}
    assert engine_of(published(tmp_path / "other", {"anything": 1})).settings == {}
    older = engine_of(published(tmp_path / "older", {"engine_kwargs": KWARGS}))
    assert older.settings == {"max_num_seqs": 8, "max_num_batched_tokens": 512}
    assert older.kv_tokens is None
    shared = engine_of(published(tmp_path / "shared", {"engine_kwargs": KWARGS | {"enable_expert_parallel": True}}))
    assert shared.layout == {"tensor_parallel": 1, "data_parallel": 2, "expert_parallel": True}


def test_settings_and_ranks_are_compared_one_by_one() -> None:
    said = RunEngine({"max_num_seqs": 9, "kv_blocks": 900, "block_tokens": 8}, {"tensor_parallel": 2})
    assert said.kv_tokens == 7200
    assert RunEngine({"kv_blocks": 900}).kv_tokens == 14_400  # blocks of vLLM's usual size
    assert said.unlike(ENGINE) == {"max_num_seqs": 9, "block_tokens": 8}
    assert said.unlike(ENGINE, ("kv_blocks",)) == {"max_num_seqs": 9}  # the cache was given, as a whole
    assert said.unlike(ENGINE, ("max_num_seqs",)) == {"block_tokens": 8}
    # Four GPUs of two ranks are two for each; one of two is another engine.
    assert said.misfits(ENGINE.model_copy(update={"gpus": 4})) == []
    assert said.misfits(ENGINE) == ["the run's engine had tensor_parallel 2, and the profile has 1"]
    staged = ENGINE.model_copy(update={"gpus": 8, "pipeline_parallel": 2})
    assert said.misfits(staged) == []


def test_experts_of_a_single_rank_are_the_kernels_affair(tmp_path: Path) -> None:
    kwargs = KWARGS | {"data_parallel_size": 1, "enable_expert_parallel": True}
    assert engine_of(published(tmp_path / "one", {"engine_kwargs": kwargs})).layout == {
        "tensor_parallel": 1, "data_parallel": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"engine_kwargs": {"max_num_seqs": "many"}}, "max_num_seqs is many, and no whole number from 1; give"),
        ({"engine_kwargs": {}, "kv_cache": {"num_gpu_blocks": 0}}, "num_gpu_blocks is 0, and no whole number"),
        ("{", "meta.json: cannot be read"),
    ],
)
def test_a_file_that_is_not_the_benchs_is_one_line(tmp_path: Path, meta: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        engine_of(published(tmp_path / "run", meta))
