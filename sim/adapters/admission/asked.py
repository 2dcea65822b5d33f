"""What a request of an engine's API asks of the core, once its body is read."""

from __future__ import annotations

from typing import Any

from policies.core import GatewayCore
from sim.live.gateway.error_responses import ApiError
from sim.live.gateway.prompt_text import prefix_of
from sim.live.gateway.prompt_tokens import EstimatingCounter, PromptCount, never_too_long
from sim.live.gateway.request_body import Endpoint, ParsedBody
from sim.live.gateway.settings import Estimate


def asked_of(
    endpoint: Endpoint, parsed: ParsedBody, counter: EstimatingCounter, core: GatewayCore, most_sequences: int
) -> dict[str, Any]:
    """Return the arguments of an admission.

    Parameters
    ----------
    most_sequences : that a replica runs at once; a request takes no more slots.

    Raises
    ------
    ApiError : 400, the body is nested too deeply.
    """
    try:
        counted = counter.count_now(endpoint.shape, parsed.fields)
        wants_text = core.wants_prefixes and endpoint.generates
        prefix = prefix_of(endpoint.shape, parsed.fields, "", Estimate()) if wants_text else ()
    except RecursionError:
        raise ApiError(400, "invalid_json", "The body is nested too deeply.") from None
    least = 1 if never_too_long(parsed.fields) else counted.least_tokens
    counted = PromptCount(counted.tokens, least)
    most: int | None = parsed.max_output_tokens
    if not endpoint.generates:
        most = 0
    elif most is not None:
        if endpoint.refuses_long:
            least += most
        elif core.max_context_tokens is not None:
            most = min(most, core.max_context_tokens)
        most *= parsed.sequences
    elif parsed.sequences > 1:
        most = core.default_max_output_tokens * parsed.sequences
    return {
        "prompt_tokens": counted.tokens, "max_tokens": most, "context_tokens": least, "priority": parsed.priority,
        "sequences": max(1, min(parsed.sequences, most_sequences)), "prefix": prefix, "session": parsed.session,
    }  # fmt: skip
