"""The kinds a scenario may name. An entry here is all that a law or client needs to be usable in a scenario."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from workloads.arrivals import Even, Gamma, OnOff, Poisson
from workloads.clients import Drop, Retry
from workloads.lengths import Constant, Empirical, Lognormal, Uniform
from workloads.trace import Trace

ARRIVALS: Mapping[str, type] = MappingProxyType(
    {"even": Even, "poisson": Poisson, "gamma": Gamma, "on-off": OnOff, "trace": Trace}
)
"""When requests arrive: each has ``times_s`` (`workloads.arrivals.Arrivals`), or is a `workloads.trace.Trace`."""

LENGTHS: Mapping[str, type] = MappingProxyType(
    {"constant": Constant, "uniform": Uniform, "lognormal": Lognormal, "empirical": Empirical}
)
"""How many tokens they have: each is a `workloads.lengths.LengthLaw`."""

CLIENTS: Mapping[str, type] = MappingProxyType({"drop": Drop, "retry": Retry})
"""What clients do when turned away: each is a `workloads.clients.Client`."""
