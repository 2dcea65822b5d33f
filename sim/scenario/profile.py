"""Replica profiles: what a scenario's ``pool.profile`` may name, and how one is loaded."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from sim.engine.step_time import STEP_TIMES
from sim.errors import ScenarioError
from sim.scenario.parallelism import check_parallelism, gpus_of
from sim.scenario.pool_amounts import is_false, is_none
from sim.scenario.registered_types import Later, MisfitError, OneOf, Strict
from sim.scenario.validation_errors import explain, suggestion
from sim.scenario.yaml_file import as_json, one_line, read_mapping, shown

if TYPE_CHECKING:
    from sim.engine.disaggregation import Disaggregated
    from sim.engine.lora import Lora
    from sim.engine.speculation import Speculation
    from sim.engine.work import Hardware, Work
else:
    Disaggregated = Annotated[Any, Later("sim.engine.disaggregation:Disaggregated")]
    Lora = Annotated[Any, Later("sim.engine.lora:Lora")]
    Speculation = Annotated[Any, Later("sim.engine.speculation:Speculation")]
    Hardware, Work = (Annotated[Any, Later(f"sim.engine.work:{name}")] for name in ("Hardware", "Work"))

_SLOW_S = 2.0  # between two tokens of a lone request: no engine is so slow [choice]


class Physics(Strict):
    """What no step time can beat: what the model asks of the hardware, and what that can do at most."""

    work: Work = Field(description="give the model's work, e.g. {parameters: 7.5e9, ...}")
    hardware: Hardware = Field(description="give the peak rates of all GPUs, e.g. {flops_per_s: 9.89e14, ...}")


class Calibration(Strict):
    """How a profile's numbers were found.

    ``confidence`` holds 95 % intervals of coefficients, ``ranges`` what was measured, both by name; ``held_out_error``
    relative errors on measurements that were not used, ``noise_floor`` what such an error varies by where coefficients
    differ by a ten-thousandth.
    """

    method: str = Field(description="say how the numbers were found")
    date: str = Field(description="give the day, e.g. 2026-11-23")
    engine: str = Field(default="", description="give the engine and its settings")
    measurements: int = Field(default=0, ge=0, description="give how many measurements were used")
    confidence: dict[str, tuple[float, float]] = Field(default={}, description="give intervals by coefficient")
    ranges: dict[str, tuple[float, float]] = Field(default={}, description="give least and greatest by quantity")
    held_out_error: dict[str, float] = Field(default={}, description="give relative errors by metric")
    noise_floor: dict[str, float] = Field(default={}, description="give what of each error is chance, relative")


class Profile(Strict):
    """One replica: how fast it is, and how much it holds.

    Shipped profiles are the same mapping in a file, with ``source`` and ``error`` added.
    """

    name: str = Field(default="inline", min_length=1, description="give the profile's name")
    source: str = Field(default="", description="say where the numbers come from")
    error: str = Field(default="", description="say how well the profile fits what was measured")
    step_time: Annotated[Any, OneOf(STEP_TIMES)] = Field(
        description="give an iteration's duration, e.g. {kind: linear, base_s: 0.006, per_decode_sequence_s: 1.0e-4}"
    )
    max_num_seqs: int = Field(gt=0, description="give the sequences one replica runs at once, e.g. 256")
    max_num_batched_tokens: int = Field(gt=0, description="give the tokens of one iteration, e.g. 2048")
    kv_blocks: int = Field(gt=0, description="give the KV cache blocks of one replica, e.g. 30000")
    block_tokens: int = Field(default=16, gt=0, description="give the tokens of one KV block, e.g. 16")
    gpus: int = Field(default=1, gt=0, description="give the GPUs of one replica, e.g. 2")
    kv_bytes_per_token: float | None = Field(
        default=None,
        gt=0,
        description="give the KV bytes of one token: 2 * layers * kv_heads * head_dim * bytes per value",
    )
    tokens_per_s: float | None = Field(
        default=None,
        gt=0,
        description="give one replica's declared capacity, prompt and output tokens per second, e.g. 240",
    )
    max_model_tokens: int | None = Field(
        default=None, gt=0, description="give the longest prompt plus output the model takes, in tokens, e.g. 8192"
    )
    scheduling: Literal["fcfs", "priority", "shortest-first", "fair-batching", "flow-prefill"] = Field(
        default="fcfs", description="give fcfs, priority, shortest-first, fair-batching or flow-prefill"
    )
    tpot_slo_s: float | None = Field(
        default=None, gt=0, description="give the seconds a further token may take, by which fair-batching goes"
    )
    operator_s: float = Field(
        default=0.0045, gt=0, description="give the seconds of the longest operator, where flow-prefill interrupts"
    )
    disaggregated: Disaggregated | None = Field(
        default=None, description="give how prefill and decode are divided, e.g. {prefill_engines: 1, ...}"
    )
    tensor_parallel: int | None = Field(
        default=None, gt=0, description="give the GPUs that share each layer, which step_time is of, e.g. 2"
    )
    pipeline_parallel: int = Field(
        default=1, gt=0, le=64, description="give the stages that the layers are spread over, e.g. 2"
    )
    pipeline_transfer_s: float = Field(
        default=0.0, ge=0, description="give the seconds that a batch takes from one stage to the next, e.g. 0.0002"
    )
    data_parallel: int = Field(
        default=1, gt=0, le=1024,
        description="give the data-parallel ranks, each with max_num_seqs and kv_blocks, e.g. 2",
    )
    expert_parallel: bool = Field(
        default=False, description="give true where ranks share the experts of a layer, so that they go in step"
    )
    data_parallel_score: Literal["in-flight", "waiting"] = Field(
        default="in-flight", description="give by what requests go to ranks: in-flight (vLLM 0.32), or waiting (0.19)"
    )
    async_scheduling: bool = Field(
        default=False, description="give true where the engine plans an iteration while the one before it runs"
    )
    prefix_caching: bool = Field(
        default=False, description="give true where prompts find again the KV blocks of those that began alike"
    )
    long_prefill_token_threshold: int = Field(
        default=0, ge=0, description="give the tokens an iteration takes of one prompt beside others, or 0 for all"
    )
    long_prefill_token_threshold_adaptive: bool = Field(
        default=False, description="give true where that threshold is at least an even share of the token budget"
    )
    scheduler_reserve_full_isl: bool = Field(
        default=True, description="give false where a prompt is let in once its first chunk fits into the KV cache"
    )
    watermark: float = Field(
        default=0.0, ge=0, lt=1, description="give the share of KV blocks kept free of those who come in, e.g. 0.01"
    )
    speculation: Speculation | None = Field(
        default=None,
        description="give how tokens are drafted, e.g. {tokens: 3, acceptance: 0.7, per_draft_token_s: 2.0e-5}",
    )
    lora: Lora | None = Field(
        default=None, exclude_if=is_none,
        description="give adapters that are served beside the base model, e.g. {adapters: {acme: 16}, max_loras: 4}",
    )
    request_overhead_s: float = Field(
        default=0.0, ge=0, description="give the seconds a request spends outside the engine, e.g. 0.002"
    )
    request_handling_s: float = Field(
        default=0.0, ge=0, description="give the seconds a server takes for each request, one at a time, e.g. 0.001"
    )
    request_handling_shared: bool = Field(
        default=False, exclude_if=is_false,
        description="give true where a server handles all requests at once, each the slower, instead of one at a time",
    )
    request_per_prompt_token_s: float = Field(
        default=0.0, ge=0, exclude_if=is_false,
        description="give the seconds a server takes to read a token of a prompt (one after another; those that wait "
        "together at once, where handling is shared), e.g. 4.0e-6",
    )
    request_per_running_s: float = Field(
        default=0.0, ge=0, description="give the seconds that each request in the engine adds to that, e.g. 0.0002"
    )
    physics: Physics | None = Field(
        default=None, description="give work and hardware, to have the step time checked against what they allow"
    )
    calibration: Calibration | None = Field(
        default=None, description="say how the numbers were found; tokenpools calibrate writes it"
    )

    @property
    def lacks_links(self) -> bool:
        """Whether several GPUs compute, and the step time holds nothing of what they tell each other.

        Coefficients that were fitted to measured runs hold it in what they say of tokens and iterations.
        """
        of_kernels = self.step_time.kind in ("table", "roofline")
        return self.gpus > 1 and of_kernels and self.step_time.links is None

    @property
    def summary(self) -> str:
        """Source, error and measured ranges, in a line."""
        parts = [self.source, f"error: {self.error or 'unknown'}"]
        ranges = self.calibration.ranges if self.calibration is not None else {}
        words = [f"{name.replace('_', ' ')} {low:g} to {high:g}" for name, (low, high) in ranges.items()]
        return "; ".join([*filter(None, parts), *([f"measured for {', '.join(words)}"] if words else [])])

    @property
    def caveats(self) -> tuple[str, ...]:
        """What a reader of this profile's results must know, a sentence each."""
        found = []
        lone_s = self.step_time.iteration_s(0, 0.0, 1, 100)
        if lone_s > _SLOW_S:
            slow = f"profile {self.name} takes {lone_s:.3g} s for a token of one request"
            found.append(f"{slow}: are the times of its step_time in seconds?")
        if not self.lacks_links:
            return tuple(found)
        return (
            *found,
            f"profile {self.name} has {self.gpus} GPUs and no links between them: iterations are too short by their "
            "all-reduces; give step_time.links, or make it again with tokenpools calibrate kernels --link-...",
        )

    @property
    def goes_by_deadlines(self) -> bool:
        """Whether the scheduler asks when a request's first token is due."""
        return self.scheduling in ("fair-batching", "flow-prefill")

    @property
    def _decode_engines(self) -> int:
        return self.data_parallel if self.disaggregated is None else self.disaggregated.decode_engines

    @property
    def slots(self) -> int:
        """The sequences that one replica decodes at once, over all of its engines."""
        return self._decode_engines * self.max_num_seqs

    @property
    def held_blocks(self) -> int:
        """The KV blocks of one replica, over all of its engines that decode."""
        return self._decode_engines * self.kv_blocks

    @property
    def kv_bytes(self) -> float | None:
        """The KV cache of one replica, in bytes; None where a token's bytes are not given."""
        if self.kv_bytes_per_token is None:
            return None
        return self.held_blocks * self.block_tokens * self.kv_bytes_per_token

    @model_validator(mode="after")
    def _fits(self) -> Profile:
        if "gpus" not in self.model_fields_set:
            object.__setattr__(self, "gpus", gpus_of(self))
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise MisfitError(
                "max_num_batched_tokens",
                f"{self.max_num_batched_tokens} is below max_num_seqs ({self.max_num_seqs}), which vLLM refuses",
                f"give at least {self.max_num_seqs}",
            )
        self._check_scheduling()
        self._check_handling()
        self._check_launches()
        if self.speculation is not None:
            self._check_speculation(self.speculation)
        if self.physics is not None:
            self._check_physics(self.physics)
        held_tokens = self.kv_blocks * self.block_tokens
        if self.max_model_tokens is not None and self.max_model_tokens > held_tokens:
            raise MisfitError(
                "max_model_tokens",
                f"{self.max_model_tokens} is more than the KV cache holds ({held_tokens} tokens), which vLLM refuses",
                f"give at most {held_tokens}, or more kv_blocks",
            )
        return self

    def _check_scheduling(self) -> None:
        kind = self.scheduling
        if kind == "fair-batching" and self.tpot_slo_s is None:
            raise MisfitError("tpot_slo_s", "missing, and fair-batching goes by it", "give it, e.g. 0.05")
        if kind == "flow-prefill" and (self.async_scheduling or self.prefix_caching):
            option = "async_scheduling" if self.async_scheduling else "prefix_caching"
            raise MisfitError(option, "set beside flow-prefill, which has none", "leave it out, or choose fcfs")
        self._check_admission()
        check_parallelism(self)
        several = self.data_parallel > 1 or self.pipeline_parallel > 1 or self.disaggregated is not None
        if self.lora is not None and several:
            raise MisfitError("lora", "given beside a replica of several engines", "give one engine, or leave it out")
        if self.disaggregated is not None:
            if kind == "fair-batching":
                raise MisfitError(
                    "scheduling", "fair-batching, where no engine does both prefill and decode", "give fcfs, say"
                )
            if self.kv_bytes_per_token is None:
                raise MisfitError("kv_bytes_per_token", "missing, and it is what crosses", "give it, e.g. 131072")

    def _check_launches(self) -> None:
        if not getattr(self.step_time, "prompt_launch_s", 0.0):
            return
        _refuse_beside("step_time.prompt_launch_s", {
            "data_parallel": self.data_parallel > 1, "pipeline_parallel": self.pipeline_parallel > 1,
            "disaggregated": self.disaggregated is not None, "speculation": self.speculation is not None,
            "flow-prefill": self.scheduling == "flow-prefill",
        })  # fmt: skip

    def _check_handling(self) -> None:
        if not self.request_handling_shared:
            return
        if not self.request_handling_s:
            raise MisfitError(
                "request_handling_shared", "set, and there is no request_handling_s to share",
                "give one, e.g. 0.002, or leave it out",
            )  # fmt: skip
        _refuse_beside("request_handling_shared", {
            "lora": self.lora is not None, "data_parallel": self.data_parallel > 1,
            "disaggregated": self.disaggregated is not None,
        })  # fmt: skip

    def _check_admission(self) -> None:
        threshold = self.long_prefill_token_threshold
        if self.goes_by_deadlines:
            for option in ("long_prefill_token_threshold", "watermark"):
                if getattr(self, option):
                    raise MisfitError(
                        option, f"given beside {self.scheduling}, which has none", "leave it out, or choose fcfs"
                    )
            if not self.scheduler_reserve_full_isl:
                raise MisfitError(
                    "scheduler_reserve_full_isl", f"false beside {self.scheduling}, which always does",
                    "leave it out, or choose fcfs",
                )  # fmt: skip
        if self.long_prefill_token_threshold_adaptive and not threshold:
            raise MisfitError(
                "long_prefill_token_threshold_adaptive", "set, and there is no long_prefill_token_threshold to adapt",
                "give one, e.g. 512",
            )  # fmt: skip
        if self.max_model_tokens is not None and threshold > self.max_model_tokens:
            raise MisfitError(
                "long_prefill_token_threshold",
                f"{threshold} is more than max_model_tokens ({self.max_model_tokens}), which vLLM refuses",
                f"give at most {self.max_model_tokens}",
            )
        if self.speculation is not None and 0 < threshold <= self.speculation.tokens:
            raise MisfitError(
                "long_prefill_token_threshold",
                f"{threshold} would cut a token and its {self.speculation.tokens} drafts",
                f"give more than {self.speculation.tokens}",
            )

    def _check_speculation(self, speculation: Speculation) -> None:
        if self.disaggregated is not None or self.goes_by_deadlines:
            other = "disaggregated" if self.disaggregated is not None else self.scheduling
            raise MisfitError("speculation", f"given beside {other}, which has none", "leave one of them out")
        least = self.max_num_seqs * (1 + speculation.tokens)
        if self.max_num_batched_tokens < least:
            raise MisfitError(
                "max_num_batched_tokens",
                f"{self.max_num_batched_tokens} is too few for {self.max_num_seqs} sequences (max_num_seqs) of a token "
                f"and {speculation.tokens} drafts",
                f"give at least {least}",
            )

    def _check_physics(self, physics: Physics) -> None:
        """Refuse a step time that is faster than the hardware's peak rates allow, on a grid of iterations."""
        from sim.engine.step_table import ExtrapolationWarning
        from sim.engine.work import least_iteration_s

        for prefill, decodes, context in product((0, 1, 512, self.max_num_batched_tokens), (0, 1, 32, 256), (16, 4096)):
            decodes = min(decodes, self.max_num_seqs, self.max_num_batched_tokens - prefill)
            tokens_read = decodes * context
            if decodes < 0 or prefill + decodes == 0 or tokens_read > self.kv_blocks * self.block_tokens:
                continue
            make_up = (prefill, prefill * (prefill + 1) / 2, decodes, tokens_read)
            drafts, more_s = 0, 0.0
            if self.speculation is not None:
                drafts, more_s = decodes * self.speculation.tokens, self.speculation.extra_s(decodes)
            # Each draft is verified as a token of a prompt is computed; its reads are those of its sequence.
            least_s = least_iteration_s(physics.work, physics.hardware, prefill + drafts, *make_up[1:])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExtrapolationWarning)
                found_s = self.step_time.iteration_s(*make_up) + more_s
            if found_s < least_s:
                raise MisfitError(
                    "step_time",
                    f"{found_s:.4g} s for an iteration of {prefill} prompt tokens and {decodes} sequences that read "
                    f"{tokens_read} KV entries, less than the {least_s:.4g} s that physics allows",
                    "check the units, or what physics says of the model and the GPUs",
                )


def _refuse_beside(option: str, others: dict[str, bool]) -> None:
    """Refuse an option beside the first of those that is there, for which it has no meaning."""
    for name, there in others.items():
        if there:
            raise MisfitError(option, f"set beside {name}, which has none", "leave it out")


def shipped_profiles() -> list[str]:
    """Return the names of the profiles that come with tokenpools."""
    names = (entry.name for entry in files("sim.profiles").iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def load_profile(ref: str, *, folder: Path = Path(), file: str = "", field: str = "") -> Profile:
    """Return a profile by the name of a shipped one or by path.

    Parameters
    ----------
    folder : where relative paths start.
    file, field : who asks, for the error about a name that there is not.

    Raises
    ------
    ScenarioError : there is no such profile, or it is not one.
    """
    names = shipped_profiles()
    source: Path | Traversable
    if ref in names:
        name, source, origin = ref, files("sim.profiles") / f"{ref}.yaml", f"profiles/{ref}.yaml"
    elif not ref.endswith((".yaml", ".yml")):
        fix = suggestion(ref, [*names, "a path ending in .yaml"])
        raise ScenarioError(file, field, f"unknown profile {shown(ref)}", fix)
    else:
        name, source, origin = Path(ref).stem, folder / ref, one_line(str(folder / ref))
    return parse_profile({"name": name, **read_mapping(source, origin)}, origin)


def with_settings(profile: Profile, settings: Sequence[str]) -> Profile:
    """Return a profile with other values, each ``name=value``; a step time's coefficients as ``step_time.name``.

    Raises
    ------
    ScenarioError : no such setting, or a value that does not fit.
    """
    if not settings:
        return profile
    tree = profile.model_dump(mode="json", exclude_none=True)
    if profile.gpus == 1:
        del tree["gpus"]  # what is set may need more
    for setting in settings:
        path, equals, text = setting.partition("=")
        *above, last = path.split(".")
        place: Any = tree
        for name in above:
            place = place.get(name) if isinstance(place, dict) else None
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            equals = ""
        if not equals or not path:
            raise ScenarioError("--set", setting, "is no NAME=VALUE", "give e.g. --set kv_blocks=2588")
        if not isinstance(place, dict):
            problem = f"{'.'.join(above)} holds no fields"
            raise ScenarioError("--set", setting, problem, "give e.g. step_time.base_s=0.01")
        place[last] = value
    return parse_profile(tree, "--set")


def parse_profile(mapping: dict[str, Any], file: str) -> Profile:
    """Return the profile that a mapping of plain values describes, or raise ScenarioError."""
    try:
        return Profile.model_validate_json(as_json(mapping, file))
    except ValidationError as error:
        raise explain(error, Profile, mapping, file) from None
