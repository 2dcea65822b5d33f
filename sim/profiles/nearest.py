"""The shipped profiles nearest to a model and a GPU, with what is known of their errors and ranges."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from sim.scenario.profile import load_profile, shipped_profiles


def nearest(model: str, gpu: str = "", *, most: int = 5) -> list[tuple[str, float]]:
    """Return shipped profiles by how alike their names are to a model and a GPU, the nearest first, likeness 0 to 1."""
    found = [(name, _likeness(name, model, gpu)) for name in shipped_profiles()]
    return sorted(found, key=lambda one: (-one[1], one[0]))[:most]


def described(model: str, gpu: str = "") -> list[tuple[str, str]]:
    """Return names and summaries of the nearest profiles."""
    return [(name, load_profile(name).summary) for name, _ in nearest(model, gpu)]


def _likeness(name: str, model: str, gpu: str) -> float:
    """Return how much of what was asked for a profile's name says: words in common, and how alike the rest is."""
    said = _words(name)
    parts = []
    for asked in (model.rsplit("/", 1)[-1], gpu):
        words = _words(asked) - {"meta", "instruct", "sxm", "nvidia", "gpu"}
        if words:
            shared = len(words & said) / len(words)
            alike = SequenceMatcher(None, "-".join(sorted(words)), name).ratio()
            parts.append(0.8 * shared + 0.2 * alike)
    return sum(parts) / len(parts) if parts else 0.0


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9.]+", text.lower()))
