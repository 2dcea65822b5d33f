"""Fetching, against a server on this machine: checked, resumed, and honest about what went wrong."""

from __future__ import annotations

import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sim.errors import InputError
from sim.traces.catalogue import DATA_SETS, DataSet, RemoteFile
from sim.traces.fetch import fetch

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT; ``break_after`` cuts the next answer short, ``ranges`` says whether parts can be asked for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.break_after = None
        self.ranges = True
        self.content = CONTENT
        self.seen: list[str | None] = []

    def address(self, name="trace.csv"):
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.seen.append(asked)
        if self.path == "/missing":
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        if asked and start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if asked and server.ranges else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.break_after is not None:
            body, server.break_after = body[: server.break_after], None
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def data_set(url, sha256=SHA256):
    return DataSet("t", "CC0", "home", (RemoteFile(url, "set/trace.csv", sha256),))


def test_a_file_comes_once_and_is_checked(server, tmp_path):
    seen = []
    [file] = fetch(data_set(server.address()), tmp_path, on_progress=lambda *one: seen.append(one))
    assert file.path.read_bytes() == CONTENT
    assert (file.sha256, file.checked) == (SHA256, True)
    assert seen[-1] == ("trace.csv", len(CONTENT), len(CONTENT))
    fetch(data_set(server.address()), tmp_path)
    assert len(server.seen) == 1
    assert [path.name for path in file.path.parent.iterdir()] == ["trace.csv"]


@pytest.mark.parametrize("ranges", [True, False])
def test_what_broke_off_is_resumed(server, tmp_path, ranges):
    server.break_after, server.ranges = 700_000, ranges
    with pytest.raises(InputError, match=r"cannot be fetched .*try again .what came is kept and resumed"):
        fetch(data_set(server.address()), tmp_path)
    part = tmp_path / "set" / "trace.csv.part"
    have = part.stat().st_size
    assert 0 < have <= 700_000
    [file] = fetch(data_set(server.address()), tmp_path)
    assert file.path.read_bytes() == CONTENT
    assert server.seen == [None, f"bytes={have}-"]
    assert not part.exists()


def test_a_wrong_checksum_is_refused_and_nothing_is_kept(server, tmp_path):
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(InputError, match=f"has another checksum than {SHA256}; the publisher changed the file"):
        fetch(data_set(server.address()), tmp_path)
    assert list((tmp_path / "set").iterdir()) == []
    server.content = CONTENT
    assert fetch(data_set(server.address()), tmp_path)[0].path.read_bytes() == CONTENT


def test_an_unknown_checksum_is_written_down_and_checked_from_then_on(server, tmp_path):
    [file] = fetch(data_set(server.address(), None), tmp_path)
    assert (file.sha256, file.checked) == (SHA256, False)
    assert (tmp_path / "set" / "SHA256SUMS").read_text() == f"{SHA256}  trace.csv\n"
    file.path.write_bytes(b"damaged")
    [file] = fetch(data_set(server.address(), None), tmp_path)
    assert file.path.read_bytes() == CONTENT


def test_a_part_of_another_file_does_no_harm(server, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "trace.csv.part").write_bytes(b"z" * (len(CONTENT) + 5))
    [file] = fetch(data_set(server.address()), tmp_path)
    assert file.path.read_bytes() == CONTENT


def test_a_missing_file_and_a_missing_network_are_told_apart(server, tmp_path):
    with pytest.raises(InputError, match=r"missing: cannot be fetched \(the server answered 404\)"):
        fetch(data_set(server.address("missing")), tmp_path)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/x"
        with pytest.raises(InputError, match=r"cannot be fetched \(no connection\); try again"):
            fetch(data_set(url), tmp_path)


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "set").write_text("a file")
    with pytest.raises(InputError, match="cannot be written"):
        fetch(data_set(server.address()), tmp_path)


def test_the_catalogue_is_complete_and_consistent():
    for name, one in DATA_SETS.items():
        assert one.licence
        assert bool(one.files) != bool(one.by_hand)
        paths = [file.path for file in one.files]
        assert len(set(paths)) == len(paths)
        for file in one.files:
            assert file.path.startswith(f"{name}/")
            assert file.url.startswith("https://")
            assert file.url.endswith(file.path.rpartition("/")[2])
            assert file.sha256 is None or len(file.sha256) == 64
    assert len(DATA_SETS["servegen-deepseek-r1"].files) == 146
    with pytest.raises(InputError, match="cannot be fetched; the publisher's file is a pickle"):
        fetch(DATA_SETS["lmsys-arena-vtc"], None)
