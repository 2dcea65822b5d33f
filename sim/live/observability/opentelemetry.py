"""Traces and metrics for OpenTelemetry, by its conventions for generative AI. Needs the extra ``otel``.

Where they go is said by OpenTelemetry's own variables (``OTEL_EXPORTER_OTLP_ENDPOINT`` and so on). The conventions have
no attribute for a tenant, so those of the gateway's own are named ``tokenpools.*``. No key, prompt or answer is in any.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.util.types import AttributeValue

from sim.live.observability.observer import Ended, RequestLog

_OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion", "/v1/embeddings": "embeddings"}
_DURATIONS = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]
_FIRST_TOKENS = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0]
_PER_TOKEN = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5]
_TOKENS = [1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864]


class Telemetry:
    """An observer that hands each attempt on as a span and as measurements.

    Parameters
    ----------
    clock_ns : the wall clock, in nanoseconds since 1970; an attempt has just ended when it is heard of.
    """

    def __init__(
        self, traces: TracerProvider, meters: MeterProvider, *, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._clock_ns = clock_ns
        self._tracer = traces.get_tracer("tokenpools")
        meter = meters.get_meter("tokenpools")

        def histogram(name: str, unit: str, text: str, buckets: list[float]) -> Callable[..., None]:
            made = meter.create_histogram(name, unit, text, explicit_bucket_boundaries_advisory=buckets)
            return made.record

        self._duration = histogram("gen_ai.server.request.duration", "s", "Time to the last token.", _DURATIONS)
        self._first_token = histogram("gen_ai.server.time_to_first_token", "s", "Time to the first.", _FIRST_TOKENS)
        self._per_token = histogram("gen_ai.server.time_per_output_token", "s", "Time of each further.", _PER_TOKEN)
        self._tokens = histogram("gen_ai.client.token.usage", "{token}", "Tokens used.", [float(n) for n in _TOKENS])

    def ended(self, log: RequestLog) -> None:
        """See `sim.live.observability.observer.Observer`."""
        common = attributes(log)
        self._span(log, common)
        self._duration(log.finish_s - log.arrival_s, common)
        if log.first_token_s == log.first_token_s:
            self._first_token(log.first_token_s - log.arrival_s, common)
            if log.output_tokens > 1:
                self._per_token((log.finish_s - log.first_token_s) / (log.output_tokens - 1), common)
        if log.output_tokens:
            prompt_tokens = log.counted_prompt_tokens or log.prompt_tokens
            for kind, count in (("input", prompt_tokens), ("output", log.output_tokens)):
                self._tokens(count, {**common, "gen_ai.token.type": kind})

    def _span(self, log: RequestLog, common: dict[str, AttributeValue]) -> None:
        ended_ns = self._clock_ns()

        def at_ns(core_s: float) -> int:
            return ended_ns - int(1e9 * (log.finish_s - core_s))

        of_this: dict[str, AttributeValue] = {
            "gen_ai.usage.input_tokens": log.counted_prompt_tokens or log.prompt_tokens,
            "gen_ai.usage.output_tokens": log.output_tokens,
            "http.response.status_code": log.http_status,
            "tokenpools.request_id": log.request_id,
            "tokenpools.key_name": log.key_name,
            "tokenpools.attempt": log.attempt,
        }
        if log.max_output_tokens is not None:
            of_this["gen_ai.request.max_tokens"] = log.max_output_tokens
        if log.replica is not None:
            of_this["tokenpools.replica"] = log.replica
        if log.outcome in (Ended.REFUSED, Ended.EVICTED):
            of_this |= {"tokenpools.needed": log.needed, "tokenpools.available": log.available}
        name = f"{operation(log)} {log.model}".rstrip()
        span = self._tracer.start_span(
            name, kind=SpanKind.SERVER, start_time=at_ns(log.arrival_s), attributes={**common, **of_this}
        )
        for what, core_s in (("forwarded", log.forwarded_s), ("first_token", log.first_token_s)):
            if core_s == core_s:
                span.add_event(f"tokenpools.{what}", timestamp=at_ns(core_s))
        if log.outcome is not Ended.FINISHED:
            span.set_status(Status(StatusCode.ERROR, str(log.outcome)))
        span.end(ended_ns)


def operation(log: RequestLog) -> str:
    """Return what was asked for, as the conventions call it."""
    return _OPERATIONS.get(log.endpoint, "other")


def attributes(log: RequestLog) -> dict[str, AttributeValue]:
    """Return what measurements are told apart by: few values each."""
    found: dict[str, AttributeValue] = {
        "gen_ai.operation.name": operation(log),
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": log.model,
        "tokenpools.tenant": log.tenant,
        "tokenpools.entitlement": log.entitlement,
        "tokenpools.outcome": str(log.outcome),
    }
    if log.outcome is not Ended.FINISHED:
        found["error.type"] = str(log.reason) if log.reason is not None else log.error or str(log.outcome)
    return found


def exported() -> tuple[Telemetry, Callable[[], None]]:
    """Return an observer whose spans and measurements are sent by OTLP over HTTP, and what sends the last of them."""
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider as SdkMeters
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider as SdkTraces
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": "tokenpools-gateway"})
    traces = SdkTraces(resource=resource)
    traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    meters = SdkMeters([PeriodicExportingMetricReader(OTLPMetricExporter())], resource=resource)

    def close() -> None:
        traces.shutdown()
        meters.shutdown()

    return Telemetry(traces, meters), close
