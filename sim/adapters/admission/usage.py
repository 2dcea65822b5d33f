"""What an answer used, from whatever shape a client library gives it in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.live.gateway.sse import Usage, usage_of

NO_USAGE = Usage(None, None, 0)


def usage_from(given: Any) -> Usage:
    """Return the usage of an answer; what is missing or nonsense is None in it.

    Parameters
    ----------
    given : a usage or a whole answer that has one, of OpenAI's or Anthropic's API, as a mapping or as an object of
        their client libraries; None where there is none.
    """
    if isinstance(given, Usage):
        return given
    found = _plain(given)
    if isinstance(found, dict) and "usage" in found:
        found = _plain(found["usage"])
    return usage_of({"usage": found}) or NO_USAGE


def _plain(given: Any) -> Any:
    if isinstance(given, Mapping):
        return {name: _plain(value) if isinstance(value, Mapping) else value for name, value in given.items()}
    dump = getattr(given, "model_dump", None)
    return dump() if callable(dump) else None
