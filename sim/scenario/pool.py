"""The pool of a scenario, as frozen models: its replicas, and who is entitled to how much of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from policies.api import EntitlementSpec, PoolCapacity, ServiceClass
from policies.registry import SCALERS
from sim.engine.replica_life import Life
from sim.scenario import plugins
from sim.scenario.hierarchy import (
    BudgetLimit,
    Group,
    PoolCalendar,
    PoolKey,
    TokenPrice,
    check_tree,
    hierarchy_spec,
    is_usual_calendar,
)
from sim.scenario.pool_amounts import (
    DIMENSIONS,
    Amounts,
    Name,
    check_unique,
    is_empty,
    is_false,
    is_none,
)
from sim.scenario.profile import Profile
from sim.scenario.registered_types import MisfitError, OneOf, Strict, named

if TYPE_CHECKING:
    from policies.hierarchy import HierarchySpec

_RESERVED = (ServiceClass.DEDICATED, ServiceClass.GUARANTEED, ServiceClass.ELASTIC)

Autoscaler = Annotated[Any, OneOf(SCALERS, short=named(SCALERS))]

DerivedName = Annotated[Name, Field(json_schema_extra=lambda schema: schema.pop("default", None))]
Seconds = Annotated[float, Field(ge=0)]


class Entitlement(Strict):
    """What one tenant was promised in the pool."""

    name: Name = Field(description="give the entitlement a name")
    tenant: DerivedName = Field(default="", description="give the tenant's name; left out, the entitlement's")
    service_class: ServiceClass = Field(description="give dedicated, guaranteed, elastic, spot or preemptible")
    ttft_slo_s: float | None = Field(
        default=None, gt=0, description="give the objective for time to first token in seconds, e.g. 1.2"
    )
    baseline: Amounts = Field(default=Amounts(), description="give what is promised, e.g. {slots: 6}")
    limit: Amounts = Field(default=Amounts(), description="give the most it may use, e.g. {slots: 10}")
    from_s: Seconds = Field(default=0.0, description="give the second from which it holds, e.g. 30")
    until_s: Seconds | None = Field(default=None, description="give the second until which it holds, e.g. 60")
    parent: str | None = Field(
        default=None, exclude_if=is_none,
        description="give the group that it belongs to; left out, none",
    )
    budgets: tuple[BudgetLimit, ...] = Field(
        default=(), exclude_if=is_empty,
        description="give budgets, e.g. [{per: day, limit: 100000}]",
    )

    @model_validator(mode="after")
    def _fits(self) -> Entitlement:
        check_window(self.from_s, self.until_s)
        baseline, limit = self.baseline.resources(), self.limit.resources()
        for dimension in DIMENSIONS:
            promised, most = getattr(baseline, dimension), getattr(limit, dimension)
            if promised is None:
                continue
            if self.service_class not in _RESERVED:
                raise MisfitError(
                    "baseline",
                    f"a {self.service_class} entitlement has none, got {promised:g} {dimension}",
                    "give a limit instead, or another service_class",
                )
            if most is not None and most < promised:
                raise MisfitError(
                    f"limit.{dimension}",
                    f"{most:g} is below the baseline of {promised:g}",
                    f"give at least {promised:g}",
                )
        return self

    def spec(self) -> EntitlementSpec:
        """Return the entitlement as policies see it."""
        return EntitlementSpec(
            name=self.name,
            tenant=self.tenant,
            service_class=self.service_class,
            ttft_slo_s=self.ttft_slo_s,
            baseline=self.baseline.resources(),
            limit=self.limit.resources(),
            from_s=self.from_s,
            until_s=math.inf if self.until_s is None else self.until_s,
        )


class OtherReplicas(Strict):
    """Replicas of another kind in the same pool."""

    profile: Profile = Field(
        description="give the name of a profile, a path or a mapping; see tokenpools list profiles"
    )
    replicas: int = Field(default=1, gt=0, le=100_000, description="give how many there are of them, e.g. 2")


class Pool(Strict):
    """Replicas of one model, and who is entitled to how much of them."""

    profile: Profile = Field(
        description="give the name of a profile, a path or a mapping; see tokenpools list profiles"
    )
    replicas: int = Field(default=1, gt=0, le=100_000, description="give the number of replicas, e.g. 1")
    also: tuple[OtherReplicas, ...] = Field(
        default=(), exclude_if=is_empty,
        description="give replicas of other kinds, e.g. [{profile: l40s-llama-3.1-8b, replicas: 2}]",
    )
    router: Annotated[Any, OneOf(plugins.ROUTER_KINDS, short=named(plugins.ROUTER_KINDS))] = Field(
        default_factory=plugins.ROUTER_KINDS["least-outstanding-tokens"].params,
        description="give a router, e.g. round-robin",
    )
    entitlements: tuple[Entitlement, ...] = Field(min_length=1, description="give at least one entitlement")
    default_max_output_tokens: int = Field(
        default=256, gt=0, description="give the output tokens to assume where a client names no limit, e.g. 256"
    )
    scrape_interval_s: float = Field(
        default=1.0, gt=0, description="give the seconds between two looks at a replica's metrics, e.g. 1.0"
    )

    autoscaler: Autoscaler = Field(
        default_factory=SCALERS["none"].params,
        description="give who scales the pool, e.g. {kind: capacity, max_replicas: 8}; a policy may name its own",
    )
    start_up_s: float = Field(
        default=90.0, ge=0, description="give the seconds until a replica that was asked for is ready, e.g. 90"
    )
    drain_s: float = Field(
        default=300.0, ge=0, description="give the most seconds that a leaving replica waits for its requests, e.g. 300"
    )
    gpus_per_replica: int = Field(
        default=1, gt=0, description="leave it out: it is what profile.gpus says, which GPU time and costs go by"
    )
    on_failure: Literal["fail", "retry"] = Field(
        default="fail", description="fail: what a lost replica had fails; retry: it is sent to the others"
    )
    notice_s: float = Field(
        default=0.0,
        ge=0,
        description="give how late the gateway hears of lost capacity and of metrics, in seconds, e.g. 1.0",
    )
    gateways: int = Field(default=1, gt=0, le=1000, description="give the gateways in front of the pool, e.g. 4")
    share_every_s: float | None = Field(
        default=None,
        gt=0,
        description="give the seconds between two exchanges of what gateways know, e.g. 0.5, or null for none",
    )
    share: Literal["totals", "leases"] = Field(
        default="totals",
        description="totals: gateways tell each other what they use; leases: each holds a part of every limit",
    )
    oversubscribed: bool = Field(
        default=False, description="give true to let baselines exceed the pool; what does not fit is Degraded"
    )

    groups: tuple[Group, ...] = Field(
        default=(), exclude_if=is_empty,
        description="give organisations and teams, e.g. [{name: acme, limit: {slots: 10}}]",
    )
    keys: tuple[PoolKey, ...] = Field(
        default=(), exclude_if=is_empty,
        description="give keys with limits of their own, e.g. [{name: ci, entitlement: batch}]",
    )
    prices: tuple[TokenPrice, ...] = Field(
        default=(), exclude_if=is_empty,
        description="give prices, e.g. [{prompt_per_million: 0.2, output_per_million: 0.6}]",
    )
    calendar: PoolCalendar = Field(
        default=PoolCalendar(), exclude_if=is_usual_calendar,
        description="give when days begin, e.g. {starts: 2026-01-01T00:00:00Z}",
    )

    count_use: bool = Field(
        default=False, exclude_if=is_false,
        description="give true to count what keys use although nothing above the policy limits them",
    )

    @model_validator(mode="after")
    def _fits(self) -> Pool:
        self._count_gpus()
        check_unique("entitlements", [one.name for one in self.entitlements])
        check_tree(self.groups, self.keys, self.entitlements, self.prices)
        if self.gateways > 1 and self.hierarchy() is not None:
            raise MisfitError(
                "gateways", f"{self.gateways}, each with books of its own, beside groups, keys or budgets", "give 1"
            )
        check_scaler("autoscaler", self.autoscaler, self.replicas)
        self._check_kinds()
        if self.share_every_s is not None and self.gateways == 1:
            raise MisfitError("share_every_s", "given although there is one gateway", "give gateways, or leave it out")
        if self.share == "leases" and self.share_every_s is None:
            raise MisfitError("share", "leases are not renewed without share_every_s", "give share_every_s, e.g. 0.5")
        if self.share == "leases" and self.autoscaler.kind != "none":
            raise MisfitError("share", "leases have no autoscaler, which would see one gateway's part", "give totals")
        if self.oversubscribed:
            return self
        capacity = self.capacity(getattr(self.autoscaler, "max_replicas", None))  # what it can grow to
        for dimension in DIMENSIONS:
            available = getattr(capacity, dimension)
            if available is not None:
                self._check_baselines(dimension, available)
        return self

    def _count_gpus(self) -> None:
        """Take the GPUs of a replica from its profile; what else is said of them must be the same."""
        found = self.profile.gpus
        if "gpus_per_replica" in self.model_fields_set and self.gpus_per_replica != found:
            raise MisfitError(
                "gpus_per_replica", f"{self.gpus_per_replica}, and the profile is of {found} (profile.gpus)",
                "leave it out, or give the profile's gpus",
            )  # fmt: skip
        object.__setattr__(self, "gpus_per_replica", found)

    def _check_kinds(self) -> None:
        """Refuse kinds of replicas that cannot be in one pool."""
        if self.also and self.autoscaler.kind != "none":
            raise MisfitError("also", "given beside an autoscaler, which adds replicas of one kind", "leave one out")
        per_token = self.profile.kv_bytes_per_token
        for index, one in enumerate(self.also):
            if one.profile.kv_bytes_per_token != per_token:
                raise MisfitError(
                    f"also[{index}].profile.kv_bytes_per_token",
                    f"{one.profile.kv_bytes_per_token} differs from the first kind's {per_token}: one pool, one model",
                    f"give {per_token}",
                )

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """The profile of each replica, by its number."""
        return (self.profile,) * self.replicas + tuple(p for one in self.also for p in (one.profile,) * one.replicas)

    @property
    def all_replicas(self) -> int:
        """How many replicas there are, of all kinds."""
        return self.replicas + sum(one.replicas for one in self.also)

    def _check_baselines(self, dimension: str, available: float) -> None:
        """Refuse baselines that sum to more than there is at some time; a sum only grows where one begins."""
        replicas = getattr(self.autoscaler, "max_replicas", self.replicas)
        least = "replicas" if self.autoscaler.kind == "none" else "autoscaler.max_replicas"
        promises = [
            (one.from_s, one.until_s, one.name, getattr(one.baseline.resources(), dimension) or 0.0)
            for one in self.entitlements
        ]
        for at_s in sorted({from_s for from_s, *_ in promises}):
            held = [
                (name, amount)
                for from_s, until_s, name, amount in promises
                if amount and from_s <= at_s and (until_s is None or at_s < until_s)
            ]
            total = math.fsum(amount for _, amount in held)
            if total > available * (1 + 1e-12):
                raise MisfitError(
                    "entitlements",
                    f"the baselines of {', '.join(name for name, _ in held)} sum to {total:g} {dimension} "
                    f"at {at_s:g} s, the pool has {available:g}",
                    f"lower them or set {least} to {math.ceil(total * replicas / available)}",
                )

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Come from another process, and bring a router along that this one may not know."""
        super().__setstate__(state)
        plugins.arrived("routers", self.router)

    def hierarchy(self) -> HierarchySpec | None:
        """Return the tree above the entitlements; None where there is none."""
        found = hierarchy_spec(self.groups, self.keys, self.entitlements, self.prices, self.calendar)
        if found is not None or not self.count_use:
            return found
        from policies.hierarchy import HierarchySpec

        return HierarchySpec(calendar=self.calendar.calendar())

    def life(self) -> Life:
        """Return how long the coming and going of replicas takes."""
        return Life(start_up_s=self.start_up_s, drain_s=self.drain_s, gpus=self.gpus_per_replica)

    def capacity(self, replicas: int | None = None) -> PoolCapacity:
        """Return what so many replicas of the first kind provide when all are ready and whole; left out, the pool."""
        count = self.replicas if replicas is None else replicas
        own = _capacity(self.profile, count)
        if replicas is not None:
            return own
        for one in self.also:
            own = _together(own, _capacity(one.profile, one.replicas))
        return own


def _capacity(profile: Profile, count: int) -> PoolCapacity:
    tokens_per_s, kv_bytes = profile.tokens_per_s, profile.kv_bytes
    return PoolCapacity(
        ready_replicas=count,
        slots=count * profile.slots,
        tokens_per_s=None if tokens_per_s is None else count * tokens_per_s,
        kv_bytes=None if kv_bytes is None else count * kv_bytes,
    )


def _together(one: PoolCapacity, other: PoolCapacity) -> PoolCapacity:
    """Return what two kinds of replicas provide; a dimension that one does not know is not known of both."""
    return PoolCapacity(
        one.ready_replicas + other.ready_replicas,
        one.slots + other.slots,
        None if one.tokens_per_s is None or other.tokens_per_s is None else one.tokens_per_s + other.tokens_per_s,
        None if one.kv_bytes is None or other.kv_bytes is None else one.kv_bytes + other.kv_bytes,
    )


def check_window(from_s: float, until_s: float | None) -> None:
    """Refuse a window that ends before it begins."""
    if until_s is not None and until_s <= from_s:
        raise MisfitError("until_s", f"{until_s:g} is not after from_s ({from_s:g})", f"give more than {from_s:g}")


def check_scaler(path: str, autoscaler: Any, replicas: int) -> None:
    """Refuse an autoscaler whose bounds leave out the replicas that the pool begins with."""
    least, most = getattr(autoscaler, "min_replicas", replicas), getattr(autoscaler, "max_replicas", replicas)
    if not least <= replicas <= most:
        raise MisfitError(
            path, f"scales between {least} and {most}, the pool begins with {replicas}",
            f"give replicas between {least} and {most}, or other bounds",
        )  # fmt: skip
