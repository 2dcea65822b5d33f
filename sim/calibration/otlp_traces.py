"""vLLM's traces (``--otlp-traces-endpoint``) as OTLP JSON, which the OpenTelemetry collector's file exporter writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from sim.calibration.checked_tables import marked
from sim.errors import InputError

Json = dict[str, Any]
_E2E = "gen_ai.latency.e2e"
_TTFT = "gen_ai.latency.time_to_first_token"
_IN_QUEUE, _PREFILL = "gen_ai.latency.time_in_queue", "gen_ai.latency.time_in_model_prefill"
_PLACES = ("host.name", "k8s.pod.name", "service.instance.id", "vllm.process_id")
"""What a resource says of the process that it is, the first that is there."""


def otlp(file: Path, documents: list[Json]) -> pd.DataFrame:
    """Return a row for each span of a request; its start is the arrival at the server."""
    rows, places = [], set()
    for document in documents:
        for resource in document["resourceSpans"]:
            found = [row for span in _spans(resource) if (row := _row(file, span)) is not None]
            rows += found
            if found:
                about = _attributes(resource.get("resource") or {})
                places.add(str(next((about[name] for name in _PLACES if name in about), "")))
    if not rows:
        fix = "give the spans of vLLM's --otlp-traces-endpoint, as JSON"
        raise InputError(str(file), f"holds no span of a request ({_E2E})", fix)
    table = pd.DataFrame(rows)
    again = table.duplicated("span_id") & (table.span_id != "")  # an exporter that was not answered sends once more
    notes = [f"{int(again.sum())} spans stand there twice, and count once"] if again.any() else []
    if len(places) > 1:
        notes.append(f"spans of {len(places)} processes or machines, simulated as one engine: give those of one engine")
    return marked(table[~again].drop(columns="span_id").reset_index(drop=True), "OTLP", notes)


def _spans(resource: Json) -> Iterator[Json]:
    for scope in resource.get("scopeSpans") or []:
        yield from scope.get("spans") or []


def _attributes(holder: Json) -> Json:
    found = [(each["key"], each.get("value") or {}) for each in holder.get("attributes") or []]
    return {key: next(iter(value.values())) for key, value in found if value}


def _row(file: Path, span: Json) -> Json | None:
    """Return the row of a vLLM request's span; None for any other span."""
    at = _attributes(span)
    if _E2E not in at:
        return None
    start_s = int(span["startTimeUnixNano"]) / 1e9
    e2e_s, ttft_s = float(at[_E2E]), float(at.get(_TTFT, "nan"))
    lasted_s = int(span["endTimeUnixNano"]) / 1e9 - start_s
    if lasted_s < 0 or (lasted_s and abs(lasted_s - e2e_s) > max(1.0, e2e_s)):
        problem = f"has clock skew: a span of {lasted_s:.3f} s reports a request of {e2e_s:.3f} s"
        raise InputError(str(file), problem, "collect the traces of one machine, or of machines whose clocks agree")
    row: Json = {
        "arrival_s": start_s,
        "prompt_tokens": int(at["gen_ai.usage.prompt_tokens"]),
        "output_tokens": int(at["gen_ai.usage.completion_tokens"]),
        "first_token_s": start_s + ttft_s,
        "finish_s": start_s + e2e_s,
        "span_id": f"{span.get('traceId', '')}{span.get('spanId', '')}",
    }
    if _IN_QUEUE in at and _PREFILL in at:  # the engine's own clock, between its queue and its first token
        row["queued_s"] = max(start_s, start_s + ttft_s - float(at[_IN_QUEUE]) - float(at[_PREFILL]))
    return row
