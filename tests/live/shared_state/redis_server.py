"""A redis-server of one's own, on a socket in a folder, that can be paused, killed and begun again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import IO

BINARY = shutil.which("redis-server")


class RedisServer:
    def __init__(self, folder: Path) -> None:
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def start(self) -> RedisServer:
        assert BINARY is not None
        self._log = (self._folder / "redis.log").open("ab")
        self._process = subprocess.Popen(
            [BINARY, "--port", "0", "--unixsocket", str(self.socket), "--save", "", "--appendonly", "no",
             "--dir", str(self._folder), "--daemonize", "no"],
            stdout=self._log, stderr=self._log,
        )  # fmt: skip
        deadline_s = time.monotonic() + 10
        while time.monotonic() < deadline_s:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(self.socket))
                    probe.sendall(b"PING\r\n")
                    if probe.recv(7).startswith(b"+PONG"):
                        return self
                except OSError:
                    time.sleep(0.01)
        raise AssertionError("redis-server did not begin within 10 s")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None
            self.socket.unlink(missing_ok=True)
        if self._log is not None:
            self._log.close()
            self._log = None

    def pause(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)
