"""What a scenario may name, with a line about each."""

from __future__ import annotations

import re
from importlib.resources import files

from policies.registry import POLICIES, ROUTERS
from sim.scenario import plugins
from sim.scenario.load import load_scenario, shipped_scenarios
from sim.scenario.profile import load_profile, shipped_profiles
from workloads.registry import ARRIVALS, CLIENTS, LENGTHS
from workloads.trace import TRACES

_LAWS = {"arrivals": ARRIVALS, "clients": CLIENTS, "lengths": LENGTHS}


def entries(what: str) -> list[tuple[str, str]]:
    """Return (name, one line) for scenarios, policies, routers, profiles, traces, arrivals, clients or lengths."""
    if what == "scenarios":
        return [(name, load_scenario(name).title or "") for name in shipped_scenarios()]
    if what == "policies":
        own = [(name, _first_sentence(entry.params.__doc__)) for name, entry in POLICIES.items()]
        return [*own, *plugins.listed("policies")]
    if what == "routers":
        own = [(name, _first_sentence(entry.params.__doc__)) for name, entry in ROUTERS.items()]
        return [*own, *plugins.listed("routers")]
    if what == "profiles":
        return [(name, load_profile(name).summary) for name in shipped_profiles()]
    if what in _LAWS:
        return [(name, _first_sentence(law.__doc__)) for name, law in _LAWS[what].items()]
    return [(name, file) for name, file in TRACES.items()]


def scenario_comment(name: str) -> str:
    """Return the opening comment of a shipped scenario: what it shows and what to expect."""
    lines = (files("scenarios") / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return "\n".join(re.sub(r"^# ?", "", line) for line in lines if line.startswith("#"))


def _first_sentence(doc: str | None) -> str:
    text = " ".join((doc or "").replace("``", "").split())
    return text.split(". ")[0].rstrip(".")
