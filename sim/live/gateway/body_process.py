"""Long bodies, read in a process beside the gateway's: a parser holds the interpreter, and the loop with it.

Eight megabytes of token ids take a fifth of a second, of empty lists nearly a second, and no parser of JSON for Python
lets go of the interpreter meanwhile. So what is long goes through a pipe to a process that reads it, counts its prompts
and answers with the few fields that the gateway goes by; nested values never become objects here.

The process is begun with the first long body, ends when the pipe is closed, and so with the gateway however that ends.
"""

from __future__ import annotations

import contextlib
import json
import signal
import struct
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from typing import IO, Any

from sim.live.gateway.endpoints import path_of, read_at
from sim.live.gateway.error_responses import ApiError
from sim.live.gateway.prompt_tokens import COUNTED_FIELDS, EstimatingCounter, never_too_long, only_ids
from sim.live.gateway.request_body import Endpoint, ParsedBody, read_body
from sim.live.gateway.settings import Estimate, Limits

_SIZE = struct.Struct("!Q")
_PROGRAM = "import tokenpools; from sim.live.gateway.body_process import main; main()"
"""tokenpools comes first, and the folder it is begun in not at all: files there may be called as our packages are."""


class BodyProcess:
    """Reads bodies in a process of its own, one at a time. Its methods may be called by any thread.

    Parameters
    ----------
    rule : how prompts are estimated; None where somebody else counts them, who then gets the fields that it needs.
    """

    def __init__(self, limits: Limits, rule: Estimate | None) -> None:
        self._asked = {
            "choices": limits.choices, "prompts": limits.prompts, "rule": None if rule is None else asdict(rule),
        }  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def read(self, endpoint: Endpoint, body: bytes, salt: str | None = None) -> ParsedBody:
        """Return what a body asks for, and its prompts counted where they can be.

        ``salt`` is that of `sim.live.gateway.request_body.read_body`.

        Raises
        ------
        ApiError : 400, it makes no sense.
        OSError : the process has ended; another is begun for the next body.
        """
        head = json.dumps(self._asked | {"path": path_of(endpoint), "salt": salt}).encode()
        with self._lock:
            process = self._begun()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                for part in (head, body):
                    process.stdin.write(_SIZE.pack(len(part)))
                    process.stdin.write(part)
                process.stdin.flush()
                answer = _part(process.stdout)
            except BaseException:
                self._end()
                raise
            if answer is None:
                self._end()
                raise OSError("the process that reads bodies has ended")
        return _answered(json.loads(answer))

    def close(self) -> None:
        """End the process; one that still reads ends when it has."""
        process = self._process
        if process is not None and process.stdin is not None and self._lock.acquire(timeout=5.0):
            try:
                self._end()
            finally:
                self._lock.release()

    def _begun(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answered(said: Any) -> ParsedBody:
    if "refused" in said:
        status, code, message, param = said["refused"]
        raise ApiError(status, code, message, param=param)
    parsed = dict(said["parsed"])
    parsed["where"] = {name: (begin, end) for name, (begin, end) in parsed["where"].items()}
    parsed["counted"] = None if parsed["counted"] is None else tuple(parsed["counted"])
    parsed["prefix"] = tuple((name, end) for name, end in parsed["prefix"])
    return ParsedBody(**parsed)


def answer_to(head: bytes, body: bytes) -> bytes:
    """Return what the process says to one body."""
    asked = json.loads(head)
    endpoint = read_at(asked["path"])
    try:
        rule = Estimate() if asked["rule"] is None else Estimate(**asked["rule"])
        parsed = read_body(endpoint, body, asked["choices"], asked["prompts"], salt=asked["salt"], rule=rule)
        fields, counted = parsed.fields, None
        if asked["rule"] is not None or only_ids(endpoint.shape, fields):
            count = EstimatingCounter(rule).count_now(endpoint.shape, fields)
            counted = (count.tokens, 1 if never_too_long(fields) else count.least_tokens)
            fields = {}
    except ApiError as error:
        return json.dumps({"refused": [error.status, error.code, error.message, error.param]}).encode()
    except RecursionError:
        return json.dumps({"refused": [400, "invalid_json", "The body is nested too deeply.", None]}).encode()
    slim = replace(parsed, fields={}, counted=counted)
    said = {name: getattr(slim, name) for name in ParsedBody.__slots__}
    said["fields"] = {name: value for name, value in fields.items() if name in COUNTED_FIELDS}
    said["where"] = dict(slim.where)
    return json.dumps({"parsed": said}).encode()


def _part(pipe: IO[bytes]) -> bytes | None:
    """Return the next part of what comes through a pipe; None at its end."""
    size = pipe.read(_SIZE.size)
    if len(size) < _SIZE.size:
        return None
    (length,) = _SIZE.unpack(size)
    part = pipe.read(length)
    return part if len(part) == length else None


def main() -> None:
    """Read bodies until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the gateway's to obey
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while (head := _part(source)) is not None and (body := _part(source)) is not None:
        said = answer_to(head, body)
        del body
        sink.write(_SIZE.pack(len(said)))
        sink.write(said)
        sink.flush()
