"""Who gets how much of the GPUs in multi-tenant LLM inference: simulate it, compare policies, add your own.

    import tokenpools

    results = tokenpools.sweep(tokenpools.load_scenario("paper-exp1", overrides=["replications=5"]), "results/mine")
    results.findings
    tokenpools.compare("results/before", "results/mine")

`tokenpools.policies` and `tokenpools.workloads` hold what a policy, router, arrival law or client of your own is made
with, `tokenpools.testing` the contract suite for it. `tokenpools.Gate` and `SyncGate` put the policy core into a server
of your own (docs/adapters.md). Everything is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tokenpools import _own_packages

_own_packages.install()

if TYPE_CHECKING:
    from sim.adapters.admission.errors import EvictedError, RefusedError
    from sim.adapters.library.asynchronous import Gate, Lease
    from sim.adapters.library.synchronous import SyncGate, SyncLease
    from sim.analysis.compare import Comparison
    from sim.api import Results, compare, load_scenario, register, run, sweep, with_kinds
    from sim.errors import RunError, TokenpoolsError
    from sim.scenario.load import Scenario, parse_scenario, shipped_scenarios
    from tokenpools import policies, testing, workloads

    __version__: str

_PLACES = {
    "Comparison": "sim.analysis.compare",
    "EvictedError": "sim.adapters.admission.errors",
    "Gate": "sim.adapters.library.asynchronous",
    "Lease": "sim.adapters.library.asynchronous",
    "RefusedError": "sim.adapters.admission.errors",
    "Results": "sim.api",
    "RunError": "sim.errors",
    "Scenario": "sim.scenario.load",
    "SyncGate": "sim.adapters.library.synchronous",
    "SyncLease": "sim.adapters.library.synchronous",
    "TokenpoolsError": "sim.errors",
    "compare": "sim.api",
    "load_scenario": "sim.scenario.load",
    "parse_scenario": "sim.scenario.load",
    "register": "sim.api",
    "run": "sim.api",
    "shipped_scenarios": "sim.scenario.load",
    "sweep": "sim.api",
    "with_kinds": "sim.api",
}
_MODULES = ("policies", "testing", "workloads")

__all__ = [
    "Comparison", "EvictedError", "Gate", "Lease", "RefusedError", "Results", "RunError", "Scenario", "SyncGate",
    "SyncLease", "TokenpoolsError", "__version__", "compare", "load_scenario", "parse_scenario", "policies", "register",
    "run", "shipped_scenarios", "sweep", "testing", "with_kinds", "workloads",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        found: Any = version("tokenpools")
    elif name in _MODULES:
        found = import_module(f"tokenpools.{name}")
    elif name in _PLACES:
        found = getattr(import_module(_PLACES[name]), name)
    else:
        raise AttributeError(f"module 'tokenpools' has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
