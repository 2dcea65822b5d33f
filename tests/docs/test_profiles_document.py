"""Every command of docs/profiles.md works as shown, on files of the kind that it speaks of."""

from __future__ import annotations

import importlib.util
import re
import shlex
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from calibration.lawful_tables import write_tables
from typer.testing import CliRunner

from sim.calibration.from_sweep import COLUMNS, SweepPoint, simulate_point
from sim.calibration.single_replica import Requests, replay
from sim.cli import app
from sim.scenario.profile import load_profile

PAGE = (Path(__file__).parents[2] / "docs" / "profiles.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def write_run(file: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    asked = Requests(np.cumsum(rng.exponential(0.2, 50)), rng.integers(50, 2000, 50), rng.integers(20, 120, 50))
    made = replay(load_profile("rtx-4090-llama-3.1-8b"), asked)
    pd.DataFrame({
        "arrival_s": asked.arrival_s, "prompt_tokens": asked.prompt_tokens, "output_tokens": asked.output_tokens,
        "first_token_s": made.first_token_s, "finish_s": made.finish_s,
    }).to_csv(file, index=False)  # fmt: skip


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for seed, name in enumerate(("run.csv", "other.csv")):
        write_run(tmp_path / name, seed)
    profile = load_profile("b200-llama-3.1-70b-fp8-tp2")
    points = [SweepPoint(c, p, o, 1.0, 1.0) for c in (1, 2, 5) for p, o in ((200, 40), (1500, 40), (1500, 200))]
    rows = [(*astuple(point)[:3], *simulate_point(profile, point)) for point in points]
    pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(tmp_path / "sweep.csv", index=False)
    shipped = {gpus: load_profile(f"b200-llama-3.1-70b-fp8-tp{gpus}") for gpus in (1, 4)}
    layouts = [
        (*astuple(point)[:3], *simulate_point(each, point), gpus, 90_000 * gpus)
        for gpus, each in shipped.items()
        for point in points
    ]
    columns = [*COLUMNS, "gpus", "kv_blocks"]
    pd.DataFrame([*layouts, (*[None] * 5, 2, 180_000)], columns=columns).to_csv(tmp_path / "layouts.csv", index=False)
    links = [(2, size, 8 + size / 1e4) for size in (1 << 12, 1 << 16, 1 << 20, 1 << 24)]
    pd.DataFrame(links, columns=["gpus", "bytes", "all_reduce_us"]).to_csv(tmp_path / "links.csv", index=False)
    for name, model in (("tables/tp2", "Qwen/Qwen3-32B"), ("experts/tp1", "Qwen/Qwen3-30B-A3B")):
        (tmp_path / name).mkdir(parents=True)
        write_tables(tmp_path / name)
        meta = {"gpu": "NVIDIA H100 80GB HBM3", "model": model, "vllm_version": "0.19.0", "cuda_version": "13"}
        (tmp_path / name).parent.joinpath("meta.yaml").write_text(yaml.safe_dump(meta))
    experts = [(t, e, 10.0 + e + 0.01 * t) for t in (1, 16, 256, 2048) for e in (8, 64, 128) if e <= 8 * t]
    pd.DataFrame(experts, columns=["tokens", "activated_experts", "time_us"]).to_csv(
        tmp_path / "experts/tp1/moe.csv", index=False
    )
    (tmp_path / "mine-two.yaml").write_text(blocks("yaml")[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore:step time extrapolates")
def test_every_command_works(desk: Path) -> None:
    typed = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(typed) == 12
    for line in typed:
        if "aiconfigurator" in line and importlib.util.find_spec("aiconfigurator_core") is None:
            continue
        done = CliRunner().invoke(app, shlex.split(line)[1:])
        assert done.exit_code == 0, f"{line}: {done.output} {done.exception}"
    eight, two = load_profile("eight.yaml"), load_profile("two.yaml")
    assert (eight.gpus, eight.data_parallel, eight.expert_parallel) == (8, 8, True)
    assert (two.gpus, two.lacks_links) == (2, False)
    assert load_profile("mine.yaml").gpus == 2
    shared = [load_profile(f"layouts/gpus-{gpus}.yaml") for gpus in (1, 2, 4)]
    assert [(each.gpus, each.kv_blocks) for each in shared] == [(1, 90_000), (2, 180_000), (4, 360_000)]
    took_s = [each.step_time.iteration_s(0, 0.0, 4, 4000) for each in shared]
    assert took_s == sorted(took_s, reverse=True)
    assert (desk / "result" / "requests.parquet").is_file()
