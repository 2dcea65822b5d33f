"""The real Envoy with the processor beside it, for tests; `make envoy` sets TOKENPOOLS_ENVOY to the program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import yaml
from live.gate import free_port

from adapters.pools import config, parity

ENVOY = os.environ.get("TOKENPOOLS_ENVOY", "")
MARKS = [
    pytest.mark.skipif(not ENVOY, reason="make envoy sets TOKENPOOLS_ENVOY"), pytest.mark.xdist_group("envoy"),
]  # fmt: skip
ROOT = Path(__file__).parents[2]
LONG_S = 60.0
ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "one two three"}], "max_tokens": 5}


def behaves(**how: Any) -> dict[str, Any]:
    """Return what the openai SDK takes to ask a stand-in that behaves so."""
    return {**ASK, "extra_body": {"stand_in": how}}


@dataclass(slots=True)
class Proxy:
    """Envoy and the processor beside it."""

    port: int
    mode: str
    folder: Path
    listen: int
    processor: subprocess.Popen[bytes] = field(default=None)  # type: ignore[assignment]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def recording(self) -> Path:
        return self.folder / "events.jsonl"

    def client(self, tenant: str, **more: Any) -> openai.OpenAI:
        given = {"max_retries": 0, "timeout": 60, **more}
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", default_headers={"x-tenant": tenant}, **given)

    def rows(self) -> list[Any]:
        """What the core was told and what it said, ticks left out."""
        lines = self.recording.read_text().splitlines()[1:] if self.recording.exists() else []
        return [row for row in map(json.loads, lines) if row[1][0] != "tick"]

    def events(self) -> list[Any]:
        """What the core was told, ticks left out."""
        return [event for _, event, _ in self.rows()]

    def since(self, count: int, ends: int = 1) -> list[Any]:
        """Return the events after so many, once that many requests have ended."""
        self.wait_for(lambda: ends_in(self.events()[count:]) >= ends)
        return self.events()[count:]

    def wait_for(self, says: Callable[[], object]) -> None:
        """Wait until something is so."""
        deadline_s = time.monotonic() + LONG_S
        while not says():
            assert time.monotonic() < deadline_s, (self.folder / "envoy.log").read_text(errors="replace")[-3000:]
            time.sleep(0.05)

    def start_processor(self, *, answers: bool = True) -> None:
        """Start it, again or for the first time, and wait until Envoy asks it."""
        command = [sys.executable, "-m", "tokenpools", "ext-proc", str(self.folder / "ext-proc.yaml")]
        with (self.folder / "processor.log").open("ab") as log:
            self.processor = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
        if answers:
            self.wait_for(lambda: self.status("/nothing") == 404)

    def status(self, path: str, tenant: str = "acme") -> int:
        """Return what a path is answered with: of one that nobody has 404 is the processor's word."""
        try:
            return httpx2.get(f"{self.url}{path}", headers={"x-tenant": tenant}, timeout=LONG_S).status_code
        except httpx2.HTTPError:
            return 0

    def stop_processor(self) -> None:
        """Stop it as a deployment does, and check that all that it was told of has ended, and its verdicts."""
        self.processor.terminate()
        assert self.processor.wait(LONG_S) == 0
        assert self.unended() == 0, "what was in flight is settled"
        found = parity(self.recording)
        print(f"{self.mode}: {found.words}")  # noqa: T201  (the log of make envoy shows how many)

    def unended(self) -> int:
        """How many requests the core was told of and no end: of what is recorded so far."""
        rows = self.rows()
        told = sum(event[0] == "arrived" for _, event, _ in rows)
        said = sum(one[0] in ("refuse", "evict") for _, _, all_said in rows for one in all_said)
        return told - said - ends_in([event for _, event, _ in rows])


def ends_in(events: list[Any]) -> int:
    """How many requests ended by themselves."""
    return sum(event[0] in ("finished", "failed", "cancelled") for event in events)


@contextmanager
def proxy(
    folder: Path, mode: str, upstream_port: int, *, change: Callable[[Any], None] = lambda _: None,
    answers: bool = True, **gate: Any,
) -> Iterator[Proxy]:
    """Run both; ``change`` may alter Envoy's configuration."""
    picks = mode != "STREAMED"
    made = Proxy(free_port(), mode, folder, free_port())
    given = config(
        gate.pop("policy", "token-pool"), listen=f"127.0.0.1:{made.listen}", tenant_header="x-tenant", drain_s=0.1,
        recording=str(made.recording), destinations=[f"127.0.0.1:{upstream_port}"] if picks else [], **gate,
    )  # fmt: skip
    (folder / "ext-proc.yaml").write_text(yaml.safe_dump(given | {"check_invariants": {"every_events": 1}}))
    envoys = envoy_config(made, upstream_port)
    change(envoys)
    (folder / "envoy.yaml").write_text(yaml.safe_dump(envoys))
    command = [ENVOY, "-c", str(folder / "envoy.yaml"), "--concurrency", "1", "--disable-hot-restart", "-l", "warning"]
    with (folder / "envoy.log").open("wb") as log:
        envoy = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        made.start_processor(answers=answers)
        yield made
    finally:
        for process in (envoy, made.processor):
            if process is not None:
                process.terminate()
                process.wait(LONG_S)
    said = (folder / "processor.log").read_text(errors="replace")
    assert "invariant" not in said
    assert "Traceback" not in said, said[-3000:]


def filter_of(envoys: Any) -> Any:
    """Return the filter ext_proc of a configuration."""
    (listener,) = envoys["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return manager["http_filters"][0]["typed_config"]


def envoy_config(proxy: Proxy, upstream_port: int) -> Any:
    """Return deploy/envoy/envoy.yaml with other ports, another mode, and one upstream."""
    given = yaml.safe_load((ROOT / "deploy/envoy/envoy.yaml").read_text())
    resources = given["static_resources"]
    clusters = {one["name"]: one for one in resources["clusters"]}
    (listener,) = resources["listeners"]
    listener["address"]["socket_address"]["port_value"] = proxy.port
    modes = filter_of(given)["processing_mode"]
    modes["request_body_mode"] = modes["response_body_mode"] = proxy.mode
    if proxy.mode != "FULL_DUPLEX_STREAMED":
        modes["request_trailer_mode"] = modes["response_trailer_mode"] = "SKIP"
    if proxy.mode == "BUFFERED":  # a stream must not wait for its end
        modes["response_body_mode"] = "STREAMED"
    _only(clusters["tokenpools"], proxy.listen)
    _only(clusters["unmetered"], upstream_port)
    clusters["tokenpools"]["health_checks"][0] |= {"interval": "0.2s", "no_traffic_interval": "0.2s"}
    return given


def _only(cluster: Any, port: int) -> None:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    (endpoints,) = cluster["load_assignment"]["endpoints"]
    endpoints["lb_endpoints"] = [{"endpoint": {"address": address}}]
