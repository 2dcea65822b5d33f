"""OpenTelemetry: spans and measurements by the conventions for generative AI, sent by OTLP."""

from __future__ import annotations

import dataclasses
import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")

from live.gate import gateway, secret
from live.observability.test_observability import LOG
from live.stand_in import running
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from policies.api import Reason
from sim.live.observability.observer import NEVER_S, Ended
from sim.live.observability.opentelemetry import Telemetry

NOW_NS = 1_800_000_000_000_000_000
REFUSED = dataclasses.replace(
    LOG, outcome=Ended.REFUSED, reason=Reason.TOKENS, http_status=429, needed=12.0, available=5.0, output_tokens=0,
    forwarded_s=NEVER_S, first_token_s=NEVER_S, counted_prompt_tokens=None, replica=None,
)  # fmt: skip


@pytest.fixture
def seen() -> Iterator[tuple[Telemetry, InMemorySpanExporter, InMemoryMetricReader]]:
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    traces, meters = TracerProvider(), MeterProvider([reader])
    traces.add_span_processor(SimpleSpanProcessor(spans))
    yield Telemetry(traces, meters, clock_ns=lambda: NOW_NS), spans, reader
    traces.shutdown()
    meters.shutdown()


def measured(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: list(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def test_an_answer_is_a_span_with_its_times_and_tokens(seen: Any) -> None:
    telemetry, spans, reader = seen
    telemetry.ended(LOG)  # from 1.0 to 2.0 s, sent on at 1.25, first token at 1.5
    (span,) = spans.get_finished_spans()
    assert (span.name, span.kind) == ("text_completion tiny", SpanKind.SERVER)
    assert span.end_time == NOW_NS
    assert span.end_time - span.start_time == 1_000_000_000
    times = {event.name: NOW_NS - event.timestamp for event in span.events}
    assert times == {"tokenpools.forwarded": 750_000_000, "tokenpools.first_token": 500_000_000}
    assert span.attributes["gen_ai.usage.input_tokens"] == 7
    assert span.attributes["gen_ai.usage.output_tokens"] == 4
    assert span.attributes["tokenpools.entitlement"] == "chat"
    assert span.status.status_code is StatusCode.UNSET
    found = measured(reader)
    assert found["gen_ai.server.request.duration"][0].sum == pytest.approx(1.0)
    assert found["gen_ai.server.time_to_first_token"][0].sum == pytest.approx(0.5)
    assert found["gen_ai.server.time_per_output_token"][0].sum == pytest.approx(0.5 / 3)
    usage = {point.attributes["gen_ai.token.type"]: point.sum for point in found["gen_ai.client.token.usage"]}
    assert usage == {"input": 7, "output": 4}


def test_a_refusal_is_an_error_with_the_numbers_compared(seen: Any) -> None:
    telemetry, spans, reader = seen
    telemetry.ended(REFUSED)
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "tokens"
    assert (span.attributes["tokenpools.needed"], span.attributes["tokenpools.available"]) == (12.0, 5.0)
    assert not span.events
    assert "gen_ai.server.time_to_first_token" not in measured(reader)


def test_measurements_are_told_apart_by_few_values(seen: Any) -> None:
    telemetry, _, reader = seen
    for number in range(20):
        telemetry.ended(dataclasses.replace(LOG, request_id=f"req-{number}", client_request_id=f"mine-{number}"))
    (point,) = measured(reader)["gen_ai.server.request.duration"]
    assert point.count == 20


def test_a_gateway_sends_them_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[tuple[str, bytes]] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        with running() as stand_in, gateway(stand_in, telemetry="otlp") as gate:
            assert gate.ask(max_tokens=2).status == 200
            gate.balanced()
        server.shutdown()
    assert {path for path, _ in got} == {"/v1/traces", "/v1/metrics"}
    traces = b"".join(body for path, body in got if path == "/v1/traces")
    assert b"text_completion tiny" in traces
    assert b"gen_ai.server.request.duration" in b"".join(body for _, body in got)
    assert not [body for _, body in got if secret("chat").encode() in body]
