"""What a measured run says of its engine: the ``meta.json`` that LLMServingSim's bench leaves beside the requests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sim.calibration.run_files import file_of
from sim.errors import InputError
from sim.scenario.profile import Profile

FILE, _RUN = "meta.json", "requests.jsonl"
_FIX = "give the file as the bench wrote it, or take it away"


@dataclass(frozen=True, slots=True)
class RunEngine:
    """Settings of the engine that served a run, by the names that a profile has for them; those that it says.

    ``layout`` holds its ranks, which a profile has or has not: ``tensor_parallel``, ``data_parallel`` and
    ``expert_parallel``.
    """

    settings: Mapping[str, int | bool] = field(default_factory=dict)
    layout: Mapping[str, int | bool] = field(default_factory=dict)

    @property
    def kv_tokens(self) -> int | None:
        """The tokens that its KV cache holds."""
        blocks, block_tokens = (self.settings.get(name) for name in ("kv_blocks", "block_tokens"))
        return None if blocks is None else blocks * (block_tokens or 16)

    def unlike(self, profile: Profile, given: tuple[str, ...] = ()) -> dict[str, int | bool]:
        """Return the settings in which a profile differs, but for those that were ``given``, the cache as a whole."""
        cache = ("kv_blocks", "block_tokens")
        kept = {*given, *(cache if set(cache) & set(given) else ())}
        return {n: v for n, v in self.settings.items() if n not in kept and getattr(profile, n) != v}

    def misfits(self, profile: Profile) -> list[str]:
        """Return what a profile's ranks have other than the run's, as sentences."""
        ranks = profile.data_parallel * profile.pipeline_parallel
        own = {
            "tensor_parallel": profile.tensor_parallel or profile.gpus // ranks,
            "data_parallel": profile.data_parallel,
            "expert_parallel": profile.expert_parallel,
        }  # fmt: skip
        return [
            f"the run's engine had {name} {str(value).lower()}, and the profile has {str(own[name]).lower()}"
            for name, value in self.layout.items() if value != own[name]
        ]  # fmt: skip


def engine_of(run: Path) -> RunEngine:
    """Return what stands beside a run of LLMServingSim's of its engine; nothing where there is no such file.

    Raises
    ------
    InputError : the file is none of the bench's.
    """
    run = file_of(run)
    file = run.parent / FILE
    if run.name != _RUN or not file.is_file():
        return RunEngine()
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(str(file), f"cannot be read ({str(error).splitlines()[0]})", _FIX) from None
    asked = meta.get("engine_kwargs") if isinstance(meta, dict) else None
    if not isinstance(asked, dict):
        return RunEngine()  # some other program's
    cache = meta.get("kv_cache") if isinstance(meta.get("kv_cache"), dict) else {}
    whole = {name: _whole(file, asked, name) for name in ("max_num_seqs", "max_num_batched_tokens")}
    whole |= {"kv_blocks": _whole(file, cache, "num_gpu_blocks"), "block_tokens": _whole(file, cache, "block_size")}
    ranks = {"tensor_parallel": "tensor_parallel_size", "data_parallel": "data_parallel_size"}
    layout: dict[str, int | bool | None] = {name: _whole(file, asked, key) for name, key in ranks.items()}
    # Without data-parallel ranks the experts are shared by those that share the layers, which kernels' times hold.
    shared = asked.get("enable_expert_parallel")
    layout["expert_parallel"] = shared if type(shared) is bool and layout["data_parallel"] not in (None, 1) else None
    return RunEngine(*({n: v for n, v in each.items() if v is not None} for each in (whole, layout)))


def _whole(file: Path, where: Mapping[str, Any], name: str) -> int | None:
    value = where.get(name)
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise InputError(str(file), f"{name} is {str(value)[:40]}, and no whole number from 1", _FIX)
    return value
