"""Requests made from the gateway's own description of its API, sensible and not, and their answers held against it."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from live.gate import Gate, gateway, secret
from live.stand_in import running
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)


@pytest.fixture(scope="module")
def gate():  # type: ignore[no-untyped-def]
    with running() as stand_in, gateway(stand_in, policy="token-pool") as one:
        yield one


CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
          response_schema_conformance, negative_data_rejection]  # fmt: skip
OPERATIONS = [("/v1/completions", "POST"), ("/v1/chat/completions", "POST"), ("/v1/models", "GET"), ("/readyz", "GET")]


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_answers_are_as_described_and_the_books_balance(
    gate: Gate, path: str, method: str, mode: GenerationMode
) -> None:
    api = schemathesis.openapi.from_url(f"{gate.base_url}/openapi.json")
    operation = api[path][method]
    if method == "GET" and mode is GenerationMode.NEGATIVE:
        return  # there is nothing in it that could be wrong

    @settings(
        max_examples=60 if method == "POST" else 3, deadline=None, suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        answer = case.call(headers={"authorization": f"Bearer {secret('chat')}"}, timeout=10)
        case.validate_response(answer, checks=CHECKS)

    check()
    gate.balanced()
    statuses = {log.http_status for log in gate.logs if log.endpoint == path}
    assert not any(status >= 500 for status in statuses)
    if method == "POST":
        assert (200 if mode is GenerationMode.POSITIVE else 400) in statuses
