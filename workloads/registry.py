"""The kinds a scenario may name. An entry here is all that a law or client needs to be usable in a scenario."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from workloads.aimd import Aimd
from workloads.arrivals import Even, Gamma, OnOff, Poisson, Weibull
from workloads.clients import Adversarial, Drop, Impatient, OpenAiSdk, Retry, SharedCooldown
from workloads.interactive import Agents, ClosedLoop, Sessions
from workloads.lengths import Constant, Empirical, Lognormal, Pareto, Reasoning, Uniform
from workloads.rates import Diurnal, Mmpp, Ramp, Spike
from workloads.servegen import ServeGen
from workloads.trace import Trace


def _by_kind(*variants: type) -> Mapping[str, type]:
    return MappingProxyType({variant.__dataclass_fields__["kind"].default: variant for variant in variants})  # type: ignore[attr-defined]


ARRIVALS = _by_kind(
    Even, Poisson, Gamma, Weibull, OnOff, Mmpp, Diurnal, Spike, Ramp, Trace, ServeGen, ClosedLoop, Sessions, Agents,
    Aimd,
)
"""When requests arrive: `workloads.arrivals.Arrivals`, `workloads.generate.Recorded` where lengths come with them, or
`workloads.generate.Interactive` where they wait for answers."""

LENGTHS = _by_kind(Constant, Uniform, Lognormal, Empirical, Pareto, Reasoning)
"""How many tokens they have: each is a `workloads.lengths.LengthLaw`."""

CLIENTS = _by_kind(Drop, Retry, OpenAiSdk, Impatient, SharedCooldown, Adversarial)
"""What clients do when turned away: each is a `workloads.clients.Client`."""
