"""An explanation in words, for a terminal."""

from __future__ import annotations

from policies.api import Evict, Forward, Hold, Instruction, Reason, Refuse
from sim.analysis.own_limit import OWN_LIMITS, PROTECTED
from sim.judging.explain import Books, Found

_UNITS = {
    Reason.CONCURRENCY: "slots", Reason.POOL_FULL: "slots", Reason.REQUESTS: "requests", Reason.TOKENS: "tokens",
    Reason.KV_CACHE: "bytes of KV cache", Reason.LOW_PRIORITY: "priority weight", Reason.TOO_LARGE: "tokens",
    Reason.CONTEXT_LENGTH: "tokens of context", Reason.NO_CAPACITY: "ready replicas", Reason.NOT_BOUND: "Bound",
    Reason.SLO: "seconds", Reason.QUEUE_FULL: "places in the queue",
    Reason.BUDGET: "of a budget", Reason.PARENT_LIMIT: "of the group's or key's limit",
}  # fmt: skip


def in_words(found: Found) -> str:
    """Return an explanation as text for a terminal."""
    one = found.explanation
    assert one is not None
    request = one.request
    variant = "".join(f", {path}={value}" for path, value in found.variant.items())
    asked = "no max_tokens, taken as" if request.max_output_tokens is None else "max_tokens"
    lines = [
        f"{request.request_id}, attempt {request.attempt} of {found.attempts}, under {found.policy}{variant}, "
        f"replication {found.replication}",
        f"  arrived     {one.arrived_s:,.3f} s: {request.entitlement} (tenant {request.tenant}), "
        f"{request.prompt_tokens:,} prompt tokens, {asked} {one.max_output_tokens:,}",
    ]
    for at_s, step in one.said:
        lines.append(f"  {_said(step):<11} {at_s:,.3f} s{_numbers(step)}")
    lines += _own_limit(one.said[-1][1] if one.said else None, one.books[-1])
    labels = ["at arrival"] if len(one.books) == 1 else ["at arrival", "at the last verdict"]
    for label, state in zip(labels, [one.books[0], one.books[-1]], strict=False):
        lines += _state(label, state)
    if one.what_ifs:
        lines.append("what would have let it in at arrival")
        lines += [f"  - {text}" for text in one.what_ifs]
    return "\n".join(lines)


def _own_limit(last: Instruction | None, state: Books) -> list[str]:
    """Return what a refusal at a protected entitlement's own limit means, where the pool had room."""
    tenant, pool = state.entitlement, state.pool
    free = pool["slots"] - pool["in_flight"]
    if not isinstance(last, Refuse) or last.reason.value not in OWN_LIMITS or free <= 0:
        return []
    if tenant["service_class"] not in PROTECTED:
        return []
    judged = tenant["admitted"] + tenant["refused"]
    return [
        f"  own limit   {free:,} of {pool['slots']:,} slots were free: a {tenant['service_class']} entitlement never "
        f"exceeds its baseline. So far {tenant['refused']:,} of its {judged:,} attempts were refused. Raise it "
        "or make it elastic (docs/which-class.md)"
    ]


def _said(step: Instruction) -> str:
    return {"Forward": "let in", "Demote": "demoted", "Hold": "held", "Refuse": "refused", "Evict": "evicted"}.get(
        type(step).__name__, type(step).__name__
    )


def _numbers(step: Instruction) -> str:
    if isinstance(step, Forward):
        return f": sent to replica {step.replica_id}"
    if isinstance(step, Hold | Evict):
        return f": {step.reason.value}"
    if isinstance(step, Refuse):
        unit = _UNITS.get(step.reason, "")
        again = "never come again" if step.retry_after_s is None else f"come again in {step.retry_after_s:g} s"
        numbers = f"needed {step.needed:,.6g} {unit}".rstrip() + f", available {step.available:,.6g}"
        return f": {step.reason.value}, status {step.status}; {numbers}; {again}"
    return ""


def _state(label: str, state: Books) -> list[str]:
    tenant, pool = state.entitlement, state.pool
    promised = "; ".join(
        f"{name} {', '.join(f'{value:,.6g} {key}' for key, value in tenant[name].items())}"
        for name in ("baseline", "limit") if tenant[name]
    )  # fmt: skip
    own = [gauge for gauge in state.gauges if gauge.scope == "entitlement"]
    shared = [gauge for gauge in state.gauges if gauge.scope == "pool"]
    rate = "" if pool["tokens_per_s"] is None else f", {pool['tokens_per_s']:,.6g} tokens/s"
    lines = [
        label,
        f"  {tenant['name']}: {tenant['service_class']}, {tenant['state']}"
        + (f"; {promised}" if promised else "")
        + f"; {tenant['in_flight']} in flight with {tenant['reserved_tokens']:,} tokens reserved; "
        f"{tenant['admitted']:,} let in and {tenant['refused']:,} refused so far",
        f"  pool: {pool['ready_replicas']} replicas with {pool['slots']:,} slots{rate}; {pool['in_flight']} in flight "
        f"with {pool['reserved_tokens']:,} tokens reserved; {pool['held']} held",
    ]
    for name, gauges in (("its meters", own), ("the policy's", shared)):
        if gauges:
            lines.append(f"  {name}: " + ", ".join(f"{gauge.metric} {gauge.value:,.6g}" for gauge in gauges))
    return lines
