"""Organisation, team, key: a tree of limits and budgets above any policy.

Requests name an entitlement, and may name a key. Both have a place in a tree whose inner nodes are groups. Before a
policy is asked, the tree is: every node on the way up must have room. A group's limit bounds what its members have
together. Inside it, whoever stays within its own baseline may go ahead; beyond it a member uses what the others leave:

- a dedicated member's unused baseline is left to nobody;
- that of another is left to less protected members once it has asked for nothing in ``idle_s``, and to more protected
  ones at once.

The tree is part of the core (`policies.core.GatewayCore`), so it is the same in simulation, in a gateway and in
several, in shadows, snapshots and recordings. The time of the calendar comes with the requests (``wall_s``), where it
does not it is the calendar's start plus the core's time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from policies.budgets import FREE, Balance, Budget, BudgetAccount, BudgetState, Price
from policies.hierarchy_tree import (
    RETRY_S,
    HierarchySpec,
    Node,
    Place,
    entitlement_id,
    group_id,
    grown,
    key_id,
    over_limit,
)
from policies.ledgers import InFlight, PoolLedger
from policies.messages import Deny, EntitlementSpec, Reason, RequestView
from policies.protocols import Allowance, Gauge, Margin


class Charged(NamedTuple):
    """One request's charge to one budget: the node, which of its budgets, the period that pays and the amount."""

    node: str
    unit: str
    per: str
    period: int
    amount: float


class Reserved(NamedTuple):
    """A journal's entry: a request was let in and charged with what it may use."""

    request_id: str
    charges: tuple[Charged, ...]


class Settled(NamedTuple):
    """A journal's entry: a request has ended. ``changes`` correct its charges; the rest is what it really used."""

    request_id: str
    changes: tuple[Charged, ...]
    key: str
    entitlement: str
    model: str
    wall_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    money: float


class Hierarchy:
    """See the module; `policies.core.GatewayCore` asks and tells it.

    Attributes
    ----------
    journal : where charges are written down, for a store to keep; None: nowhere.
    """

    def __init__(
        self, spec: HierarchySpec, entitlements: Sequence[EntitlementSpec], kv_bytes_per_token: float | None
    ) -> None:
        self.journal: list[Reserved | Settled] | None = None
        self._spec = spec
        self._kv_bytes = kv_bytes_per_token or 0.0
        self._places = grown(spec, entitlements)
        self._ways: dict[tuple[str, str], tuple[Place, ...]] = {}
        self._charges: dict[str, tuple[Charged, ...]] = {}
        self._ahead_s = spec.calendar.starts_s  # of the calendar before the core's time
        self._has_budgets = any(place.accounts for place in self._places.values())

    # ----------------------------------------------------------------------------------------------------------------
    # For the core

    def denies(self, request: RequestView, max_output_tokens: int, now_s: float) -> Deny | None:
        """Return why a request may not be let in; None where the tree has room for it."""
        reserved = request.prompt_tokens + max_output_tokens
        way = self._way(request)
        denied = self._over_budget(way, request, max_output_tokens, now_s) if self._has_budgets else None
        below: Place | None = None
        for place in way:
            if denied is None and place.enforced:
                denied = over_limit(
                    place, below, request.sequences, reserved, reserved * self._kv_bytes, now_s, self._spec.idle_s
                )
            below = place
        return denied

    def heard(self, request: RequestView, now_s: float) -> None:
        """Take note that somebody asks, and of the calendar's time."""
        if request.wall_s is not None:
            self._ahead_s = request.wall_s - now_s
        for place in self._way(request):
            place.asked_s = now_s

    def admitted(self, flight: InFlight, now_s: float) -> None:
        """Charge what was let in, or runs already."""
        request = flight.request
        kv_bytes = flight.reserved_tokens * self._kv_bytes
        charges: list[Charged] = []
        for place in self._way(request):
            place.in_flight += request.sequences
            place.kv_bytes += kv_bytes
            for meter in (place.rate, place.base_rate):
                if meter is not None:
                    meter.reserve(flight.reserved_tokens, now_s)
            for account in place.accounts:
                amount = self._amount(account.budget, request, request.prompt_tokens, flight.max_output_tokens)
                period = account.charge(self._period(account, now_s), amount)
                charges.append(Charged(place.node_id, account.budget.unit, account.budget.per, period, amount))
        self._charges[request.request_id] = tuple(charges)
        if self.journal is not None:
            self.journal.append(Reserved(request.request_id, tuple(charges)))

    def ended(self, flight: InFlight, now_s: float) -> None:
        """Correct the charges of a request to what it really used."""
        request = flight.request
        used_tokens = (request.prompt_tokens if flight.prompt_credited else 0) + flight.output_tokens
        kv_bytes = flight.reserved_tokens * self._kv_bytes
        cached_tokens = min(flight.cached_tokens, request.prompt_tokens)
        prompt_tokens = request.prompt_tokens if flight.prompt_credited else 0
        charges = self._charges.pop(request.request_id, ())
        changes: list[Charged] = []
        for place in self._way(request):
            place.in_flight -= request.sequences
            place.kv_bytes = max(0.0, place.kv_bytes - kv_bytes) if place.in_flight else 0.0
            for meter in (place.rate, place.base_rate):
                if meter is not None:
                    meter.settle(flight.reserved_tokens, used_tokens, now_s)
            for account in place.accounts:
                for charge in charges:
                    if charge.node == place.node_id and (charge.unit, charge.per) == (
                        account.budget.unit, account.budget.per
                    ):
                        cached = cached_tokens if flight.prompt_credited else 0
                        used = self._amount(account.budget, request, prompt_tokens, flight.output_tokens, cached)
                        account.correct(charge.period, used - charge.amount)
                        changes.append(charge._replace(amount=used - charge.amount))
        if self.journal is not None:
            cached = cached_tokens if flight.prompt_credited else 0
            money = self._price(request).of(prompt_tokens, flight.output_tokens, cached)
            self.journal.append(Settled(
                request.request_id, tuple(changes), request.key, request.entitlement, request.model,
                self._ahead_s + now_s, prompt_tokens, cached, flight.output_tokens, money,
            ))  # fmt: skip

    def exhausted(self, entitlement: str, key: str, now_s: float) -> bool:
        """Return whether a budget on the way up has nothing left, so that any request would be refused."""
        return any(
            state.remaining <= 0 if state.unit == "money" else state.remaining < 1
            for state in self.budgets(entitlement, key, now_s)
        )

    def allowance(self, entitlement: str, left: Allowance, now_s: float) -> Allowance:
        """Return an allowance with what budgets of tokens leave of it."""
        tokens = left.tokens
        for state in self.budgets(entitlement, "", now_s):
            if state.unit == "tokens" and (tokens is None or state.remaining < tokens.remaining):
                reset_s = max(0.0, state.resets_at_s - (self._ahead_s + now_s))
                tokens = Margin(state.limit, state.remaining, reset_s)
        return left._replace(tokens=tokens)

    def gauges(self, now_s: float) -> Iterable[Gauge]:
        """Return what groups have in flight, and what is left of budgets."""
        for node_id, place in self._places.items():
            if node_id.startswith("group/"):
                yield Gauge("group", node_id[6:], "in_flight", place.in_flight)
            for account in place.accounts:
                left = account.available_in(self._period(account, now_s))
                yield Gauge("budget", node_id, f"{account.budget.unit}_left_of_{account.budget.per}", left)

    def inherit(self, earlier: Hierarchy, now_s: float) -> None:
        """Go on with the accounts of an earlier tree; what is in flight has been charged here as if it came now."""
        self._ahead_s = earlier._ahead_s
        self.journal = earlier.journal
        for node_id, place in self._places.items():
            before = earlier._places.get(node_id)
            if before is None:
                continue
            place.asked_s = before.asked_s
            for mine, theirs in ((place.rate, before.rate), (place.base_rate, before.base_rate)):
                if mine is not None and theirs is not None:
                    mine.inherit(theirs, now_s)
            for account in place.accounts:
                for other in before.accounts:
                    if (other.budget.unit, other.budget.per) == (account.budget.unit, account.budget.per):
                        account.restore(other.balance())
        known = {
            (node_id, account.budget.unit, account.budget.per)
            for node_id, place in earlier._places.items() for account in place.accounts
        }
        for request_id, mine_charged in self._charges.items():
            theirs_charged = earlier._charges.get(request_id, ())
            new = [charge for charge in mine_charged if (charge.node, charge.unit, charge.per) not in known]
            self._charges[request_id] = (*theirs_charged, *new)

    def faults(self, pool: PoolLedger) -> Iterable[str]:
        """Return what does not agree with the core's books."""
        sums: dict[str, int] = dict.fromkeys(self._places, 0)
        for flight in pool.in_flight.values():
            for place in self._way(flight.request):
                sums[place.node_id] += flight.request.sequences
        for node_id, place in self._places.items():
            if place.in_flight != sums[node_id]:
                yield f"{node_id} has {place.in_flight} sequences in flight, the core's requests are {sums[node_id]}"
        if set(self._charges) != set(pool.in_flight):
            yield f"{len(self._charges)} requests are charged, {len(pool.in_flight)} are in flight"

    # ----------------------------------------------------------------------------------------------------------------
    # For whoever shows or keeps it

    def budgets(self, entitlement: str, key: str, now_s: float) -> list[BudgetState]:
        """Return how the budgets on the way up from an entitlement, and a key, stand."""
        way = self._way_of(entitlement, key)
        return [self._state(place, account, now_s) for place in way for account in place.accounts]

    def all_budgets(self, now_s: float) -> list[BudgetState]:
        """Return how all budgets stand."""
        return [
            self._state(place, account, now_s) for place in self._places.values() for account in place.accounts
        ]

    def nodes(self) -> list[str]:
        """Return the ids of all nodes."""
        return list(self._places)

    def in_flight(self, node_id: str) -> int:
        """Return the sequences in flight below a node."""
        return self._places[node_id].in_flight

    def limit_slots(self, node_id: str) -> float | None:
        """Return how many sequences a node may have in flight; None for any number."""
        return self._places[node_id].limit.slots

    def parent_of(self, node_id: str) -> str | None:
        """Return the node above one; None above a root."""
        parent = self._places[node_id].parent
        return None if parent is None else parent.node_id

    def balances(self) -> dict[tuple[str, str, str], Balance]:
        """Return the accounts, by node, unit and period."""
        return {
            (node_id, account.budget.unit, account.budget.per): account.balance()
            for node_id, place in self._places.items() for account in place.accounts if account.period is not None
        }

    def restore(self, balances: Mapping[tuple[str, str, str], Balance]) -> None:
        """Go on from what a store has kept; call it before the first request."""
        for node_id, place in self._places.items():
            for account in place.accounts:
                kept = balances.get((node_id, account.budget.unit, account.budget.per))
                if kept is not None:
                    account.restore(kept)

    # ----------------------------------------------------------------------------------------------------------------

    def _way(self, request: RequestView) -> tuple[Place, ...]:
        return self._way_of(request.entitlement, request.key)

    def _way_of(self, entitlement: str, key: str) -> tuple[Place, ...]:
        """Return the places from a key or entitlement up to the root."""
        known = self._ways.get((entitlement, key))
        if known is not None:
            return known
        place = self._places.get(key_id(key)) if key else None
        leaf = self._places.get(entitlement_id(entitlement))
        found: list[Place] = []
        if place is not None:
            found.append(place)
        place = leaf
        while place is not None:
            found.append(place)
            place = place.parent
        if len(self._ways) > 100_000:
            self._ways.clear()
        self._ways[entitlement, key] = tuple(found)
        return tuple(found)

    def _price(self, request: RequestView) -> Price:
        prices = self._spec.prices
        return prices.get(request.model) or prices.get("") or FREE

    def _amount(
        self, budget: Budget, request: RequestView, prompt_tokens: int, output_tokens: int, cached_tokens: int = 0
    ) -> float:
        if budget.unit == "tokens":
            return prompt_tokens + output_tokens
        return self._price(request).of(prompt_tokens, output_tokens, cached_tokens)

    def _period(self, account: BudgetAccount, now_s: float) -> int:
        return self._spec.calendar.period(account.budget.per, self._ahead_s + now_s)

    def _state(self, place: Place, account: BudgetAccount, now_s: float) -> BudgetState:
        period = self._period(account, now_s)
        if account.period is not None and account.period >= period:
            period, limit, used = account.period, account.limit, account.used
        else:
            limit, used = account.available_in(period), 0.0
        ends_s = self._spec.calendar.ends_s(account.budget.per, period)
        return BudgetState(place.node_id, account.budget.unit, account.budget.per, limit, used, ends_s)

    def _over_budget(
        self, way: Sequence[Place], request: RequestView, max_output_tokens: int, now_s: float
    ) -> Deny | None:
        """Return the refusal by that budget which is there again last."""
        worst: Deny | None = None
        for place in way:
            for account in place.accounts:
                state = self._state(place, account, now_s)
                need = self._amount(account.budget, request, request.prompt_tokens, max_output_tokens)
                if need <= state.remaining:
                    continue
                wait_s: float | None = max(RETRY_S, state.resets_at_s - (self._ahead_s + now_s))
                if need > _most(account.budget):
                    wait_s = None
                if worst is None or (worst.retry_after_s is not None and (
                    wait_s is None or wait_s > worst.retry_after_s
                )):  # fmt: skip
                    worst = Deny(Reason.BUDGET, need, state.remaining, wait_s)
        return worst


def _most(budget: Budget) -> float:
    """Return the most that a budget can ever hold."""
    if budget.carry_over not in ("unused", "both"):
        return budget.limit
    return budget.limit + (budget.limit if budget.carry_most is None else budget.carry_most)


__all__ = [
    "Charged", "Hierarchy", "HierarchySpec", "Node", "Reserved", "Settled", "entitlement_id", "group_id", "key_id",
]  # fmt: skip
