"""What a scenario says, as frozen models: field by field, and how the fields must fit together.

The models know the canonical form only; `sim.scenario.shorthand` brings what a person may write into it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from random import Random
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, SerializerFunctionWrapHandler, Tag, model_serializer, model_validator

from policies.registry import SCALERS
from sim.scenario import plugins
from sim.scenario.pool import Autoscaler, DerivedName, Pool, Seconds, check_scaler, check_window
from sim.scenario.pool_amounts import Name, check_known, check_unique, is_none
from sim.scenario.registered_types import MisfitError, OneOf, Strict, named
from sim.scenario.vary import Varied
from workloads.generate import Recorded, WorkloadSpec
from workloads.registry import LENGTHS

_BY_ENTITLEMENT = ("per_entitlement", "weights", "shares", "priorities", "classes", "replicas")
"""Fields of policies that hold something for each of some entitlements."""

_MOST_TIMES = 1_000_000

Length = Annotated[Any, OneOf(LENGTHS, short={"type": "integer", "minimum": 1})]


class Workload(Strict):
    """Requests that one entitlement's clients make."""

    name: DerivedName = Field(default="", description="give the workload a name; left out, the entitlement's")
    entitlement: str = Field(description="give the name of an entitlement of the pool")
    arrivals: Annotated[Any, OneOf(plugins.ARRIVAL_KINDS)] = Field(
        description="give arrivals, e.g. {kind: poisson, rate_per_s: 4.0}"
    )
    prompt_tokens: Length | None = Field(
        default=None, description="give a number of tokens or a law, e.g. {kind: lognormal, mean: 512, cv: 0.8}"
    )
    output_tokens: Length | None = Field(
        default=None, description="give a number of tokens or a law, e.g. {kind: lognormal, mean: 256, cv: 0.9}"
    )
    max_output_tokens: Length | None = Field(
        default=None,
        description="give what clients ask for at most, a number or a law; left out, the true output length",
    )
    length_correlation: float = Field(
        default=0.0, ge=-1, le=1, description="give the rank correlation of prompts and outputs, e.g. 0.4"
    )
    ask_max_tokens: bool = Field(default=True, description="give false where clients name no max_tokens")
    priority: int = Field(default=0, description="give the engine's priority, lower first, e.g. 0")
    from_s: Seconds = Field(default=0.0, description="give the second at which it begins, e.g. 30")
    until_s: Seconds | None = Field(default=None, description="give the second at which it ends, e.g. 60")
    requests: int | None = Field(
        default=None, gt=0, description="give the number of requests after which it ends, e.g. 1000"
    )
    key: str | None = Field(
        default=None, exclude_if=is_none, description="give the key of pool.keys that its clients use, e.g. ci"
    )
    model: str | None = Field(
        default=None, exclude_if=is_none, description="give the model it asks for, to find its price, e.g. large"
    )
    client: Annotated[Any, OneOf(plugins.CLIENT_KINDS, short=named(plugins.CLIENT_KINDS))] = Field(
        default_factory=plugins.CLIENT_KINDS["drop"],
        description="give what clients do when refused, e.g. {kind: retry, max_attempts: 3}",
    )

    @model_validator(mode="after")
    def _fits(self) -> Workload:
        check_window(self.from_s, self.until_s)
        for name in ("prompt_tokens", "output_tokens"):
            if getattr(self, name) is None and not isinstance(self.arrivals, Recorded):
                raise MisfitError(name, "missing", str(type(self).model_fields[name].description))
        if self.length_correlation and (self.prompt_tokens is None or self.output_tokens is None):
            raise MisfitError("length_correlation", "given without laws of both lengths", "give both, or leave it out")
        if self.max_output_tokens is not None and not self.ask_max_tokens:
            raise MisfitError("max_output_tokens", "given although ask_max_tokens is false", "leave one of them out")
        return self

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Come from another process, and bring kinds along that this one may not know."""
        super().__setstate__(state)
        plugins.arrived("arrivals", self.arrivals)
        plugins.arrived("clients", self.client)

    def spec(self) -> WorkloadSpec:
        """Return the workload as the generator sees it."""
        return WorkloadSpec(
            name=self.name,
            entitlement=self.entitlement,
            arrivals=self.arrivals,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            max_output_tokens=self.max_output_tokens,
            length_correlation=self.length_correlation,
            ask_max_tokens=self.ask_max_tokens,
            priority=self.priority,
            from_s=self.from_s,
            until_s=math.inf if self.until_s is None else self.until_s,
            requests=self.requests,
            key=self.key,
            model=self.model,
            client=self.client,
        )


class Capacity(Strict):
    """What the whole pool has from an event on; a dimension left out is whole again."""

    slots: int | None = Field(default=None, ge=0, description="give the pool's total slots, e.g. 8")
    kv_blocks: int | None = Field(default=None, ge=0, description="give the pool's total KV blocks, e.g. 15000")


class Event(Strict):
    """Something that happens to the pool: a change of capacity, or a replica that fails or returns."""

    at_s: Seconds = Field(description="give the second at which it happens, e.g. 30")
    capacity: Capacity | None = Field(default=None, description="give what is left, e.g. {slots: 8}, or full")
    fail: int | None = Field(default=None, ge=0, description="give the number of the replica that fails, from 0")
    restore: int | None = Field(default=None, ge=0, description="give the number of the replica that returns, from 0")
    slow: int | None = Field(default=None, ge=0, description="give the number of the replica that slows down, from 0")
    factor: float | None = Field(
        default=None, gt=0, description="give how many times as long its iterations take, e.g. 3; 1 for no longer"
    )

    @model_validator(mode="after")
    def _fits(self) -> Event:
        given = [name for name in ("capacity", "fail", "restore", "slow") if getattr(self, name) is not None]
        if len(given) != 1:
            found = f"{' and '.join(given)} in one event" if given else "nothing happens"
            raise MisfitError("", found, "give one of capacity, fail, restore and slow")
        if (self.slow is None) != (self.factor is None):
            left, right = ("slow", "factor") if self.factor is None else ("factor", "slow")
            raise MisfitError(left, f"given without {right}", "give both, e.g. {at_s: 30, slow: 0, factor: 3}")
        return self


class Policy(Strict):
    """An admission policy, and the label it has in results; in a file its parameters stand beside the name."""

    name: Name = Field(description="give the policy a name")
    params: Annotated[Any, OneOf(plugins.POLICY_KINDS)] = Field(description="give a policy's name, e.g. token-pool")
    autoscaler: Autoscaler | None = Field(
        default=None, description="give who scales the pool under this policy; left out, the pool's autoscaler"
    )

    @model_serializer(mode="wrap")
    def _as_in_a_file(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped = handler(self)
        own = {} if dumped["autoscaler"] is None else {"autoscaler": dumped["autoscaler"]}
        return {"name": dumped["name"], **own, **dumped["params"]}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Come from another process, and bring a kind along that this one may not know."""
        super().__setstate__(state)
        plugins.arrived("policies", self.params)


class Phase(Strict):
    """A stretch of time that plots shade and label."""

    from_s: Seconds = Field(description="give the second at which it begins, e.g. 30")
    until_s: Seconds = Field(description="give the second at which it ends, e.g. 60")
    label: str = Field(description="give a few words")

    @model_validator(mode="after")
    def _fits(self) -> Phase:
        check_window(self.from_s, self.until_s)
        return self


def _warmup_shape(value: object) -> str:
    """Text names a rule; but for text that begins as a number does, such as "60 s"."""
    return "rule" if isinstance(value, str) and not value.lstrip(" +-.")[:1].isdigit() else "seconds"


class Scenario(Strict):
    """One experiment: a pool, who asks it for what, what happens to it, and the policies to compare."""

    version: Literal[1] = Field(description="start with version: 1")
    title: str | None = Field(default=None, description="give a short title")
    description: str | None = Field(default=None, description="say what the scenario shows and what to expect")
    seed: int = Field(default=0, ge=0, description="give a whole number, e.g. 7")
    # Left out, the run ends with its last request.
    horizon_s: float | None = Field(default=None, gt=0, description="give simulated seconds, e.g. 600")
    warmup_s: Annotated[
        Annotated[Seconds, Tag("seconds")] | Annotated[Literal["mser-5"], Tag("rule")], Discriminator(_warmup_shape)
    ] = Field(
        default=0.0,
        description="give the seconds to leave out of the summary, e.g. 60, or mser-5 to have them found in the data",
    )
    replications: int = Field(
        default=1, gt=0, le=100_000, description="give how often to repeat with other draws, e.g. 5"
    )
    timeline_interval_s: float | None = Field(
        default=1.0, gt=0, description="give the seconds between two rows of the timeline, e.g. 1.0, or null for none"
    )
    record_decisions: bool = Field(default=False, description="give true to record every verdict")
    pool: Pool = Field(description="give the pool: its profile, replicas and entitlements")
    workload: tuple[Workload, ...] = Field(min_length=1, description="give at least one workload")
    events: tuple[Event, ...] = Field(
        default=(), description="give a list of events, e.g. {at_s: 30, capacity: {slots: 8}}"
    )
    policies: tuple[Policy, ...] = Field(min_length=1, description="give policies to compare, e.g. [token-pool, none]")
    shadow: tuple[Policy, ...] = Field(
        default=(), description="give policies that watch every run without acting, e.g. [rate-limit]"
    )
    scored: tuple[str, ...] = Field(
        default=(), description="give the tenants whose worst SLO attainment a tournament scores, e.g. [chat]"
    )
    vary: Annotated[Any, Varied()] = Field(
        default={}, description="give values for a dotted path, e.g. {seed: [1, 2, 3]}"
    )
    phases: tuple[Phase, ...] = Field(default=(), description="give stretches of time that plots label")

    @model_validator(mode="after")
    def _fits(self) -> Scenario:
        if self.horizon_s is None:
            for index, workload in enumerate(self.workload):
                ends = workload.requests is not None or workload.until_s is not None
                if not ends and not isinstance(workload.arrivals, Recorded):
                    raise MisfitError(
                        "horizon_s",
                        f"missing, although workload[{index}] ({workload.name}) never ends",
                        "give simulated seconds, e.g. 600, or that workload requests or until_s",
                    )
        elif not isinstance(self.warmup_s, str) and self.warmup_s >= self.horizon_s:
            raise MisfitError(
                "warmup_s",
                f"{self.warmup_s:g} leaves nothing of the horizon of {self.horizon_s:g} s",
                f"give less than {self.horizon_s:g}",
            )
        horizon_s = self.horizon_s or 0.0
        if self.timeline_interval_s is not None and horizon_s / self.timeline_interval_s > _MOST_TIMES:
            raise MisfitError(
                "timeline_interval_s",
                f"{self.timeline_interval_s:g} makes more than {_MOST_TIMES} rows for each line of the timeline",
                f"give at least {horizon_s / _MOST_TIMES:g}, or null",
            )
        entitlements = [one.name for one in self.pool.entitlements]
        for index, workload in enumerate(self.workload):
            check_known(f"workload[{index}].entitlement", "entitlement", workload.entitlement, entitlements)
            if workload.key is not None:
                opens = {one.name: one.entitlement for one in self.pool.keys}
                check_known(f"workload[{index}].key", "key", workload.key, opens)
                if opens[workload.key] != workload.entitlement:
                    raise MisfitError(
                        f"workload[{index}].key", f"{workload.key} opens {opens[workload.key]}",
                        f"give a key of {workload.entitlement}, or that entitlement",
                    )  # fmt: skip
            for key in getattr(workload.client, "keys", ()):
                check_known(f"workload[{index}].client.keys", "entitlement", key, entitlements)
        check_unique("workload", [one.name for one in self.workload])
        for field in ("policies", "shadow"):
            check_unique(field, [one.name for one in getattr(self, field)])
            for index, policy in enumerate(getattr(self, field)):
                self._check_policy(f"{field}[{index}]", policy, entitlements)
        if self.pool.count_use:
            raise MisfitError("pool.count_use", "true, and no record of a simulation holds it", "leave it out")
        for index, tenant in enumerate(self.scored):
            check_known(f"scored[{index}]", "tenant", tenant, dict.fromkeys(e.tenant for e in self.pool.entitlements))
        if self.shadow and self.pool.gateways > 1:
            raise MisfitError("shadow", f"given beside {self.pool.gateways} gateways", "give 1 gateway, or no shadow")
        for index, event in enumerate(self.events):
            self._check_event(f"events[{index}]", event)
        return self

    def _check_policy(self, path: str, policy: Policy, entitlements: list[str]) -> None:
        """Refuse parameters that do not fit the pool: what building the policy refuses, a run would refuse."""
        for one in _BY_ENTITLEMENT:
            held = getattr(policy.params, one, None)
            if isinstance(held, Mapping) and getattr(policy.params, "flow", "entitlement") == "entitlement":
                for name in held:
                    check_known(f"{path}.{one}", "entitlement", name, entitlements)
        scaler = self.autoscaler_of(policy)
        check_scaler(f"{path}.autoscaler", scaler, self.pool.replicas)
        if scaler.kind != "none" and any(event.capacity is not None for event in self.events):
            raise MisfitError(
                "events", "set the capacity of a pool that is autoscaled", "let replicas fail instead, or scale nothing"
            )
        if scaler.kind != "none" and self.pool.gateways > 1 and self.pool.share_every_s is None:
            raise MisfitError(
                "pool.share_every_s",
                f"not given for {self.pool.gateways} gateways beside an autoscaler, which would see one alone",
                "give the seconds between two exchanges, e.g. 1.0",
            )
        entitlements_ = [one.spec() for one in self.pool.entitlements]
        try:
            built = plugins.POLICY_KINDS[policy.params.kind].build(
                policy.params,
                entitlements=entitlements_,
                kv_bytes_per_token=self.pool.profile.kv_bytes_per_token,
                chance=Random(0),
            )
            SCALERS[scaler.kind].build(
                scaler, policy=built, entitlements=entitlements_, per_replica=self.pool.capacity(1)
            )
        except ValueError as error:
            problem, _, fix = str(error).partition("; ")
            raise MisfitError(path, problem, fix or "see the policy's fields in tokenpools schema") from None

    def autoscaler_of(self, policy: Policy) -> Any:
        """Return who scales the pool under a policy."""
        return self.pool.autoscaler if policy.autoscaler is None else policy.autoscaler

    def _check_event(self, path: str, event: Event) -> None:
        if self.horizon_s is not None and event.at_s > self.horizon_s:
            raise MisfitError(
                f"{path}.at_s",
                f"{event.at_s:g} is after the horizon of {self.horizon_s:g} s",
                f"give at most {self.horizon_s:g}, or a longer horizon_s",
            )
        for name in ("fail", "restore", "slow"):
            replica_id = getattr(event, name)
            if replica_id is not None and replica_id >= self.pool.all_replicas:
                raise MisfitError(
                    f"{path}.{name}",
                    f"unknown replica {replica_id}, the pool has {self.pool.all_replicas}",
                    f"they are numbered from 0, the last is {self.pool.all_replicas - 1}",
                )
        profiles = self.pool.profiles
        totals = {"slots": sum(one.slots for one in profiles), "kv_blocks": sum(one.held_blocks for one in profiles)}
        for name, provisioned in totals.items():
            left = getattr(event.capacity, name, None)
            if left is not None and left > provisioned:
                raise MisfitError(
                    f"{path}.capacity.{name}",
                    f"{left} is more than the {provisioned} provisioned",
                    f"give at most {provisioned}, the pool's total",
                )
