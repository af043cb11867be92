"""The connection of the transport against an independent HTTP/2 client (the library h2).

A stateful model opens streams, sends messages of any size in frames of any size, changes its
settings and windows, cancels, and reads what comes back. Invariants: what one side sent is what the
other side has, byte by byte and in order; neither side ever calls the other wrong; nothing is sent
beyond a window (h2 would raise); nothing is left of a stream that is over.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from functools import partial
from itertools import pairwise
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sds.errors import Http2Error, ProtocolError
from sds.transport.connection import Connection
from sds.transport.events import (
    ConnectionLimits,
    Drained,
    Opened,
    Received,
    Reset,
)
from sds.transport.frames import PREFACE, frame
from sds.transport.header_decoder import HeaderDecoder
from sds.transport.messages import MessageReader, prefix
from tests.support.fuzz_target import messages

HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "localhost"),
    (":path", "/service/Method"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]
MESSAGES = st.integers(0, 200_000)


def message(size: int, mark: int) -> bytes:
    return bytes((mark % 256,)) * size


class Conversation(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.client = h2.connection.H2Connection(config)
        self.client.initiate_connection()
        self.server = Connection(ConnectionLimits(concurrent_streams=5))
        self.now = 0.0
        self.mark = 0
        self.open: list[int] = []  # the client may still send
        self.live: list[int] = []  # the server may still answer
        self.to_send: dict[int, bytes] = defaultdict(bytes)
        self.readers: dict[int, MessageReader] = {}
        self.asked: dict[int, list[bytes]] = defaultdict(list)
        self.heard: dict[int, list[bytes]] = defaultdict(list)
        self.answered: dict[int, bytes] = defaultdict(bytes)
        self.received: dict[int, bytes] = defaultdict(bytes)
        self.ended: dict[int, dict[str, str]] = {}
        self.exchange()

    def exchange(self) -> None:
        """Carry bytes both ways until both are silent."""
        while True:
            self._send_what_fits()
            to_server = self.client.data_to_send()
            if to_server:
                buffer = bytearray(to_server)
                self.server.feed(memoryview(buffer))
                self._at_server(self.server.proceed(self.now))
                self.server.keep()
                buffer[:] = bytes(len(buffer))  # another connection reads into it
            to_client = b"".join(self.server.take_output())
            if to_client:
                self._at_client(self.client.receive_data(to_client))
            if not to_server and not to_client:
                return

    def _send_what_fits(self) -> None:
        for stream in list(self.to_send):
            while self.to_send[stream]:
                window = self.client.local_flow_control_window(stream)
                size = min(window, self.client.max_outbound_frame_size, len(self.to_send[stream]))
                if size <= 0:
                    break
                self.client.send_data(stream, self.to_send[stream][:size])
                self.to_send[stream] = self.to_send[stream][size:]

    def _at_server(self, events: list[Any]) -> None:
        for event in events:
            match event:
                case Opened():
                    assert event.head.path == "/service/Method"
                    self.live.append(event.stream)
                    self.readers[event.stream] = MessageReader(1 << 20)
                case Received():
                    self.heard[event.stream] += messages(
                        self.readers[event.stream], *event.payloads
                    )
                    self.server.take(event.stream, sum(map(len, event.payloads)))
                case Reset():
                    self._over(event.stream)
                case Drained():
                    pass

    def _at_client(self, events: list[Any]) -> None:
        for event in events:
            match event:
                case h2.events.DataReceived():
                    assert event.stream_id is not None
                    self.received[event.stream_id] += event.data or b""
                case h2.events.TrailersReceived():
                    assert event.stream_id is not None
                    self.ended[event.stream_id] = dict(event.headers or [])  # type: ignore[arg-type]
                case h2.events.StreamReset():
                    assert event.stream_id is not None
                    self._over(event.stream_id)

    def _over(self, stream: int) -> None:
        self.to_send.pop(stream, None)
        for streams in (self.open, self.live):
            if stream in streams:
                streams.remove(stream)

    @precondition(lambda self: self.server.streams < 5)
    @rule()
    def open_a_stream(self) -> None:
        stream = self.client.get_next_available_stream_id()
        self.client.send_headers(stream, HEADERS)
        self.open.append(stream)
        self.exchange()

    @precondition(lambda self: self.open)
    @rule(size=MESSAGES, data=st.data())
    def ask(self, size: int, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from(self.open))
        self.mark += 1
        asked = message(size, self.mark)
        self.asked[stream].append(asked)
        self.to_send[stream] += prefix(size) + asked
        self.exchange()

    @precondition(lambda self: self.live)
    @rule(size=MESSAGES, data=st.data())
    def answer(self, size: int, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from(self.live))
        self.mark += 1
        answer = message(size, self.mark)
        self.answered[stream] += prefix(size) + answer
        self.server.send_message(stream, answer)
        self.exchange()

    @precondition(lambda self: self.received)
    @rule(data=st.data(), size=st.integers(1, 300_000))
    def widen(self, data: st.DataObject, size: int) -> None:
        """The client reads: its windows open."""
        stream = data.draw(st.sampled_from(sorted(self.received)))
        self.client.increment_flow_control_window(size)
        if stream not in self.ended and stream in self.live:
            self.client.increment_flow_control_window(size, stream)
        self.exchange()

    @rule(
        window=st.integers(0, 200_000), table=st.integers(0, 8192), size=st.integers(16384, 65536)
    )
    def change_settings(self, window: int, table: int, size: int) -> None:
        codes = h2.settings.SettingCodes
        self.client.update_settings(
            {
                codes.INITIAL_WINDOW_SIZE: window,
                codes.HEADER_TABLE_SIZE: table,
                codes.MAX_FRAME_SIZE: size,
            }
        )
        self.exchange()

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from(self.live))
        self.live.remove(stream)
        self.server.finish(stream, status=5, message="50 % off: ä")
        self.exchange()

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from(self.open))
        self._over(stream)
        self.client.reset_stream(stream, 8)
        self.exchange()

    @rule(size=st.integers(0, 100))
    def ping(self, size: int) -> None:
        self.client.ping(size.to_bytes(8, "big"))
        self.exchange()

    @invariant()
    def what_was_asked_was_heard(self) -> None:
        for stream, asked in self.asked.items():
            heard = self.heard[stream]
            assert heard == asked[: len(heard)]
            if stream in self.open and not self.to_send[stream]:
                assert heard == asked

    @invariant()
    def what_was_answered_arrives_in_order(self) -> None:
        for stream, answered in self.answered.items():
            received = self.received[stream]
            assert answered.startswith(received)
            if stream in self.ended:
                assert received == answered
                assert self.ended[stream]["grpc-status"] == "5"
                assert self.ended[stream]["grpc-message"] == "50 %25 off: %C3%A4"

    @invariant()
    def nothing_is_left_of_streams_that_are_over(self) -> None:
        waiting = sum(self.server.waits(stream) for stream in self.answered)
        assert self.server.streams <= len(self.live) + waiting


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


def client_bytes(sizes: list[int]) -> bytes:
    """What a client sends that asks with messages of these sizes, one stream each."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    for size in sizes:
        stream = client.get_next_available_stream_id()
        client.send_headers(stream, HEADERS)
        payload = prefix(size) + message(size, size)
        for at in range(0, len(payload), 16_384):
            client.send_data(stream, payload[at : at + 16_384])
    sent: bytes = client.data_to_send()
    return sent


def meaning(chunks: list[bytes]) -> list[tuple[Any, ...]]:
    """The events, with the payloads of each stream joined."""
    connection = Connection(ConnectionLimits())
    opened: list[tuple[Any, ...]] = []
    bodies: dict[int, bytes] = defaultdict(bytes)
    for chunk in chunks:
        for event in connection.receive(chunk, 0.0):
            if isinstance(event, Received):
                bodies[event.stream] += b"".join(event.payloads)
            else:
                opened.append(tuple(event))
    return [*opened, *bodies.items()]


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 20_000), max_size=3),
    cuts=st.lists(st.integers(0, 70_000), max_size=20),
)
def test_it_does_not_matter_how_bytes_are_cut(sizes: list[int], cuts: list[int]) -> None:
    sent = client_bytes(sizes)
    edges = [0, *sorted({cut for cut in cuts if cut < len(sent)}), len(sent)]
    chunks = [sent[start:stop] for start, stop in itertools.pairwise(edges)]
    assert meaning(chunks) == meaning([sent])


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.builds(
                frame,
                st.integers(0, 12),
                st.integers(0, 255),
                st.integers(0, 9),
                st.binary(max_size=64),
            ),
        ),
        max_size=12,
    )
)
def test_whatever_a_client_sends_only_our_error_comes_out(parts: list[bytes]) -> None:
    connection = Connection(ConnectionLimits(concurrent_streams=3))
    greeting = PREFACE + frame(4, 0, 0)
    try:
        for part in (greeting, *parts):
            for event in connection.receive(part, 0.0):
                if isinstance(event, Opened):
                    connection.send_message(event.stream, b"answer")
                    connection.finish(event.stream, status=0)
    except Http2Error:
        assert b"".join(connection.take_output())  # it was told why
    assert connection.streams <= 3


FIELDS = st.lists(
    st.tuples(
        st.sampled_from([b"a", b"b", b":path"]), st.sampled_from([b"1", b"/x/Y", b"z" * 300])
    ),
    max_size=4,
)


@given(st.lists(st.lists(FIELDS, max_size=12), max_size=4))
def test_what_is_remembered_of_header_blocks_is_what_decoding_says(
    connections: list[list[list[tuple[bytes, bytes]]]],
) -> None:
    for conversation in connections:
        encoder, decoder = Encoder(), HeaderDecoder()
        for fields in conversation:
            assert decoder.decode(encoder.encode(fields)) == tuple(fields)


STRICTER = re.compile("an integer is too long|changes too often")
"""What our decoder bounds and the library does not."""


@example([b"   "])
@given(st.lists(st.binary(max_size=20), max_size=4))
def test_a_block_that_cannot_be_decoded_is_refused_again(blocks: list[bytes]) -> None:
    for _ in range(2):
        told = []
        for decode in (HeaderDecoder().decode, partial(Decoder().decode, raw=True)):
            seen: list[object] = []
            for block in blocks:
                try:
                    seen.append([(bytes(n), bytes(v)) for n, v in decode(block)])
                except (Http2Error, HPACKError) as error:
                    if STRICTER.search(str(error)):
                        return
                    seen.append(None)
                    break
            told.append(seen)
        assert told[0] == told[1]


@given(
    st.lists(st.binary(max_size=60), max_size=6),
    st.lists(st.integers(0, 400), max_size=12),
    st.lists(st.booleans(), max_size=12),
)
def test_messages_are_the_same_however_they_are_cut(
    sent: list[bytes], cuts: list[int], together: list[bool]
) -> None:
    data = b"".join(b"\0" + len(one).to_bytes(4, "big") + one for one in sent)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    reader = MessageReader(60)
    got: list[bytes] = []
    waiting: list[memoryview] = []
    for at, (begin, end) in enumerate(pairwise(edges)):
        waiting.append(memoryview(data)[begin:end])
        if at < len(together) and together[at]:
            continue
        before = reader.held
        assert reader.feed(waiting) == reader.held - before
        waiting = []
        if (one := reader.take()) is not None:
            got.append(one)
    got += messages(reader, *waiting)
    assert got == sent
    assert not reader.held


@given(
    st.lists(st.integers(0, 40_000), min_size=1, max_size=4),
    st.lists(st.integers(1, 60_000), min_size=1, max_size=8),
    st.integers(1, 100),
)
def test_what_was_fed_may_change_once_it_is_kept(
    sizes: list[int], cuts: list[int], most: int
) -> None:
    """All connections read into one buffer; a job may end with frames that nobody looked at."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    sent = []
    for size in sizes:
        number = client.get_next_available_stream_id()
        body = bytes([number % 251]) * min(size, client.outbound_flow_control_window)
        client.send_headers(number, HEADERS)
        for at in range(0, len(body), client.max_outbound_frame_size):
            client.send_data(number, body[at : at + client.max_outbound_frame_size])
        sent.append(body)
    data = client.data_to_send()
    server = Connection(ConnectionLimits())
    got: dict[int, bytes] = defaultdict(bytes)
    for cut in [*cuts, len(data)]:
        buffer = bytearray(data[:cut])
        data = data[cut:]
        server.feed(memoryview(buffer))
        while True:
            for event in server.proceed(0.0, most):
                if isinstance(event, Received):
                    got[event.stream] += b"".join(event.payloads)
                elif isinstance(event, Opened):
                    assert event.head.path == "/service/Method"
            server.keep()
            buffer[:] = b"\xff" * len(buffer)
            if not server.busy:
                break
    assert [got[2 * at + 1] for at in range(len(sent))] == sent


@given(st.binary(max_size=200), st.integers(0, 50))
def test_a_message_is_never_larger_than_its_limit(data: bytes, most: int) -> None:
    reader = MessageReader(most)
    try:
        found = list(messages(reader, memoryview(data)))
    except ProtocolError:
        return
    assert all(len(one) <= most for one in found)
    assert reader.held <= most + 5
