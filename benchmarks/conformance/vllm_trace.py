"""vLLM's own scheduler and KV-cache manager on a CPU, with a fake model runner and a modelled clock: one trace a load.

    python vllm_trace.py OUT.jsonl FIRST_SEED:LOADS ...

The loop is that of vLLM's ``EngineCore`` (``v1/engine/core.py``: ``step``, and ``step_with_batch_queue`` for async
scheduling): messages are read between steps, aborts are carried out before a step's output is taken in. Runs in an
environment with vLLM and needs nothing of tokenpools but `loads`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "CRITICAL",
    "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_TARGET_DEVICE": "cpu",
}  # fmt: skip

import torch
import vllm.version
from loads import in_order, load
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output.request import StructuredOutputRequest

MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 64,
    "num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1, "vocab_size": 64, "head_dim": 64,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "torch_dtype": "float16",
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
}  # fmt: skip
MAX_MODEL_TOKENS = 8192
TIE_S = 1e-9
STOP = 7


def cheap_hash(value: Any) -> bytes:
    """Return a hash of a block's tokens and all before: quick, and as good as SHA-256 for a few hundred blocks."""
    return hash(value).to_bytes(8, "little", signed=True)


class Grammar:
    """Lets structured requests through: what they cost is in the schedule, and no token is ever refused."""

    def accept_tokens(self, *_: Any) -> bool:
        """Accept all."""
        return True

    def validate_tokens(self, *given: Any) -> list[int]:
        """Take all drafts: the last argument, after the request where the manager is asked."""
        tokens: list[int] = given[-1]
        return tokens


class Engine:
    """One load on vLLM's scheduler."""

    def __init__(self, setting: dict[str, Any], base: VllmConfig) -> None:
        self.setting = setting
        self.pipelined = setting["async_scheduling"]
        self.depth = setting.get("stages") or 1 + self.pipelined
        self.free_s = [0.0] * setting.get("stages", 0)
        config = base
        config.parallel_config.pipeline_parallel_size = setting.get("stages", 1)
        scheduler, cache = config.scheduler_config, config.cache_config
        scheduler.max_num_seqs = setting["max_num_seqs"]
        scheduler.max_num_batched_tokens = setting["max_num_batched_tokens"]
        scheduler.policy = setting["scheduling"]
        scheduler.async_scheduling = self.pipelined
        scheduler.long_prefill_token_threshold = setting["long_prefill_token_threshold"]
        scheduler.long_prefill_token_threshold_adaptive = setting["long_prefill_token_threshold_adaptive"]
        scheduler.scheduler_reserve_full_isl = setting["reserve_full_prompt"]
        scheduler.watermark = setting["watermark"]
        block = setting["block_tokens"]
        cache.block_size = block
        cache.enable_prefix_caching = setting["prefix_caching"]
        cache.num_gpu_blocks = setting["kv_blocks"] + 1  # the null block
        spec = FullAttentionSpec(block_size=block, num_kv_heads=1, head_size=1, dtype=torch.float32)
        kv = KVCacheConfig(
            num_blocks=setting["kv_blocks"] + 1, kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        )  # fmt: skip
        make = AsyncScheduler if self.pipelined else Scheduler
        self.scheduler: Any = make(
            vllm_config=config, kv_cache_config=kv, structured_output_manager=Grammar(), block_size=block,
            log_stats=False,
        )  # fmt: skip
        if setting["drafts"]:
            self.scheduler.num_spec_tokens = setting["drafts"]
        self.hasher = get_request_block_hasher(block, cheap_hash) if setting["prefix_caching"] else None
        self.decoding: set[str] = set()
        self.asked: dict[str, dict[str, Any]] = {}
        self.requests: dict[str, Request] = {}
        self.gone: set[str] = set()
        self.steps: list[Any] = []
        self.preempted: list[str] = []
        self.first_s: dict[str, float] = {}
        self.finish_s: dict[str, float] = {}
        self.iteration = 0
        plain = self.scheduler._preempt_request

        def preempt(request: Request, *args: Any, **kwargs: Any) -> None:
            self.preempted.append(request.request_id)
            self.decoding.discard(request.request_id)
            plain(request, *args, **kwargs)

        self.scheduler._preempt_request = preempt

    # ------------------------------------------------------------------------------------------------------- tokens

    def token(self, asked: dict[str, Any], position: int) -> int:
        """Return the token at a position: a line's where the request runs through one, else its own."""
        for line, end in asked.get("prefix") or []:
            if position < end:
                return 1000 + line * 100_000 + position
        return 10_000_000 + asked["id"] * 100_000 + position

    # ----------------------------------------------------------------------------------------------------- messages

    def tell(self, entry: dict[str, Any]) -> None:
        """Carry out one line of the script."""
        name = str(entry["id"])
        if entry["what"] == "abort":
            self.abort(name)
            return
        self.asked[name] = entry
        stops = bool(entry.get("stops"))
        params = SamplingParams(
            max_tokens=entry["output"] + (10 if stops else 0), ignore_eos=True,
            stop_token_ids=[STOP] if stops else None,
        )  # fmt: skip
        request = Request(
            request_id=name, prompt_token_ids=[self.token(entry, p) for p in range(entry["prompt"])],
            sampling_params=params, pooling_params=None, arrival_time=entry["at_s"], priority=entry.get("priority", 0),
            block_hasher=self.hasher,
        )  # fmt: skip
        if entry.get("structured"):
            request.structured_output_request = StructuredOutputRequest(
                params=StructuredOutputsParams(regex=".*"), _grammar=Grammar()
            )
        self.requests[name] = request
        self.scheduler.add_request(request)

    def abort(self, name: str) -> None:
        """Abort a request that may be gone already."""
        self.gone.add(name)
        self.scheduler.finish_requests([name], RequestStatus.FINISHED_ABORTED)
        self.decoding.discard(name)

    # -------------------------------------------------------------------------------------------------------- steps

    def plan(self, start_s: float) -> tuple[Any, dict[str, tuple[int, bool]], float]:
        """Schedule; returns the output, what it computes as (tokens, whether it decodes), and how long that takes."""
        output = self.scheduler.schedule()
        step = self.setting["step"]
        rows: dict[str, tuple[int, bool]] = {}
        prefill = pairs = decodes = context = 0.0
        for name, tokens in output.num_scheduled_tokens.items():
            computed = self.scheduler.requests[name].num_computed_tokens - tokens
            rows[name] = (tokens, name in self.decoding)
            if name in self.decoding:
                decodes += 1
                context += computed + 1
            else:
                prefill += tokens
                pairs += tokens * (computed + (tokens + 1) / 2)
        lasts_s = (
            step["base_s"] + step["per_prefill_token_s"] * prefill + step["per_decode_sequence_s"] * decodes
            + step["per_context_token_s"] * context + step["per_prefill_pair_s"] * pairs
        )  # fmt: skip
        if rows:
            pool = self.scheduler.kv_cache_manager.block_pool
            used = self.setting["kv_blocks"] - pool.get_num_free_blocks()
            self.steps.append([round(start_s, 9), {k: v[0] for k, v in rows.items()}, used, self.preempted])
            self.preempted = []
        for name in rows:
            if not self.scheduler.requests[name].is_prefill_chunk:
                self.decoding.add(name)
        sampling = {name for name in rows if not self.scheduler.requests[name].is_prefill_chunk}
        output.tokenpools_sampling = sampling
        return output, rows, lasts_s

    def ends_s(self, start_s: float, lasts_s: float) -> float:
        """Return when a step leaves the engine: of several stages each takes its share, one step at a time."""
        for stage in range(len(self.free_s)):
            self.free_s[stage] = start_s = max(start_s, self.free_s[stage]) + lasts_s / len(self.free_s)
            if stage < len(self.free_s) - 1:
                start_s += self.setting["transfer_s"]
        return start_s if self.free_s else start_s + lasts_s

    def take_in(self, output: Any, now_s: float) -> None:
        """Sample a token for each row whose context is complete, and hand it to the scheduler."""
        names = list(output.num_scheduled_tokens)
        accepted = 0
        if self.setting["drafts"]:
            accepted = self.setting["accepted"][self.iteration % len(self.setting["accepted"])]
        if names:
            self.iteration += 1
        sampled: list[list[int]] = []
        for name in names:
            request = self.requests[name]
            tokens: list[int] = []
            if name in output.tokenpools_sampling:
                count = 1 + (accepted if name in output.scheduled_spec_decode_tokens else 0)
                for i in range(count):
                    number = request.num_output_tokens + i + 1
                    position = request.num_prompt_tokens + number - 1
                    stop = self.asked[name].get("stops") and number == self.asked[name]["output"]
                    tokens.append(STOP if stop else self.token(self.asked[name], position))
            sampled.append(tokens)
        made = ModelRunnerOutput(
            req_ids=names, req_id_to_index={name: i for i, name in enumerate(names)}, sampled_token_ids=sampled
        )
        for answers in self.scheduler.update_from_output(output, made).values():
            for answer in answers.outputs:
                name = answer.request_id
                if answer.new_token_ids and name not in self.gone:
                    self.first_s.setdefault(name, now_s)
                    if answer.finish_reason is not None:
                        self.finish_s[name] = now_s
        self.decoding = {n for n in self.decoding if n in self.scheduler.requests}
        if self.setting["drafts"] and names:
            drafting = [n for n in names if n in self.scheduler.requests and n in output.tokenpools_sampling]
            drafts = [[3] * self.setting["drafts"]] * len(drafting)
            self.scheduler.update_draft_token_ids(DraftTokenIds(drafting, drafts))

    def run(self, script: list[dict[str, Any]]) -> None:
        """Play a load to its end."""
        todo = in_order(script)[::-1]
        now_s = 0.0

        def read(until_s: float) -> None:
            while todo and todo[-1]["at_s"] < until_s:
                self.tell(todo.pop())

        def read_first(until_s: float) -> float:
            """Read what woke an idle engine, and all of the same instant."""
            at_s = max(until_s, todo[-1]["at_s"])
            while todo and todo[-1]["at_s"] <= at_s:
                self.tell(todo.pop())
            return at_s

        def aborts(until_s: float) -> None:
            """Carry out, before a step's output is taken in, the aborts that came while it ran."""
            for entry in reversed(todo):
                if entry["at_s"] >= until_s:
                    break
                if entry["what"] == "abort" and str(entry["id"]) in self.scheduler.requests:
                    self.abort(str(entry["id"]))

        queue: list[tuple[Any, Any, float]] = []
        for _ in range(100_000):
            if not queue and not self.scheduler.has_requests():
                if not todo:
                    return
                now_s = read_first(now_s)
            read(now_s - TIE_S)
            if self.scheduler.has_requests():
                start_s = queue[-1][2] if queue and not self.free_s else now_s
                output, rows, lasts_s = self.plan(start_s)
                queue.append((output, rows, self.ends_s(start_s, lasts_s) if rows else start_s))
                if len(queue) < self.depth and (rows or self.scheduler.has_requests()):
                    continue
            if not queue:
                continue
            output, rows, end_s = queue.pop(0)
            now_s = max(now_s, end_s)
            if rows:
                aborts(now_s - TIE_S)
            self.take_in(output, now_s)
            if not rows and not queue and not any(self.scheduler.get_request_counts()):
                continue
            # Of several stages, empty batches may be under way behind this one; without them the next plan is at once.
            idle = not any(waiting for _, waiting, _ in queue) if self.free_s else not queue
            if not rows and idle and todo and self.stuck():
                now_s = read_first(now_s)
        raise RuntimeError("the load does not end")

    def stuck(self) -> bool:
        """Whether nothing runs and nobody who waits can begin."""
        return not self.scheduler.running


def base_config(folder: str) -> VllmConfig:
    """Return a configuration to be changed for each load."""
    (Path(folder) / "config.json").write_text(json.dumps(MODEL))
    model = ModelConfig(
        model=folder, skip_tokenizer_init=True, dtype="float16", seed=0, max_model_len=MAX_MODEL_TOKENS,
        enforce_eager=True,
    )  # fmt: skip
    scheduler = SchedulerConfig(
        max_num_seqs=8, max_num_batched_tokens=512, max_model_len=MAX_MODEL_TOKENS, is_encoder_decoder=False,
        enable_chunked_prefill=True, async_scheduling=False,
    )  # fmt: skip
    cache = CacheConfig(block_size=16, gpu_memory_utilization=0.9, cache_dtype="auto", enable_prefix_caching=True)
    return VllmConfig(
        scheduler_config=scheduler, model_config=model, cache_config=cache, device_config=DeviceConfig("cpu")
    )


def trace(case: dict[str, Any], base: VllmConfig) -> dict[str, Any]:
    """Return what vLLM does with a load."""
    engine = Engine(case["setting"], base)
    engine.run(case["script"])
    return {
        "seed": case["seed"],
        "steps": engine.steps,
        "first_s": engine.first_s,
        "finish_s": engine.finish_s,
        "preemptions": {name: r.num_preemptions for name, r in engine.requests.items()},
    }


def main() -> None:
    """Trace the loads of some ranges of seeds, ``first:count`` each, a line for each load as it is done."""
    out, ranges = Path(sys.argv[1]), [tuple(map(int, word.split(":"))) for word in sys.argv[2:]]
    init_none_hash(cheap_hash)
    with tempfile.TemporaryDirectory() as folder, out.open("w") as lines:
        base = base_config(folder)
        lines.write(json.dumps({"vllm": vllm.version.__version__}) + "\n")
        for seed in (seed for first, count in ranges for seed in range(first, first + count)):
            try:
                found = trace(load(seed), base)
            except Exception as error:  # a load that vLLM cannot run is a finding, and named
                found = {"seed": seed, "error": repr(error)}
            lines.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
