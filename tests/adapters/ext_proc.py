"""Envoy's side of ext_proc, for tests: the messages that it sends in each mode, and what it makes of the answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sim.adapters.envoy.protos.base_pb2 import HeaderMap, HeaderValue
from sim.adapters.envoy.protos.external_processor_pb2 import (
    HttpBody,
    HttpHeaders,
    HttpTrailers,
    ProcessingRequest,
    ProcessingResponse,
    ProtocolConfiguration,
)
from sim.adapters.envoy.protos.processing_mode_pb2 import ProcessingMode

NONE, STREAMED, BUFFERED, DUPLEX = (
    ProcessingMode.NONE, ProcessingMode.STREAMED, ProcessingMode.BUFFERED, ProcessingMode.FULL_DUPLEX_STREAMED,
)  # fmt: skip
ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "one two three"}], "max_tokens": 5}
USAGE = {"prompt_tokens": 7, "completion_tokens": 3}


def _map(headers: Mapping[str, str]) -> HeaderMap:
    return HeaderMap(headers=[HeaderValue(key=name, raw_value=value.encode()) for name, value in headers.items()])


def request_headers(
    tenant: str | None = "acme", path: str = "/v1/chat/completions", *, mode: Any = DUPLEX, answers: Any = None,
    end: bool = False, method: str = "POST", subset: str | None = None, **more: str,
) -> ProcessingRequest:
    headers = {":method": method, ":path": path, ":authority": "pool"} | more
    if tenant is not None:
        headers["x-tenant"] = tenant
    message = ProcessingRequest(
        request_headers=HttpHeaders(headers=_map(headers), end_of_stream=end),
        protocol_config=ProtocolConfiguration(
            request_body_mode=mode, response_body_mode=mode if answers is None else answers
        ),
    )
    if subset is not None:
        fields = message.metadata_context.filter_metadata["envoy.lb.subset_hint"].fields
        fields["x-gateway-destination-endpoint-subset"].string_value = subset
    return message


def request_body(body: Any = None, *, end: bool = True) -> ProcessingRequest:
    data = body if isinstance(body, bytes) else json.dumps(ASK if body is None else body).encode()
    return ProcessingRequest(request_body=HttpBody(body=data, end_of_stream=end))


def response_headers(status: int = 200, kind: str = "application/json", *, end: bool = False) -> ProcessingRequest:
    headers = {":status": str(status), "content-type": kind}
    return ProcessingRequest(response_headers=HttpHeaders(headers=_map(headers), end_of_stream=end))


def response_body(body: Any, *, end: bool) -> ProcessingRequest:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ProcessingRequest(response_body=HttpBody(body=data, end_of_stream=end))


def response_trailers() -> ProcessingRequest:
    return ProcessingRequest(response_trailers=HttpTrailers())


def event(text: str | None, **more: Any) -> bytes:
    """One event of a chat's stream; without a text the one that has the usage."""
    choices = [] if text is None else [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    return b"data: " + json.dumps({"choices": choices} | more).encode() + b"\n\n"


LAST = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


def streamed_exchange(mode: Any, tenant: str = "acme", *, usage: bool = True) -> list[ProcessingRequest]:
    """All messages of an exchange whose answer is a stream of three tokens."""
    body = json.dumps(ASK | {"stream": True}).encode()
    told = event(None, usage=USAGE) if usage else b""
    return [
        request_headers(tenant, mode=mode), request_body(body[:20], end=False), request_body(body[20:]),
        response_headers(kind="text/event-stream"), response_body(event("a") + event("b")[:9], end=False),
        response_body(event("b")[9:] + event("c"), end=False), response_body(LAST + told + DONE, end=True),
    ]  # fmt: skip


@dataclass(slots=True)
class Seen:
    """What upstream and client get, as Envoy puts the processor's answers into effect."""

    upstream: bytes = b""
    client: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    response_headers: dict[str, str] = field(default_factory=dict)
    status: int = 0
    body: Any = None
    metadata: str = ""
    asked_for_time: bool = False


def take(answers: Iterable[ProcessingResponse], seen: Seen, message: ProcessingRequest | None = None) -> Seen:
    """Put answers to a message into effect."""
    for answer in answers:
        kind = answer.WhichOneof("response")
        if answer.HasField("override_message_timeout"):
            seen.asked_for_time = True
        if "envoy.lb" in answer.dynamic_metadata.fields:
            picked = answer.dynamic_metadata.fields["envoy.lb"].struct_value
            seen.metadata = picked.fields["x-gateway-destination-endpoint"].string_value
        if kind == "immediate_response":
            seen.status = int(answer.immediate_response.status.code)
            seen.body = json.loads(answer.immediate_response.body)
            seen.response_headers |= _values(answer.immediate_response.headers)
        elif kind in ("request_headers", "response_headers"):
            change = getattr(answer, kind).response.header_mutation
            (seen.headers if kind == "request_headers" else seen.response_headers).update(_values(change))
            seen.removed += change.remove_headers
        elif kind in ("request_body", "response_body"):
            common = getattr(answer, kind).response
            seen.headers |= _values(common.header_mutation)
            change = common.body_mutation
            if change.WhichOneof("mutation") == "streamed_response":
                data = change.streamed_response.body
            elif change.WhichOneof("mutation") is None:
                assert message is not None
                data = getattr(message, kind).body
            else:
                data = change.body
            if kind == "request_body":
                seen.upstream += data
            else:
                seen.client += data
    return seen


def _values(change: Any) -> dict[str, str]:
    return {one.header.key: one.header.raw_value.decode() for one in change.set_headers}
