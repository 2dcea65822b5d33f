"""What may be tuned of each policy of a tournament, and within which bounds.

Only what an operator would set by trying. What follows from promises (rates, weights, dealt replicas) stays as the rule
of `sim.studies.tournament_policies` has it, but for one factor on all rates. A policy that is not named here has
nothing to tune and runs with its defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RATES = "rates"
"""The knob that multiplies all rates of a policy."""


@dataclass(frozen=True, slots=True)
class Span:
    """Numbers from ``low`` to ``high``; drawn by their logarithm, or whole."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def suggest(self, trial: Any, name: str) -> float | int:
        """Let Optuna draw one."""
        if self.whole:
            return int(trial.suggest_int(name, int(self.low), int(self.high), log=self.log))
        return float(f"{trial.suggest_float(name, self.low, self.high, log=self.log):.4g}")


@dataclass(frozen=True, slots=True)
class Choice:
    """One of these."""

    values: tuple[str | bool, ...]

    def suggest(self, trial: Any, name: str) -> Any:
        """Let Optuna draw one."""
        return trial.suggest_categorical(name, list(self.values))


Space = Mapping[str, Span | Choice]

_RATES = Span(0.6, 1.5)
_WAIT = Span(1.0, 60.0, log=True)
_FILL = Span(0.7, 1.5)
_FLOW = Choice(("entitlement", "tenant"))
_ORDER = Choice(("fcfs", "edf", "shortest"))
_POOL: Space = {
    "bucket_s": Span(1.0, 60.0, log=True), "overcommit": Span(0.8, 1.6), "demand_margin": Span(0.8, 1.6),
    "gamma_demand": Span(0.1, 0.9), "alpha_slo": Span(0.5, 8.0, log=True), "alpha_debt": Span(0.5, 16.0, log=True),
}  # fmt: skip
SPACES: Mapping[str, Space] = {
    "cap": {"occupancy": _FILL, "timeout_s": _WAIT, "queue_requests": Span(1, 1000, log=True, whole=True)},
    "rate-limit": {RATES: _RATES, "burst_s": Span(1.0, 120.0, log=True)},
    "window": {RATES: _RATES, "window_s": Span(2.0, 120.0, log=True)},
    "reserve": {RATES: _RATES, "depth_s": Span(1.0, 120.0, log=True)},
    "ptu": {RATES: _RATES, "horizon_s": Span(1.0, 120.0, log=True)},
    "prio-reserve": {RATES: _RATES, "threshold": Span(0.3, 1.0), "window_s": Span(2.0, 120.0, log=True)},
    "bands": {"occupancy": _FILL, "timeout_s": _WAIT, "within": _ORDER},
    "class-slots": {"occupancy": _FILL, "tick_s": Span(0.05, 2.0, log=True)},
    "cohort": {"occupancy": _FILL, "timeout_s": _WAIT, "lend": Span(0.0, 1.0), "period_s": Span(1.0, 60.0, log=True),
               "within": _ORDER},
    "slo-feasible": {"margin": Span(0.7, 2.0), "alpha_s_per_token": Span(1e-3, 5e-2, log=True),
                     "smoothing": Span(0.8, 0.999), "occupancy": _FILL},
    "adaptive": {"tolerance": Span(1.0, 4.0), "smoothing": Span(0.05, 0.6), "queue": Span(1, 32, log=True, whole=True),
                 "initial": Span(10, 128, log=True, whole=True)},
    "dagor": {"threshold_s": Span(0.05, 2.0, log=True), "period_s": Span(0.2, 4.0, log=True),
              "alpha": Span(0.01, 0.3, log=True), "beta": Span(0.002, 0.1, log=True)},
    "dedicated": {"max_in_flight_per_replica": Span(8, 64, log=True, whole=True)},
    "vtc": {"occupancy": _FILL, "timeout_s": _WAIT, "flow": _FLOW, "within": _ORDER, "output_weight": Span(1.0, 4.0)},
    "drr": {"occupancy": _FILL, "timeout_s": _WAIT, "flow": _FLOW, "within": _ORDER,
            "quantum": Span(128.0, 8192.0, log=True)},
    "las": {"occupancy": _FILL, "timeout_s": _WAIT, "flow": _FLOW, "within": _ORDER,
            "half_life_s": Span(5.0, 300.0, log=True)},
    "token-pool": _POOL,
    "token-pool-paper": _POOL,
    "predictive-pool": {
        "margin": Span(0.8, 1.8), "quantile": Span(0.2, 0.9), "trickle": Span(0.01, 0.2, log=True),
        "bucket_s": Span(1.0, 120.0, log=True), "headroom": Span(0.0, 3.0), "late": Span(0.01, 0.3, log=True),
        "prefill_ahead_s": Span(0.1, 1.0, log=True),
    },
    "dlpm": {"quantum": Span(256.0, 65_536.0, log=True), "input_weight": Span(0.25, 4.0, log=True), "flow": _FLOW,
             "looks_at": Span(8, 512, log=True, whole=True), "timeout_s": _WAIT},
    "concur": {"agents": Span(8, 256, log=True, whole=True), "add": Span(0.5, 16.0, log=True), "keep": Span(0.3, 0.9),
               "room_below": Span(0.1, 0.6), "full_above": Span(0.5, 0.95), "timeout_s": _WAIT},
    "fairserve": {"overloaded_running": Span(8, 64, log=True, whole=True), "timeout_s": _WAIT,
                  "overloaded_kv_tokens": Span(1000, 50_000, log=True, whole=True), "output_weight": Span(1.0, 4.0)},
    "polyserve": {"default_tpot_slo_s": Span(0.03, 0.5, log=True), "timeout_s": _WAIT,
                  "expected_output_tokens": Span(32.0, 512.0, log=True), "refuse_late": Choice((False, True))},
    "datarobot": {RATES: _RATES, "threshold": Span(0.3, 1.0)},
    "llm-d-flow-control": {
        "detector": Choice(("utilisation", "concurrency")), "ceilings": Choice(("static", "holdback")),
        "min_ceiling": Span(0.4, 1.0), "fairness": Choice(("global-strict", "round-robin")),
        "ordering": Choice(("fcfs", "slo-deadline")), "stale_s": Span(0.2, 10.0, log=True),
    },
}  # fmt: skip
