"""Rooflines by a model's name or file, with links where GPUs were measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sim.calibration.from_model import calibrate_model
from sim.errors import InputError
from sim.profiles.models import MODELS


def test_several_gpus_have_links_where_they_were_measured() -> None:
    two = calibrate_model("meta-llama/Meta-Llama-3.1-70B-Instruct", "H100-SXM", gpus=4)
    assert (two.gpus, two.step_time.links.all_reduces, two.step_time.links.ranks) == (4, 160, 4)
    assert not two.lacks_links
    many = calibrate_model("llama-3.1-70b", "H100-SXM", gpus=16)
    assert many.lacks_links
    assert "without the links between its 16 GPUs" in many.error
    with pytest.raises(InputError, match="3 GPUs do not divide the model's 64 attention heads"):
        calibrate_model("llama-3.1-70b", "H100-SXM", gpus=3)
    assert calibrate_model("llama-3.1-8b", "A10G").gpus == 1


def test_a_file_or_a_known_name_is_taken_and_others_are_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(dict(MODELS["qwen3-8b"])))
    assert calibrate_model(str(file), "H100-SXM").name == "mine"
    with pytest.raises(InputError, match=r"model llama-3\.1-9b: unknown, and no file; did you mean llama-3\.1-8b"):
        calibrate_model("llama-3.1-9b", "H100-SXM")
    file.write_text("[1]")
    with pytest.raises(InputError, match="is not a mapping"):
        calibrate_model(str(file), "H100-SXM")
    with pytest.raises(InputError, match="cannot be read"):
        calibrate_model(str(tmp_path / "none.json"), "H100-SXM")
