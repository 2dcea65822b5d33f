"""A real browser, driven over its debugging pipe: keys that are pressed, pages that are printed, sizes of screens."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fcntl import F_DUPFD, fcntl
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_ANSWER_WITHIN_S = 60
_PLOTS_ARE_THERE = "document.documentElement?.dataset.ready === 'plots'"
_KEYS = {
    "Tab": {"code": "Tab", "windowsVirtualKeyCode": 9},
    "Enter": {"code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"},
    " ": {"code": "Space", "windowsVirtualKeyCode": 32, "text": " "},
    "ArrowDown": {"code": "ArrowDown", "windowsVirtualKeyCode": 40},
    "ArrowRight": {"code": "ArrowRight", "windowsVirtualKeyCode": 39},
}
_SHIFT = 8


class Tab:
    """One page. Messages are JSON with a zero byte at the end, on the browser's file descriptors 3 and 4."""

    def __init__(self, write_to: int, read_from: int) -> None:
        self._write_to, self._read_from = write_to, read_from
        self._buffer, self._sent, self._session = b"", 0, ""
        self.said: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.asked: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._sent += 1
        message: dict[str, Any] = {"id": self._sent, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write_to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._sent:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result
            self._heard(answer)

    def open(self, url: str, *, width: int, height: int = 900, until: str = _PLOTS_ARE_THERE) -> None:
        """Show a page on a screen of that many CSS pixels, and wait until something is true there."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 640
        )
        self.call("Page.navigate", url=url)
        deadline_s = time.monotonic() + _ANSWER_WITHIN_S
        while not self.js(until):
            assert time.monotonic() < deadline_s, self.said
            time.sleep(0.05)

    def js(self, expression: str) -> Any:
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str, *, shift: bool = False) -> None:
        modifiers = _SHIFT if shift else 0
        details = {"key": key, "modifiers": modifiers, **_KEYS[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **details)
        self.call("Input.dispatchKeyEvent", type="keyUp", **details)

    def pdf(self) -> bytes:
        """Return the page printed on A4 paper."""
        found = self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=False)
        return base64.b64decode(found["data"])

    def _heard(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.said.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.said.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.said.append(str(params["entry"]))
        elif method == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])

    def _next(self) -> dict[str, Any]:
        deadline_s = time.monotonic() + _ANSWER_WITHIN_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read_from], [], [], max(0.0, deadline_s - time.monotonic()))
            chunk = os.read(self._read_from, 1 << 20) if ready else b""
            assert chunk, "the browser is gone or does not answer"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


@contextmanager
def browser(folder: Path) -> Iterator[Tab]:
    """Start the browser with a profile of its own in ``folder``, and end it."""
    pipes = [*os.pipe(), *os.pipe()]
    # The browser's ends get numbers above 4, so that making one of them 3 or 4 does not close the other.
    theirs_in, theirs_out = (fcntl(pipes[end], F_DUPFD, 10) for end in (0, 3))
    ours_out, ours_in = pipes[1], pipes[2]

    def arrange() -> None:
        os.dup2(theirs_in, 3)
        os.dup2(theirs_out, 4)

    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
        f"--user-data-dir={folder / 'profile'}", "--no-first-run", "--disable-extensions", "about:blank",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, preexec_fn=arrange, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield Tab(ours_out, ours_in)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        process.kill()
        process.wait()
        for one in (*pipes, theirs_in, theirs_out):
            os.close(one)
