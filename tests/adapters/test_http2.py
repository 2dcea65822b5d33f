"""The server's side of HTTP/2 against the library h2 as its peer, and against bytes that are none of it."""

from __future__ import annotations

import struct
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.adapters.envoy.grpc_calls import Call, calls
from sim.adapters.envoy.http2 import PREFACE, Connection, encoded

HEADERS = [(":method", "POST"), (":path", "/echo"), (":scheme", "http"), (":authority", "pool"), ("te", "trailers"),
           ("content-type", "application/grpc")]  # fmt: skip


class Transport:
    """What a connection writes, kept."""

    def __init__(self) -> None:
        self.said = b""
        self.closed = self.aborted = False
        self.unread_bytes = 0

    def write(self, data: bytes) -> None:
        self.said += data

    def get_write_buffer_size(self) -> int:
        return self.unread_bytes

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def take(self) -> bytes:
        said, self.said = self.said, b""
        return said


class Echo:
    """Says every message again, and counts what else it hears."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.messages: list[bytes] = []
        self.has_ended = self.is_gone = 0

    def message(self, data: bytes) -> None:
        if data == b"fail":
            raise ValueError(data)
        self.messages.append(data)
        self.call.send([data])

    def ended(self) -> None:
        self.has_ended += 1
        self.call.end()

    def gone(self) -> None:
        self.is_gone += 1


class Peer:
    """The library h2 as a client, and our connection at its other end."""

    def __init__(self, **settings: int) -> None:
        self.echoes: list[Echo] = []
        self.transport = Transport()

        def echo(call: Call) -> Echo:
            self.echoes.append(Echo(call))
            return self.echoes[-1]

        self.connections: set[Connection] = set()
        self.ours = Connection(calls({"/echo": echo}), self.connections)
        self.ours.connection_made(self.transport)  # type: ignore[arg-type]
        self.theirs = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        named = {h2.settings.SettingCodes[name.upper()]: value for name, value in settings.items()}
        self.theirs.initiate_connection()
        if named:
            self.theirs.update_settings(named)
        self.events: list[Any] = []
        self.exchange()

    def exchange(self) -> list[Any]:
        """Carry bytes both ways until neither end has more to say; returns what the client heard."""
        heard: list[Any] = []
        while True:
            sent, said = self.theirs.data_to_send(), self.transport.take()
            if not sent and not said:
                return heard
            if sent:
                self.ours.data_received(sent)
            if said:
                heard += self.theirs.receive_data(said)

    def open(self, headers: Any = HEADERS) -> int:
        number: int = self.theirs.get_next_available_stream_id()
        self.theirs.send_headers(number, headers)
        return number


def message(data: bytes) -> bytes:
    return struct.pack(">BI", 0, len(data)) + data


def data_of(heard: list[Any], number: int) -> bytes:
    return b"".join(one.data for one in heard if isinstance(one, h2.events.DataReceived) and one.stream_id == number)


def trailers_of(heard: list[Any], number: int) -> dict[str, str]:
    found = [one for one in heard if isinstance(one, h2.events.TrailersReceived) and one.stream_id == number]
    return dict(found[0].headers) if found else {}


def test_calls_from_beginning_to_end() -> None:
    peer = Peer()
    first, second = peer.open(), peer.open()
    peer.theirs.send_data(first, message(b"one")[:3])
    peer.theirs.send_data(second, message(b"two") + message(b""))
    heard = peer.exchange()
    assert (data_of(heard, first), data_of(heard, second)) == (b"", message(b"two") + message(b""))
    peer.theirs.send_data(first, message(b"one")[3:], end_stream=True)
    peer.theirs.reset_stream(second)
    heard = peer.exchange()
    assert (data_of(heard, first), trailers_of(heard, first)) == (message(b"one"), {"grpc-status": "0"})
    assert [(one.has_ended, one.is_gone) for one in peer.echoes] == [(1, 0), (0, 1)]
    assert not peer.ours.streams
    peer.open()
    peer.exchange()
    peer.ours.connection_lost(None)
    assert (peer.echoes[2].is_gone, len(peer.connections)) == (1, 0)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (message(b"fail"), "13"), (b"\x01\0\0\0\x01x", "12"), (struct.pack(">BI", 0, 2**31), "8"),
        (message(b"abc")[:6], "3"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_ends_the_call_and_not_the_connection(sent: bytes, status: str) -> None:
    peer = Peer()
    number = peer.open()
    peer.theirs.send_data(number, sent, end_stream=status == "3")
    assert trailers_of(peer.exchange(), number)["grpc-status"] == status
    assert peer.echoes[0].is_gone == 1
    other = peer.open()
    peer.theirs.send_data(other, message(b"still here"))
    assert data_of(peer.exchange(), other) == message(b"still here")
    unknown = peer.open([(name, "/nothing" if name == ":path" else value) for name, value in HEADERS])
    assert trailers_of(peer.exchange(), unknown)["grpc-status"] == "12"
    assert set(peer.ours.streams) == {other}


@given(
    sizes=st.lists(st.integers(0, 40_000), min_size=1, max_size=6), window=st.integers(0, 30_000),
    frame_bytes=st.sampled_from([16_384, 20_000]), steps=st.lists(st.integers(1, 50_000), max_size=4),
)  # fmt: skip
def test_nobody_is_sent_more_than_it_has_room_for(
    sizes: list[int], window: int, frame_bytes: int, steps: list[int]
) -> None:
    peer = Peer(initial_window_size=window, max_frame_size=frame_bytes)
    messages = [bytes([index]) * size for index, size in enumerate(sizes)]
    number, sent, got = peer.open(), b"".join(map(message, messages)), b""
    for at in range(0, len(sent), 16_000):
        peer.theirs.send_data(number, sent[at : at + 16_000])
        got += data_of(peer.exchange(), number)  # h2 itself refuses what is beyond its windows
    peer.theirs.end_stream(number)
    heard = peer.exchange()
    got += data_of(heard, number)
    for step in [*steps, *[100_000] * 4]:
        if len(got) == len(sent):
            break
        peer.theirs.increment_flow_control_window(step)
        peer.theirs.increment_flow_control_window(step, number)
        heard = peer.exchange()
        got += data_of(heard, number)
    assert got == sent
    assert trailers_of(heard, number) == {"grpc-status": "0"}
    assert not peer.ours.streams


def test_a_long_body_does_not_run_out_of_room() -> None:
    peer = Peer()
    number = peer.open()
    peer.theirs.increment_flow_control_window(2**30)
    peer.theirs.increment_flow_control_window(2**30, number)
    piece = message(b"x" * 16_000)
    for _ in range(5000):  # 80 MB: more than any window
        peer.theirs.send_data(number, piece)
        peer.exchange()
    assert len(peer.echoes[0].messages) == 5000


def test_settings_pings_padding_priorities_and_long_headers() -> None:
    peer = Peer()
    peer.theirs.ping(b"12345678")
    assert any(isinstance(one, h2.events.PingAckReceived) for one in peer.exchange())
    number = peer.theirs.get_next_available_stream_id()
    longer = [*HEADERS, *((f"x-{index}", "y" * 900) for index in range(40))]  # two CONTINUATIONs
    peer.theirs.send_headers(number, HEADERS, priority_weight=3, priority_depends_on=0)
    peer.theirs.send_data(number, message(b"padded"), pad_length=200)
    assert data_of(peer.exchange(), number) == message(b"padded")
    again = peer.open(longer)
    peer.theirs.send_data(again, message(b"again"))
    assert data_of(peer.exchange(), again) == message(b"again")
    peer.theirs.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10})
    peer.exchange()
    peer.theirs.send_data(again, message(b"z" * 30))
    assert len(data_of(peer.exchange(), again)) == 10 - len(message(b"again"))
    peer.theirs.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1000})
    assert data_of(peer.exchange(), again)


def test_the_same_headers_are_read_once_and_others_never_taken_for_them() -> None:
    peer = Peer()
    for turn in range(6):
        for name in ("/echo", f"/other-{turn}"):
            number = peer.open([(key, name if key == ":path" else value) for key, value in HEADERS])
            peer.theirs.send_data(number, message(name.encode()))
            heard = peer.exchange()
            assert (data_of(heard, number) != b"") == (name == "/echo")
    assert [one.messages for one in peer.echoes] == [[b"/echo"]] * 6


def test_headers_that_refer_to_earlier_ones_mean_what_those_were_then() -> None:
    peer = Peer()
    rest = encoded([one for one in HEADERS if one[0] != ":path"])
    last = b"\xbe"  # the header that came into the table last
    number = 1
    for path, block in (("/echo", None), ("/echo", last), ("/nothing", None), ("/nothing", last), ("/echo", None),
                        ("/echo", last)):  # fmt: skip
        said = rest + (last if block else hpack.Encoder().encode([(":path", path)], huffman=False))
        peer.ours.data_received(frame(1, 4, number, said) + frame(0, 0, number, message(path.encode())))
        assert (message(path.encode()) in peer.transport.take()) == (path == "/echo"), (path, block)
        number += 2


def test_a_connection_that_ends_takes_no_more_calls_and_finishes_those_it_has() -> None:
    peer = Peer()
    running = peer.open()
    peer.exchange()
    peer.ours.goaway()
    late = peer.open()
    peer.ours.data_received(peer.theirs.data_to_send())
    assert set(peer.ours.streams) == {running}, late
    peer.ours.flush()


def frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, number) + payload


BROKEN = {
    "no preface": b"GET / HTTP/1.1\r\n\r\n",
    "a frame of a megabyte": PREFACE + struct.pack(">IBI", 2**20 << 8, 0, 1),
    "data of no stream": PREFACE + frame(0, 0, 1, b"x"),
    "headers of an even stream": PREFACE + frame(1, 4, 2, b"\x83"),
    "headers that refer to nothing": PREFACE + frame(1, 4, 1, b"\xff\xff\xff\xff"),
    "headers that are not continued": PREFACE + frame(1, 0, 1, b"\x83") + frame(6, 0, 0, b"12345678"),
    "headers without an end": PREFACE + frame(1, 0, 1, b"\x83") + frame(9, 0, 1, b"\x83" * 16_000) * 5,
    "a continuation of nothing": PREFACE + frame(9, 4, 1, b"\x83"),
    "a push": PREFACE + frame(5, 4, 1, b"\0\0\0\2\x83"),
    "settings of seven bytes": PREFACE + frame(4, 0, 0, b"1234567"),
    "a window beyond all": PREFACE + frame(4, 0, 0, struct.pack(">HI", 4, 2**31)),
    "frames of a byte": PREFACE + frame(4, 0, 0, struct.pack(">HI", 5, 1)),
    "a window that grows by nothing": PREFACE + frame(8, 0, 0, b"\0\0\0\0"),
    "a window that overflows": PREFACE + frame(8, 0, 0, struct.pack(">I", 2**31 - 1)),
    "a ping of one byte": PREFACE + frame(6, 0, 0, b"1"),
    "more padding than frame": PREFACE + frame(1, 4 | 8, 1, b"\xff\x83"),
    "no room for a priority": PREFACE + frame(1, 4 | 32, 1, b"\x83"),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_what_is_no_http2_is_told_so_and_cut_off(data: bytes) -> None:
    transport = Transport()
    ours = Connection(calls({}), set())
    ours.connection_made(transport)  # type: ignore[arg-type]
    transport.take()
    for at in range(0, len(data), 7000):
        ours.data_received(data[at : at + 7000])
        if transport.closed:
            break
    assert transport.closed
    assert transport.said.rfind(frame(7, 0, 0, b"")[3:9]) >= 0, "a GOAWAY goes before"


@given(st.lists(st.binary(max_size=60) | st.tuples(
    st.integers(0, 12), st.integers(0, 255), st.integers(0, 5), st.binary(max_size=40)
).map(lambda one: frame(*one)), max_size=12))  # fmt: skip
def test_no_bytes_break_more_than_their_connection(pieces: list[bytes]) -> None:
    transport, echoes = Transport(), list[Echo]()

    def echo(call: Call) -> Echo:
        echoes.append(Echo(call))
        return echoes[-1]

    ours = Connection(calls({"/echo": echo}), set())
    ours.connection_made(transport)  # type: ignore[arg-type]
    opening = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    opening.initiate_connection()
    opening.send_headers(1, HEADERS)
    ours.data_received(opening.data_to_send())
    for piece in pieces:
        if not transport.closed:
            ours.data_received(piece)
    ours.connection_lost(None)
    assert not ours.streams
    assert all(one.is_gone or one.has_ended for one in echoes)


def test_who_does_not_read_is_cut_off() -> None:
    peer = Peer()
    peer.transport.unread_bytes = 2**30
    peer.theirs.ping(b"12345678")
    peer.ours.data_received(peer.theirs.data_to_send())
    assert peer.transport.aborted
