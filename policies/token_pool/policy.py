"""Token pools as an admission policy: the paper's five checks (arXiv 2603.00356).

Check 1 (Bound) and check 2 (default max_tokens) are the gateway's and come first, see `policies.core`. Here follow
3 concurrency, 4 tokens, then KV cache where that is checked, and 5 priority where the pool is contended. Nothing is
held: what fails a check is refused with a Retry-After.

In ``robust`` mode the limits of checks 3, 4 and KV are what `policies.token_pool.allocation` gives each entitlement at
every tick and change of capacity, and nobody enters a full pool but by evicting a preemptible request. What an
allocated rate bounds, contention need not: there a metered rate at the pool's capacity does not call for check 5.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from policies.api import (
    ADMIT,
    AdmissionPolicy,
    Admit,
    Allowance,
    Chance,
    Deny,
    EntitlementLedger,
    EntitlementSpec,
    GaugeTable,
    InFlight,
    Leases,
    Margin,
    PoolLedger,
    Reason,
    RequestView,
    ServiceClass,
    Verdict,
)
from policies.meters import ContinuousBucket
from policies.native import mypyc_attr
from policies.token_pool.allocation import UNITS, Vector, capacity_vector
from policies.token_pool.leases import LeaseBook
from policies.token_pool.limits import share_out
from policies.token_pool.metering import Account, bind, equalise, meter, open_account, weigh
from policies.token_pool.params import TokenPool
from policies.token_pool.threshold import FrozenFloor, LiveFloor

_MIN_RETRY_S: Final = 1.0
_MAX_RETRY_S: Final = 30.0
_FIRST_SERVICE_S: Final = 1.0
"""Taken for the mean service time until a request has finished. [choice]"""
# An enum's attribute is looked up by a Python function of its class, for every request.
_DEDICATED: Final = ServiceClass.DEDICATED
_PREEMPTIBLE: Final = ServiceClass.PREEMPTIBLE
_ALWAYS: Final = ("bound", "debt", "burst", "weight", "metered_tokens_per_s")
_NO_LIMIT: Final = float("inf")
_Label = tuple[str, str, str]
_Labels = tuple[list[_Label], list[_Label], list[_Label], list[_Label]]
"""What the gauges of an entitlement are called: those that there always are, and its limits of slots, KV and rate.

In lists, also of one: compiled, a tuple of three that is passed on by itself is taken apart and made anew."""


@mypyc_attr(allow_interpreted_subclasses=True)
class TokenPoolPolicy:
    """See `policies.api.AdmissionPolicy`.

    Parameters
    ----------
    kv_bytes_per_token : c of the paper; None where it is not known, which leaves the KV cache out of everything.
    chance : jitters Retry-After.
    """

    wants_reports = False

    def __init__(
        self, params: TokenPool, entitlements: Sequence[EntitlementSpec], *,
        kv_bytes_per_token: float | None, chance: Chance,
    ) -> None:
        self.rules = rules = params.resolved()
        self.tick_s: float | None = rules.tick_s
        self.wants_progress = rules.metering == "work"
        listed = {spec.name: index for index, spec in enumerate(entitlements)}
        specs = sorted(entitlements, key=lambda spec: spec.name)
        self._accounts = {spec.name: open_account(spec, listed[spec.name], rules) for spec in specs}
        self._as_listed = sorted(self._accounts.values(), key=lambda account: account.index)
        self._labels = {spec.name: _labels_of(spec.name) for spec in specs}
        self._kv_bytes_per_token = kv_bytes_per_token
        self._chance = chance
        self._floor: LiveFloor | FrozenFloor = LiveFloor() if rules.weight_at == "live" else FrozenFloor()
        self._strict = rules.threshold == "strict"
        self._admit_when_full = rules.full_pool == "admit"
        self._kv_check = rules.kv_check and kv_bytes_per_token is not None
        self._allocated = rules.limits == "allocated"
        leases = LeaseBook(entitlements, rules.overcommit) if rules.binding == "leased" else None
        self.leases: Leases | None = leases
        self._promised = leases.promised if leases is not None else None
        self._reserved_tokens = 0
        self._idle_dedicated = 0.0
        self._idle_tokens = 0.0
        self._largest_slots = 0
        self._pool_tokens_per_s = 0.0
        self._known_kv = False
        self._preemptible: dict[str, InFlight] = {}
        self._paid: dict[str, ContinuousBucket] = {}  # which bucket a request was charged to

    # ----------------------------------------------------------------------------------------------------------------
    # Checks

    def decide(self, request: RequestView, max_output_tokens: int, pool: PoolLedger, now_s: float) -> Verdict:
        """Check concurrency, tokens, KV cache and priority; the first that fails ends it."""
        account = self._accounts[request.entitlement]
        ledger = pool.entitlements[request.entitlement]
        in_flight = ledger.in_flight
        sequences = request.sequences
        if in_flight + sequences > account.limit_slots:
            return self._over_concurrency(account, ledger, sequences, pool)
        need_tokens = request.prompt_tokens + max_output_tokens
        bucket = account.bucket
        if bucket is not None:
            wait_s = bucket.wait_s(need_tokens, now_s)
            if wait_s is None and need_tokens > account.most_tokens:
                return Deny(Reason.TOO_LARGE, need_tokens, account.most_tokens, None)
            if wait_s is None:  # too large for what is allocated for the moment
                return Deny(Reason.TOKENS, need_tokens, bucket.depth, self._retry_s(_MAX_RETRY_S))
            if wait_s > 0:
                return Deny(Reason.TOKENS, need_tokens, bucket.available(now_s), self._retry_s(wait_s))
        if self._kv_check:
            refusal = self._over_kv(account, ledger, need_tokens)
            if refusal is not None:
                return refusal
        if sequences > 1 and sequences > self._most_slots(pool):
            return self._over_pool(sequences, pool)
        exempt = in_flight + sequences - 1 < account.exempt_slots
        contended = self._contended(pool, sequences)
        if contended and not exempt:
            floor = self._floor.least(pool)
            if floor is not None:
                own = (account.rank, account.weight)
                if not (own > floor or (own == floor and not self._strict)):
                    return Deny(Reason.LOW_PRIORITY, floor[1], account.weight, self._contention_retry_s(pool))
        if self._admit_when_full or not (contended or self._known_kv):
            return ADMIT
        return self._into_free_place(account, exempt, need_tokens, sequences, pool)

    def screens(self, entitlement: str, sequences: int, pool: PoolLedger) -> bool:
        """See `policies.api.Screening`."""
        return pool.entitlements[entitlement].in_flight + sequences > self._accounts[entitlement].limit_slots

    def _over_concurrency(
        self, account: Account, ledger: EntitlementLedger, sequences: int, pool: PoolLedger
    ) -> Deny:
        limit = account.limit_slots
        if sequences > 1 and sequences > account.limits[2]:
            return Deny(Reason.TOO_LARGE, sequences, account.limits[2], None)
        if sequences > 1 and sequences > self._most_slots(pool):
            return self._over_pool(sequences, pool)
        retry_s = None if limit < 1 else self._retry_s(_service_s(ledger.mean_service_s) / limit)
        return Deny(Reason.CONCURRENCY, ledger.in_flight + sequences, limit, retry_s)

    def _over_kv(self, account: Account, ledger: EntitlementLedger, need_tokens: int) -> Deny | None:
        per_token = self._kv_bytes_per_token or 0.0
        need, limit = need_tokens * per_token, account.limit_kv_bytes
        available = limit - ledger.reserved_tokens * per_token
        if need <= available:
            return None
        if need > account.limits[1]:
            return Deny(Reason.TOO_LARGE, need, account.limits[1], None)
        retry_s = self._retry_s(_service_s(ledger.mean_service_s) / max(1, ledger.in_flight))
        return Deny(Reason.KV_CACHE, need, available, retry_s)

    def _most_slots(self, pool: PoolLedger) -> float:
        """Return how many sequences could be let in if nothing was in flight."""
        return math.inf if self._admit_when_full and not self._allocated else pool.capacity.slots

    def _over_pool(self, sequences: int, pool: PoolLedger) -> Deny:
        """Refuse what has more sequences than the pool has slots: for good, unless it had as many before."""
        if sequences > self._largest_slots:
            return Deny(Reason.TOO_LARGE, sequences, self._largest_slots, None)
        return Deny(Reason.POOL_FULL, sequences, pool.capacity.slots, self._contention_retry_s(pool))

    def _contended(self, pool: PoolLedger, sequences: int) -> bool:
        """Whether there is no room for so many more: slots (less what is reserved and idle), KV cache or throughput."""
        capacity = pool.capacity
        if pool.all_in_flight + sequences - 1 >= capacity.slots - self._idle_dedicated:
            return True
        per_token = self._kv_bytes_per_token
        if capacity.kv_bytes is not None and per_token:
            reserved = self._reserved_tokens + pool.others_reserved_tokens
            if reserved * per_token >= capacity.kv_bytes:
                return True
        if self._allocated:
            return False
        return capacity.tokens_per_s is not None and self._pool_tokens_per_s >= capacity.tokens_per_s

    def _into_free_place(
        self, account: Account, exempt: bool, need_tokens: int, sequences: int, pool: PoolLedger
    ) -> Verdict:
        """Admit into free capacity, or into what evicting preemptible requests frees, the youngest first.

        An exempt request was promised its slot: it enters even where that cannot be freed. KV cache is promised only by
        a baseline that names it, or by a limit on it.
        """
        capacity = pool.capacity
        lendable = capacity.slots - self._idle_dedicated + account.idle_slots
        slots_over = pool.all_in_flight + sequences - lendable
        tokens_over = 0.0
        per_token = self._kv_bytes_per_token
        if capacity.kv_bytes is not None and per_token:
            others_idle = self._idle_tokens - account.idle_tokens
            reserved = self._reserved_tokens + pool.others_reserved_tokens + others_idle
            tokens_over = reserved + need_tokens - capacity.kv_bytes / per_token
        if slots_over <= 0 and tokens_over <= 0:
            return ADMIT
        victims: list[str] = []
        if account.service_class is not _PREEMPTIBLE:
            for request_id, flight in reversed(self._preemptible.items()):
                victims.append(request_id)
                slots_over -= flight.request.sequences
                tokens_over -= flight.reserved_tokens
                if slots_over <= 0 and tokens_over <= 0:
                    return Admit(tuple(victims))
        if exempt and (tokens_over <= 0 or account.spec.baseline.kv_bytes is not None):
            return Admit(tuple(victims))
        retry_s = self._contention_retry_s(pool)
        if tokens_over > 0 and per_token:
            return Deny(Reason.POOL_FULL, need_tokens, need_tokens - tokens_over, retry_s)
        return Deny(Reason.POOL_FULL, sequences, sequences - slots_over, retry_s)

    # ----------------------------------------------------------------------------------------------------------------
    # Retry-After

    def _contention_retry_s(self, pool: PoolLedger) -> float:
        slots = pool.capacity.slots
        excess = max(1.0, pool.all_in_flight + 1 - (slots - self._idle_dedicated))
        return self._retry_s(_service_s(pool.mean_service_s) * excess / max(1, slots))

    def _retry_s(self, wait_s: float) -> float:
        """Return whole seconds from 1 to 30, varied up and down so that not all return together."""
        jitter = self.rules.retry_jitter
        varied_s = wait_s * (1 - jitter + 2 * jitter * self._chance.random())
        return float(math.ceil(max(_MIN_RETRY_S, min(_MAX_RETRY_S, varied_s))))

    # ----------------------------------------------------------------------------------------------------------------
    # Books

    def on_admitted(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Reserve its tokens and its place."""
        account = self._accounts[flight.request.entitlement]
        self._reserved_tokens += flight.reserved_tokens
        if account.bucket is not None:
            account.bucket.reserve(flight.reserved_tokens, now_s)
            self._paid[flight.request.request_id] = account.bucket
        self._floor.admitted(account, flight)
        service_class = account.service_class
        if service_class is _DEDICATED:
            self._count_idle(account, flight.ledger)
        elif service_class is _PREEMPTIBLE:
            self._preemptible[flight.request.request_id] = flight

    def on_ended(self, flight: InFlight, pool: PoolLedger, now_s: float) -> None:  # noqa: ARG002
        """Give back what it reserved and did not use."""
        account = self._accounts[flight.request.entitlement]
        self._reserved_tokens -= flight.reserved_tokens
        used_tokens = flight.output_tokens
        if flight.prompt_credited:
            used_tokens += flight.request.prompt_tokens
        account.completed_tokens += used_tokens
        account.released_tokens += flight.reserved_tokens
        # An allocation may have taken the bucket away meanwhile, or brought one that was never charged.
        bucket = self._paid.pop(flight.request.request_id, None)
        if bucket is not None and bucket is account.bucket:
            bucket.settle(flight.reserved_tokens, used_tokens, now_s)
        service_class = account.service_class
        if service_class is _DEDICATED:
            self._count_idle(account, flight.ledger)
        elif service_class is _PREEMPTIBLE:
            del self._preemptible[flight.request.request_id]

    def demand_of(self, name: str) -> Vector:
        """Return the smoothed demand of an entitlement: tokens/s, KV bytes, slots."""
        return self._accounts[name].demand

    def granted_of(self, name: str) -> Vector:
        """Return what was allocated of its demand; all of it where nothing is allocated."""
        account = self._accounts[name]
        return account.granted if self._allocated else account.demand

    def debt_of(self, name: str) -> float:
        """Return its debt."""
        return self._accounts[name].debt

    def _count_idle(self, account: Account, ledger: EntitlementLedger) -> None:
        reserved = (account.spec.baseline.slots or 0.0) if account.bound else 0.0
        idle_slots = max(0.0, reserved - ledger.in_flight)
        self._idle_dedicated += idle_slots - account.idle_slots
        account.idle_slots = idle_slots
        kv_bytes = account.spec.baseline.kv_bytes
        if kv_bytes is not None and self._kv_check and not self._admit_when_full:
            reserved_tokens = kv_bytes / (self._kv_bytes_per_token or 1.0) if account.bound else 0.0
            idle_tokens = max(0.0, reserved_tokens - ledger.reserved_tokens)
            self._idle_tokens += idle_tokens - account.idle_tokens
            account.idle_tokens = idle_tokens

    def on_shared(self, worked_tokens: Mapping[str, int], pool: PoolLedger, now_s: float) -> None:
        """Charge what other gateways' requests used to the buckets here, and count who is idle and in flight anew."""
        for name, used_tokens in worked_tokens.items():
            account = self._accounts[name]
            if account.bucket is not None and used_tokens:
                account.bucket.reserve(used_tokens, now_s)
            if account.service_class is _DEDICATED:
                self._count_idle(account, pool.entitlements[name])
        self._floor.reweighed(self._accounts.values(), pool)

    def rated(self, pool: PoolLedger) -> Mapping[str, float]:
        """See `policies.limit_leases.Parted`: those that check 4 meters, by their limit, or by what is allocated.

        Where rates are allocated and the pool's is known, everybody has one from the next tick on.
        """
        most = pool.capacity.tokens_per_s if self._allocated else None
        found = {}
        for name, account in self._accounts.items():
            rate = account.limits[0] if math.isfinite(account.limits[0]) else self._whole_rate(account)
            if not math.isfinite(rate) and most is not None:
                rate = most
            if 0 < rate < math.inf:
                found[name] = rate
        return found

    def on_parts(self, parts: Mapping[str, float], pool: PoolLedger, now_s: float) -> None:
        """See `policies.limit_leases.Parted`; who is idle and in flight is counted anew too."""
        for name, account in self._accounts.items():
            part, before = parts.get(name, account.part), account.part
            account.part = part
            if part != before and account.bucket is not None:
                rate = self._whole_rate(account) * part
                depth = max(rate * self.rules.bucket_s, self.rules.max_request_tokens)
                account.bucket.scale(rate_per_s=rate, depth=depth, kept=min(1.0, part / before if before else 1.0),
                                     now_s=now_s)
            if account.service_class is _DEDICATED:
                self._count_idle(account, pool.entitlements[name])
        self._floor.reweighed(self._accounts.values(), pool)

    @staticmethod
    def _whole_rate(account: Account) -> float:
        """Return what all gateways' parts of a rate make up: what was allocated last, else the limit."""
        return min(account.limits[0], account.allocated_rate)

    def on_tick(self, pool: PoolLedger, now_s: float) -> None:
        """Meter every entitlement, then weigh it."""
        for account in self._accounts.values():
            ledger = pool.entitlements[account.spec.name]
            meter(account, ledger, self.rules, self._kv_bytes_per_token, now_s, pool.mean_service_s)
        self._pool_tokens_per_s = sum(account.tokens_per_s for account in self._accounts.values())
        if self.rules.equalise:
            equalise(self._accounts.values(), self.rules)
        self._weigh(pool)
        if self._allocated:
            share_out(self._as_listed, pool.capacity, self.rules, now_s)

    def on_capacity(self, pool: PoolLedger, now_s: float) -> None:
        """Follow who is Bound: that moves the mean objective, debts, and what is reserved for dedicated."""
        self._largest_slots = max(self._largest_slots, pool.capacity.slots)
        self._known_kv = pool.capacity.kv_bytes is not None and self._kv_bytes_per_token is not None
        for account in self._accounts.values():
            ledger = pool.entitlements[account.spec.name]
            bind(account, ledger, self.rules, now_s)
            if account.service_class is _DEDICATED:
                self._count_idle(account, ledger)
        self._weigh(pool)
        if self._allocated:
            share_out(self._as_listed, pool.capacity, self.rules, now_s)

    def reclaim(self, pool: PoolLedger, now_s: float) -> Sequence[str]:  # noqa: ARG002
        """Evict the youngest preemptible requests while more is in flight than the pool has."""
        if self._admit_when_full:
            return ()
        capacity, per_token = pool.capacity, self._kv_bytes_per_token
        slots_over = pool.all_in_flight - (capacity.slots - self._idle_dedicated)
        tokens_over = 0.0
        if capacity.kv_bytes is not None and per_token:
            reserved = self._reserved_tokens + pool.others_reserved_tokens + self._idle_tokens
            tokens_over = reserved - capacity.kv_bytes / per_token
        victims: list[str] = []
        for request_id, flight in reversed(self._preemptible.items()):
            if slots_over <= 0 and tokens_over <= 0:
                break
            victims.append(request_id)
            slots_over -= flight.request.sequences
            tokens_over -= flight.reserved_tokens
        return victims

    def inherit(self, earlier: AdmissionPolicy, pool: PoolLedger, now_s: float) -> None:
        """Go on with the debts, bursts and buckets of entitlements of the same name."""
        if not isinstance(earlier, TokenPoolPolicy):
            return
        for name, account in self._accounts.items():
            before = earlier._accounts.get(name)
            if before is not None:
                account.debt, account.burst, account.gap = before.debt, before.burst, before.gap
                if account.bucket is not None and before.bucket is not None:
                    account.bucket.inherit(before.bucket, now_s)
        self._weigh(pool)

    def _weigh(self, pool: PoolLedger) -> None:
        mean_slo_s = self._mean_slo_s()
        for account in self._accounts.values():
            weigh(account, self.rules, mean_slo_s)
        self._floor.reweighed(self._accounts.values(), pool)

    def _mean_slo_s(self) -> float:
        if self.rules.mean_slo == "bound":
            objectives = [account.spec.ttft_slo_s for account in self._accounts.values() if account.bound]
            known_s = [slo_s for slo_s in objectives if slo_s is not None]
            if known_s:
                return sum(known_s) / len(known_s)
        return self.rules.mean_slo_s

    def allowance(self, entitlement: str, pool: PoolLedger, now_s: float) -> Allowance:
        """See `policies.api.Allowing`. Requests are those in flight; one that ends makes room for another."""
        account, ledger = self._accounts[entitlement], pool.entitlements[entitlement]
        requests = tokens = None
        if math.isfinite(account.limit_slots):
            limit = math.floor(account.limit_slots)
            reset_s = _service_s(ledger.mean_service_s) if ledger.in_flight else 0.0
            requests = Margin(limit, max(0, limit - ledger.in_flight), reset_s)
        bucket = account.bucket
        if bucket is not None:
            tokens = Margin(bucket.depth, bucket.available(now_s), bucket.full_in_s(now_s))
        return Allowance(requests, tokens)

    def slots_granted(self, entitlement: str) -> float:
        """See `policies.api.Granting`."""
        return self._accounts[entitlement].limit_slots

    def faults(self, pool: PoolLedger, held: Mapping[str, RequestView]) -> Iterable[str]:  # noqa: ARG002
        """See `policies.api.Auditing`."""
        reserved = sum(flight.reserved_tokens for flight in pool.in_flight.values())
        if reserved != self._reserved_tokens:
            yield f"{self._reserved_tokens} tokens are reserved, requests in flight reserve {reserved}"
        preemptible = {
            each for each, flight in pool.in_flight.items() if flight.ledger.spec.service_class is _PREEMPTIBLE
        }
        if preemptible != self._preemptible.keys():
            yield f"{sorted(preemptible ^ self._preemptible.keys())[:5]} are preemptible in one of the books only"
        idle = math.fsum(account.idle_slots for account in self._accounts.values())
        if not math.isclose(idle, self._idle_dedicated, abs_tol=1e-6):
            yield f"{self._idle_dedicated} dedicated slots are idle, by entitlement {idle}"

    def gauges(self, pool: PoolLedger, now_s: float) -> GaugeTable:  # noqa: ARG002
        """Return priorities and their parts, the limits in force, and the threshold while anything is in flight."""
        labels: list[tuple[str, str, str]] = []
        values: list[float] = []
        floor = self._floor.least(pool)
        if floor is not None:
            labels.append(("pool", "pool", "threshold"))
            values.append(floor[1])
        if self._promised is not None:
            provisioned = capacity_vector(pool.capacity)
            for unit, promise, has in zip(UNITS, self._promised(), provisioned, strict=True):
                if math.isfinite(has):
                    labels += [("pool", "pool", f"promised_{unit}"), ("pool", "pool", f"provisioned_{unit}")]
                    values += [promise, has]
        for name, account in self._accounts.items():
            always, slots, kv_bytes, rate = self._labels[name]
            labels += always
            values += [float(account.bound), account.debt, account.burst, account.weight, account.tokens_per_s]
            if account.limit_slots < _NO_LIMIT:
                labels += slots
                values.append(account.limit_slots)
            if self._kv_check and account.limit_kv_bytes < _NO_LIMIT:
                labels += kv_bytes
                values.append(account.limit_kv_bytes)
            if account.bucket is not None:
                labels += rate
                values.append(account.bucket.rate_per_s)
        return GaugeTable(labels, values)


def _labels_of(name: str) -> _Labels:
    always = [("entitlement", name, metric) for metric in _ALWAYS]
    slots, kv_bytes, rate = ([("entitlement", name, f"limit_{what}")] for what in ("slots", "kv_bytes", "tokens_per_s"))
    return always, slots, kv_bytes, rate


def _service_s(mean_s: float | None) -> float:
    return _FIRST_SERVICE_S if mean_s is None else mean_s
