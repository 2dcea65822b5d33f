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


def unsaid(model: str, gpu: str = "") -> str:
    """Return that no shipped profile's name says all of what was asked for, and what would; empty where one does."""
    asked = _asked(model) | _asked(gpu)
    names = shipped_profiles()
    if any(asked <= _words(name) for name in names) and asked:
        return ""
    known = set().union(*(_words(name) for name in names))
    gone = ", ".join(sorted(asked - known))
    lacks = f" (none says {gone})" if gone else ""
    wanted = " on ".join(filter(None, (model, gpu))) or "nothing"
    return (
        f"no shipped profile is of {wanted}{lacks}: these are the nearest by name; tokenpools calibrate makes one, "
        "from measurements or without (aiconfigurator, model)"
    )


def _asked(text: str) -> set[str]:
    return _words(text.rsplit("/", 1)[-1]) - {"meta", "instruct", "sxm", "nvidia", "gpu"}


def _likeness(name: str, model: str, gpu: str) -> float:
    """Return how much of what was asked for a profile's name says: words in common, and how alike the rest is."""
    said = _words(name)
    parts = []
    for asked in (model, gpu):
        words = _asked(asked)
        if words:
            shared = len(words & said) / len(words)
            alike = SequenceMatcher(None, "-".join(sorted(words)), name).ratio()
            parts.append(0.8 * shared + 0.2 * alike)
    return sum(parts) / len(parts) if parts else 0.0


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9.]+", text.lower()))
