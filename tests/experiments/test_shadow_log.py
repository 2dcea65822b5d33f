"""`tokenpools shadow --log`: what policies would have turned away of the requests of somebody's log."""

from __future__ import annotations

import json
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from sim.analysis.shadows import by_tenant
from sim.cli import app
from sim.errors import InputError, TokenpoolsError
from sim.experiments.shadow_log import shadow_log
from workloads.formats.read import layout_of, load

PROFILE = {
    "step_time": {"kind": "linear", "base_s": 0.006, "per_decode_sequence_s": 1.0e-4},
    "max_num_seqs": 16, "max_num_batched_tokens": 2048, "kv_blocks": 4000, "block_tokens": 16,
}  # fmt: skip
CONFIG = {
    "version": 1,
    "pool": {"profile": PROFILE, "entitlements": [
        {"name": "chat", "service_class": "guaranteed", "baseline": {"slots": 6}},
        {"name": "batch", "tenant": "other", "service_class": "spot"},
    ]},
    "policy": {"name": "tight", "kind": "rate-limit", "requests_per_min": 60, "burst_s": 1.0},
    "shadow": ["none"],
    "upstreams": [{"name": "a", "base_url": "http://127.0.0.1:1"}, {"name": "b", "base_url": "http://127.0.0.1:2"}],
    "keys": [{"name": "k", "entitlement": "chat", "sha256": "0" * 64}],
}  # fmt: skip


def written(folder: Path, content: Any = CONFIG) -> Path:
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def gateway_log(folder: Path) -> Path:
    """Return a log as `tokenpools serve` writes it: three of chat in a second, one of batch, one of nobody known."""
    path = folder / "gateway.jsonl"
    lines = []
    for second, tenant in ((0.0, "chat"), (0.3, "chat"), (0.6, "chat"), (1.0, "batch"), (2.0, "stranger")):
        lines.append({
            "time": f"2026-11-28T12:00:0{second:.3f}Z",
            "level": "info", "logger": "tokenpools.requests", "message": "finished 200",
            "verdict": "finished",
            "attempt": 1, "http_status": 200, "entitlement": tenant, "tenant": tenant, "prompt_tokens": 10,
            "counted_prompt_tokens": 10, "output_tokens": 5, "max_output_tokens": 8, "duration_s": 0.0, "model": "m",
        })  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_gateways_log_under_a_tight_limit(tmp_path: Path) -> None:
    found = shadow_log(written(tmp_path), gateway_log(tmp_path))
    assert found.requests == {"chat": 3, "batch": 1}
    assert found.left_out == {"stranger": 1}
    assert found.result.shadows is not None
    rows = {row["tenant"]: row for row in by_tenant(found.result.shadows)}
    assert (rows["chat"]["attempts"], rows["chat"]["only_shadow_refused"]) == (3, 2)
    assert (rows["other"]["attempts"], rows["other"]["only_shadow_refused"]) == (1, 0)


def test_the_command_names_reasons_and_whom_it_left_out(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["shadow", "--log", str(gateway_log(tmp_path)), str(written(tmp_path))])
    assert done.exit_code == 0, done.output
    assert "chat: would refuse 2 of 3" in done.output
    assert "tight would refuse chat for requests 2" in done.output
    assert "1 requests of stranger" in done.output
    named = CliRunner().invoke(app, [
        "shadow", "--log", str(gateway_log(tmp_path)), str(written(tmp_path)), "--name", "stranger=batch", "--csv",
    ])  # fmt: skip
    assert named.exit_code == 0
    assert "left out" not in named.output


def test_a_plain_trace_without_tenants_goes_to_the_only_entitlement(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    rows = [f"2023-11-16 18:15:{second:02}.6805900,374,44" for second in range(30)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")
    only = {**CONFIG, "pool": {**CONFIG["pool"], "entitlements": CONFIG["pool"]["entitlements"][:1]}}  # type: ignore[dict-item,index]
    found = shadow_log(written(tmp_path, only), trace)
    assert found.requests == {"*": 30}
    with pytest.raises(InputError, match="has an entitlement"):
        shadow_log(written(tmp_path), trace)


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"policy": "none"}, "none but none"), ({"pool": {"profile": PROFILE}}, "pool.entitlements")],
)
def test_what_watches_nothing_is_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(TokenpoolsError, match=said):
        shadow_log(written(tmp_path, {**CONFIG, **changed}), gateway_log(tmp_path))


def test_an_empty_log_is_one_line(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(TokenpoolsError):
        shadow_log(written(tmp_path), empty)
    with pytest.raises(InputError, match="no entitlement"):
        shadow_log(written(tmp_path), gateway_log(tmp_path), names={"chat": "nobody"})


# ------------------------------------------------------------------------ logs of others, as they are found on machines


def entry(form: str, at_s: float, tenant: str, **changed: Any) -> str:
    """Return a line of a log of each kind: a request of 10 tokens and an answer of 5, or one that was refused."""
    refused, model = bool(changed.get("refused")), changed.get("model", "m")
    zone = changed.get("zone", "Z")
    hours = {"Z": 0, "+00:00": 0, "+02:00": 2, "-05:30": -5.5}[zone]
    stamp = datetime.fromtimestamp(1_795_867_200 + at_s + hours * 3600, UTC)
    time = f"{stamp:%Y-%m-%dT%H:%M:%S}.{stamp.microsecond // 1000:03d}{zone}"
    if form == "gateway":
        return json.dumps({
            "time": time, "level": "info", "logger": "tokenpools.requests", "message": "m", "attempt": 1,
            "verdict": "refused" if refused else "finished", "http_status": 429 if refused else 200,
            "entitlement": tenant, "tenant": tenant, "prompt_tokens": 10, "output_tokens": 0 if refused else 5,
            "max_output_tokens": 8, "duration_s": 0.0, "model": model,
        })  # fmt: skip
    if form == "litellm":
        return json.dumps({
            "request_id": str(at_s), "startTime": time, "status": "failure" if refused else "success",
            "prompt_tokens": 0 if refused else 10, "completion_tokens": 0 if refused else 5, "team_id": tenant,
            "model": model, "cache_hit": "False", "metadata": {"error_information": {"error_code": "429"}},
        })  # fmt: skip
    if form == "envoy":
        return json.dumps({
            "start_time": time, "response_code": 429 if refused else 200, "input_tokens": 10,
            "output_tokens": 0 if refused else 5, "tenant": tenant, "model": model,
        })  # fmt: skip
    name = f"cmpl-{at_s}-{tenant}"
    stamp_text = f"{stamp:%m-%d %H:%M:%S}"
    lora = f"LoRARequest(lora_name='{tenant}', lora_int_id=1)"
    lines = [f"INFO {stamp_text} [logger.py:40] Received request {name}: prompt: '{'a' * 40}', "
             f"params: SamplingParams(n=1, max_tokens=8), lora_request: {lora}."]  # fmt: skip
    if not refused:
        lines.append(f"INFO {stamp_text} [logger.py:60] Generated response {name}: output: '{'b' * 20}', "
                     "output_token_ids: None, finish_reason: stop")  # fmt: skip
    return "\n".join(lines)


FORMS = ("gateway", "litellm", "envoy", "vllm")
BOTH = {**CONFIG, "pool": {"profile": PROFILE, "entitlements": [
    {"name": "chat", "service_class": "guaranteed", "baseline": {"slots": 6}},
    {"name": "batch", "service_class": "spot"},
]}}  # fmt: skip


def noted(folder: Path, text: str, *more: str, code: int = 0) -> tuple[str, str]:
    """Return what the command says of a log: its result, and what it says beside."""
    log = folder / "a.log"
    log.write_text(text)
    done = CliRunner().invoke(app, ["shadow", "--log", str(log), str(written(folder, BOTH)), *more])
    assert done.exit_code == code or isinstance(done.exception, TokenpoolsError), done.output
    return done.stdout, done.stderr if done.exception is None else str(done.exception)


@pytest.mark.parametrize("form", FORMS)
def test_every_kind_of_log_is_put_to_the_policies(tmp_path: Path, form: str) -> None:
    lines = [entry(form, second, "chat") for second in range(5)] + [entry(form, 6, "batch", model="never-heard-of")]
    said, beside = noted(tmp_path, "\n".join(lines) + "\n")
    assert "chat: would refuse" in said
    assert "of 5" in said  # an unknown model is a request like another: limits are the tenant's
    assert beside == ""


@pytest.mark.parametrize("form", FORMS)
def test_a_tenant_that_is_new_is_left_out_and_counted(tmp_path: Path, form: str) -> None:
    lines = [entry(form, 0, "chat"), entry(form, 1, "new-team"), entry(form, 2, "new-team"), entry(form, 3, "batch")]
    said, beside = noted(tmp_path, "\n".join(lines) + "\n")
    assert beside == "left out: 2 requests of new-team, who has no entitlement\n"
    assert "new-team" not in said
    only_new = "\n".join(entry(form, second, "new-team") for second in range(3))
    _, beside = noted(tmp_path, only_new)
    assert "none of its tenants (new-team) has an entitlement" in beside
    assert "--name TENANT=ENTITLEMENT" in beside


@pytest.mark.parametrize("form", FORMS)
def test_refused_lines_are_demand_whose_length_is_drawn(tmp_path: Path, form: str) -> None:
    lines = [entry(form, second, "chat", refused=second % 2) for second in range(6)]
    found = shadow_log(written(tmp_path, BOTH), write(tmp_path, lines))
    assert found.requests == {"chat": 6}
    assert found.unanswered == 3
    assert list(found.notes()) == ["drawn: lengths of 3 requests that have no answer in the log"]
    with pytest.raises(InputError, match="nothing tells how long they are"):
        shadow_log(written(tmp_path, BOTH), write(tmp_path, [entry(form, s, "chat", refused=True) for s in range(3)]))


def write(folder: Path, lines: list[str], end: str = "\n") -> Path:
    path = folder / "b.log"
    path.write_text("\n".join(lines) + end)
    return path


@pytest.mark.parametrize("form", ["gateway", "litellm", "envoy"])
def test_a_torn_last_line_is_counted_and_the_rest_is_read(tmp_path: Path, form: str) -> None:
    lines = [entry(form, second, "chat") for second in range(4)]
    lines.append(entry(form, 5, "chat")[:60])
    found = shadow_log(written(tmp_path, BOTH), write(tmp_path, lines, end=""))
    assert (found.requests, found.unread, found.first_unread) == ({"chat": 4}, 1, 5)
    assert list(found.notes()) == ["not read: 1 lines that are no whole entry, the first is line 5"]
    inspected = CliRunner().invoke(app, ["trace", "inspect", str(write(tmp_path, lines, end=""))])
    assert "1 lines are no whole entry, the first is line 5" in inspected.output


def test_a_torn_last_row_of_a_table_is_counted_too(tmp_path: Path) -> None:
    head = "request_id,startTime,prompt_tokens,completion_tokens,status,team_id"
    rows = [f"{n},2026-11-28T12:00:0{n}Z,10,5,success,chat" for n in range(4)]
    found = shadow_log(written(tmp_path, BOTH), write(tmp_path, [head, *rows, "5,2026-11-28T12:0"], end=""))
    assert (found.requests, found.unread, found.first_unread) == ({"chat": 4}, 1, 6)
    with pytest.raises(InputError, match="another number of columns"):
        shadow_log(written(tmp_path, BOTH), write(tmp_path, [head, rows[0], "5,2026-11-28T12:0", rows[1]]))


@pytest.mark.parametrize("form", ["gateway", "litellm", "envoy"])
def test_zones_are_mixed_and_lines_in_the_order_of_their_ends(tmp_path: Path, form: str) -> None:
    zones = ("Z", "+02:00", "-05:30", "+00:00")
    order = (3, 0, 7, 1, 2, 6, 4, 5)
    lines = [entry(form, second, "chat", zone=zones[second % 4]) for second in order]
    found = shadow_log(written(tmp_path, BOTH), write(tmp_path, lines))
    plain = shadow_log(written(tmp_path, BOTH), write(tmp_path, [entry(form, second, "chat") for second in range(8)]))
    assert found.result.shadows is not None
    assert plain.result.shadows is not None
    assert found.result.shadows.equals(plain.result.shadows)
    assert found.requests == {"chat": 8}


@pytest.mark.parametrize("text", ["", "\n \n", "nothing of a request\n", '{"a": 1}\n', "[]", "\x00" * 50])
def test_what_is_no_log_is_one_line(tmp_path: Path, text: str) -> None:
    _, beside = noted(tmp_path, text)
    assert "a.log" in beside
    assert "\n" not in beside.strip()


@pytest.mark.parametrize("form", FORMS)
def test_a_log_of_twice_the_length_takes_twice_the_memory(tmp_path: Path, form: str) -> None:
    def peak(count: int) -> int:
        log = write(tmp_path, [entry(form, n / 50, ("chat", "batch")[n % 2]) for n in range(count)])
        tracemalloc.start()
        try:
            load(log, layout_of(log))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(50)  # imports
    small, large = peak(1000), peak(4000)
    assert large < 5 * small


def test_names_of_a_log_do_nothing_to_a_terminal(tmp_path: Path) -> None:
    lines = [entry("gateway", 0, "chat"), entry("gateway", 1, "\x1b[31mred\n"), entry("gateway", 2, "\ud800half")]
    said, beside = noted(tmp_path, "\n".join(lines))
    assert "\x1b" not in said + beside
    assert "'\\x1b[31mred\\n'" in beside
    assert "\\ud800half" in beside
    inspected = CliRunner().invoke(app, ["trace", "inspect", str(tmp_path / "a.log")])
    assert inspected.exit_code == 0
    assert "\x1b" not in inspected.output
