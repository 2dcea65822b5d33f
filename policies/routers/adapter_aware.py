"""To a replica that has a request's adapter, unless it owes too much."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from policies.api import ReplicaLedger, RequestView


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterAware:
    """A replica that was sent the request's model of late, of those that owe at most ``slack_tokens`` beyond the least.

    What a gateway knows of adapters is what it has sent where: the last ``adapters`` models of each replica. Of
    replicas that have it the least loaded is taken; where none has, or all owe too much, the least loaded of all.
    """

    kind: Literal["adapter-aware"] = "adapter-aware"
    slack_tokens: int = field(
        default=8192, metadata={"ge": 0, "description": "give tokens that one may owe beyond the least, e.g. 8192"}
    )
    adapters: int = field(
        default=8, metadata={"gt": 0, "description": "give how many adapters a replica keeps (max_loras), e.g. 8"}
    )


class AdapterAwareRouter:
    """See `policies.api.Router`."""

    def __init__(self, params: AdapterAware) -> None:
        self._params = params
        self._sent: dict[int, OrderedDict[str, None]] = {}

    def route(self, request: RequestView, replicas: Sequence[ReplicaLedger]) -> int | None:
        """See `policies.api.Router`."""
        owed = {book.replica_id: book.outstanding_tokens / book.speed for book in replicas if book.ready}
        if not owed:
            return None
        most = min(owed.values()) + self._params.slack_tokens
        having = [one for one, tokens in owed.items() if tokens <= most and request.model in self._sent.get(one, ())]
        chosen = min((owed[one], one) for one in having or owed)[1]
        sent = self._sent.setdefault(chosen, OrderedDict())
        sent[request.model] = None
        sent.move_to_end(request.model)
        if len(sent) > self._params.adapters:
            sent.popitem(last=False)
        return chosen

    def follow(self, replicas: Sequence[ReplicaLedger]) -> None:
        """See `policies.api.LoadFollowing`: a replica that is not ready has lost its adapters."""
        for book in replicas:
            if not book.ready:
                self._sent.pop(book.replica_id, None)

    def lighter(self, replica: ReplicaLedger) -> None:
        """See `policies.api.LoadFollowing`: each look is at all replicas."""
