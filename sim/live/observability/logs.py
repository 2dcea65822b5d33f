"""Logs as one JSON object a line: what happened to each request, and what the gateway has to say besides.

No key, prompt or answer is ever given to a logger. What looks like a key in a message all the same (an error of a
library that quotes a header) is blotted out.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import time
from dataclasses import fields
from typing import Any, TextIO

from sim.live.observability.observer import Ended, RequestLog

REQUESTS = logging.getLogger("tokenpools.requests")

_SECRET = re.compile(r"(?i)(bearer\s+|api[-_]?key[\"'\s:=]+)[^\s\"',;]+|\b(sk|tp)-[A-Za-z0-9_-]{8,}")
_FIELDS = tuple(field.name for field in fields(RequestLog))
_ENCODER = json.JSONEncoder(ensure_ascii=False, default=str, allow_nan=False)
_TIMES = ("arrival_s", "forwarded_s", "first_token_s", "finish_s")


def blotted(text: str) -> str:
    """Return a text without what looks like a key."""
    return _SECRET.sub(lambda found: f"{found[1] or ''}[removed]", text)


class JsonFormatter(logging.Formatter):
    """A record as a line of JSON; a mapping in its ``extra`` as ``fields`` adds to it."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        said: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": blotted(record.getMessage()),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            said["error"] = blotted(self.formatException(record.exc_info))
        return _ENCODER.encode(said)


class TextFormatter(logging.Formatter):
    """A record as a line for a terminal, without what looks like a key."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        return blotted(super().format(record))


class RequestLogger:
    """An observer that logs every attempt once, when it has ended."""

    def ended(self, log: RequestLog) -> None:
        """See `sim.live.observability.observer.Observer`."""
        level = logging.WARNING if log.http_status >= 500 else logging.INFO
        if REQUESTS.isEnabledFor(level):
            words = f"{log.outcome} {log.http_status}"
            said = log.error if log.reason is None else str(log.reason)
            # As `log` would, but for looking up who calls.
            REQUESTS.handle(REQUESTS.makeRecord(
                REQUESTS.name, level, __file__, 0, "%s", (f"{words} {said}".rstrip(),), None,
                extra={"fields": as_fields(log)},
            ))  # fmt: skip


def as_fields(log: RequestLog) -> dict[str, Any]:
    """Return an attempt as plain values: times in seconds since its arrival, what is not known left out."""
    found: dict[str, Any] = {}
    for name in _FIELDS:
        value = getattr(log, name)
        if name in _TIMES:
            value = round(value - log.arrival_s, 6)
            name = {"finish_s": "duration_s", "forwarded_s": "waited_s", "first_token_s": "ttft_s"}.get(name, name)
        unknown = value is None or value == "" or (isinstance(value, float) and not math.isfinite(value))
        if unknown or name == "arrival_s":
            continue
        found[name] = value if isinstance(value, bool | int | float) else str(value)
    if log.outcome not in (Ended.REFUSED, Ended.EVICTED):
        found.pop("needed", None)
        found.pop("available", None)
    found["verdict"] = found.pop("outcome")
    return found


def set_up(*, style: str, level: str = "info", stream: TextIO | None = None) -> None:
    """Send all logs to ``stream`` (stderr where it is None), as ``json`` or as ``text``."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    if style == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(TextFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
