"""A plain ACK is taken without waking its handler; all else reaches the handler whole."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from sds.errors import LimitError
from sds.serving.subscription import DeltaRequest, DeltaSubscription, SotwRequest, SotwSubscription
from sds.serving.subscription.messages import Receipt
from sds.transport.call import Call
from sds.transport.headers import RequestHead
from sds.transport.messages import prefix
from sds.transport.rate import TokenBucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection


LARGE = b"x" * 513


def framed(*messages: bytes) -> list[memoryview]:
    return [memoryview(b"".join(prefix(len(one)) + one for one in messages))]


class _Turns:
    long = False

    def step_is_long(self) -> bool:
        return self.long


class _Link:
    """Stands for the connection: counts what a call asks of it."""

    peer = "connection:1"
    caller = owner = None

    def __init__(self) -> None:
        self.turns: Any = _Turns()
        self.woken = 0
        self.room = 0

    def wake(self, future: asyncio.Future[None]) -> None:
        self.woken += 1
        future.set_result(None)

    def taken(self, _stream: int, count: int) -> None:
        self.room += count

    def hold(self, count: int) -> None:
        pass


@dataclass
class Reading:
    """A handler that reads, and a taker of messages that begin with ``ack``."""

    link: Any = field(default_factory=_Link)
    handled: list[bytes] = field(default_factory=list)
    at_once: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        head = RequestHead(b"POST", "/a/B", ())
        self.call = Call(self.link, 1, head, most=1000, loop=asyncio.get_running_loop())
        self.call.at_once = self.take

    def take(self, message: bytes, _now: float) -> bool:
        if not message.startswith(b"ack"):
            return False
        self.at_once.append(message)
        return True

    async def read(self) -> None:
        async for message in self.call:
            self.handled.append(message)

    async def feed(self, *messages: bytes, ended: bool = False) -> None:
        self.call.feed(framed(*messages), ended=ended)
        for _ in range(3):
            await asyncio.sleep(0)


@pytest.fixture
async def reading() -> AsyncIterator[Reading]:
    reading = Reading()
    task = asyncio.create_task(reading.read())
    await asyncio.sleep(0)
    yield reading
    task.cancel()
    await asyncio.wait([task])


async def test_a_message_that_is_taken_at_once_wakes_nobody_and_makes_room(
    reading: Reading,
) -> None:
    for _ in range(3):
        await reading.feed(b"ack")
    assert reading.at_once == [b"ack"] * 3
    assert (reading.link.woken, reading.handled) == (0, [])
    assert reading.link.room == 3 * len(b"-----ack")


@pytest.mark.parametrize(
    "messages", [(b"other",), (b"ack 1", b"ack 2"), (b"other", b"ack"), (b"ack" + LARGE,)]
)
async def test_what_is_not_taken_at_once_reaches_the_handler_whole(
    reading: Reading, messages: tuple[bytes, ...]
) -> None:
    await reading.feed(*messages)
    assert reading.handled == list(messages)
    assert not reading.at_once
    assert reading.link.room == sum(5 + len(one) for one in messages)


async def test_a_message_in_parts_is_taken_once_it_is_whole(reading: Reading) -> None:
    [whole] = framed(b"ack of something")
    for at in range(len(whole)):
        reading.call.feed([whole[at : at + 1]], ended=False)
    assert reading.at_once == [b"ack of something"]
    assert reading.link.woken == 0


async def test_after_the_end_of_the_requests_the_handler_is_woken(reading: Reading) -> None:
    await reading.feed(b"ack", ended=True)
    assert reading.handled == [b"ack"]
    assert not reading.at_once


async def test_a_step_that_is_long_leaves_the_message_to_the_handlers_turn(
    reading: Reading,
) -> None:
    reading.link.turns.long = True
    reading.call.feed(framed(b"ack"), ended=False)
    assert not reading.at_once
    assert reading.link.woken == 1
    reading.link.turns.long = False
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert reading.handled == [b"ack"]


async def test_while_the_handler_is_busy_nothing_overtakes_what_it_has() -> None:
    reading = Reading()  # nobody reads yet
    await reading.feed(b"other")
    await reading.feed(b"ack")
    assert not reading.at_once
    task = asyncio.create_task(reading.read())
    await asyncio.sleep(0)
    assert reading.handled == [b"other", b"ack"]
    await reading.feed(b"ack")
    assert reading.at_once == [b"ack"]
    task.cancel()
    await asyncio.wait([task])


async def test_a_call_that_is_over_keeps_no_taker(reading: Reading) -> None:
    reading.call.close()
    assert reading.call.at_once is None


# --- which requests are plain ACKs --------------------------------------------------------------


@dataclass(frozen=True)
class Thing:
    receipt: Receipt
    size: int = 1


class View:
    def find(self, name: str) -> Thing | None:
        return Thing(Receipt(name, "v1"))

    def is_expected(self, name: str) -> bool:
        return False

    def everything(self) -> Collection[str]:
        return ("a",)


def sotw(*requests: tuple[str, ...]) -> SotwSubscription[Thing]:
    core: SotwSubscription[Thing] = SotwSubscription()
    for number, names in enumerate(requests):
        list(core.outcomes(SotwRequest(names, f"n{number - 1}" if number else "")))
        core.respond(View(), f"n{number}")
    return core


def unchanged_by(core: Any, request: SotwRequest | DeltaRequest) -> bool:
    known = [(one.name, one.sent, one.acked) for one in core.watched()]
    outcome = core.acknowledge(request)
    return outcome is None and known == [(one.name, one.sent, one.acked) for one in core.watched()]


def test_an_ack_of_the_newest_response_is_plain_once() -> None:
    core = sotw(("a", "b"))
    outcome = core.acknowledge(SotwRequest(("b", "a"), "n0"))
    assert outcome is not None
    assert [receipt.name for receipt in outcome.acked] == ["a", "b"]
    assert unchanged_by(core, SotwRequest(("a", "b"), "n0"))


@pytest.mark.parametrize(
    "request_",
    [
        SotwRequest(("a", "b"), "n0", "refused"),
        SotwRequest(("a", "b"), ""),
        SotwRequest(("a", "b"), "n9"),
        SotwRequest(("a",), "n0"),
        SotwRequest(("a", "a"), "n0"),
        SotwRequest(("a", "b", "c"), "n0"),
        SotwRequest(("a", "*"), "n0"),
        SotwRequest((), "n0"),
    ],
    ids=repr,
)
def test_a_request_that_says_more_than_an_ack_changes_nothing_yet(request_: SotwRequest) -> None:
    assert unchanged_by(sotw(("a", "b")), request_)


def test_an_ack_that_ends_the_wildcard_is_not_plain() -> None:
    core = sotw(("a", "*"))
    assert core.wildcard
    assert unchanged_by(core, SotwRequest(("a",), "n0"))
    list(core.outcomes(SotwRequest(("a",), "n0")))
    assert not core.wildcard


def test_an_ack_of_many_resources_is_not_taken_in_one_step() -> None:
    names = tuple(f"name {number}" for number in range(17))
    assert unchanged_by(sotw(names), SotwRequest(names, "n0"))
    assert sotw(names[1:]).acknowledge(SotwRequest(names[1:], "n0")) is not None


@pytest.mark.parametrize(
    "request_",
    [
        DeltaRequest(nonce="n0", error="refused"),
        DeltaRequest(nonce="n9"),
        DeltaRequest(),
        DeltaRequest(("b",), nonce="n0"),
        DeltaRequest((), ("a",), nonce="n0"),
    ],
    ids=repr,
)
def test_a_delta_request_that_says_more_than_an_ack_changes_nothing_yet(
    request_: DeltaRequest,
) -> None:
    core: DeltaSubscription[Thing] = DeltaSubscription()
    list(core.outcomes(DeltaRequest(("a",))))
    core.respond(View(), "n0")
    assert unchanged_by(core, request_)
    assert core.acknowledge(DeltaRequest(nonce="n0")) is not None


def test_a_token_that_was_given_back_can_be_taken_again() -> None:
    bucket = TokenBucket(per_second=1, burst=2)
    for _ in range(5):
        bucket.take(10.0)
        bucket.give_back()
    bucket.take(10.0)
    bucket.take(10.0)
    with pytest.raises(LimitError):
        bucket.take(10.0)
