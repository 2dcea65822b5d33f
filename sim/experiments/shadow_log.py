"""What policies would have done with the requests of a log: of any gateway whose log or table is read here.

The log's requests go to simulated replicas of the pool's profile under no control, and the policies watch
(`policies.shadow`). How long a request takes is so the profile's word, not the log's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.errors import InputError, ScenarioError
from sim.experiments.run import ScenarioResult, run_scenario
from sim.scenario.load import Scenario, parse_scenario
from sim.scenario.yaml_file import one_line, plain, read_mapping
from workloads.formats.errors import TraceError
from workloads.formats.read import layout_of, load
from workloads.formats.times import told


@dataclass(frozen=True, slots=True)
class ShadowedLog:
    """What came of it.

    Attributes
    ----------
    requests : of each tenant of the log.
    left_out : of tenants that have no entitlement.
    hopeless : how many entries tell of what no policy decides on: no key, not JSON, too large, another's cache.
    unanswered : how many requests have no answer in the log, so that a length was drawn for them.
    unread, first_unread : how many lines are no whole entry, and the number of the first.
    """

    result: ScenarioResult
    requests: Mapping[str, int]
    left_out: Mapping[str, int]
    hopeless: int = 0
    unanswered: int = 0
    unread: int = 0
    first_unread: int = 0

    def notes(self) -> Iterator[str]:
        """Yield a line for everything that was not put to the policies as it stands in the log."""
        for tenant, number in self.left_out.items():
            yield f"left out: {number:,} requests of {told(tenant) or 'nobody named'}, who has no entitlement"
        if self.hopeless:
            yield f"left out: {self.hopeless:,} entries of what reaches no engine (refused for good, cached, no tokens)"
        if self.unread:
            yield f"not read: {self.unread:,} lines that are no whole entry, the first is line {self.first_unread:,}"
        if self.unanswered:
            yield f"drawn: lengths of {self.unanswered:,} requests that have no answer in the log"


def shadow_log(
    config: Path, log: Path, *, form: str | None = None, names: Mapping[str, str] | None = None
) -> ShadowedLog:
    """Put the requests of a log to the policies of a scenario, or of a gateway's configuration.

    Parameters
    ----------
    form : the log's format; None: it is recognised.
    names : the entitlement of a tenant of the log; others have that of their own name, or of that tenant.

    Raises
    ------
    TokenpoolsError : the log or the configuration cannot be used.
    """
    try:
        rows, _ = load(log, layout_of(log, form))
    except TraceError as error:
        place, row, problem, fix = error.args
        raise InputError(place if row is None else f"{place}: row {row}", problem, fix) from None
    file = one_line(str(config))
    raw = plain(read_mapping(config, file), file)
    found = Counter(["*"] * len(rows.time_ns) if rows.tenant is None else rows.tenant.texts())
    entitlements = _entitlements(raw, file)
    of_tenant, left_out = {}, {}
    for tenant, number in sorted(found.items()):
        entitlement = _of(tenant, names or {}, entitlements, only=rows.tenant is None)
        if entitlement is None:
            left_out[tenant] = number
        else:
            of_tenant[tenant] = entitlement
    if not of_tenant:
        known = ", ".join(name for name, _ in entitlements)
        raise InputError(
            str(log), f"none of its tenants ({', '.join(map(told, sorted(found)))[:200]}) has an entitlement of {file}",
            f"give --name TENANT=ENTITLEMENT, with one of {known}",
        )  # fmt: skip
    scenario = _scenario(raw, file, log.resolve(), form, of_tenant, tenants=rows.tenant is not None)
    return ShadowedLog(
        run_scenario(scenario), {name: found[name] for name in of_tenant}, left_out, hopeless=rows.dropped,
        unanswered=rows.unanswered, unread=rows.unread, first_unread=rows.first_unread,
    )


def _entitlements(raw: Mapping[str, Any], file: str) -> list[tuple[str, str]]:
    """Return name and tenant of each entitlement."""
    pool = raw.get("pool")
    listed = pool.get("entitlements") if isinstance(pool, dict) else None
    if not isinstance(listed, list) or not all(isinstance(one, dict) and "name" in one for one in listed):
        raise ScenarioError(file, "pool.entitlements", "missing", "give a scenario, or a gateway's configuration")
    return [(str(one["name"]), str(one.get("tenant") or one["name"])) for one in listed]


def _of(tenant: str, names: Mapping[str, str], entitlements: list[tuple[str, str]], *, only: bool) -> str | None:
    if tenant in names:
        wanted = names[tenant]
        if wanted not in [name for name, _ in entitlements]:
            problem = f"{wanted!r} is no entitlement of the pool"
            raise InputError("--name", problem, f"give one of {', '.join(name for name, _ in entitlements)}")
        return wanted
    if only and len(entitlements) == 1:
        return entitlements[0][0]
    for place in (0, 1):
        for one in entitlements:
            if one[place] == tenant:
                return one[0]
    return None


def _scenario(
    raw: Mapping[str, Any], file: str, log: Path, form: str | None, of_tenant: Mapping[str, str], *, tenants: bool
) -> Scenario:
    """Return the scenario in which nothing is refused and the policies of ``raw`` watch."""
    policies = [raw["policy"]] if "policy" in raw else list(raw.get("policies") or [])
    watching = [one for one in [*policies, *(raw.get("shadow") or [])] if one not in ("none", {"kind": "none"})]
    if not watching:
        fix = "give a policy to watch, e.g. shadow: [token-pool]"
        raise ScenarioError(file, "policy", "there is none but none", fix)
    pool = dict(raw["pool"])
    if isinstance(raw.get("upstreams"), list) and "replicas" not in pool:
        pool["replicas"] = max(1, len(raw["upstreams"]))
    workload = []
    for tenant, entitlement in of_tenant.items():
        arrivals: dict[str, Any] = {"kind": "trace", "file": str(log)}
        if form is not None:
            arrivals["format"] = form
        if tenants:
            arrivals["tenant"] = tenant
        workload.append({"name": tenant, "entitlement": entitlement, "arrivals": arrivals})
    return parse_scenario({
        "version": 1, "title": f"Shadows over {log.name}", "pool": pool, "workload": workload, "policies": ["none"],
        "shadow": watching, "timeline_interval_s": None, "seed": raw.get("seed", 0),
    }, file)  # fmt: skip
