"""Metrics, logs, state and admin pages of a running gateway, and who may see them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live.gate import PROFILE, Gate, gateway, secret
from live.stand_in import Behaviour, StandIn
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from policies.api import Reason, ServiceClass
from sim.errors import ScenarioError
from sim.live.gateway.config_file import parse_config
from sim.live.observability.admin import page
from sim.live.observability.logs import JsonFormatter, TextFormatter, as_fields, blotted, set_up
from sim.live.observability.observer import NEVER_S, Ended, RequestLog
from sim.live.observability.prometheus import OTHER, Labels, outcome

ROOT = Path(__file__).parents[3]
TOKEN = "tp-admin-token-0123456789"
POOL = {"kind": "token-pool", "mode": "paper", "tick_s": 0.2, "max_request_tokens": 60}
TOO_MANY = 10**6  # tokens for the context of the stand-in
LOG = RequestLog(
    request_id="req-1", client_request_id="mine", key_name="key-chat", tenant="acme", entitlement="chat",
    service_class=ServiceClass.GUARANTEED, endpoint="/v1/completions", model="tiny", stream=True, attempt=1,
    prompt_tokens=8, counted_prompt_tokens=7, max_output_tokens=4, output_tokens=4, cached_tokens=0, arrival_s=1.0,
    forwarded_s=1.25, first_token_s=1.5, finish_s=2.0, replica=0, tries=1, outcome=Ended.FINISHED, reason=None,
    needed=0.0, available=0.0, http_status=200, retry_after_s=None, error="",
)  # fmt: skip


@pytest.fixture(scope="module")
def gate(stand_in: StandIn) -> Iterator[Gate]:
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    with gateway(stand_in, policy=POOL, admin={"token_sha256": digest}) as one:
        yield one


def read(gate: Gate, path: str, **given: Any) -> Any:
    return gate.ask(path=path, method="GET", key=None, headers={"authorization": f"Bearer {TOKEN}"}, **given)


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: dict[Any, float], name: str, **labels: str) -> float:
    return found.get((name, frozenset(labels.items())), 0.0)


# --------------------------------------------------------------------------------------------------------------------


def test_requests_are_counted_by_how_they_ended(gate: Gate, stand_in: StandIn) -> None:
    before = samples(read(gate, "/metrics").body.decode())
    assert gate.ask(max_tokens=3).status == 200
    assert gate.ask(max_tokens=TOO_MANY).status == 400
    assert gate.ask(key=None).status == 401
    assert gate.ask(key="batch", stand_in={"status": 500}).status >= 500
    gate.balanced()
    after = samples(read(gate, "/metrics").body.decode())

    def more(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    mine = {"tenant": "acme", "class": "guaranteed", "model": "tiny"}
    assert more("tokenpools_requests_total", **mine, outcome="Dispatched") == 1
    assert more("tokenpools_requests_total", **mine, outcome="RejectedContextLength") == 1
    nobody = {"tenant": "", "class": "", "model": "", "outcome": "RejectedOther"}
    assert more("tokenpools_requests_total", **nobody) == 1
    failed = {"tenant": "other", "class": "spot", "model": "tiny", "outcome": "Failed"}
    assert more("tokenpools_requests_total", **failed) == 1
    assert more("tokenpools_settled_tokens_total", tenant="acme", direction="output") == 3
    assert more("tokenpools_settled_tokens_total", tenant="acme", direction="prompt") == 3
    assert more("tokenpools_time_to_first_token_seconds_count", **{"class": "guaranteed"}) in (0, 1)
    assert more("tokenpools_request_duration_seconds_count", **{"class": "guaranteed"}) == 1


@pytest.mark.parametrize(
    ("changed", "judged", "missed"),
    [
        ({}, 1, 0), ({"first_token_s": 2.1}, 1, 0), ({"first_token_s": 2.3}, 1, 1),  # its objective is 1.2 s
        ({"first_token_s": NEVER_S}, 0, 0),
        ({"outcome": Ended.CANCELLED, "first_token_s": NEVER_S}, 0, 0),
        ({"outcome": Ended.REFUSED, "first_token_s": NEVER_S, "http_status": 429}, 1, 1),
        ({"outcome": Ended.REFUSED, "first_token_s": NEVER_S, "http_status": 503}, 1, 1),
        ({"outcome": Ended.REFUSED, "first_token_s": NEVER_S, "http_status": 400}, 0, 0),
        ({"outcome": Ended.EVICTED, "http_status": 429}, 1, 1),
        ({"outcome": Ended.FAILED, "first_token_s": NEVER_S, "http_status": 502}, 1, 1),
        ({"outcome": Ended.FAILED, "first_token_s": NEVER_S, "http_status": 404}, 0, 0),
        ({"entitlement": "batch"}, 0, 0),
    ],
)
def test_objectives_are_kept_or_missed_and_a_clients_own_error_is_neither(
    gate: Gate, changed: dict[str, Any], judged: int, missed: int
) -> None:
    metrics = gate.observability.metrics

    def counted() -> tuple[float, float]:
        found = samples(gate.call(lambda: generate_latest(metrics.registry)).decode())
        mine = {"tenant": "acme", "class": "guaranteed"}
        return (value(found, "tokenpools_slo_attempts_total", **mine),
                value(found, "tokenpools_slo_missed_total", **mine))  # fmt: skip

    before = counted()
    gate.call(lambda: metrics.ended(dataclasses.replace(LOG, **changed)))
    after = counted()
    assert (after[0] - before[0], after[1] - before[1]) == (judged, missed)


def test_the_books_are_read_when_somebody_asks(gate: Gate) -> None:
    found = samples(read(gate, "/metrics").body.decode())
    assert value(found, "tokenpools_capacity_slots") == 16
    assert value(found, "tokenpools_ready_replicas") == 1
    chat = {"entitlement": "chat", "tenant": "acme", "class": "guaranteed"}
    assert value(found, "tokenpools_limit_slots", **chat) == 6
    assert value(found, "tokenpools_weight", **chat) > 0
    assert value(found, "tokenpools_entitlement_bound", **chat) == 1
    names = {name for name, _ in found}
    for wanted in (
        "queue_size", "queue_tokens", "pool_saturation", "entitlement_tokens_per_second", "reserved_tokens", "debt",
        "inflight_requests", "inflight_tokens",
    ):  # the names of the specification
        assert f"tokenpools_{wanted}" in names


def test_no_key_is_in_metrics_state_or_page(gate: Gate) -> None:
    gate.ask(key=None, headers={"authorization": "Bearer sk-somebody-elses-key"})
    gate.ask()
    gate.balanced()
    for path in ("/metrics", "/admin/state", "/"):
        text = read(gate, path).body.decode()
        for one in (secret("chat"), secret("chat")[:12], "sk-somebody", TOKEN):
            assert one not in text


def test_labels_are_bounded() -> None:
    labels = Labels(3)
    assert [labels.of(f"t{i}") for i in range(5)] == ["t0", "t1", "t2", OTHER, OTHER]
    assert labels.of("t1") == "t1"


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_an_outcome_of_its_own_or_is_other(reason: Reason) -> None:
    refused = dataclasses.replace(LOG, outcome=Ended.REFUSED, reason=reason)
    assert re.fullmatch(r"Rejected[A-Za-z]+", outcome(refused))
    evicted = dataclasses.replace(LOG, outcome=Ended.EVICTED, reason=reason)
    assert outcome(evicted) == ("EvictedPreempted" if reason is Reason.PREEMPTED else "EvictedOther")


def test_state_shows_books_replicas_and_last_refusals(gate: Gate) -> None:
    gate.ask(max_tokens=TOO_MANY)
    gate.balanced()
    state = read(gate, "/admin/state").json
    assert state["policy"] == "token-pool"
    assert state["pool"]["capacity_slots"] == 16
    by_name = {one["name"]: one for one in state["entitlements"]}
    assert by_name["chat"]["state"] == "Bound"
    assert by_name["chat"]["limit_slots"] == 6
    assert state["replicas"][0]["ready"] is True
    refusal = state["refusals"][0]
    assert (refusal["reason"], refusal["entitlement"], refusal["http_status"]) == ("context_length", "chat", 400)
    assert refusal["needed"] > refusal["available"]
    assert all(len(gauge) == 4 for gauge in state["gauges"])
    assert ["entitlement", "chat", "in_flight", 0.0] in state["gauges"]


def test_refusals_do_not_pile_up(gate: Gate) -> None:
    for _ in range(60):
        gate.ask(max_tokens=TOO_MANY)
    gate.balanced()
    assert len(read(gate, "/admin/state").json["refusals"]) == 50


# --------------------------------------------------------------------------------------------------------------------
# Who may see them


@pytest.mark.parametrize("path", ["/metrics", "/admin/state"])
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}])
def test_beside_the_api_a_token_is_needed(gate: Gate, path: str, headers: dict[str, str]) -> None:
    answer = gate.ask(path=path, method="GET", key=None, headers=headers)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_clients_key_is_no_admin_token(gate: Gate) -> None:
    assert gate.ask(path="/metrics", method="GET", key="chat").status == 401
    sent = {"authorization": f"Bearer {secret('chat')}", "content-type": "application/json"}
    assert gate.ask({"slots": 1}, path="/admin/capacity", key=None, headers=sent).status == 401


def test_without_the_setting_there_are_no_pages(stand_in: StandIn) -> None:
    with gateway(stand_in) as plain:
        assert plain.ask(path="/metrics", method="GET").status == 404
        assert plain.ask(path="/", method="GET").status == 404


def test_on_an_address_of_their_own_they_are_not_beside_the_api(stand_in: StandIn) -> None:
    with gateway(stand_in, admin={"port": 0}) as gate:
        assert gate.ask(path="/metrics", method="GET").status == 404
        root = f"http://127.0.0.1:{gate.observability.port}"
        for path in ("/metrics", "/admin/state", "/healthz", "/readyz", "/"):
            with urllib.request.urlopen(root + path, timeout=5) as answer:
                assert answer.status == 200
        with pytest.raises(urllib.error.HTTPError, match="403"):  # a name of another site that leads here
            urllib.request.urlopen(urllib.request.Request(f"{root}/admin/state", headers={"host": "evil.test"}))
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{root}/v1/models", timeout=5)


@pytest.mark.parametrize(
    ("admin", "says"),
    [
        ({}, "anybody may see"),
        ({"port": 9090, "host": "0.0.0.0"}, "can be reached from outside"),
        ({"token_sha256": TOKEN}, "SHA-256"),
    ],
)
def test_settings_that_show_too_much_are_refused(stand_in: StandIn, admin: dict[str, Any], says: str) -> None:
    from live.gate import config

    with pytest.raises(ScenarioError, match=says):
        parse_config(config([stand_in], admin=admin), "test.yaml")


# --------------------------------------------------------------------------------------------------------------------
# The capacity that only the operator knows


def test_the_slots_of_the_pool_follow_the_operator(gate: Gate) -> None:
    def ask(body: Any, **headers: str) -> int:
        sent = {"authorization": f"Bearer {TOKEN}", **headers}
        return gate.ask(body, path="/admin/capacity", key=None, headers=sent).status

    assert ask({"slots": 8}) == 200
    assert read(gate, "/admin/state").json["pool"]["capacity_slots"] == 8
    assert ask({"slots": 1000}) == 200  # never more than there is
    assert read(gate, "/admin/state").json["pool"]["capacity_slots"] == 16
    assert ask({"slots": 0}) == 200
    assert read(gate, "/admin/state").json["pool"]["capacity_slots"] == 0
    assert ask({"slots": None}) == 200
    assert read(gate, "/admin/state").json["pool"]["capacity_slots"] == 16
    for wrong in (b"{", b"[]", {"slots": -1}, {"slots": True}, {"slots": "8"}, {}, b"[" * 4000):
        assert ask(wrong) == 400
    assert ask(b" " * 5000) == 413
    assert ask({"slots": 1}, **{"content-type": "text/plain"}) == 415  # what a form of another site could send
    assert read(gate, "/admin/state").json["pool"]["capacity_slots"] == 16


def test_token_throughput_shrinks_with_the_slots(stand_in: StandIn) -> None:
    pool = {"profile": {**PROFILE, "tokens_per_s": 240.0}}
    with gateway(stand_in, policy=POOL, pool=pool) as gate:
        gate.call(lambda: gate.service.upstreams.set_slots(4))
        capacity = gate.call(lambda: gate.service.gateway.core.pool.capacity)
        assert (capacity.slots, capacity.tokens_per_s, capacity.ready_replicas) == (4, 60.0, 1)


# --------------------------------------------------------------------------------------------------------------------
# The page


def test_the_page_asks_nobody_else_for_anything() -> None:
    text, policy = page()
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:,)""", text)
    assert not re.findall(r"https?://(?!www\.w3\.org/)", text)
    assert not re.findall(r"\sstyle=|\son[a-z]+=", text)  # the policy would forbid them
    assert "'unsafe" not in policy
    assert policy.startswith("default-src 'none'")


def test_the_page_is_marked_up_for_those_who_do_not_see_it() -> None:
    text, _ = page()
    assert '<html lang="en">' in text
    assert 'role="status"' in text
    assert "prefers-color-scheme: dark" in text
    assert 'for="token"' in text
    tables = re.findall(r'<table id="(\w+)" aria-labelledby="h-(\w+)" aria-describedby="n-(\w+)">', text)
    assert [one[0] for one in tables] == [
        "entitlements", "replicas", "budgets", "groups", "keys", "use", "shadows", "refusals"
    ]
    for one in tables:
        assert len(set(one)) == 1
        assert f'<h2 id="h-{one[0]}">' in text
        assert f'id="n-{one[0]}"' in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not here")
def test_a_browser_shows_what_the_state_says(stand_in: StandIn, tmp_path: Path) -> None:
    with gateway(stand_in, policy=POOL, admin={"port": 0}) as gate:
        gate.ask(max_tokens=TOO_MANY)
        gate.balanced()
        command = [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}",
            "--virtual-time-budget=3000", "--dump-dom", f"http://127.0.0.1:{gate.observability.port}/",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    text = re.sub(r"<[^>]+>", " ", done.stdout)
    assert "Serving." in text
    assert re.search(r"chat\s+guaranteed\s+Bound\s+0 of 6", text)
    assert "context_length" in text
    assert re.search(r'<th scope="row">chat</th>', done.stdout)


# --------------------------------------------------------------------------------------------------------------------
# Logs


def test_a_request_is_one_line_of_json_with_its_id_and_verdict() -> None:
    record = logging.LogRecord("tokenpools.requests", logging.INFO, "", 0, "%s", ("finished 200",), None)
    record.fields = as_fields(LOG)
    said = json.loads(JsonFormatter().format(record))
    assert (said["request_id"], said["verdict"], said["http_status"]) == ("req-1", "finished", 200)
    assert (said["waited_s"], said["ttft_s"], said["duration_s"]) == (0.25, 0.5, 1.0)
    assert said["level"] == "info"
    assert "needed" not in said


def test_a_refusal_is_logged_with_the_numbers_that_were_compared() -> None:
    refused = dataclasses.replace(
        LOG, outcome=Ended.REFUSED, reason=Reason.TOKENS, needed=12.0, available=5.0, http_status=429,
        retry_after_s=1.5, forwarded_s=NEVER_S, first_token_s=NEVER_S, counted_prompt_tokens=None,
    )  # fmt: skip
    said = as_fields(refused)
    assert (said["reason"], said["needed"], said["available"], said["retry_after_s"]) == ("tokens", 12.0, 5.0, 1.5)
    assert "ttft_s" not in said
    json.dumps(said, allow_nan=False)


@pytest.mark.parametrize(
    "text",
    [
        "authorization: Bearer sk-abcdef123456", "bearer tp-0123456789abcdef", "api_key=sk-abcdef123456",
        "'x-api-key': 'tp-0123456789abcdef'", "took sk-abcdef123456 for one",
    ],
)  # fmt: skip
@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter("%(message)s")])
def test_what_looks_like_a_key_is_blotted_out(text: str, formatter: logging.Formatter) -> None:
    line = formatter.format(logging.LogRecord("a", logging.ERROR, "", 0, "met %s", (text,), None))
    assert "123456" not in line
    assert "[removed]" in line
    assert blotted("nothing to hide here") == "nothing to hide here"


def test_logs_go_where_they_are_told() -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    try:
        set_up(style="json", level="warning", stream=stream)
        logging.getLogger("x").info("not this")
        logging.getLogger("x").warning("this")
        try:
            raise ValueError("Bearer sk-abcdef123456")
        except ValueError:
            logging.getLogger("x").exception("and this")
    finally:
        root.handlers[:], root.level = handlers, level
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["message"] for line in lines] == ["this", "and this"]
    assert "sk-abcdef" not in lines[1]["error"]


def test_every_request_is_logged_once_without_its_key(
    gate: Gate, stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="tokenpools.requests"):
        gate.ask(max_tokens=2)
        gate.ask(key="batch", stand_in=dataclasses.asdict(Behaviour(status=500)))
        gate.ask(key=None, headers={"authorization": "Bearer tp-nobody-knows-this"})
        gate.balanced()
    records = [one for one in caplog.records if one.name == "tokenpools.requests"]
    assert [one.fields["http_status"] for one in records] == [200, 500, 401]  # type: ignore[attr-defined]
    assert [one.levelname for one in records] == ["INFO", "WARNING", "INFO"]
    text = " ".join(JsonFormatter().format(one) for one in records)
    assert secret("chat") not in text
    assert "tp-nobody" not in text
