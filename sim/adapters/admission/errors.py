"""What a caller hears in place of a lease, or instead of going on with one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from policies.api import Allowance, Reason, Refuse
from sim.live.gateway.error_responses import ApiError, allowance_headers, ended, refusal


class AdmissionError(Exception):
    """A request that is not served, or not to its end.

    Attributes
    ----------
    status : of HTTP.
    reason : one word: a `policies.api.Reason`, or ``unknown_tenant``, ``ambiguous_tenant``, ``shutting_down``.
    code : OpenAI's ``error.code``.
    retry_after_s : when to come back, in seconds; None where waiting cannot help.
    headers : what to send along: ``retry-after``, ``retry-after-ms``, ``x-should-retry``, ``x-ratelimit-*``, and the
        reason as ``x-tokenpools-reason``, for servers that give an error's body a shape of their own.
    body : the answer as OpenAI shapes it: ``{"error": {...}}``.
    """

    def __init__(self, answer: ApiError, reason: str, allowance: Allowance | None = None) -> None:
        super().__init__(answer.message)
        self.status = answer.status
        self.reason = reason
        self.code = answer.code
        self.retry_after_s = answer.retry_after_s
        found = answer.headers()
        if allowance is not None:
            found += allowance_headers(allowance)
        self.headers: Mapping[str, str] = {
            name.decode(): value.decode() for name, value in found if name != b"content-type"
        } | {"x-tokenpools-reason": reason}
        self.body: dict[str, Any] = {"error": answer.error()}


class RefusedError(AdmissionError):
    """The request was not let in.

    Attributes
    ----------
    needed, available : what was compared, in the unit of the reason; 0 where nothing was.
    """

    needed = 0.0
    available = 0.0


class EvictedError(AdmissionError):
    """The request was let in, and has to make room for another: its replica must stop working on it."""


def refused(said: Refuse, allowance: Allowance | None) -> RefusedError:
    """Return the error for a refusal of the core."""
    error = RefusedError(refusal(said), said.reason.value, allowance if said.status in (429, 503) else None)
    error.needed = said.needed if math.isfinite(said.needed) else 0.0
    error.available = said.available if math.isfinite(said.available) else 0.0
    return error


def evicted(reason: Reason) -> EvictedError:
    """Return the error for an eviction."""
    return EvictedError(ended(reason), reason.value)


def held_long() -> RefusedError:
    """Return the error for a request that was held for too long."""
    return RefusedError(ended(Reason.QUEUE_TIMEOUT, 429), Reason.QUEUE_TIMEOUT.value)


def replica_failed() -> RefusedError:
    """Return the error for a request that was let in, failed, and has no other replica to go to."""
    return RefusedError(ended(Reason.REPLICA_FAILED), Reason.REPLICA_FAILED.value)


def closing() -> RefusedError:
    """Return the error of a gate that is closed."""
    answer = ApiError(503, "shutting_down", "The server stops.", kind="server_error", retry_after_s=1.0)
    return RefusedError(answer, "shutting_down")


def unknown(tenant: str) -> RefusedError:
    """Return the error for a tenant that has nothing in the pool."""
    text = f"Tenant {tenant[:100]!r} has no entitlement here."
    return RefusedError(ApiError(403, "unknown_tenant", text, kind="permission_error"), "unknown_tenant")


def unreadable(problem: ApiError) -> RefusedError:
    """Return the error for a request that makes no sense."""
    return RefusedError(problem, problem.code)


def ambiguous(tenant: str, names: list[str]) -> RefusedError:
    """Return the error for a tenant with several entitlements of which none was named."""
    text = f"Tenant {tenant[:100]!r} has several entitlements ({', '.join(names)}); name one, or a service class."
    return RefusedError(ApiError(400, "ambiguous_tenant", text), "ambiguous_tenant")
