"""The Grafana dashboard is one to Grafana, and asks for metrics that a gateway shows, with labels that they have."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from live.gate import Gate, gateway, head
from live.stand_in import Behaviour, running
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from policies.shadow import Opinion
from sim.live.accounts.bookkeeper import Bookkeeper
from sim.live.accounts.service import AccountMetrics
from sim.live.gateway.settings import CheckInvariants
from sim.live.observability.invariants import InvariantWatch
from sim.live.observability.shadows import ShadowTally
from sim.live.shared_state.metrics import SharedMetrics
from sim.live.shared_state.speaking_copy import Status

DEPLOY = Path(__file__).parents[3] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "tokenpools-gateway.json").read_text())
POOL = {"kind": "token-pool", "mode": "paper", "tick_s": 0.05, "max_request_tokens": 60}


def expressions() -> list[tuple[str, str]]:
    found = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]
    alerts = yaml.safe_load((DEPLOY / "observe" / "alerts.yaml").read_text())["groups"][0]["rules"]
    found += [(one.get("alert", one.get("record")), one["expr"]) for one in alerts]
    query = next(one["query"]["query"] for one in DASHBOARD["templating"]["list"] if one["name"] == "entitlement")
    return [*found, ("variable", query)]


def beside(gate: Gate) -> list[Collector]:
    """Return what `tokenpools serve` registers besides: shared state, accounts, shadows and the core's invariants."""
    status = Status(True, True, 1, 5, 0, 0, "", {"malformed": 0}, 0, "")
    books = Bookkeeper(Nowhere(), lambda: gate.service.gateway.core, loop_s=lambda: 0.0)  # type: ignore[arg-type]
    tally = ShadowTally()
    tally(Opinion("tight", 0.0, "r", 1, "acme", "chat", acting="forward", verdict="refuse", reason="tokens"))
    watch = InvariantWatch(CheckInvariants(), lambda: gate.service.gateway.core, lambda: None)
    return [SharedMetrics(lambda: status), AccountMetrics(gate.service, books), tally, watch]


class Nowhere:
    """A store that is only asked where it is."""

    where = "nowhere"


@pytest.fixture(scope="module")
def shown() -> dict[str, set[str]]:
    """Return the labels of every metric of a gateway that refused, answered and has a request in flight."""
    with running(behaviour=Behaviour(ttft_s=0.02, gap_s=0.05)) as stand_in, gateway(
        stand_in, policy=POOL, pool={"groups": [{"name": "acme", "budgets": [{"per": "day", "limit": 1e9}]}]}
    ) as gate:
        gate.until(lambda: gate.service.gateway.core.pool.replicas[0].report is not None)
        gate.ask(max_tokens=10**6)
        gate.ask(stand_in={"status": 500})  # its objective is missed
        gate.ask(stream=True)
        registry = gate.observability.metrics.registry
        for collector in beside(gate):
            registry.register(collector)
        text = gate.call(lambda: generate_latest(registry)).decode()
        with gate.connect() as client:
            body = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 40, "stream": True}).encode()
            client.sendall(head("content-type: application/json", f"content-length: {len(body)}") + body)
            gate.until(lambda: len(gate.service.gateway.core.pool.in_flight))
            text += gate.call(lambda: generate_latest(registry)).decode()
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


@pytest.mark.parametrize(("title", "expression"), expressions(), ids=lambda value: str(value)[:40])
def test_every_metric_that_is_asked_for_exists_with_its_labels(
    shown: dict[str, set[str]], title: str, expression: str
) -> None:
    names = re.findall(r"tokenpools_\w+", expression)
    if not names:  # what other rules record, or what Prometheus itself knows
        assert re.search(r"tokenpools:\w+|^up\{", expression), title
        return
    labels = set().union(*(shown.get(name, set()) for name in names))
    for name in names:
        assert name in shown, f"{title} asks for {name}"
    asked = re.findall(r"by \(([^)]+)\)", expression) + re.findall(r"label_values\(\w+, (\w+)\)", expression)
    asked += re.findall(r"(\w+)=~", expression)
    # Prometheus itself says which gateway it is.
    labels.add("instance")
    for name in ", ".join(asked).split(", "):
        assert not name or name in labels, f"{title} groups by {name}"


def test_panels_do_not_overlap_and_have_units_and_words() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place: dict[str, Any] = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
    assert max(x for x, _ in taken) < 24


def test_grafanas_own_types_know_every_field() -> None:
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder")
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()

    def unknown(content: Any) -> list[str]:
        known = json.loads(encoder.JSONEncoder(sort_keys=True).encode(Dashboard.from_json(content)))
        return list(lost(content, known))

    assert unknown(DASHBOARD) == []
    for place, key in ((("panels", 0, "options"), "colourMode"), (("panels", 4, "targets", 0), "expression"),
                       (("panels", 4, "fieldConfig", "defaults"), "units")):  # fmt: skip
        content = copy.deepcopy(DASHBOARD)
        inner = content
        for step in place:
            inner = inner[step]
        inner[key] = "x"
        assert unknown(content) == ["/".join(map(str, (*place, key)))]


def lost(mine: Any, theirs: Any, *place: Any) -> Iterator[str]:
    """Yield what of a tree is not in the other, or is something else there."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key, value in mine.items():
            yield from lost(value, theirs.get(key, lost), *place, key)
    elif isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        for number, (one, other) in enumerate(zip(mine, theirs, strict=True)):
            yield from lost(one, other, *place, number)
    elif mine != theirs:
        yield "/".join(map(str, place))
