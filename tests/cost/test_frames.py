"""Every frame costs in proportion to its own bytes, whatever is open on its connection.

Each shape is bytes that a client may send, n of the kind. Invariants: twice as many cost twice as
much; the same bytes cost the same beside 2,000 open streams, of which each waits for a window, as
beside ten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sds.errors import Http2Error
from sds.transport import frames
from sds.transport.connection import Connection
from sds.transport.events import ConnectionLimits, Opened
from sds.transport.frames import PREFACE, frame
from sds.transport.messages import MessageReader
from tests.support.cost import assert_linear, assert_same, lines
from tests.support.fuzz_target import messages

if TYPE_CHECKING:
    from collections.abc import Callable

LIMITS = ConnectionLimits(concurrent_streams=10_000, frames_per_second=1e9, frame_burst=1 << 40)
BLOCK = bytes.fromhex("838684410130")  # POST, http, /, :authority 0
FEW, MANY = 10, 2_000


def numbers(first: int, count: int) -> range:
    return range(2 * first + 1, 2 * (first + count) + 1, 2)


def headers(number: int, block: bytes = BLOCK, flags: int = 0) -> bytes:
    return frame(frames.HEADERS, frames.END_HEADERS | flags, number, block)


def settings(*values: tuple[int, int]) -> bytes:
    payload = b"".join(key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in values)
    return frame(frames.SETTINGS, 0, 0, payload)


def window_update(number: int, increment: int) -> bytes:
    return frame(frames.WINDOW_UPDATE, 0, number, increment.to_bytes(4, "big"))


def connection(streams: int, *, waiting: bool = True) -> Connection:
    """A connection whose window is used up, with open streams that have an answer each to send."""
    made = Connection(LIMITS)
    made.receive(PREFACE + settings(), 0.0)
    for event in made.receive(b"".join(map(headers, numbers(0, streams))), 0.0):
        assert isinstance(event, Opened)
        if waiting:
            made.send_message(event.stream, bytes(70_000 if event.stream == 1 else 600))
    made.receive(settings((frames.SETTING_INITIAL_WINDOW_SIZE, 0)), 0.0)
    made.take_output()
    return made


def windows(count: int) -> bytes:
    """SETTINGS that open and shut all windows, several values in a frame."""
    size = frames.SETTING_INITIAL_WINDOW_SIZE
    return settings(*((size, number % 2) for number in range(100))) * count


def slow_windows(count: int) -> bytes:
    """As :func:`windows`, one value in a frame."""
    size = frames.SETTING_INITIAL_WINDOW_SIZE
    return b"".join(settings((size, number % 2)) for number in range(count))


def extreme(count: int) -> bytes:
    """Streams with the widest window come and go between SETTINGS that change all windows."""
    return b"".join(
        headers(number)
        + window_update(number, frames.MAX_WINDOW - 1)
        + frame(frames.RST_STREAM, 0, number, bytes(4))
        + settings((frames.SETTING_INITIAL_WINDOW_SIZE, number % 3))
        for number in numbers(10_000, count)
    )


SHAPES: dict[str, Callable[[int], bytes]] = {
    "settings": windows,
    "settings, one value each": slow_windows,
    "settings of the table": lambda n: settings((1, 0), (1, 4096)) * n,
    "settings ack": lambda n: frame(frames.SETTINGS, frames.ACK, 0) * n,
    "window of the connection": lambda n: window_update(0, 1) * n,
    "window of one stream": lambda n: window_update(1, 1) * n,
    "window of a closed stream": lambda n: (
        headers(40_001)
        + frame(frames.RST_STREAM, 0, 40_001, bytes(4))
        + window_update(40_001, 1) * n
    ),
    "extreme windows": extreme,
    "ping": lambda n: frame(frames.PING, 0, 0, bytes(8)) * n,
    "priority": lambda n: frame(frames.PRIORITY, 0, 1, bytes(5)) * n,
    "goaway": lambda n: frame(frames.GOAWAY, 0, 0, bytes(8)) * n,
    "unknown": lambda n: frame(77, 0, 1, bytes(9)) * n,
    "empty data": lambda n: frame(frames.DATA, 0, 1) * n,
    "padded data": lambda n: frame(frames.DATA, frames.PADDED, 1, b"\x09" + bytes(9)) * n,
    "data on a stream that we reset": lambda n: (
        headers(40_001, b"\x00\x01A\x00") + frame(frames.DATA, 0, 40_001, b"x") * n
    ),
    "opened and reset": lambda n: b"".join(
        headers(number) + frame(frames.RST_STREAM, 0, number, bytes(4))
        for number in numbers(20_000, n)
    ),
    "opened and broken": lambda n: b"".join(
        headers(number, b"\x00\x01A\x00") for number in numbers(20_000, n)
    ),
    "header table": lambda n: b"".join(
        headers(
            number, BLOCK + b"\x40\x04" + number.to_bytes(4, "big").hex().encode()[4:] + b"\x01x"
        )
        + frame(frames.RST_STREAM, 0, number, bytes(4))
        for number in numbers(20_000, n)
    ),
    "trailers": lambda n: b"".join(
        headers(number)
        + headers(number, b"\x00\x01a\x01b", frames.END_STREAM)
        + frame(frames.RST_STREAM, 0, number, bytes(4))
        for number in numbers(20_000, n)
    ),
    "empty continuation": lambda n: (
        frame(frames.HEADERS, 0, 40_001, BLOCK) + frame(frames.CONTINUATION, 0, 40_001) * n
    ),
    "continuation, an octet each": lambda n: (
        frame(frames.HEADERS, 0, 40_001, BLOCK + b"\x00\x01a\x7f\xff\x7f")
        + frame(frames.CONTINUATION, 0, 40_001, b"x") * n
    ),
}


def taking(made: Connection, sent: bytes) -> Callable[[], object]:
    def work() -> None:
        # In pieces as a socket gives them: once for each piece waiting streams are looked at.
        for at in range(0, len(sent), 4096):
            made.receive(sent[at : at + 4096], 0.0)

    return work


@pytest.mark.parametrize("shape", SHAPES)
def test_twice_as_many_frames_cost_twice_as_much(shape: str) -> None:
    assert_linear(lambda n: taking(connection(FEW), SHAPES[shape](n)), 100)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_frame_costs_the_same_whatever_is_open(shape: str) -> None:
    sent = SHAPES[shape](100)
    assert_same(lambda open_: taking(connection(open_), sent), few=FEW, many=MANY)


def test_a_frame_in_pieces_of_one_byte_costs_its_bytes() -> None:
    def work(size: int) -> Callable[[], object]:
        made = connection(1)
        sent = frame(frames.DATA, 0, 1, bytes(size))
        return lambda: [made.receive(sent[at : at + 1], 0.0) for at in range(len(sent))]

    assert_linear(work, 4_000)


def test_a_window_that_opens_costs_what_it_sets_free() -> None:
    """SETTINGS that open all windows by one byte send one byte of each stream, and no more."""
    made = connection(MANY)
    made.receive(window_update(0, 1 << 20), 0.0)
    assert made.take_output() == []
    made.receive(settings((frames.SETTING_INITIAL_WINDOW_SIZE, 1)), 0.0)
    sent = b"".join(made.take_output())
    ack = frame(frames.SETTINGS, frames.ACK, 0)
    assert len(sent) == len(ack) + (MANY - 1) * (frames.HEAD.size + 1)


def test_the_widest_window_is_checked_at_each_value() -> None:
    """RFC 9113, section 6.9.2: also where a later value of the same frame takes it back."""
    size = frames.SETTING_INITIAL_WINDOW_SIZE
    made = connection(FEW, waiting=False)
    made.receive(window_update(1, frames.MAX_WINDOW - 5), 0.0)
    made.receive(settings((size, 5)), 0.0)
    with pytest.raises(Http2Error, match="exceeds"):
        made.receive(settings((size, 6), (size, 0)), 0.0)
    # A stream that is over limits nobody.
    made = connection(FEW, waiting=False)
    made.receive(window_update(1, frames.MAX_WINDOW - 5), 0.0)
    made.receive(frame(frames.RST_STREAM, 0, 1, bytes(4)) + settings((size, 70_000)), 0.0)


def test_any_number_of_messages_costs_their_bytes() -> None:
    def work(count: int) -> Callable[[], object]:
        reader = MessageReader(1 << 20)
        data = memoryview(b"\0\0\0\0\2ab" * count)
        return lambda: [
            list(messages(reader, data[at : at + 16_384])) for at in range(0, len(data), 16_384)
        ]

    assert_linear(work, 5_000)


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (b"\xff" + b"\xff" * 16_000 + b"\x00", "an integer is too long"),
        (b"\x00\x7f" + b"\xff" * 16_000 + b"\x00", "an integer is too long"),
        (b"\x20" * 16_000, "the table's size changes too often"),
    ],
)
def test_a_header_block_that_takes_long_is_refused_at_once(octets: bytes, why: str) -> None:
    made = connection(1)
    caught: list[str] = []

    def work() -> None:
        try:
            made.receive(headers(40_001, octets), 0.0)
        except Http2Error as error:
            caught.append(error.message)

    assert lines(work) < 500
    assert caught
    assert why in caught[0]


LARGE_BLOCKS = {
    "Huffman's code": BLOCK + b"\x00\x01a\xff\xdd\x3c" + b"\x07" * 7_900,
    "a little of it": BLOCK + b"\x00\x01a\xff\x81\x02" + b"\x07" * 384,
    "short fields": BLOCK + b"\x00\x81\x1f\x81\x1f" * 50,
    "indexes": BLOCK + b"\x90" * 50,
}
"""Each takes more than a tenth of a millisecond to decode, whatever its size says."""


@pytest.mark.parametrize("kind", LARGE_BLOCKS)
def test_a_header_block_counts_as_the_work_that_it_is(kind: str) -> None:
    """The time is looked at after each of them, so a job ends."""
    made = connection(0)
    block = LARGE_BLOCKS[kind]
    made.feed(b"".join(headers(number, block) for number in numbers(0, 9)))
    opened = 0
    while made.busy:
        found = len(made.proceed(0.0, 64))
        assert found <= 1
        opened += found
    assert opened == 9
