"""The kinds a scenario may name. An entry here is all that a law or client needs to be usable in a scenario."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module


class _Registry(Mapping[str, type]):
    """Dataclasses by kind, each from its ``module:name`` in this package, which is imported when it is asked for."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = places

    def __getitem__(self, kind: str) -> type:
        module, _, name = self._places[kind].partition(":")
        found: type = getattr(import_module(f"workloads.{module}"), name)
        return found

    def __contains__(self, kind: object) -> bool:
        return kind in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


ARRIVALS: Mapping[str, type] = _Registry({
    "even": "arrivals:Even", "poisson": "arrivals:Poisson", "gamma": "bursts:Gamma", "weibull": "bursts:Weibull",
    "on-off": "bursts:OnOff", "mmpp": "rates:Mmpp", "diurnal": "rates:Diurnal", "spike": "rates:Spike",
    "ramp": "rates:Ramp", "trace": "trace:Trace", "servegen": "servegen:ServeGen",
    "closed-loop": "interactive:ClosedLoop", "sessions": "interactive:Sessions", "agents": "interactive:Agents",
    "aimd": "aimd:Aimd",
})  # fmt: skip
"""When requests arrive: `workloads.arrivals.Arrivals`, `workloads.generate.Recorded` where lengths come with them, or
`workloads.generate.Interactive` where they wait for answers."""

LENGTHS: Mapping[str, type] = _Registry({
    "constant": "lengths:Constant", "uniform": "lengths:Uniform", "lognormal": "lengths:Lognormal",
    "empirical": "lengths:Empirical", "pareto": "long_tails:Pareto", "reasoning": "long_tails:Reasoning",
})  # fmt: skip
"""How many tokens they have: each is a `workloads.lengths.LengthLaw`."""

CLIENTS: Mapping[str, type] = _Registry({
    "drop": "clients:Drop", "retry": "clients:Retry", "openai-sdk": "clients:OpenAiSdk",
    "impatient": "clients:Impatient", "shared-cooldown": "clients:SharedCooldown", "adversarial": "clients:Adversarial",
})  # fmt: skip
"""What clients do when turned away: each is a `workloads.clients.Client`."""
