"""A real Prometheus over a real gateway: it scrapes as deploy/ says, panels show something, alerts see a death."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from live.gate import ENTITLEMENTS, free_port, secret
from live.shared_state.redis_server import BINARY as REDIS
from live.shared_state.redis_server import RedisServer
from live.shared_state.test_serve_state import Serve
from live.stand_in import StandIn, running

from sim.live.gateway.authentication import hashed

PROMETHEUS = shutil.which("prometheus")
DEPLOY = Path(__file__).parents[2] / "deploy"
TOKEN = "a-token-that-only-prometheus-has"
POOL = {"groups": [{"name": "acme", "budgets": [{"per": "day", "limit": 100_000}]}]}
PANELS = json.loads((DEPLOY / "grafana" / "tokenpools-gateway.json").read_text())["panels"]
MEMBERS = [{**one, **({"parent": "acme"} if one["name"] == "chat" else {})} for one in ENTITLEMENTS]
EMPTY = ("tokenpools_admission_threshold", "tokenpools_shadow_attempts_total")
"""Of a pool with nobody in flight; and shadows are not for gateways that share their state."""

pytestmark = [
    pytest.mark.xdist_group("a prometheus"),
    pytest.mark.skipif(PROMETHEUS is None, reason="needs prometheus (Debian's package of that name)"),
    pytest.mark.skipif(REDIS is None, reason="needs redis-server"),
]


class Watched:
    """A gateway with everything that has metrics, and a Prometheus that looks at it every half second."""

    def __init__(self, folder: Path, stand_in: StandIn, redis: RedisServer) -> None:
        self.redis, self.stand_in = redis, stand_in
        self.admin, self.port = free_port(), free_port()
        self.gateway = Serve(
            folder, "gateway", stand_in, redis.url, entitlements=MEMBERS, pool=POOL,
            accounts={"store": redis.url},
            admin={"port": self.admin, "token_sha256": hashed(TOKEN).hex()},
        )  # fmt: skip
        (folder / "token").write_text(TOKEN)
        given = yaml.safe_load((DEPLOY / "observe" / "prometheus.yaml").read_text())
        given["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
        given["rule_files"] = [str(DEPLOY / "observe" / "alerts.yaml")]
        (job,) = given["scrape_configs"]
        job["authorization"]["credentials_file"] = str(folder / "token")
        del job["dns_sd_configs"], job["scheme"], job["tls_config"]  # loopback is shown in plain
        job["static_configs"] = [{"targets": [f"127.0.0.1:{self.admin}"]}]
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(given))
        self.log = (folder / "prometheus.log").open("wb")
        self.prometheus = subprocess.Popen(
            [str(PROMETHEUS), f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'tsdb'}",
             f"--web.listen-address=127.0.0.1:{self.port}"],
            stdout=self.log, stderr=self.log,
        )  # fmt: skip

    def api(self, path: str, **asked: str) -> Any:
        """Return the data of an answer of Prometheus's API."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(asked)}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.loads(answer.read())["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{asked}: {error.read().decode()}") from None

    def value(self, expression: str) -> list[Any]:
        """Return what an expression gives now."""
        found: list[Any] = self.api("query", query=expression)["result"]
        return found

    def until(self, expression: str, within_s: float = 20.0) -> list[Any]:
        """Wait until an expression gives something."""
        deadline_s = time.monotonic() + within_s
        while True:
            try:
                if found := self.value(expression):
                    return found
            except (OSError, urllib.error.URLError):
                pass
            assert time.monotonic() < deadline_s, expression
            time.sleep(0.1)

    def stop(self) -> None:
        self.gateway.stop()
        self.prometheus.terminate()
        self.prometheus.wait(20)
        self.log.close()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    redis = RedisServer(folder).start()
    with running() as stand_in:
        one = Watched(folder, stand_in, redis)
        try:
            one.gateway.until_ready()
            one.until('up{job="tokenpools"} == 1')
            for _ in range(4):  # rates want two scrapes with something between them
                for key in ("chat", "batch", "chat-spot"):
                    assert one.gateway.ask(key, 4)[0] in (200, 503)  # the second where Redis was late
                assert one.gateway.ask("chat", 10**6)[0] == 400
                assert one.gateway.ask("chat", 4, stand_in={"status": 500})[0] >= 500  # its objective is missed
                one.gateway.ask("chat", 4, stream=False)
                stream(one.gateway, "chat")
                time.sleep(0.6)
            yield one
        finally:
            one.stop()
            redis.kill()


def stream(gateway: Serve, key: str) -> None:
    body = json.dumps({"model": "tiny", "prompt": "a b", "max_tokens": 4, "stream": True}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{gateway.port}/v1/completions", body,
        {"authorization": f"Bearer {secret(key)}", "content-type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.read()


def test_every_panel_has_something_to_show(watched: Watched) -> None:
    watched.until("sum(rate(tokenpools_requests_total[5s])) > 0")
    empty = []
    for panel in PANELS:
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "5s").replace("$entitlement", ".*")
            assert "$" not in expression
            if not watched.value(expression):
                empty.append(expression)
    assert [one for one in empty if not any(name in one for name in EMPTY)] == []


def test_every_rule_is_evaluated_and_tenants_have_their_own_times(watched: Watched) -> None:
    (group,) = watched.api("rules")["groups"]
    deadline_s = time.monotonic() + 20
    while any(rule["health"] == "unknown" for rule in group["rules"]):
        assert time.monotonic() < deadline_s
        time.sleep(0.2)
        (group,) = watched.api("rules")["groups"]
    assert {rule["name"]: rule.get("lastError", "") for rule in group["rules"] if rule["health"] != "ok"} == {}
    found = watched.value("sum by (tenant) (tokenpools_time_to_first_token_seconds_count)")
    assert {one["metric"]["tenant"]: float(one["value"][1]) > 0 for one in found} == {"acme": True}


def test_alerts_see_an_upstream_and_a_redis_die(watched: Watched) -> None:
    for alert in ("TokenpoolsUpstreamDown", "TokenpoolsRedisAway", "TokenpoolsGatewayDown"):
        watched.until(f'absent(ALERTS{{alertname="{alert}"}})')  # on a busy machine one may be away for a moment
    watched.stand_in.healthy = False
    watched.redis.kill()
    for alert in ("TokenpoolsUpstreamDown", "TokenpoolsNoUpstream", "TokenpoolsRedisAway"):
        (found,) = watched.until(f'ALERTS{{alertname="{alert}"}}')
        assert found["metric"]["alertstate"] in ("pending", "firing")
    watched.gateway.stop()
    watched.until('ALERTS{alertname="TokenpoolsGatewayDown"}')
