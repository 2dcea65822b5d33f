"""A roofline for a model by name or ``config.json``, with the links between its GPUs where they were ever measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sim.calibration.link_tables import shipped_links
from sim.engine.links import Links
from sim.errors import InputError
from sim.profiles.models import MODELS, model_named
from sim.profiles.roofline import roofline_profile
from sim.scenario.profile import Profile
from sim.scenario.validation_errors import suggestion


def read_model(ref: str) -> tuple[str, Mapping[str, Any]]:
    """Return the name and shape of a model: a known one's, or what a ``config.json`` says.

    Raises
    ------
    InputError : neither a known name nor a readable file.
    """
    path = Path(ref)
    if path.suffix != ".json":
        known = model_named(ref)
        if known is not None:
            return known
        if not path.is_file():
            raise InputError(f"model {ref}", "unknown, and no file", suggestion(ref, [*MODELS, "a config.json"]))
    try:
        shape = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(ref, f"cannot be read ({error.strerror})", "name a config.json") from None
    except ValueError as error:
        raise InputError(ref, f"is no JSON ({error})", "give the model's config.json") from None
    if not isinstance(shape, dict):
        raise InputError(ref, "is not a mapping", "give the model's config.json")
    return path.stem, shape


def calibrate_model(
    ref: str, gpu: str, *, gpus: int = 1, weight_bits: int = 16, kv_blocks: int | None = None,
    gpu_memory_utilization: float = 0.9, max_num_seqs: int = 256, max_num_batched_tokens: int = 2048,
) -> Profile:
    """Return the roofline of a model, two all-reduces a layer included where times between such GPUs are shipped.

    Parameters
    ----------
    kv_blocks : of 16 tokens; left out, what the GPUs' memory is reckoned to leave.

    Raises
    ------
    InputError : an unknown model or GPU, or a model that does not fit.
    """
    name, shape = read_model(ref)
    profile = roofline_profile(
        shape, gpu, gpus=gpus, weight_bits=weight_bits, name=name, kv_blocks=kv_blocks,
        gpu_memory_utilization=gpu_memory_utilization, max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )  # fmt: skip
    table = shipped_links(gpu, gpus) if gpus > 1 else None
    if gpus == 1:
        return profile
    if table is None:
        error = f"{profile.error}; made without the links between its {gpus} GPUs"
        return profile.model_copy(update={"gpus": gpus, "error": error})
    text = shape.get("text_config", shape)
    links = Links(
        ranks=gpus,
        bytes_per_token=2.0 * int(text["hidden_size"]),
        all_reduces=2 * int(text["num_hidden_layers"]),
        message_bytes=table.message_bytes,
        all_reduce_s=table.all_reduce_s,
    )
    step_time = replace(profile.step_time, links=links)
    source = f"{profile.source}; links: {table.source}"
    return profile.model_copy(update={"gpus": gpus, "step_time": step_time, "source": source})
