"""The client of upstreams, against a server that says byte for byte what it is told to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sim.live.gateway.event_loop import loop_factory
from sim.live.replicas.http_client import (
    BadHeadError,
    Body,
    BrokenBodyError,
    ConnectError,
    HttpClient,
    NoHttpError,
    parsed_url,
)

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
LONG_S = 20.0


class Server:
    """Answers each request with the next of ``says``; None closes the connection. ``open`` are its connections."""

    def __init__(self, *says: bytes | None) -> None:
        self.says = list(says)
        self.asked: list[bytes] = []
        self.connections = 0
        self.writers: list[asyncio.StreamWriter] = []
        self.gone = asyncio.Event()

    async def start(self) -> str:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                self.gone.set()
                writer.close()
                return
            lines = head.lower().split(b"\r\n")
            size = sum(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length"))
            self.asked.append(head + await reader.readexactly(size))
            answer = self.says.pop(0) if self.says else OK
            if answer is None:
                writer.close()
                return
            writer.write(answer)

    def say(self, data: bytes) -> None:
        self.writers[-1].write(data)


def play(server_says: list[bytes | None], story: Callable[[HttpClient, str, Server], Awaitable[Any]]) -> Any:
    """Run a story with a client and such a server."""

    async def run() -> Any:
        server = Server(*server_says)
        url = await server.start()
        client = HttpClient(connect_s=LONG_S)
        try:
            async with asyncio.timeout(LONG_S):
                return await story(client, url, server)
        finally:
            await client.close()
            for writer in server.writers:
                writer.close()
            server.server.close()

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(run())


def answered(raw: bytes | None, method: str = "POST") -> tuple[int, bytes]:
    """Return the status and body that an answer has for the client, once its connection has ended after it."""

    async def story(client: HttpClient, url: str, server: Server) -> tuple[int, bytes]:
        answer = await client.request(method, f"{url}/x", body=b"")
        for writer in server.writers:  # a plain end after what was said
            writer.close()
        return answer.status, await answer.content.read(2**20)

    return play([raw], story)  # type: ignore[no-any-return]


def test_pieces_of_a_body_that_come_together_go_on_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, before the end or what broke it off: a reader that is late has less to do for each."""
    fed: list[bytes] = []
    plain = Body.feed

    def feed(self: Body, data: bytes) -> None:
        fed.append(data)
        plain(self, data)

    monkeypatch.setattr(Body, "feed", feed)
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

    async def story(client: HttpClient, url: str, server: Server) -> bytes:
        answer = await client.request("POST", url)
        found = await answer.content.readany()
        with contextlib.suppress(BrokenBodyError):
            while piece := await answer.content.readany():
                found += piece
        return found

    assert play([head + b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"], story) == b"abc"
    assert play([head + b"1\r\na\r\n2\r\nbc\r\nno size\r\n"], story) == b"abc"
    assert fed == [b"abc", b"abc"]


def test_a_request_is_written_as_it_was_given() -> None:
    async def story(client: HttpClient, url: str, server: Server) -> bytes:
        headers = [(b"x-one", b"1"), (b"authorization", b"Bearer k")]
        async with await client.request("POST", f"{url}/v1/a%2Fb?c=%20d", headers=headers, body=b"{}") as answer:
            assert answer.status == 200
            assert await answer.content.read(10) == b"ok"
        async with await client.request("GET", f"{url}?q") as answer:
            assert (await answer.content.readany(), answer.content.at_eof()) == (b"ok", True)
        assert server.connections == 1
        port = url.rpartition(":")[2].encode()
        assert server.asked[1] == b"GET /?q HTTP/1.1\r\nhost: 127.0.0.1:" + port + b"\r\n\r\n"
        return server.asked[0].replace(port, b"PORT")

    assert play([], story) == (
        b"POST /v1/a%2Fb?c=%20d HTTP/1.1\r\nhost: 127.0.0.1:PORT\r\nx-one: 1\r\nauthorization: Bearer k\r\n"
        b"content-length: 2\r\n\r\n{}"
    )


@pytest.mark.parametrize("value", [b"a\nb", b"a\r\nx: y", b"a\0b"], ids=repr)
def test_a_header_that_ends_its_line_is_not_written(value: bytes) -> None:
    async def story(client: HttpClient, url: str, server: Server) -> None:
        with pytest.raises(ValueError, match="end of a line"):
            await client.request("POST", url, headers=[(b"x", value)])
        assert not server.asked

    play([], story)


@pytest.mark.parametrize("text", ["ftp://x/", "http://", "http://x/a b", "http://x/a\r\nb", "x:80/a"])
def test_what_is_no_address_is_not_asked(text: str) -> None:
    with pytest.raises(ValueError, match="no address"):
        parsed_url(text)


def test_an_address_has_its_parts() -> None:
    assert parsed_url("http://[::1]:8000/v1?a=b")[:2] == (("http", "::1", 8000), b"[::1]:8000")
    assert parsed_url("https://b\u00fccher.example/x") == (
        ("https", "xn--bcher-kva.example", 443), b"xn--bcher-kva.example", b"/x",
    )  # fmt: skip


@pytest.mark.parametrize(("raw", "method", "found"), [
    (OK, "POST", (200, b"ok")),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n2 \r\nbc\r\n0\r\nx-trailer: 1\r\n\r\n", "POST",
     (200, b"abc")),
    (b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nto the end", "POST", (200, b"to the end")),
    (b"HTTP/1.0 200 OK\r\n\r\nto the end", "POST", (200, b"to the end")),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK, "POST", (200, b"ok")),
    (b"HTTP/1.1 204 No Content\r\n\r\n", "POST", (204, b"")),
    (b"HTTP/1.1 302 Found\r\nlocation: http://elsewhere/\r\ncontent-length: 0\r\n\r\n", "GET", (302, b"")),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n", "HEAD", (200, b"")),
    (b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok", "POST", (200, b"ok")),
], ids=repr)  # fmt: skip
def test_answers_are_framed_as_http_has_it(raw: bytes, method: str, found: tuple[int, bytes]) -> None:
    assert answered(raw, method) == found


@pytest.mark.parametrize(("raw", "error"), [
    (None, NoHttpError),
    (b"hello, this is no HTTP\r\n\r\n", NoHttpError),
    (b"\x16\x03\x01\x02\x00\x01", NoHttpError),
    (b"HTTP/1.1 200 OK\r\nno header at all\r\n\r\n", BadHeadError),
    (b"HTTP/1.1 200 OK\r\nx: a\x01b\r\n\r\n", BadHeadError),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n", BadHeadError),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok", BadHeadError),
    (b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n", BadHeadError),
    (b"HTTP/1.1 200 OK\r\nx: " + b"a" * 200_000, BadHeadError),
    (b"HTTP/1.1 103 Early\r\n\r\n" * 9_000, BadHeadError),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok", BrokenBodyError),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nab", BrokenBodyError),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nab", BrokenBodyError),
], ids=lambda one: repr(one)[:50])  # fmt: skip
def test_what_is_no_answer_says_what_is_wrong(raw: bytes | None, error: type[Exception]) -> None:
    with pytest.raises(error):
        answered(raw)


def test_nobody_there_is_no_connection() -> None:
    async def story(client: HttpClient, url: str, server: Server) -> None:
        server.server.close()
        await server.server.wait_closed()
        with pytest.raises(ConnectError) as found:
            await client.request("POST", url)
        assert found.value.errno

    play([], story)


def test_a_connection_is_kept_until_it_is_old_and_none_that_is_not_whole() -> None:
    async def story(client: HttpClient, url: str, server: Server) -> None:
        for _ in range(3):
            (await client.request("POST", url)).close()  # all of it has come: the connection is sound
        assert server.connections == 1
        answer = await client.request("POST", url)  # the fourth's body never ends
        answer.close()
        await server.gone.wait()
        assert (await client.request("POST", url)).status == 200
        assert server.connections == 2
        now_s = client._loop.time()
        (site,) = client._sites.values()
        assert site.kept(now_s - 1.0) is not None
        site.idle.append(next(iter(client._connections)))
        assert site.kept(now_s + 1.0) is None  # too old

    play([OK, OK, OK, b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok"], story)


@pytest.mark.parametrize("more", [b"connection: close\r\n", b""], ids=repr)
def test_what_comes_unasked_is_no_answer_to_the_next(more: bytes) -> None:
    async def story(client: HttpClient, url: str, server: Server) -> None:
        answer = await client.request("POST", url)
        assert await answer.content.read(9) == b"ok"
        await server.gone.wait()
        assert (await client.request("POST", url)).status == 200
        assert server.connections == 2

    first = OK.replace(b"content", more + b"content")
    play([first + (b"" if more else OK.replace(b"200", b"201")), OK], story)


def test_what_may_be_done_twice_is_asked_again_on_a_fresh_connection() -> None:
    async def story(client: HttpClient, url: str, server: Server) -> None:
        await client.request("GET", url)
        assert (await client.request("GET", url)).status == 200
        assert (server.connections, len(server.asked)) == (2, 3)
        server.says = [None]
        with pytest.raises(NoHttpError):
            await client.request("POST", url)
        assert len(server.asked) == 4
        server.says = [None]  # nor is anything asked twice on a fresh one
        with pytest.raises(NoHttpError):
            await client.request("GET", url)
        assert len(server.asked) == 5

    play([OK, None, OK], story)


def test_an_answer_that_nobody_reads_is_not_read_from_its_connection() -> None:
    async def story(client: HttpClient, url: str, server: Server) -> int:
        size = 64 * 2**20
        answer = await client.request("POST", url)
        writer = server.writers[-1]
        writer.transport.set_write_buffer_limits(high=1)
        writer.write(b"x" * size)
        full = asyncio.ensure_future(writer.drain())
        while answer.content._size <= 128 * 2**10:
            await asyncio.sleep(0)
        for _ in range(200):
            await asyncio.sleep(0)
        assert answer.content._size < 4 * 2**20
        assert not full.done()
        found = 0
        while data := await answer.content.readany():
            found += len(data)
        await full
        return found - size

    assert play([b"HTTP/1.1 200 OK\r\ncontent-length: 67108864\r\n\r\n"], story) == 0


def test_pieces_are_taken_on_their_way_until_one_is_not() -> None:
    async def story(client: HttpClient, url: str, server: Server) -> None:
        answer = await client.request("POST", url)
        taken: list[bytes] = []

        def through(data: bytes) -> bool:
            taken.append(data)
            if len(taken) < 3:
                server.say(b"5\r\nfirst\r\n")
                return True
            return False

        reading = asyncio.ensure_future(answer.content.readany(through))
        await asyncio.sleep(0)
        server.say(b"5\r\nfirst\r\n")
        assert await reading == b"first"
        assert taken == [b"first"] * 3

        def broken(data: bytes) -> bool:
            raise ZeroDivisionError

        reading = asyncio.ensure_future(answer.content.readany(broken))
        await asyncio.sleep(0)
        server.say(b"5\r\nfirst\r\n")
        with pytest.raises(ZeroDivisionError):
            await reading

    play([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"], story)


def test_long_bodies_are_written_in_pieces_and_not_to_who_has_answered() -> None:
    async def story(client: HttpClient, url: str, server: Server) -> None:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        turning = asyncio.ensure_future(turn())
        body = bytes(range(256)) * 2**15  # 8 MiB
        assert (await client.request("POST", url, body=body)).status == 200
        assert server.asked[0].endswith(body)
        assert turns > 32
        turning.cancel()

        async def no_reader(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            server.writers.append(writer)
            writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")  # and it reads nothing

        other = await asyncio.start_server(no_reader, "127.0.0.1", 0, limit=1)
        port = other.sockets[0].getsockname()[1]
        answer = await client.request("POST", f"http://127.0.0.1:{port}/", body=body * 8)
        assert answer.status == 413
        assert not any(site.idle for origin, site in client._sites.items() if origin.port == port)
        other.close()

    play([], story)


def test_who_is_cancelled_leaves_no_connection_behind() -> None:
    async def story(client: HttpClient, url: str, server: Server) -> None:
        asking = asyncio.ensure_future(client.request("POST", url))
        while not server.asked:
            await asyncio.sleep(0)
        asking.cancel()
        await server.gone.wait()
        assert asking.cancelled()
        assert (await client.request("POST", url)).status == 200

    play([b""], story)
