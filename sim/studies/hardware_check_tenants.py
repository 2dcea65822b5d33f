"""Tenants behind limiters in front of real vLLM, predicted: 15 arms of kvwarden, measured on A100 and H100.

One profile, fitted to closed-loop sweeps of one H100 alone (means of 16 runs), predicts every arm: who is refused, when
the first token comes and when the last. For the A100 its terms are scaled by measured operators of the two GPUs
(`sim.calibration.other_gpu`); its host is taken to be the H100's, which it is not
(`sim.studies.hardware_check_light_arm`). Limiters are the policies of this package; the gateway's 3 ms and its 100
connections are as measured beside the arms.

First tokens of a client alone, with nothing else running, scatter by 9 % of their median: the host's chance. What they
scattered by in the sweeps (`HostChance`) is drawn for every request of an arm; without it tails come out too short.

The measurements, and which of their rows show a true first token, are described in the data's own README.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from scipy.optimize import least_squares

from policies.api import Arrived, EntitlementSpec, Forward, PoolCapacity, RequestView, ServiceClass
from policies.core import GatewayCore
from policies.no_control import NoControlPolicy
from policies.rate_limit import RateLimit, RateLimitPolicy
from policies.routing import RoundRobinRouter
from sim.analysis.markdown_tables import markdown
from sim.calibration.checked_tables import read_csv
from sim.calibration.other_gpu import on_other_gpu, shipped_operators
from sim.calibration.single_replica import Floats, LoadGenerator, Requests, closed_loop, replay
from sim.engine.step_fitted import FittedStepTime
from sim.errors import InputError
from sim.scenario.profile import Profile

FOLDER = "kvwarden-vllm-0.19"
SWEEPS, ARMS, TENANTS = "sweeps.csv.gz", "arms.yaml", "tenant_arms.csv.gz"
WARM_UP_S = 10.0  # cold engines wait seconds for kernels to compile
_COLD = 4  # the first requests of a run meet a cold engine
_CAPTURED = 512  # tokens of the H100's largest captured graph
_LONGEST = 4096  # tokens that the arms' engines take
_LEAST_ALIKE = 20
_DRAWS = 32
_BLOCK_S = 10.0
_CONNECTIONS = 100  # of the load generator in the sweeps, of the gateway in the arms
GATEWAY_S = 0.003
_WEIGHTS = {"tpot": 3.0, "ttft mean": 0.3}  # by how well a run repeats: to 0.2 % the first, to 4 % the last
_TERMS: Mapping[str, float] = {
    "weights_s": 6.45e-3, "batched_s": 8.0e-5, "per_token_s": 2.15e-5, "per_decode_sequence_s": 1.1e-5,
    "per_context_token_s": 4.6e-8, "per_prefill_pair_s": 1.1e-9, "lone_prefill_s": 1.7e-2, "uncaptured_s": 3.9e-2,
    "prompt_launch_s": 9.5e-3, "request_overhead_s": 7.6e-3,
    "request_handling_s": 2.4e-3, "request_per_prompt_token_s": 4.9e-6, "request_per_running_s": 2.8e-4,
}  # fmt: skip
"""What is fitted, and where the search begins."""

_V0 = "refusals; latencies refused: the V0 engine schedules prompts first, use vLLM's V1"
_MODEL, _SWEPT_GPU = "Llama-3.1-8B", "H100-SXM"
_OTHER_GPUS: Mapping[str, str] = {"a100": "A100-80GB"}  # what an engine's GPU is called in part


@dataclass(frozen=True, slots=True, eq=False)
class HostChance:
    """What first tokens of a client alone differed from their median by, in seconds, by how the host launches them.

    ``captured`` are prompts of no more tokens than the largest captured graph, ``launched`` longer ones, kernel by
    kernel.
    """

    captured: Floats
    launched: Floats

    def drawn(self, captured: NDArray[np.bool_], draw: int) -> Floats:
        """Return a deviation for every request."""
        rng = np.random.default_rng(draw)
        n = len(captured)
        return np.where(captured, rng.choice(self.captured, n), rng.choice(self.launched, n))


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """An arm as it was measured, and as it is predicted, request by request in the order of arrival.

    ``requests`` has the columns tenant, start_s, measured_status, status, measured_ttft_s, ttft_s, measured_e2e_s,
    e2e_s, captured (whether its prompt is one of a captured graph) and exact (whether the measured first token is the
    first, or in the mixed arms the second); ``flaws`` says why an arm does not count. Of an engine that the replica is
    none of (`v0_engine`) only refusals are predicted.
    """

    name: str
    mixed: bool
    requests: pd.DataFrame
    flaws: str
    v0_engine: bool = False
    chance: HostChance | None = None

    def refused(self) -> pd.DataFrame:
        """Return the refusals of each tenant, measured and predicted, and what it asked."""
        rows = self.requests
        counts = pd.DataFrame(
            {"asked": 1, "measured": rows.measured_status == "refused", "predicted": rows.status == "refused"}
        )
        return counts.groupby(rows.tenant).sum()

    def refusals_agree(self) -> bool:
        """Whether every tenant's refusals differ by at most 1, or 0.1 % of what it asked."""
        table = self.refused()
        return bool(((table.measured - table.predicted).abs() <= np.maximum(1, table.asked / 1000)).all())

    def latencies(self) -> dict[str, tuple[float, float]]:
        """Return statistics in seconds, measured and predicted: e2e mean and P50, TTFT P50 and P99."""
        warm = self.requests[self.requests.start_s >= WARM_UP_S]
        there, here = warm[warm.measured_status == "ok"], warm[warm.status == "ok"]
        exact = there[there.exact]
        first_s = np.concatenate(self._first_tokens(here))
        return {
            "e2e mean": (float(there.measured_e2e_s.mean()), float(here.e2e_s.mean())),
            "e2e p50": (float(there.measured_e2e_s.median()), float(here.e2e_s.median())),
            "ttft p50": (float(exact.measured_ttft_s.median()), float(np.median(first_s))),
            "ttft p99": (float(exact.measured_ttft_s.quantile(0.99)), float(np.quantile(first_s, 0.99))),
        }

    def _first_tokens(self, here: pd.DataFrame) -> list[Floats]:
        """Return times to first token of each draw of the host's chance; one without any where it is not known."""
        first_s = here.ttft_s.to_numpy(float)
        if self.chance is None or self.v0_engine:
            return [first_s]
        captured = here.captured.to_numpy(bool)
        return [first_s + self.chance.drawn(captured, draw) for draw in range(_DRAWS)]

    def floor(self) -> dict[str, float]:
        """Return what each error of `latencies` would differ by in another run, there and here, relative.

        Half the width of a 95 % interval: of the measurement (`sampling`) and of single draws of the host's chance.
        """
        found = self.sampling()
        here = self.requests[(self.requests.start_s >= WARM_UP_S) & (self.requests.status == "ok")]
        drawn = self._first_tokens(here)
        there = self.latencies()
        for name, q in (("ttft p50", 0.5), ("ttft p99", 0.99)):
            spread = 1.96 * float(np.std([np.quantile(one, q) for one in drawn])) / there[name][0]
            found[name] = float(np.hypot(found[name], spread))
        return found

    def sampling(self, resamples: int = 200) -> dict[str, float]:
        """Return what each measured statistic of `latencies` would differ by in another run, relative.

        Half the width of a 95 % interval by bootstrap over blocks of 10 s, because neighbours wait in one queue.
        """
        warm = self.requests[(self.requests.start_s >= WARM_UP_S) & (self.requests.measured_status == "ok")]
        blocks = (warm.start_s // _BLOCK_S).astype(int).to_numpy()
        of_block = [np.flatnonzero(blocks == block) for block in np.unique(blocks)]
        e2e_s, ttft_s = warm.measured_e2e_s.to_numpy(float), warm.measured_ttft_s.where(warm.exact).to_numpy(float)
        rng = np.random.default_rng(0)
        drawn: dict[str, list[float]] = {name: [] for name in ("e2e mean", "e2e p50", "ttft p50", "ttft p99")}
        for _ in range(resamples):
            rows = np.concatenate([of_block[i] for i in rng.integers(0, len(of_block), len(of_block))])
            drawn["e2e mean"].append(float(np.mean(e2e_s[rows])))
            drawn["e2e p50"].append(float(np.median(e2e_s[rows])))
            drawn["ttft p50"].append(float(np.nanmedian(ttft_s[rows])))
            drawn["ttft p99"].append(float(np.nanquantile(ttft_s[rows], 0.99)))
        half = {name: (np.quantile(of, 0.975) - np.quantile(of, 0.025)) / 2 for name, of in drawn.items()}
        return {name: float(half[name] / there) for name, (there, _) in self.latencies().items()}

    def misses(self) -> list[str]:
        """Return which of the goals are missed: e2e 3 %, TTFT P50 10 % or 3 ms, P99 15 %, refusals 1 or 0.1 %."""
        missed = [] if self.refusals_agree() else ["refusals"]
        if not self.v0_engine:
            missed += [name for name, beyond in self._beyond().items() if not beyond <= 0]
        return missed

    def undecided(self) -> list[str]:
        """Return which goals are missed by less than another run would differ by: chance would decide."""
        if self.v0_engine:
            return []
        floor = self.floor()
        return [name for name, beyond in self._beyond().items() if 0 < beyond <= floor[name]]

    def _beyond(self) -> dict[str, float]:
        """Return by how much each latency's error is greater than its goal, relative."""
        found = {}
        for name, (there, here) in self.latencies().items():
            allowed = {"e2e mean": 0.03, "e2e p50": 0.03, "ttft p50": max(0.10, 0.003 / there), "ttft p99": 0.15}[name]
            found[name] = abs(here / there - 1) - allowed
        return found


def data_folder(folder: Path | None = None) -> Path:
    """Return where the measurements are.

    Raises
    ------
    InputError : they are not there.
    """
    data = folder or (Path(os.environ["TOKENPOOLS_DATA"]) if "TOKENPOOLS_DATA" in os.environ else None)
    if data is None:
        fix = f"set TOKENPOOLS_DATA to the folder that holds {FOLDER}"
        raise InputError("hardware-check", "needs measured data", fix)
    for name in (SWEEPS, ARMS, TENANTS):
        if not (data / FOLDER / name).is_file():
            raise InputError(str(data / FOLDER / name), "is not there", f"name a folder with {FOLDER}")
    return data / FOLDER


def sweep_profile(folder: Path) -> Profile:
    """Return the H100's profile, from its closed-loop sweeps alone."""
    return fitted_to(sweep_points(read_csv(folder / SWEEPS, ("workload", "series"), f"name a folder with {FOLDER}")))


def fitted_to(points: Sequence[Point]) -> Profile:
    """Return the profile that simulates some of the sweeps' runs best."""
    start = np.array(list(_TERMS.values()))

    def residuals(x: Floats) -> Floats:
        profile = _profile(dict(zip(_TERMS, (x * start).tolist(), strict=True)), len(points))
        return np.concatenate([point.residuals(profile) for point in points])

    found = least_squares(
        residuals,
        np.ones(len(start)),
        diff_step=np.full(len(start), 0.02),
        loss="soft_l1",
        f_scale=0.02,
        bounds=(0.05, 5.0),
        max_nfev=12,
    )
    return _profile(dict(zip(_TERMS, (found.x * start).tolist(), strict=True)), len(points))


def check_tenants(folder: Path | None = None, profile: Profile | None = None) -> list[Arm]:
    """Predict every arm.

    Parameters
    ----------
    folder : of the data; None: the one that TOKENPOOLS_DATA names.
    profile : of the H100; None: fitted to the sweeps.

    Raises
    ------
    InputError : the data are not there.
    """
    arms, profile, chance = given(folder, profile)
    return [each.predicted(engine_profile(profile, each.engine), chance) for each in arms]


def given(folder: Path | None, profile: Profile | None) -> tuple[list[MeasuredArm], Profile, HostChance]:
    """Return all arms, the H100's profile and its host's chance; parameters and errors as of `check_tenants`."""
    data = data_folder(folder)
    return measured_arms(data), profile or sweep_profile(data), host_chance(data)


def arms_table(arms: Sequence[Arm]) -> str:
    """Return the arms as Markdown: refusals, and each latency measured, predicted and its error."""
    names = ("e2e mean", "e2e p50", "ttft p50", "ttft p99")
    rows = []
    for arm in arms:
        refused = arm.refused()
        latencies = arm.latencies()
        cells = [
            f"{1e3 * there:.1f}" + ("" if arm.v0_engine else f" ({100 * (here / there - 1):+.1f} %)")
            for there, here in latencies.values()
        ]
        missed, undecided = arm.misses(), arm.undecided()
        verdicts = [f"{name} (within the floor: no verdict)" if name in undecided else name for name in missed]
        floor = {} if arm.v0_engine else arm.floor()
        if floor:
            cells = [f"{cell}, {100 * floor[name]:.1f}" for name, cell in zip(names, cells, strict=True)]
        rows.append((
            arm.name, f"{int(refused.measured.sum())} ({int(refused.predicted.sum())})", *cells,
            (_V0 if arm.v0_engine else "all") if not missed else "misses " + ", ".join(verdicts),
        ))  # fmt: skip
    heads = ("arm", "refused, measured (predicted)", *(f"{name} ms (error), floor %" for name in names), "goals met")
    return markdown(heads, rows)


# --------------------------------------------------------------------------------------------------------- the sweeps


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """One closed-loop run: what was asked, what the fit compares, and what of the means is chance, relative."""

    name: str
    requests: Requests
    concurrency: int
    measured: dict[str, float]
    chance: dict[str, float]
    generator: LoadGenerator | None = None

    def simulated(self, profile: Profile) -> dict[str, float]:
        """Return what a profile makes of what is compared."""
        made = closed_loop(
            profile, self.requests, self.concurrency, max_in_flight=_CONNECTIONS, generator=self.generator
        )
        assert made.arrival_s is not None
        return _statistics(
            self.requests, self.concurrency, made.first_token_s - made.arrival_s, made.finish_s - made.arrival_s
        )

    def residuals(self, profile: Profile) -> Floats:
        """Return how far a profile is off, weighted by how well each statistic repeats."""
        statistics = self.simulated(profile)
        return np.array(
            [
                _WEIGHTS.get(name, 1.0) * np.log(statistics[name] / there)
                for name, there in self.measured.items()
            ]
        )


def sweep_points(sweeps: pd.DataFrame) -> list[Point]:
    """Return the runs of the later series; of ``fixed`` alone also the first, in which no prompt was cached."""
    points = []
    generator = load_generator(sweeps)
    runs = sweeps[(sweeps.series == "benchmark") & (sweeps.ok == 1) & (sweeps.concurrency <= 2 * 64)]
    for key, unordered in runs.groupby(["workload", "concurrency", "run"]):
        workload, concurrency, run = str(key[0]), int(str(key[1])), int(str(key[2]))
        if run == 1 and not (workload == "fixed" and concurrency == 1):
            continue
        rows = unordered.sort_values("request")
        requests = Requests(
            np.zeros(len(rows)),
            rows.prompt_tokens.to_numpy(np.int64),
            _answers(rows),
            rows.prefix_hit_tokens.to_numpy(np.int64),
        )
        measured = _statistics(requests, concurrency, rows.ttft_s.to_numpy(), rows.e2e_s.to_numpy())
        measured["tpot"] = float(rows.tpot_s.mean())
        chance = {
            name: 1.96 * float(values.std() / np.sqrt(len(values)) / values.mean())
            for name, values in (("tpot", rows.tpot_s), ("e2e", rows.e2e_s), ("ttft mean", rows.ttft_s))
        }
        points.append(Point(f"{workload} x{concurrency}", requests, concurrency, measured, chance, generator))
    return points


def load_generator(sweeps: pd.DataFrame) -> LoadGenerator:
    """Return the work of the sweeps' load generator, from when it sent what.

    A client alone sends the next request the later after an answer, the longer the prompt of that was (4.3 us a token,
    as reading it again would take); of several, whose requests end together, sends come after all of that work. What
    starts at once is sent over some milliseconds.
    """
    used = sweeps[(sweeps.series == "benchmark") & (sweeps.ok == 1) & (sweeps.concurrency <= _CONNECTIONS)]
    pauses_s, prompts, sends_s = [], [], []
    for key, unordered in used.groupby(["workload", "concurrency", "run"]):
        concurrency = int(str(key[1]))
        rows = unordered.sort_values("start_s")
        start_s = rows.start_s.to_numpy(float)
        if concurrency == 1:
            pauses_s.append((start_s[1:] - (start_s + rows.e2e_s.to_numpy(float))[:-1])[_COLD:])
            prompts.append(rows.prompt_tokens.to_numpy(float)[:-1][_COLD:])
        else:
            sends_s.append((start_s[concurrency - 1] - start_s[0]) / (concurrency - 1))
    per_token_s, per_request_s = np.polyfit(np.concatenate(prompts), np.concatenate(pauses_s), 1)
    return LoadGenerator(float(per_request_s), float(per_token_s), float(np.median(sends_s)))


def _answers(rows: pd.DataFrame) -> NDArray[np.int64]:
    """Return the tokens of answers: what was asked for, but of those that ended well before it.

    What is recorded are chunks with text, of which an answer has one or two less than tokens.
    """
    ended = rows.output_tokens < 0.98 * rows.max_tokens
    return np.where(ended, rows.output_tokens, rows.max_tokens).astype(np.int64)


def host_chance(folder: Path) -> HostChance:
    """Return the host's chance: of a client alone, what first tokens differ by from the median of their size.

    Sizes of which fewer than twenty were asked say nothing, and those above the arms' longest context are left out.
    """
    sweeps = read_csv(folder / SWEEPS, ("workload", "series"), f"name a folder with {FOLDER}")
    alone = sweeps[(sweeps.series == "benchmark") & (sweeps.ok == 1) & (sweeps.concurrency == 1)]
    found: dict[bool, list[Floats]] = {True: [], False: []}
    for _, unordered in alone.groupby(["workload", "run"]):
        rows = unordered.sort_values("request").iloc[_COLD:]
        sizes = _sizes((rows.prompt_tokens - rows.prefix_hit_tokens).to_numpy(np.int64))
        for size in np.unique(sizes):
            ttft_s = rows.ttft_s.to_numpy(float)[sizes == size]
            if len(ttft_s) >= _LEAST_ALIKE and size <= _LONGEST:
                found[bool(size <= _CAPTURED)].append(ttft_s - np.median(ttft_s))
    return HostChance(np.concatenate(found[True]), np.concatenate(found[False]))


def _sizes(computed: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the tokens that prompts have to compute, those of small captured graphs as one: 1, 2 or more."""
    return np.where(computed < 256, np.minimum(computed, 2), computed)


def _statistics(requests: Requests, concurrency: int, ttft_s: Floats, e2e_s: Floats) -> dict[str, float]:
    """Return means and, of a client alone, the median first token by the tokens that were computed for it."""
    found = {
        "tpot": float(np.mean((e2e_s - ttft_s) / (requests.output_tokens - 1))),
        "e2e": float(np.mean(e2e_s)),
    }
    if 1 < concurrency < _CONNECTIONS:  # beyond, requests wait in the client
        found["ttft mean"] = float(np.mean(ttft_s))
    if concurrency == 1:
        assert requests.cached_tokens is not None
        computed = requests.prompt_tokens - requests.cached_tokens
        size = _sizes(computed)
        later = np.arange(len(requests)) >= _COLD
        for each in np.unique(size):
            found[f"ttft of {each}"] = float(np.median(ttft_s[later & (size == each)]))
    return found


def _profile(values: Mapping[str, float], runs: int) -> Profile:
    of_step: dict[str, Any] = {name: value for name, value in values.items() if not name.startswith("request_")}
    return Profile(
        name="h100-llama-3.1-8b-kvwarden",
        source=f"fitted to {runs} closed-loop runs of kvwarden: vLLM 0.19.0, Llama-3.1-8B bf16, one H100",
        step_time=FittedStepTime(captured_tokens=_CAPTURED, **of_step),
        max_num_seqs=1024,
        max_num_batched_tokens=8192,
        kv_blocks=25_699,
        async_scheduling=True,
        prefix_caching=True,
        request_overhead_s=values["request_overhead_s"],
        request_handling_s=values["request_handling_s"],
        request_handling_shared=True,
        request_per_prompt_token_s=values["request_per_prompt_token_s"],
        request_per_running_s=values["request_per_running_s"],
    )


# ----------------------------------------------------------------------------------------------------------- the arms


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredArm:
    """An arm as its files describe it: what ran, on what engine, and every request by arrival."""

    arm: Mapping[str, Any]
    engine: Mapping[str, Any]
    rows: pd.DataFrame

    @property
    def name(self) -> str:
        """What the arm is called."""
        return str(self.arm["id"])

    @property
    def v0_engine(self) -> bool:
        """Whether it ran on the engine that the replica is none of."""
        return str(self.engine["scheduler"]).startswith("V0")

    @property
    def per_s(self) -> float:
        """How many requests came a second."""
        return len(self.rows) / float(self.rows.start_s.max())

    def predicted(self, profile: Profile, chance: HostChance | None, *, gateway_s: float = GATEWAY_S) -> Arm:
        """Return the arm with what a profile of its engine makes of it."""
        return _predict(self.arm, self.engine, self.rows, profile, chance, gateway_s)


def measured_arms(data: Path) -> list[MeasuredArm]:
    """Return all arms of a folder.

    Raises
    ------
    InputError : a file cannot be read.
    """
    try:
        described = yaml.safe_load((data / ARMS).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = f"cannot be read ({str(error).splitlines()[0]})"
        raise InputError(str(data / ARMS), problem, f"name a folder with {FOLDER}") from None
    rows = read_csv(data / TENANTS, ("arm", "tenant", "start_s", "status"), f"name a folder with {FOLDER}")
    return [
        MeasuredArm(
            arm,
            described["engines"][arm["engine"]],
            rows[rows.arm == arm["id"]].sort_values("start_s", kind="stable").reset_index(drop=True),
        )
        for arm in described["arms"]
    ]


def _predict(
    arm: Mapping[str, Any],
    engine: Mapping[str, Any],
    rows: pd.DataFrame,
    profile: Profile,
    chance: HostChance | None,
    gateway_s: float,
) -> Arm:
    status = _admitted(arm["policy"], rows)
    status[(status == "ok") & (rows.prompt_tokens > engine["max_model_len"]).to_numpy()] = "too_long"
    served = rows[status == "ok"]
    through_s = 0.0 if arm["gateway"] is None else gateway_s
    requests = Requests(
        served.start_s.to_numpy() + through_s,
        served.prompt_tokens.to_numpy(np.int64),
        _output_tokens(arm, served),
        served.prefix_hit_tokens.to_numpy(np.int64) if engine["prefix_caching"] else np.zeros(len(served), np.int64),
    )
    mixed = isinstance(arm["workload"]["prompt_tokens"], dict) and "one_of" not in arm["workload"]["prompt_tokens"]
    table = pd.DataFrame(
        {
            "tenant": rows.tenant,
            "start_s": rows.start_s,
            "measured_status": rows.status,
            "status": status,
            "measured_ttft_s": rows.ttft_s,
            "measured_e2e_s": rows.e2e_s,
            "captured": rows.prompt_tokens - rows.prefix_hit_tokens <= int(engine["cuda_graphs_decode_up_to"]),
            "exact": rows.chunks == rows.output_tokens - (1 if mixed else 0),
            "ttft_s": np.nan,
            "e2e_s": np.nan,
        }
    )
    if str(engine["scheduler"]).startswith("V0"):
        return Arm(arm["id"], mixed, table, " ".join(arm["flaws"]), v0_engine=True)
    made = replay(profile, requests, max_in_flight=_CONNECTIONS)
    first_s = made.first_token_s
    if mixed:  # what was measured is the second token
        first_s = first_s + (made.finish_s - first_s) / (requests.output_tokens - 1)
    table.loc[served.index, "ttft_s"] = first_s - served.start_s.to_numpy()
    table.loc[served.index, "e2e_s"] = made.finish_s - served.start_s.to_numpy()
    return Arm(arm["id"], mixed, table, " ".join(arm["flaws"]), chance=chance)


def _output_tokens(arm: Mapping[str, Any], served: pd.DataFrame) -> NDArray[np.int64]:
    """Return what each makes: all that was asked for, which is what was measured of those that were let in."""
    return np.full(len(served), int(arm["workload"]["max_tokens"]), np.int64)


def _admitted(policy: Mapping[str, Any] | str, rows: pd.DataFrame) -> NDArray[np.object_]:
    """Return "ok" or "refused" for every request: the verdicts of this package's own limiter."""
    tenants = sorted(rows.tenant.unique())
    specs = [EntitlementSpec(name=each, tenant=each, service_class=ServiceClass.SPOT) for each in tenants]
    limiter = policy["each_tenant"] if isinstance(policy, Mapping) else {}
    if limiter.get("limiter") == "token_bucket":
        per_s, burst = float(limiter["rate_per_s"]), float(limiter["burst"])
        control: Any = RateLimitPolicy(RateLimit(requests_per_min=60 * per_s, burst_s=burst / per_s), specs)
    else:
        control = NoControlPolicy()
    core = GatewayCore(
        entitlements=specs,
        capacity=PoolCapacity(1, 1 << 20),
        replica_ids=[0],
        policy=control,
        router=RoundRobinRouter(),
    )
    core.start(0.0)
    verdicts = np.full(len(rows), "refused", dtype=object)
    for i, (tenant, at_s, prompt) in enumerate(zip(rows.tenant, rows.start_s, rows.prompt_tokens, strict=True)):
        first, *_ = core.handle(Arrived(RequestView(f"r{i}", tenant, tenant, int(prompt), 64)), float(at_s))
        if isinstance(first, Forward):
            verdicts[i] = "ok"
    return verdicts


def other_gpu(engine: Mapping[str, Any]) -> str | None:
    """Return the GPU of an engine by its name here, if it is not the one that was swept."""
    ran_on = str(engine["gpu"]).lower()
    return next((name for part, name in _OTHER_GPUS.items() if part in ran_on), None)


def engine_profile(profile: Profile, engine: Mapping[str, Any]) -> Profile:
    """Return the H100's profile with an arm's engine settings, and with the times of its GPU."""
    gpu = other_gpu(engine)
    if gpu is not None:
        there, here = (shipped_operators(_MODEL, each) for each in (_SWEPT_GPU, gpu))
        profile = on_other_gpu(profile, there, here)
    step_time = replace(profile.step_time, captured_tokens=int(engine["cuda_graphs_decode_up_to"]))
    return profile.model_copy(
        update={
            "step_time": step_time,
            "max_num_seqs": int(engine["max_num_seqs"]),
            "max_num_batched_tokens": int(engine["max_num_batched_tokens"]),
            "kv_blocks": int(engine["kv_tokens"]) // 16,
            "async_scheduling": bool(engine["async_scheduling"]),
        }
    )
