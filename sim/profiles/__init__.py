"""Replica profiles: what a scenario's ``pool.profile`` may name, and how one is loaded."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from sim.cluster.step_time import STEP_TIMES
from sim.complaints import explain, suggestion
from sim.errors import ScenarioError
from sim.params import MisfitError, OneOf, Strict
from sim.scenario_file import as_json, one_line, read_mapping, shown


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
    scheduling: Literal["fcfs", "priority"] = Field(default="fcfs", description="give fcfs or priority")

    @property
    def kv_bytes(self) -> float | None:
        """The KV cache of one replica, in bytes; None where a token's bytes are not given."""
        if self.kv_bytes_per_token is None:
            return None
        return self.kv_blocks * self.block_tokens * self.kv_bytes_per_token

    @model_validator(mode="after")
    def _fits(self) -> Profile:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise MisfitError(
                "max_num_batched_tokens",
                f"{self.max_num_batched_tokens} is below max_num_seqs ({self.max_num_seqs}), which vLLM refuses",
                f"give at least {self.max_num_seqs}",
            )
        held_tokens = self.kv_blocks * self.block_tokens
        if self.max_model_tokens is not None and self.max_model_tokens > held_tokens:
            raise MisfitError(
                "max_model_tokens",
                f"{self.max_model_tokens} is more than the KV cache holds ({held_tokens} tokens), which vLLM refuses",
                f"give at most {held_tokens}, or more kv_blocks",
            )
        return self


def shipped_profiles() -> list[str]:
    """Return the names of the profiles that come with tokenpools."""
    names = (entry.name for entry in files(__name__).iterdir())
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
        name, source, origin = ref, files(__name__) / f"{ref}.yaml", f"profiles/{ref}.yaml"
    elif not ref.endswith((".yaml", ".yml")):
        fix = suggestion(ref, [*names, "a path ending in .yaml"])
        raise ScenarioError(file, field, f"unknown profile {shown(ref)}", fix)
    else:
        name, source, origin = Path(ref).stem, folder / ref, one_line(str(folder / ref))
    return parse_profile({"name": name, **read_mapping(source, origin)}, origin)


def parse_profile(mapping: dict[str, Any], file: str) -> Profile:
    """Return the profile that a mapping of plain values describes, or raise ScenarioError."""
    try:
        return Profile.model_validate_json(as_json(mapping, file))
    except ValidationError as error:
        raise explain(error, Profile, mapping, file) from None
