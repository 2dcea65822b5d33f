"""Who made what the upstreams keep: responses that are stored, and those that are still made in the background.

A response belongs to the tenant whose request made it, and lives at one replica. Only that tenant may read, stop or
delete it or go on from it; for everybody else it is not there. Each process has a table, bounded for each tenant, so
that none pushes out another's; where gateways share their state, what a table lacks is asked of them
(`sim.live.shared_state.response_owners`).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import NamedTuple, Protocol

from sim.live.gateway.error_responses import ApiError

_MOST = 20_000
_ID = re.compile(r"[\x21-\x7e]{1,200}")
_UNKNOWN = ("There is no such response of yours at this gateway; one that was made through another gateway, or before "
            "this one started, is not known here.")  # fmt: skip
_NOWHERE = "There is no such response of yours, or it is forgotten by now."
_AWAY_RETRY_S = 1.0


class Stored(NamedTuple):
    """One response: ``tokens`` of prompt and output are the context of whoever goes on from it."""

    tenant: str
    replica_id: int
    tokens: int


class Owners(Protocol):
    """Where several gateways keep whose responses are."""

    async def add(self, response_id: str, stored: Stored) -> None:
        """Let the others know, now or, where they cannot be reached, later."""
        ...

    async def find(self, response_id: str, tenant: str) -> Stored | None:
        """Return what is known of a tenant's response.

        Raises
        ------
        AwayError : it cannot be asked.
        """
        ...

    async def forget(self, response_id: str, tenant: str) -> None:
        """Let the others know that it was deleted."""
        ...


class AwayError(Exception):
    """Where responses are kept in common cannot be reached."""


class StoredResponses:
    """What was made through this gateway, the oldest of a tenant forgotten first.

    Parameters
    ----------
    owners : what gateways have in common; None for a gateway alone.
    most : of one tenant.
    """

    def __init__(self, owners: Owners | None = None, most: int = _MOST) -> None:
        self._owners = owners
        self._most = most
        self._known: dict[str, Stored] = {}
        self._of_tenant: dict[str, OrderedDict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def knows(self, response_id: str) -> bool:
        """Return whether a response that was made through this gateway still stands in its table."""
        return response_id in self._known

    async def add(self, response_id: str, stored: Stored) -> None:
        """Remember a response. One of another tenant keeps its owner, whatever a replica calls the new one."""
        if self._note(response_id, stored) and self._owners is not None:
            await self._owners.add(response_id, stored)

    async def of(self, response_id: str, tenant: str) -> Stored:
        """Return a tenant's own response.

        Raises
        ------
        ApiError : 404, there is none, or it is somebody else's; 503, it may be another gateway's, and cannot be asked.
        """
        known = self._known.get(response_id)
        if known is None and self._owners is not None and _ID.fullmatch(response_id):
            try:
                known = await self._owners.find(response_id, tenant)
            except AwayError:
                raise ApiError(
                    503, "state_unavailable", "Whose response that is cannot be found out now.", kind="server_error",
                    retry_after_s=_AWAY_RETRY_S,
                ) from None
            if known is not None:
                self._note(response_id, known)
        if known is None or known.tenant != tenant:
            raise ApiError(404, "not_found", _UNKNOWN if self._owners is None else _NOWHERE, param="response_id")
        return known

    async def forget(self, response_id: str) -> None:
        """Take note that a response was deleted."""
        known = self._known.pop(response_id, None)
        if known is not None:
            del self._of_tenant[known.tenant][response_id]
            if self._owners is not None:
                await self._owners.forget(response_id, known.tenant)

    def _note(self, response_id: str, stored: Stored) -> bool:
        known = self._known.get(response_id)
        if known is not None and known.tenant != stored.tenant:
            return False
        self._known[response_id] = stored
        ids = self._of_tenant.setdefault(stored.tenant, OrderedDict())
        ids[response_id] = None
        ids.move_to_end(response_id)
        if len(ids) > self._most:
            oldest, _ = ids.popitem(last=False)
            del self._known[oldest]
        return True
