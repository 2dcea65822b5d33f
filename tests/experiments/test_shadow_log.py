"""`tokenpools shadow --log`: what policies would have turned away of the requests of somebody's log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from sim.analysis.shadows import by_tenant
from sim.cli import app
from sim.errors import InputError, TokenpoolsError
from sim.experiments.shadow_log import shadow_log

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
