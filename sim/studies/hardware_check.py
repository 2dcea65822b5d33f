"""Admission policies against hardware: the 27-tenant Arena trace, measured on one GPU under four policies.

The measurements are those of the VTC artifact (S-LoRA, Llama-2-7B, one A10G): each of 1,500 requests under FCFS, VTC,
and limits of 5 and 20 requests per minute. The replica's profile, shipped as `PROFILE`, is fitted to the FCFS run
alone; the others are predictions.

Two things are taken from the FCFS run: how many sequences ran while others waited (the median; S-LoRA admits by the KV
cache that it foresees, which varies, where our engine has slots), and three coefficients of the step time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from sim.analysis.markdown_tables import markdown
from sim.calibration.checked_tables import read_csv
from sim.calibration.fitting import Term
from sim.calibration.from_records import calibrate_records
from sim.calibration.measured import MeasuredRun
from sim.calibration.single_replica import Latencies, Requests, replay
from sim.engine.step_time import LinearStepTime
from sim.errors import InputError
from sim.experiments.run import run_scenario
from sim.scenario.load import Scenario, load_scenario, parse_scenario, resolved
from sim.scenario.profile import Profile, load_profile

PROFILE = "a10g-llama-2-7b-slora"
FOLDER = "lmsys-arena-vtc"
MEASURED = "measured_by_policy.csv.gz"
POLICIES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "none": ("FCFS", {"kind": "none"}),
    "vtc": ("VTC", {"kind": "vtc", "timeout_s": None}),
    "rate-limit-20": ("LShare/rpm20", {"kind": "rate-limit", "requests_per_min": 20, "window": "sliding"}),
    "rate-limit-5": ("LShare/rpm5", {"kind": "rate-limit", "requests_per_min": 5, "window": "sliding"}),
}
"""What each measured policy is here, and what the measurements call it."""

_COLUMNS = ("policy", "tenant", "prompt_len", "output_len", "req_time", "first_token_latency", "request_latency")

TERMS = (
    Term("base_s", 3e-2, "requests sent to an idle engine"),
    Term("per_decode_sequence_s", 4e-4, "a run whose load rises from one request to a full batch"),
    Term("per_prefill_token_s", 2e-4, "a run with prompts of very different lengths"),
)
_KV_BLOCKS = 10_000  # more than all slots can fill: the slots stand for S-LoRA's admission by foreseen KV cache
_WAITED_S = 5.0
_ITERATIONS_BETWEEN = 10


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """One policy's outcomes, request by request in the order of the trace: measured and simulated.

    ``requests`` has the columns tenant, measured_ttft_s, ttft_s, measured_e2e_s, e2e_s; NaN where refused.
    """

    policy: str
    requests: pd.DataFrame

    @property
    def refused(self) -> tuple[int, int]:
        """How many were refused, measured and simulated."""
        return int(self.requests.measured_ttft_s.isna().sum()), int(self.requests.ttft_s.isna().sum())

    @property
    def same_verdict(self) -> float:
        """Share of requests with the measured verdict."""
        return float((self.requests.measured_ttft_s.isna() == self.requests.ttft_s.isna()).mean())

    def by_tenant(self) -> pd.DataFrame:
        """Return mean times to first token of each tenant, measured and simulated, over those let in by both."""
        both = self.requests.dropna()
        return both.groupby("tenant")[["measured_ttft_s", "ttft_s"]].mean()

    def rank_correlation(self) -> float:
        """Return Spearman's rank correlation of the tenants' mean times to first token."""
        means = self.by_tenant()
        return float(spearmanr(means.measured_ttft_s, means.ttft_s).statistic)


@dataclass(frozen=True, slots=True, eq=False)
class Hardware:
    """The fitted profile and the checks of all policies."""

    profile: Profile
    checks: list[Check]


def measured_requests(folder: Path | None = None) -> pd.DataFrame:
    """Return what was measured: policy, tenant, prompt_len, output_len, req_time and latencies, NaN where refused.

    Raises
    ------
    InputError : the data are not there.
    """
    data = folder or (Path(os.environ["TOKENPOOLS_DATA"]) if "TOKENPOOLS_DATA" in os.environ else None)
    if data is None:
        fix = f"set TOKENPOOLS_DATA to the folder that holds {FOLDER}"
        raise InputError("hardware-check", "needs measured data", fix)
    path = data / FOLDER / MEASURED
    table = read_csv(path, _COLUMNS, f"name a folder with {FOLDER}")
    refused = table.first_token_latency < 0
    table.loc[refused, ["first_token_latency", "request_latency"]] = np.nan
    number = table.tenant.str.rsplit("-", n=1).str[-1].astype(int)
    table["tenant"] = "arena-model-" + number.map("{:02d}".format)
    return table


def fitted_profile(measured: pd.DataFrame, today: date | None = None) -> Profile:
    """Return the replica's profile, from the FCFS run alone."""
    run = _run_of(measured, "FCFS")
    start = Profile(
        name=PROFILE,
        step_time=LinearStepTime(base_s=3e-2, per_decode_sequence_s=4e-4, per_prefill_token_s=2e-4),
        max_num_seqs=_slots(run),
        max_num_batched_tokens=2048,
        kv_blocks=_KV_BLOCKS,
        block_tokens=16,
    )
    found = calibrate_records(start, run, terms=TERMS, share=1.0, today=today).profile
    source = f"fitted to {len(run.requests)} requests of the VTC artifact's FCFS run (S-LoRA, Llama-2-7B, one A10G)"
    return found.model_copy(update={"source": source})


def check(folder: Path | None = None, *, fit: bool = False) -> Hardware:
    """Replay the trace under each policy and set every request beside its measurement.

    Parameters
    ----------
    folder : of the data; None: the one that TOKENPOOLS_DATA names.
    fit : fit the profile anew instead of taking the shipped one.

    Raises
    ------
    InputError : the data are not there.
    """
    measured = measured_requests(folder)
    profile = fitted_profile(measured) if fit else load_profile(PROFILE)
    scenario = _scenario(profile)
    requests = run_scenario(scenario).requests.to_pandas()
    checks = []
    for name, (label, _) in POLICIES.items():
        theirs = measured[measured.policy == label].reset_index(drop=True)
        ours = requests[requests.policy == name]
        # Request n of a tenant here is the tenant's n-th line there.
        key = theirs.tenant + "-" + theirs.groupby("tenant").cumcount().astype(str)
        found = ours.set_index("request_id").loc[key].reset_index()
        checks.append(
            Check(
                name,
                pd.DataFrame(
                    {
                        "tenant": theirs.tenant,
                        "measured_ttft_s": theirs.first_token_latency,
                        "ttft_s": found.first_token_s - found.first_arrival_s,
                        "measured_e2e_s": theirs.request_latency,
                        "e2e_s": found.finish_s - found.first_arrival_s,
                    }
                ),
            )
        )
        checks[-1].requests.loc[(found.outcome == "refused").to_numpy(), ["ttft_s", "e2e_s"]] = np.nan
    return Hardware(profile, checks)


def table(found: Hardware) -> str:
    """Return measured against simulated by policy, as Markdown."""
    rows = []
    for one in found.checks:
        theirs, ours = one.requests.measured_ttft_s.dropna(), one.requests.ttft_s.dropna()
        refused = one.refused
        rows.append(
            (
                one.policy, f"{refused[0]}", f"{refused[1]}", f"{100 * one.same_verdict:.1f} %",
                *_pair(float(theirs.mean()), float(ours.mean())), *_pair(_q(theirs, 0.5), _q(ours, 0.5)),
                *_pair(_q(theirs, 0.99), _q(ours, 0.99)), f"{one.rank_correlation():.3f}",
            )
        )  # fmt: skip
    return markdown(
        ("policy", "refused, measured", "simulated", "same verdict", "TTFT mean s, measured (simulated)", "error",
         "P50 s", "error", "P99 s", "error", "rank correlation of tenants"), rows,
    )  # fmt: skip


class _EveryTenth:
    """Takes prompts on only where ten iterations have passed since it last did, or nothing runs: S-LoRA's loop.

    Its router, as LightLLM's, counts iterations since the last admission (``max_wait_tokens``, 10) and looks at the
    queue again once there are so many; see `sim.cluster.discipline.Batcher`.
    """

    def __init__(self) -> None:
        self._last = -_ITERATIONS_BETWEEN

    def prefill_tokens(
        self, batch: Any, budget_tokens: int, decoding: int, context_tokens: float, now_s: float  # noqa: ARG002
    ) -> int:
        if decoding and not batch.prompt_under_way_tokens and batch.clock - self._last < _ITERATIONS_BETWEEN:
            return 0
        self._last = batch.clock
        return budget_tokens


def light_load(folder: Path | None = None) -> str:
    """Return times to first token of the lightly loaded run (5 requests/min), with and without S-LoRA's loop.

    The requests are those that were let in, as Markdown.
    """
    measured = measured_requests(folder)
    run = _run_of(measured, POLICIES["rate-limit-5"][0])
    profile = load_profile(PROFILE)
    there = run.latencies.first_token_s - run.requests.arrival_s
    rows = []
    for name, batcher in (("admits at every iteration", None), ("admits every tenth iteration", _EveryTenth())):
        here = replay(profile, run.requests, batcher=batcher).first_token_s - run.requests.arrival_s
        cells = [_error(float(here.mean()), float(there.mean()))]
        cells += [_error(float(np.quantile(here, q)), float(np.quantile(there, q))) for q in (0.1, 0.5, 0.9, 0.99)]
        rows.append((name, *cells))
    return markdown(("engine", "TTFT mean", "P10", "P50", "P90", "P99"), rows)


def _error(here: float, there: float) -> str:
    return f"{100 * (here / there - 1):+.0f} %"


def tenant_table(found: Hardware, policies: Sequence[str] = ("none", "vtc")) -> str:
    """Return each tenant's mean time to first token under some policies, as Markdown; the busiest first."""
    checks = {one.policy: one for one in found.checks}
    means = {policy: checks[policy].by_tenant() for policy in policies}
    count = checks[policies[0]].requests.tenant.value_counts()
    rows = []
    for tenant in sorted(count.index, key=lambda name: (-int(count[name]), str(name))):
        row = [str(tenant), str(int(count[tenant]))]
        for policy in policies:
            one = means[policy].loc[tenant]
            row += _pair(float(one.measured_ttft_s), float(one.ttft_s))
        rows.append(row)
    heads = [text for policy in policies for text in (f"{policy}: TTFT mean s, measured (simulated)", "error")]
    return markdown(("tenant", "requests", *heads), rows)


def _scenario(profile: Profile) -> Scenario:
    tree = resolved(load_scenario("arena-27"))
    tree["pool"]["profile"] = profile.model_dump(mode="json")
    tree["pool"]["oversubscribed"] = True  # promises do not matter to these policies
    tree["policies"] = [{"name": name, **params} for name, (_, params) in POLICIES.items()]
    return parse_scenario(tree | {"horizon_s": None, "timeline_interval_s": None, "vary": {}}, "hardware-check")


def _run_of(measured: pd.DataFrame, label: str) -> MeasuredRun:
    rows = measured[(measured.policy == label) & measured.first_token_latency.notna()]
    arrival = rows.req_time.to_numpy(float)
    return MeasuredRun(
        label,
        Requests(arrival, rows.prompt_len.to_numpy(np.int64), rows.output_len.to_numpy(np.int64)),
        Latencies(arrival + rows.first_token_latency.to_numpy(float), arrival + rows.request_latency.to_numpy(float)),
    )


def _slots(run: MeasuredRun) -> int:
    """Return how many sequences ran at once, the median over the seconds in which somebody had waited for long."""
    first, end = run.latencies.first_token_s, run.latencies.finish_s
    arrival = run.requests.arrival_s
    seconds = np.arange(0.0, float(first.max()), 1.0)[:, None]
    running = ((first <= seconds) & (seconds < end)).sum(axis=1)
    waiting = ((arrival + _WAITED_S <= seconds) & (seconds < first)).any(axis=1)
    return round(float(np.median(running[waiting])))


def _pair(measured: float, simulated: float) -> tuple[str, str]:
    return f"{measured:.2f} ({simulated:.2f})", f"{100 * (simulated / measured - 1):+.1f} %"


def _q(values: pd.Series[float], q: float) -> float:
    return float(values.quantile(q))
