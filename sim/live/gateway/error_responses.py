"""What the gateway says itself: errors as OpenAI shapes them, and the headers that tell a client when to come back.

Which refusal gets which status, code and headers is a table (`REFUSALS`). ``Retry-After`` is in whole seconds and
``retry-after-ms`` exact; what waiting cannot mend gets ``x-should-retry: false`` and neither.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from policies.api import Allowance, Reason, Refuse
from policies.budgets import BudgetState

if TYPE_CHECKING:  # it needs what only a server has installed
    from sim.live.gateway.headers import Headers


_LONGEST_RETRY_S = 60.0
"""OpenAI's clients do not wait for longer, they ask again at once instead: told so, they do not."""


class ApiError(Exception):
    """An answer that is an error.

    Parameters
    ----------
    status, code, message : of the answer; ``kind`` is ``error.type``, ``param`` the field at fault.
    retry_after_s : when to come back; None for never, unless ``may_retry`` leaves it to the client.
    more : further fields of the error object.
    """

    def __init__(
        self, status: int, code: str, message: str, *, kind: str = "invalid_request_error", param: str | None = None,
        retry_after_s: float | None = None, may_retry: bool = False, close: bool = False,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message
        self.kind = kind
        self.param = param
        self.retry_after_s = retry_after_s
        self.may_retry = may_retry
        self.close = close
        self.more = more or {}

    def error(self) -> dict[str, Any]:
        """Return the body's ``error``."""
        return {"message": self.message, "type": self.kind, "param": self.param, "code": self.code, **self.more}

    def body(self, *, anthropic: bool = False) -> bytes:
        """Return the body; Anthropic's says at its top what it is."""
        return json.dumps(({"type": "error"} if anthropic else {}) | {"error": self.error()}).encode()

    def headers(self) -> Headers:
        """Return the headers that go with it."""
        found: Headers = [(b"content-type", b"application/json")]
        if self.retry_after_s is not None:
            found += retry_headers(self.retry_after_s)
        never = self.retry_after_s is None and not self.may_retry
        if never or (self.retry_after_s is not None and self.retry_after_s > _LONGEST_RETRY_S):
            found.append((b"x-should-retry", b"false"))
        if self.status == 401:
            found.append((b"www-authenticate", b"Bearer"))
        if self.close:
            found.append((b"connection", b"close"))
        return found


class Rule(NamedTuple):
    """How a refusal is put; ``text`` may name needed and available."""

    code: str
    kind: str
    text: str


REFUSALS: Mapping[Reason, Rule] = {
    Reason.CONCURRENCY: Rule(
        "rate_limit_exceeded", "requests", "Your entitlement may have {available} requests in flight."
    ),
    Reason.REQUESTS: Rule("rate_limit_exceeded", "requests", "Your entitlement's requests are used up."),
    Reason.TOKENS: Rule(
        "rate_limit_exceeded", "tokens", "Your entitlement has {available} tokens left and this needs {needed}."
    ),
    Reason.KV_CACHE: Rule(
        "rate_limit_exceeded", "tokens", "Your entitlement has {available} bytes of KV cache left, this needs {needed}."
    ),
    Reason.LOW_PRIORITY: Rule(
        "rate_limit_exceeded", "requests", "The pool is contended and this has priority {available}; above {needed} "
        "is served.",
    ),
    Reason.POOL_FULL: Rule("overloaded", "server_error", "The pool is full: {available} of {needed} is free."),
    Reason.TOO_LARGE: Rule(
        "request_too_large", "tokens", "This needs {needed}, and your entitlement may never use more than {available}."
    ),
    Reason.CONTEXT_LENGTH: Rule(
        "context_length_exceeded", "invalid_request_error",
        "Prompt and max_tokens are {needed} tokens, the model's context holds {available}.",
    ),
    Reason.NOT_BOUND: Rule("entitlement_not_bound", "permission_error", "Your entitlement is not in force."),
    Reason.QUEUE_FULL: Rule("queue_full", "server_error", "The queue is full."),
    Reason.QUEUE_TIMEOUT: Rule("queue_timeout", "server_error", "No place came free in time."),
    Reason.OVERLOADED: Rule("overloaded", "server_error", "The pool is overloaded."),
    Reason.SLO: Rule("overloaded", "server_error", "The answer would come later than was promised."),
    Reason.BUDGET: Rule(
        "insufficient_quota", "insufficient_quota", "A budget that this is charged to has {available} left and this "
        "needs {needed}.",
    ),
    Reason.PARENT_LIMIT: Rule(
        "rate_limit_exceeded", "requests", "The group or key has {available} left of its limit and this needs {needed}."
    ),
    Reason.NO_CAPACITY: Rule("no_capacity", "server_error", "No replica is ready."),
    Reason.PREEMPTED: Rule("preempted", "server_error", "The request made room for one of a higher class."),
    Reason.STATE_UNAVAILABLE: Rule(
        "state_unavailable", "server_error", "The state that the gateways share is out of reach."
    ),
    Reason.REPLICA_FAILED: Rule("upstream_failed", "server_error", "The model server broke off."),
}
_OTHER = Rule("refused", "server_error", "The request was refused.")


def refusal(refuse: Refuse) -> ApiError:
    """Return the answer to a refusal of the core."""
    rule = REFUSALS.get(refuse.reason, _OTHER)
    needed, available = _plain(refuse.needed), _plain(max(0.0, refuse.available))
    code = rule.code
    if refuse.status == 429 and refuse.retry_after_s is None and code == "rate_limit_exceeded":
        code = "insufficient_quota"
    text = rule.text.format(needed=needed, available=available)
    if refuse.retry_after_s is not None:
        text += f" Try again in {_plain(refuse.retry_after_s)} s."
    numbers = {"needed": refuse.needed, "available": refuse.available}
    return ApiError(
        refuse.status, code, text, kind=rule.kind, retry_after_s=refuse.retry_after_s,
        more={"reason": str(refuse.reason)} | {name: n for name, n in numbers.items() if math.isfinite(n)},
    )


def ended(reason: Reason, status: int = 503, retry_after_s: float | None = 1.0) -> ApiError:
    """Return the answer to a request that was let in and cut."""
    rule = REFUSALS.get(reason, _OTHER)
    return ApiError(
        status, rule.code, rule.text, kind=rule.kind, retry_after_s=retry_after_s, more={"reason": str(reason)}
    )


def budget_headers(budgets: Sequence[BudgetState]) -> Headers:
    """Return ``x-budget-*`` of the budget that has least of its limit left, with the time at which it is reset."""
    if not budgets:
        return []
    least = min(budgets, key=lambda state: state.remaining / state.limit if state.limit > 0 else 0.0)
    resets = datetime.fromtimestamp(least.resets_at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return [
        (b"x-budget-scope", least.node.encode("latin-1", "replace")), (b"x-budget-unit", least.unit.encode()),
        (b"x-budget-period", least.per.encode()), (b"x-budget-limit", f"{least.limit:.12g}".encode()),
        (b"x-budget-remaining", f"{max(0.0, least.remaining):.12g}".encode()), (b"x-budget-reset", resets.encode()),
    ]  # fmt: skip


def retry_headers(retry_after_s: float) -> Headers:
    """Return when to come back: whole seconds, at least one, and exact milliseconds."""
    whole_s = max(1, math.ceil(retry_after_s))
    exact_ms = max(1, math.ceil(retry_after_s * 1000))
    return [(b"retry-after", b"%d" % whole_s), (b"retry-after-ms", b"%d" % exact_ms)]


def allowance_headers(allowance: Allowance) -> Headers:
    """Return ``x-ratelimit-*`` of what an entitlement may still ask for."""
    found: Headers = []
    for name, meter in ((b"requests", allowance.requests), (b"tokens", allowance.tokens)):
        if meter is not None and math.isfinite(meter.limit):
            found += [
                (b"x-ratelimit-limit-" + name, b"%d" % meter.limit),
                (b"x-ratelimit-remaining-" + name, b"%d" % max(0.0, meter.remaining)),
                (b"x-ratelimit-reset-" + name, duration(meter.reset_s).encode()),
            ]
    return found


def duration(seconds: float) -> str:
    """Return seconds as OpenAI's headers have them: ``6m0s``, ``1.5s``, ``20ms``."""
    if not math.isfinite(seconds):
        return "never"
    if seconds < 1:
        return f"{math.ceil(max(0.0, seconds) * 1000)}ms"
    minutes, rest_s = divmod(math.ceil(seconds * 10) / 10, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{f'{hours}h' if hours else ''}{f'{minutes}m' if hours or minutes else ''}{rest_s:g}s"


def _plain(number: float) -> str:
    if not math.isfinite(number):
        return "unlimited"
    return f"{number:.4g}" if abs(number) < 10 and number != int(number) else f"{number:.0f}"
