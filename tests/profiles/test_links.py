"""What GPUs of one engine tell each other: laws, measured tables, and what a profile says that lacks them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sim.calibration.link_tables import gpu_named, read_link_table, shipped_links
from sim.calibration.profile_file import profile_text
from sim.calibration.single_replica import Requests, replay
from sim.engine.experts import Experts
from sim.engine.links import Links
from sim.engine.step_fitted import FittedStepTime
from sim.engine.step_roofline import RooflineStepTime
from sim.engine.work import Hardware, Work
from sim.errors import InputError
from sim.experiments.run import run_scenario
from sim.profiles.gpus import GPUS
from sim.scenario.load import Scenario, parse_scenario
from sim.scenario.profile import Profile, load_profile, parse_profile

RING = Links(ranks=4, bytes_per_token=1e4, all_reduces=10, latency_s=1e-5, bytes_per_s=1e10)
MEASURED = Links(
    ranks=2, bytes_per_token=100.0, all_reduces=2, message_bytes=(100.0, 300.0), all_reduce_s=(1e-5, 2e-5)
)
EXPERTS = Experts(
    count=8, per_token=2, tokens=(1.0, 101.0), touched=(2.0, 8.0), seconds=((0.002, 0.008), (0.004, 0.010))
)


def test_an_all_reduce_sends_every_byte_around_the_ring_twice() -> None:
    assert RING.iteration_s(100) == pytest.approx(10 * (1e-5 + 2 * 3 / 4 * 1e6 / 1e10))
    gather = replace(RING, all_reduces=0, all_to_alls=10)
    assert gather.iteration_s(100) == pytest.approx(10 * (1e-5 + 3 * 1e6 / 1e10))
    only = Links(ranks=4, bytes_per_token=1e4, all_to_alls=10, latency_s=1e-5, bytes_per_s=1e10)  # and no all-reduce
    assert only.iteration_s(100) == gather.iteration_s(100)
    assert replace(RING, scale=3.0).iteration_s(7) == pytest.approx(3 * RING.iteration_s(7))


def test_measured_collectives_are_interpolated_and_go_on_in_proportion() -> None:
    assert MEASURED.iteration_s(2) == pytest.approx(2 * 1.5e-5)
    assert MEASURED.iteration_s(6) == pytest.approx(2 * 4e-5)
    assert replace(MEASURED, bytes_per_token=10.0).iteration_s(1) == pytest.approx(2 * 1e-5)  # never below the least
    both = replace(MEASURED, all_reduces=0, all_to_alls=2)
    assert both.iteration_s(1) == pytest.approx(2 * 1.5e-5 / 2)  # half of an all-reduce of both ranks' 100 bytes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"all_reduces": 0}, "neither all_reduces nor all_to_alls"),
        ({"bytes_per_s": None}, "bytes_per_s is missing"),
        ({"message_bytes": (2.0, 1.0), "all_reduce_s": (1.0, 2.0)}, "does not ascend"),
        ({"message_bytes": (1.0, 2.0), "all_reduce_s": (1.0,)}, "has 1 values for 2 message_bytes"),
        ({"message_bytes": (1.0, 2.0), "all_reduce_s": (1.0, 0.0)}, "not above 0"),
    ],
)
def test_links_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RING, **change)


def roofline(**changes: Any) -> RooflineStepTime:
    work = Work(parameters=7.5e9, kv_bytes_per_token=131072, flops_per_pair=524288)
    return RooflineStepTime(work=work, hardware=Hardware(flops_per_s=2e15, bytes_per_s=6.7e12), **changes)


@pytest.mark.parametrize(
    "plain", [roofline(), FittedStepTime(weights_s=0.01), load_profile("rtx-pro-6000-llama-3.1-8b").step_time]
)
def test_every_kind_adds_its_links_to_every_iteration(plain: Any) -> None:
    linked = replace(plain, links=RING)
    for make_up in ((0, 0.0, 8, 4096), (512, 512 * 513 / 2, 8, 4096), (512, 512 * 513 / 2, 0, 0)):
        added_s = linked.iteration_s(*make_up) - plain.iteration_s(*make_up)
        assert added_s == pytest.approx(RING.iteration_s(make_up[0] + make_up[2]))
    assert linked.decode_run_s(8, 4096, 9) == pytest.approx(plain.decode_run_s(8, 4096, 9) + 9 * RING.iteration_s(8))


def test_shared_experts_read_fewer_weights_and_compute_as_many_pairs() -> None:
    missed = (1 - 2 / 8) ** 5
    assert EXPERTS.iteration_s(5) == pytest.approx(0.002 + 0.006 * (8 * (1 - missed) - 2) / 6 + 0.002 * 4 / 100)
    shared = replace(EXPERTS, ranks=2)
    assert shared.iteration_s(101) == pytest.approx(0.004 + 0.006 * 2 / 6)  # all four of a rank, of 101 tokens' pairs
    assert replace(shared, busiest=1.5).iteration_s(60) > shared.iteration_s(60)
    assert EXPERTS.iteration_s(202) == pytest.approx(2 * EXPERTS.iteration_s(101))
    with pytest.raises(ValueError, match="9 ranks share 8 experts"):
        replace(EXPERTS, ranks=9)


# -------------------------------------------------------------------------------------------------------- link tables


def test_shipped_links_are_of_the_nearest_engine_and_of_so_many_gpus() -> None:
    old, new = (shipped_links("RTX-PRO-6000", 2, vllm) for vllm in ("0.19.1", ""))
    assert old is not None
    assert new is not None
    assert "vLLM 0.19.0" in old.source
    assert "vLLM 0.24.0" in new.source
    assert new.all_reduce_s[-1] < old.all_reduce_s[-1] / 2  # there the GPUs reach each other's memory
    for vllm, nearest in (("0.18", "0.19.0"), ("0.23.9", "0.19.0"), ("0.24.0", "0.24.0"), ("0.33.0", "0.24.0")):
        found = shipped_links("RTX-PRO-6000", 2, vllm)
        assert found is not None
        assert f"2 x RTX-PRO-6000, vLLM {nearest}; " in found.source
    assert shipped_links("RTX-PRO-6000", 3) is None
    for name in ("H100-SXM", "H200-SXM", "B200-SXM", "A100-80GB"):
        for ranks in (2, 4, 8):
            found = shipped_links(name, ranks)
            assert found is not None
            assert found.message_bytes == tuple(sorted(found.message_bytes))
            assert 1e-6 < found.all_reduce_s[0] < 1e-4


@pytest.mark.parametrize(
    ("text", "gpu"),
    [
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000"), ("NVIDIA H100 80GB HBM3", "H100-SXM"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"), ("NVIDIA GeForce RTX 4090", "RTX-4090"), ("TPU v5e", None),
    ],
)  # fmt: skip
def test_drivers_names_of_gpus_are_known(text: str, gpu: str | None) -> None:
    assert gpu_named(text) == gpu
    assert gpu is None or gpu in GPUS


def test_a_scattered_table_is_smoothed_and_a_wrong_one_named(tmp_path: Path) -> None:
    file = tmp_path / "links.csv"
    rows = [(2, 1000 * 2**i, 0.04 if (i, j) == (3, 0) else 0.010 + 0.002 * i) for i in range(6) for j in range(3)]
    good = pd.DataFrame(rows, columns=["gpus", "bytes", "median_ms"])
    good.to_csv(file, index=False)
    found = read_link_table(file, 2)
    assert found.all_reduce_s[3] == pytest.approx(16e-6)
    for change, ranks, message in (
        (good.drop(columns="gpus"), 2, "does not say between how many GPUs"),
        (good, 4, "holds no times between 4 GPUs, but 2"),
        (good.drop(columns="median_ms"), 2, "has no column all_reduce_us"),
        (good.assign(median_ms=0.0), 2, "not above 0"),
        (good[good.bytes == 1000], 2, "one size of message"),
    ):
        change.to_csv(file, index=False)
        with pytest.raises(InputError, match=message):
            read_link_table(file, ranks)
    with pytest.raises(InputError, match="cannot be read"):
        read_link_table(tmp_path / "none.csv", 2)


@pytest.mark.parametrize(
    "name",
    ["all_reduce_s", "all_reduce_us", "median_s", "median_us", "median_ms", "time_s", "time_us", "time_ms", "mean_ms"],
)
def test_a_columns_name_says_its_unit(tmp_path: Path, name: str) -> None:
    in_a_second = {"s": 1.0, "ms": 1e3, "us": 1e6}[name.rsplit("_", 1)[-1]]
    table = pd.DataFrame({"gpus": 2, "bytes": [1000, 4000], name: [2e-5 * in_a_second, 3e-5 * in_a_second]})
    table.to_csv(tmp_path / "links.csv", index=False)
    assert read_link_table(tmp_path / "links.csv", 2).all_reduce_s == pytest.approx((2e-5, 3e-5))


@pytest.mark.parametrize(
    ("small_s", "large_s", "said"),
    [
        (2e-5, 1.6e-4, ""),  # of four GPUs each moves one and a half times the 1e9 bytes: 9.4e12 a second
        (2e-5, 1.4e-4, "moves 1000000000 bytes at 1.07e+13 bytes/s, faster than any link; correct the unit of time_s"),
        (6e-3, 1.0, "has 0.006 s for 1000 bytes, which no all-reduce takes; correct the unit of time_s"),
        (4e-7, 1.0, "has 4e-07 s for 1000 bytes, which no all-reduce takes"),
    ],
)
def test_times_that_no_link_takes_are_refused(tmp_path: Path, small_s: float, large_s: float, said: str) -> None:
    file = tmp_path / "links.csv"
    pd.DataFrame({"gpus": 4, "bytes": [1000, 10**9], "time_s": [small_s, large_s]}).to_csv(file, index=False)
    if not said:
        assert read_link_table(file, 4).all_reduce_s == (small_s, large_s)
        return
    with pytest.raises(InputError) as found:
        read_link_table(file, 4)
    assert said in str(found.value)


# ------------------------------------------------------------------------------------------------------------ caveats


def small(profile: Profile, prompt_tokens: int = 64) -> Scenario:
    tree = {
        "version": 1, "seed": 1, "horizon_s": 20, "policies": ["none"],
        "pool": {
            "profile": profile.model_dump(mode="json"), "oversubscribed": True,
            "entitlements": [{"name": "a", "service_class": "spot"}],
        },
        "workload": [
            {
                "entitlement": "a", "arrivals": {"kind": "poisson", "rate_per_s": 2},
                "prompt_tokens": prompt_tokens, "output_tokens": 16,
            }
        ],
    }  # fmt: skip
    return parse_scenario(tree, "small.yaml")


def test_a_run_says_what_its_profile_lacks_and_leaves() -> None:
    settings: dict[str, Any] = {"max_num_seqs": 64, "max_num_batched_tokens": 2048, "kv_blocks": 9000}
    bare = Profile(name="two", gpus=4, step_time=roofline(), **settings)
    assert "no links between them" in " ".join(run_scenario(small(bare)).manifest["caveats"])
    linked = bare.model_copy(update={"step_time": roofline(links=RING)})
    assert "caveats" not in run_scenario(small(linked)).manifest
    assert not bare.model_copy(update={"step_time": FittedStepTime(weights_s=0.01)}).lacks_links  # measured with them
    ranges = {"concurrency": [1, 8], "prompt_tokens": [9, 60]}
    calibration = {"method": "x", "date": "2026-11-28", "ranges": ranges}
    measured = parse_profile(linked.model_dump(mode="json") | {"calibration": calibration}, "x.yaml")
    assert "caveats" not in run_scenario(small(measured, 64)).manifest  # within a quarter
    told = run_scenario(small(measured, 640)).manifest["caveats"]
    assert told == ["prompts have 640 tokens; profile two was measured up to 60"]


def test_the_shipped_profile_of_two_gpus_has_links_and_is_written_with_them() -> None:
    profile = load_profile("rtx-pro-6000-qwen3-32b-tp2")
    assert profile.gpus == 2
    assert not profile.caveats
    bare = profile.model_copy(update={"step_time": replace(profile.step_time, links=None)})
    assert bare.caveats
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # An iteration of 2,048 prompt tokens: 128 all-reduces of 21 MB at 15 GB/s take about as long as its layers.
        links_s = profile.step_time.iteration_s(2048, 2048 * 2049 / 2, 0, 0) - bare.step_time.iteration_s(
            2048, 2048 * 2049 / 2, 0, 0
        )
    assert links_s == pytest.approx(128 * 2048 * 10240 / 15e9, rel=0.05)
    assert "links: {ranks: 2" in profile_text(profile)


def test_prompts_take_their_launch_alone_and_beyond_the_captured_graphs() -> None:
    step = FittedStepTime(
        weights_s=0.006, per_token_s=2.5e-5, lone_prefill_s=0.016, captured_tokens=512, uncaptured_s=0.042
    )
    assert step.iteration_s(1, 1.0, 0, 0) == pytest.approx(0.006)  # one token left to compute: as a decode
    assert step.iteration_s(2, 3.0, 0, 0) == step.iteration_s(400, 1.0, 0, 0) == pytest.approx(0.016)
    assert step.iteration_s(400, 1.0, 8, 800) == pytest.approx(408 * 2.5e-5)
    assert step.iteration_s(600, 1.0, 8, 800) == pytest.approx(0.042)
    assert step.iteration_s(4000, 1.0, 8, 800) == pytest.approx(4008 * 2.5e-5)
    assert step.iteration_s(0, 0.0, 600, 800) == pytest.approx(600 * 2.5e-5)


def test_a_scenario_and_a_replay_ask_the_server_alike() -> None:
    profile = load_profile("h100-llama-3.1-8b").model_copy(update={"calibration": None})
    table = run_scenario(small(profile)).requests.to_pandas().sort_values("arrival_s")
    asked = Requests(table.arrival_s.to_numpy(), table.prompt_tokens.to_numpy(), table.output_tokens.to_numpy())
    made = replay(profile, asked)
    assert len(table) > 20
    assert table.first_token_s.to_numpy() == pytest.approx(made.first_token_s)
    assert table.finish_s.to_numpy() == pytest.approx(made.finish_s)
