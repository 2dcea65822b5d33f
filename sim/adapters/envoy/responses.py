"""What the processor says to Envoy, as the messages of ``envoy.service.ext_proc.v3``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sim.adapters.envoy.protos.base_pb2 import HeaderValue, HeaderValueOption
from sim.adapters.envoy.protos.external_processor_pb2 import (
    BodyMutation,
    BodyResponse,
    CommonResponse,
    HeaderMutation,
    HeadersResponse,
    HttpHeaders,
    ImmediateResponse,
    ProcessingResponse,
    StreamedBodyResponse,
    TrailersResponse,
)
from sim.adapters.envoy.protos.http_status_pb2 import HttpStatus

DESTINATION = "x-gateway-destination-endpoint"
"""The header, and key of dynamic metadata, by which a picker says where a request goes (GIE, proposal 004)."""
SUBSET = "x-gateway-destination-endpoint-subset"
SUBSET_NAMESPACE = "envoy.lb.subset_hint"
PICKED_NAMESPACE = "envoy.lb"

Headers = Iterable[tuple[str, bytes]]
_OVERWRITE = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
_PASS = CommonResponse()
REQUEST_TRAILERS = ProcessingResponse(request_trailers=TrailersResponse())
RESPONSE_TRAILERS = ProcessingResponse(response_trailers=TrailersResponse())


def headers_of(message: HttpHeaders) -> dict[str, bytes]:
    """Return headers by name; of those that come more than once, all of them, joined as HTTP has it."""
    found: dict[str, bytes] = {}
    for one in message.headers.headers:
        value = one.raw_value or one.value.encode()
        found[one.key] = b", ".join((found[one.key], value)) if one.key in found else value
    return found


def mutation(settled: Headers = (), removed: Iterable[str] = ()) -> HeaderMutation:
    """Return headers to set, in place of any that are there, and to remove."""
    return HeaderMutation(
        set_headers=[
            HeaderValueOption(header=HeaderValue(key=name, raw_value=value), append_action=_OVERWRITE)
            for name, value in settled
        ],
        remove_headers=list(removed),
    )


def request_headers(change: HeaderMutation | None = None, *, clear_route: bool = False) -> ProcessingResponse:
    """Return the answer to a request's headers."""
    return ProcessingResponse(request_headers=HeadersResponse(response=_common(change, clear_route)))


def response_headers(change: HeaderMutation | None = None) -> ProcessingResponse:
    """Return the answer to a response's headers."""
    return ProcessingResponse(response_headers=HeadersResponse(response=_common(change, False)))


def request_body(
    body: bytes | None, change: HeaderMutation | None = None, *, clear_route: bool = False
) -> ProcessingResponse:
    """Return the answer to a piece of a request's body: what stands in its place, or None for the piece itself."""
    common = _common(change, clear_route) if body is None else _replaced(body)
    if body is not None and change is not None:
        common.header_mutation.CopyFrom(change)
        common.clear_route_cache = clear_route
    return ProcessingResponse(request_body=BodyResponse(response=common))


def response_body(body: bytes | None) -> ProcessingResponse:
    """Return the answer to a piece of a response's body: what stands in its place, or None for the piece itself."""
    return ProcessingResponse(response_body=BodyResponse(response=_PASS if body is None else _replaced(body)))


def streamed(body: bytes, *, end: bool, of_request: bool) -> ProcessingResponse:
    """Return a piece of a body in full duplex, where what is not said is not sent on."""
    piece = BodyMutation(streamed_response=StreamedBodyResponse(body=body, end_of_stream=end))
    answer = BodyResponse(response=CommonResponse(body_mutation=piece))
    return ProcessingResponse(request_body=answer) if of_request else ProcessingResponse(response_body=answer)


def immediate(status: int, headers: Mapping[str, str], body: bytes, details: str) -> ProcessingResponse:
    """Return an answer in place of the upstream's."""
    change = mutation([*((name, value.encode()) for name, value in headers.items()),
                       ("content-type", b"application/json")])
    code = HttpStatus(code=status)  # type: ignore[arg-type]  # an enumeration that is open: any number fits
    said = ImmediateResponse(status=code, headers=change, body=body, details=f"tokenpools_{details}")
    return ProcessingResponse(immediate_response=said)


def more_time(wait_s: float) -> ProcessingResponse:
    """Return what asks Envoy to wait for the next answer; it must have a ``max_message_timeout``."""
    response = ProcessingResponse()
    response.override_message_timeout.FromNanoseconds(int(wait_s * 1e9))
    return response


def picked(response: ProcessingResponse, destination: str) -> ProcessingResponse:
    """Return a response that says in its dynamic metadata too where the request goes."""
    namespace = response.dynamic_metadata.fields[PICKED_NAMESPACE].struct_value
    namespace.fields[DESTINATION].string_value = destination
    return response


def _common(change: HeaderMutation | None, clear_route: bool) -> CommonResponse:
    return _PASS if change is None else CommonResponse(header_mutation=change, clear_route_cache=clear_route)


def _replaced(body: bytes) -> CommonResponse:
    return CommonResponse(body_mutation=BodyMutation(body=body) if body else BodyMutation(clear_body=True))
