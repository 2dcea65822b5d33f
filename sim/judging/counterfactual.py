"""Whether refusals were right: each is judged by letting in that one request, everything else as it was.

A run is repeated with the same draws and the same policy, but for one attempt that the gateway lets in whatever the
policy says; the policy is told that it was let in, and goes on from there. A refusal was false if the request would
have met its objective then, and harmless to undo if besides no fewer requests of the whole run would have met theirs.
Each judged refusal costs one run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from policies.api import ADMIT, PoolLedger, RequestView, Verdict
from policies.core import Decide, GatewayCore
from sim.analysis.summary import ALL, Row
from sim.analysis.warm_up import warmup_of
from sim.errors import RunError
from sim.experiments.executors import Executor, Lost
from sim.judging.result_runs import ResultRuns, RunKey, run_key
from sim.records.arrow_columns import flags, floats
from sim.records.schema import objectives
from sim.scenario.load import Cell

NOT_THE_POLICYS = ("not_bound", "no_capacity", "context_length")
"""Reasons of refusals that no policy decides: there is nothing to let such a request into."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What letting in one refused attempt would have changed; ``others`` counts further requests that met their SLO."""

    tenant: str
    met: bool
    others: int


@dataclass(frozen=True, slots=True)
class _Job:
    cell: Cell
    request_id: str
    attempt: int
    tenant: str
    met_before: int


def judge_refusals(found: ResultRuns, most: int, executor: Executor | None = None) -> dict[RunKey, dict[str, Row]]:
    """Return, for each run, the columns of each tenant and of all: how many refusals were judged, and how.

    Final refusals by a policy, of requests with an objective, count; of more than ``most`` as many are taken, evenly
    from the first to the last.

    Raises
    ------
    InputError : the result cannot run again.
    RunError : a run broke.
    """
    jobs: list[_Job] = []
    owner: list[RunKey] = []
    counts: dict[RunKey, dict[str, Row]] = {}
    for entry in found.cells:
        cell = found.cell(entry)
        key = run_key(entry)
        table = found.requests(entry)
        outcomes, reasons = (table.column(name).to_pylist() for name in ("outcome", "reason"))
        final, has_slo = flags(table, "final"), ~np.isnan(floats(table, "ttft_slo_s"))
        warm = floats(table, "first_arrival_s") >= warmup_of(found.manifest, entry)
        refused = np.asarray([
            outcome == "refused" and reason not in NOT_THE_POLICYS
            for outcome, reason in zip(outcomes, reasons, strict=True)
        ], dtype=np.bool_)  # fmt: skip
        rows = np.flatnonzero(refused & final & has_slo & warm)
        chosen = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(np.int64)]
        met = int((flags(table, "slo_met") & final).sum())
        for row in chosen.tolist():
            line = table.slice(row, 1).select(["request_id", "attempt", "tenant"]).to_pylist()[0]
            jobs.append(_Job(cell, line["request_id"], line["attempt"], line["tenant"], met))
            owner.append(key)
        counts[key] = {}
    answers: dict[int, Judgement] = {}
    for position, answer in (executor or Executor()).map(_judge_or_error, jobs):
        if not isinstance(answer, Judgement):
            problem = answer.problem if isinstance(answer, Lost) else str(answer)
            raise RunError(f"{jobs[position].request_id} let in: {problem}")
        answers[position] = answer
    for key in counts:
        of_run = [answers[i] for i in range(len(jobs)) if owner[i] == key]
        for tenant in (*dict.fromkeys(one.tenant for one in of_run), ALL):
            counts[key][tenant] = _row([one for one in of_run if tenant in (ALL, one.tenant)])
    return counts


def judge_one(cell: Cell, request_id: str, attempt: int, met_before: int) -> Judgement:
    """Run a cell again with one attempt let in."""
    from sim.cluster.world import simulate
    from sim.experiments.run import world_of

    def through(core: GatewayCore) -> GatewayCore:
        core.judge_through(lambda decide: _letting_in(decide, request_id, attempt))
        return core

    world = replace(world_of(cell), timeline_interval_s=None, shadows={})
    columns = simulate(world, through=through).columns
    final = np.asarray(columns.final, dtype=np.bool_)
    met = objectives(columns)[1] & final
    mine = np.flatnonzero((np.asarray(columns.request_id, dtype=object) == request_id) & final)
    tenant = columns.entitlements[int(np.asarray(columns.entitlement)[mine[0]])].tenant
    own = bool(met[mine[0]])
    return Judgement(tenant, own, int(met.sum()) - int(own) - met_before)


def _judge_or_error(job: _Job) -> Judgement | Exception:
    try:
        return judge_one(job.cell, job.request_id, job.attempt, job.met_before)
    except Exception as error:
        return error


def _letting_in(decide: Decide, request_id: str, attempt: int) -> Decide:
    def let_in(request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Verdict:
        if request.request_id == request_id and request.attempt == attempt:
            return ADMIT
        return decide(request, max_output_tokens, pool, now_s)

    return let_in


def _row(judged: list[Judgement]) -> Row:
    n = len(judged)
    if not n:
        return {"refusals_judged": 0, "false_reject_share": math.nan, "free_reject_share": math.nan}
    return {
        "refusals_judged": n,
        "false_reject_share": sum(one.met for one in judged) / n,
        "free_reject_share": sum(one.met and one.others >= 0 for one in judged) / n,
    }

