"""Shipped profiles obey physics, and rooflines can be made for any model."""

from __future__ import annotations

from typing import Any

import pytest

from sim.calibration.profile_file import profile_text, write_profile
from sim.errors import InputError, ScenarioError
from sim.profiles.gpus import GPUS, batch_defaults, memory_bytes
from sim.profiles.roofline import read_shape, roofline_profile
from sim.scenario.profile import load_profile, parse_profile, shipped_profiles

LLAMA_8B: dict[str, Any] = {
    "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 128256, "intermediate_size": 14336, "max_position_embeddings": 131072,
}  # fmt: skip
QWEN_30B_A3B: dict[str, Any] = {
    "num_hidden_layers": 48, "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
    "vocab_size": 151936, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
}  # fmt: skip


@pytest.mark.parametrize("name", shipped_profiles())
def test_every_shipped_profile_loads_and_names_source_and_error(name: str) -> None:
    profile = load_profile(name)
    assert profile.source
    assert profile.error
    assert profile.step_time.iteration_s(0, 0.0, 1, 100) > 0


def test_a_profile_that_beats_physics_is_refused_with_the_numbers() -> None:
    mapping = {
        "step_time": {"kind": "linear", "base_s": 0.001, "per_decode_sequence_s": 1e-5},
        "max_num_seqs": 64, "max_num_batched_tokens": 2048, "kv_blocks": 4000,
        "physics": {
            "work": {"parameters": 7.5e9, "kv_bytes_per_token": 131072.0, "flops_per_pair": 524288.0},
            "hardware": {"flops_per_s": 9.89e14, "bytes_per_s": 3.35e12},
        },
    }  # fmt: skip
    with pytest.raises(ScenarioError, match=r"step_time: 0\.001\S* s for an iteration .* physics allows"):
        parse_profile(mapping, "fast.yaml")
    mapping["step_time"] = {"kind": "linear", "base_s": 0.03, "per_prefill_token_s": 1e-4, "per_context_token_s": 1e-6}
    assert parse_profile(mapping, "slow.yaml").physics is not None


def test_the_shape_of_a_model_gives_its_published_size() -> None:
    dense, experts = read_shape(LLAMA_8B), read_shape(QWEN_30B_A3B)
    embedding = 128256 * 4096
    assert dense.work.parameters + embedding == pytest.approx(8.03e9, rel=0.002)
    assert dense.work.kv_bytes_per_token == 131072
    assert experts.work.parameters + experts.work.expert_parameters + 151936 * 2048 == pytest.approx(30.5e9, rel=0.005)
    assert experts.work.flops_per_token() == pytest.approx(2 * 3.03e9, rel=0.02)  # "A3B", the input embedding left out
    assert dense.work.experts_per_token == 0
    assert dense.weight_bytes == pytest.approx(2 * 8.03e9, rel=0.002)
    four = read_shape(LLAMA_8B, weight_bits=4, kv_bits=8)  # with half a bit for scales; the embedding stays wide
    assert four.weight_bytes == pytest.approx((8.03e9 - embedding) * 4.5 / 8 + 2 * embedding, rel=0.002)
    assert four.work.kv_bytes_per_token == 65536
    tied = read_shape(LLAMA_8B | {"tie_word_embeddings": True})
    assert dense.weight_bytes - tied.weight_bytes == 2 * embedding


def test_a_precision_that_a_gpu_lacks_runs_at_the_next_wider_ones_rate() -> None:
    sheets = {
        ("A100-80GB", 8): 3.12e14, ("A10G", 4): 7.0e13, ("H100-SXM", 4): 1.979e15, ("H200-SXM", 16): 9.89e14,
        ("RTX-4090", 8): 3.303e14, ("RTX-PRO-6000", 8): 1.008e15, ("B200-SXM", 4): 9.0e15,
    }  # fmt: skip
    for (gpu, bits), flops_per_s in sheets.items():
        assert GPUS[gpu].hardware(2, bits).flops_per_s == 2 * flops_per_s
        assert GPUS[gpu].hardware(1, 32) == GPUS[gpu].hardware(1, 16)
    assert GPUS["H100-SXM"].hardware(2, 16).bytes_per_s == 2 * 3.35e12


def test_drivers_report_no_less_than_the_sheets_gigabytes_and_no_more_than_as_many_gib() -> None:
    sheets_gb = {
        "A10G": 24, "A100-80GB": 80, "H100-SXM": 80, "H200-SXM": 141, "B200-SXM": 180, "RTX-4090": 24,
        "RTX-PRO-6000": 96, "B300-SXM": 288, "GB200": 186, "GB300": 288, "H100-PCIE": 80, "L4": 24, "L40S": 48,
    }  # fmt: skip
    assert set(GPUS) < set(sheets_gb)
    for gpu, gigabytes in sheets_gb.items():
        assert gigabytes * 1e9 <= memory_bytes(gpu) <= gigabytes * 2**30, gpu


@pytest.mark.parametrize("gpu", GPUS)
def test_a_roofline_for_any_gpu_holds_what_its_memory_leaves(gpu: str) -> None:
    profile = roofline_profile(LLAMA_8B, gpu)
    assert profile.kv_bytes is not None
    assert profile.kv_bytes + 16.06e9 < GPUS[gpu].memory_bytes
    assert profile.physics is not None


@pytest.mark.parametrize(
    ("gpu", "share", "tokens"),
    [
        ("RTX-4090", 0.9, 41_408),  # vllm-0.19-sharegpt: meta.json of the run
        ("A100-80GB", 0.85, 419_728),  # kvwarden: arms.yaml, from the engines' logs
        ("H100-SXM", 0.85, 411_168),
    ],
)
def test_the_reckoned_kv_cache_is_what_engines_printed(gpu: str, share: float, tokens: int) -> None:
    found = roofline_profile(LLAMA_8B, gpu, gpu_memory_utilization=share)
    assert 16 * found.kv_blocks == pytest.approx(tokens, rel=0.03)
    assert f"KV cache reckoned, {16 * found.kv_blocks} tokens: give what vLLM prints" in found.error
    assert (found.max_num_seqs, found.max_num_batched_tokens) == (256, 2048)
    assert found.async_scheduling
    assert found.prefix_caching
    given = roofline_profile(LLAMA_8B, gpu, kv_blocks=2000)
    assert given.kv_blocks == 2000
    assert "reckoned" not in given.error


@pytest.mark.parametrize("name", [name for name in shipped_profiles() if name.startswith(("b200-", "h200-"))])
def test_kv_blocks_of_the_silicon_profiles_are_reckoned_from_what_drivers_report(name: str) -> None:
    profile = load_profile(name)
    gpu, bits = f"{name[:4].upper()}-SXM", 8 if "fp8" in name else 4.5
    # 3.1e9 bytes are what the one engine of 8,192 batched tokens whose KV cache is known took beside weights.
    room_bytes = profile.gpus * (0.9 * memory_bytes(gpu) - 3.1e9) - 70.6e9 * bits / 8
    assert profile.kv_blocks == int(room_bytes / 163_840) // 16


def test_more_gpus_than_kv_heads_hold_copies_of_them() -> None:
    four, eight = (roofline_profile(QWEN_30B_A3B, "H100-SXM", gpus=n) for n in (4, 8))
    assert eight.kv_bytes_per_token == 2 * four.kv_bytes_per_token
    assert eight.step_time.work.kv_bytes_per_token == 2 * four.step_time.work.kv_bytes_per_token


@pytest.mark.parametrize(
    ("gpu", "seqs", "tokens"),
    [(None, 256, 2048), ("RTX-4090", 256, 2048), ("A100-80GB", 256, 2048), ("H100-SXM", 1024, 8192),
     ("RTX-PRO-6000", 1024, 8192), ("H200-SXM", 1024, 8192), ("B200-SXM", 1024, 16_384), ("GB300", 1024, 16_384)],
)  # fmt: skip
def test_batches_are_as_large_as_vllm_makes_them_by_default(gpu: str | None, seqs: int, tokens: int) -> None:
    found = batch_defaults(gpu)
    assert (found.max_num_seqs, found.max_num_batched_tokens) == (seqs, tokens)
    with pytest.raises(InputError, match="unknown GPU H100; did you mean H100-SXM"):
        batch_defaults("H100")


def test_a_model_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"leave -\d.* more GPUs"):
        roofline_profile(QWEN_30B_A3B, "RTX-4090")
    with pytest.raises(InputError, match="did you mean H100-SXM"):
        roofline_profile(LLAMA_8B, "H100-SMX")
    # A block has 16 x 131,072 bytes: beside weights and reserve there is room for one and a half, or for half of one.
    beside_bytes = read_shape(LLAMA_8B).weight_bytes + 1.8e9
    shares = [(beside_bytes + blocks * 16 * 131072) / (24 * 2**30) for blocks in (1.5, 0.5)]
    assert roofline_profile(LLAMA_8B, "RTX-4090", gpu_memory_utilization=shares[0]).kv_blocks == 1
    with pytest.raises(InputError, match=r"leave 0\.0 GB for the KV cache after 16\.1 GB of weights"):
        roofline_profile(LLAMA_8B, "RTX-4090", gpu_memory_utilization=shares[1])
    with pytest.raises(InputError, match="hidden_size is missing"):
        roofline_profile({"num_hidden_layers": 2}, "A10G")


@pytest.mark.parametrize("name", ["dgx-spark-qwen3-8b-nvfp4", "rtx-4090-llama-3.1-8b", "a10g-llama-2-7b"])
def test_a_written_profile_loads_to_the_same(name: str, tmp_path: Any) -> None:
    profile = load_profile(name)
    file = tmp_path / f"{name}.yaml"
    write_profile(profile, file, "a comment")
    assert load_profile(str(file)).model_copy(update={"name": name}) == profile
    assert profile_text(profile, "a comment").startswith("# a comment\n")
    assert [p.name for p in tmp_path.iterdir()] == [file.name]
