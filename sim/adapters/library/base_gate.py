"""What a gate on a loop and one among threads have in common: what may be asked of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, ParamSpec, TypeVar

from policies.api import ReplicaReport
from policies.core import GatewayCore
from sim.adapters.admission.requests import Admissions
from sim.live.gateway.prompt_text import Prefix, prefix_of
from sim.live.gateway.settings import Estimate

P = ParamSpec("P")
R = TypeVar("R")
Admitted = TypeVar("Admitted")


def _prefix(prompt: str | Sequence[int]) -> Prefix:
    return prefix_of("completion", {"prompt": prompt if isinstance(prompt, str) else list(prompt)}, "", Estimate())


class BaseGate(ABC, Generic[Admitted]):
    """The policy core in front of anybody's own server."""

    @abstractmethod
    def _opened(self) -> Admissions:
        """Return the core and its requests."""

    @abstractmethod
    def _admit(self, asked: dict[str, Any]) -> Admitted:
        """Ask for a place."""

    def _do(self, call: Callable[P, R], /, *args: P.args, **more: P.kwargs) -> R:
        """Call where nothing else touches the books."""
        return call(*args, **more)

    def admit(
        self, *, tenant: str, prompt_tokens: int, max_tokens: int | None = None, entitlement: str | None = None,
        service_class: str | None = None, attempt: int = 1, priority: int = 0, n: int = 1,
        prompt: str | Sequence[int] | None = None, session: str = "",
    ) -> Admitted:
        """Ask for a place, and wait while the request is held.

        On a loop ``async with gate.admit(...) as lease`` or ``lease = await gate.admit(...)``, from which errors come;
        among threads ``with gate.admit(...) as lease`` or ``lease = gate.admit(...)``.

        Parameters
        ----------
        tenant : who asks, as the pool or ``tenants`` of the configuration name them.
        prompt_tokens : of the prompt, counted or estimated.
        max_tokens : that may be generated, of all answers together; None for the pool's default.
        entitlement, service_class : which of the tenant's, where it has several.
        attempt : which attempt this is, from 1 up; only the first counts as demand.
        priority : the engine's; lower goes first.
        n : answers asked for, each of which takes a slot.
        prompt : its text or token ids, for routers and queues that go by what is cached; only hashes of it are kept.
        session : its conversation or agent, for policies that go by sessions; only a hash of it is kept.

        Raises
        ------
        RefusedError : it is not let in: with status, headers and reason.
        EvictedError : the place was taken back, at once or in the block.
        ValueError : an argument is out of range.
        """
        return self._admit({
            "tenant": tenant, "prompt_tokens": prompt_tokens, "max_tokens": max_tokens, "entitlement": entitlement,
            "service_class": service_class, "attempt": attempt, "priority": priority, "sequences": n,
            "prefix": _prefix(prompt) if prompt is not None and self.core.wants_prefixes else (), "session": session,
        })  # fmt: skip

    def set_ready(self, replica_ids: Sequence[int]) -> None:
        """Say which replicas take requests; all of them at first.

        Raises
        ------
        ValueError : the pool has no such replica.
        """
        self._do(self._opened().set_ready, replica_ids)

    def set_slots(self, slots: int | None) -> None:
        """Say that the pool has at most so many slots, whatever its replicas provide; None for what they provide."""
        self._do(self._opened().set_slots, slots)

    def report(self, report: ReplicaReport) -> None:
        """Say what a replica says of itself, for policies that want to know (``gate.core.wants_reports``)."""
        self._do(self._opened().report, report)

    @property
    def core(self) -> GatewayCore:
        """The pool's state, to look at."""
        return self._opened().core
