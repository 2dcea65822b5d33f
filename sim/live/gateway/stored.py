"""Who made what the upstreams keep: responses that are stored, and those that are still made in the background.

A response belongs to the tenant whose request made it, and lives at one replica. Only that tenant may read, stop or
delete it or go on from it; for everybody else it is not there. The table is this process's own and bounded: what it
has forgotten, or another gateway made, is not found here.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from sim.live.gateway.error_responses import ApiError

_MOST = 20_000
_UNKNOWN = ("There is no such response of yours at this gateway; one that was made through another gateway, or before "
            "this one started, is not known here.")  # fmt: skip


class Stored(NamedTuple):
    """One response: ``tokens`` of prompt and output are the context of whoever goes on from it."""

    tenant: str
    replica_id: int
    tokens: int


class StoredResponses:
    """What was made through this gateway, the oldest forgotten first."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._known: OrderedDict[str, Stored] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def add(self, response_id: str, tenant: str, replica_id: int, tokens: int) -> None:
        """Remember a response. One of another tenant keeps its owner, whatever a replica calls the new one."""
        known = self._known.get(response_id)
        if known is not None and known.tenant != tenant:
            return
        self._known[response_id] = Stored(tenant, replica_id, tokens)
        self._known.move_to_end(response_id)
        if len(self._known) > self._most:
            self._known.popitem(last=False)

    def of(self, response_id: str, tenant: str) -> Stored:
        """Return a tenant's own response.

        Raises
        ------
        ApiError : 404, there is none, or it is somebody else's.
        """
        known = self._known.get(response_id)
        if known is None or known.tenant != tenant:
            raise ApiError(404, "not_found", _UNKNOWN, param="response_id")
        return known

    def forget(self, response_id: str) -> None:
        """Take note that a response was deleted."""
        self._known.pop(response_id, None)
