"""Which sockets have input: each is told of once, and one that fails stops no other."""

from __future__ import annotations

import asyncio
import functools
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from sds import faults
from sds.transport.input_readiness import MOST_AT_ONCE, InputReadiness

if TYPE_CHECKING:
    from pathlib import Path


async def _turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_socket_is_told_of_once_until_it_is_expected_again() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        readiness = InputReadiness.of(asyncio.get_running_loop())
        told: list[str] = []
        readiness.expect(ours.fileno(), lambda: told.append("input"))
        await _turns()
        assert told == []
        theirs.send(b"one")
        await _turns()
        theirs.send(b"two")
        await _turns()
        assert told == ["input"]
        readiness.expect(ours.fileno(), lambda: None)  # what came meanwhile is there still
        await _turns()
        assert told == ["input"] * 2
        readiness.forget(ours.fileno())
        theirs.close()
        await _turns()
        assert told == ["input"] * 2


async def test_a_fault_with_one_socket_stops_no_other_one() -> None:
    def broken() -> None:
        raise RuntimeError("broken")

    readiness = InputReadiness.of(asyncio.get_running_loop())
    before = faults.counts()["connection"]
    told: list[int] = []
    with ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(4)]
        for number, (ours, theirs) in enumerate(pairs):
            stack.enter_context(ours)
            stack.enter_context(theirs)
            tell = broken if number == 1 else functools.partial(told.append, number)
            readiness.expect(ours.fileno(), tell)
            theirs.close()
        await _turns()
        for ours, _ in pairs:
            readiness.forget(ours.fileno())
    assert sorted(told) == [0, 2, 3]
    assert faults.counts()["connection"] == before + 1


async def test_a_socket_that_another_one_closed_is_not_told_of() -> None:
    readiness = InputReadiness.of(asyncio.get_running_loop())
    told: list[int] = []
    with ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(2)]
        for number, (ours, theirs) in enumerate(pairs):
            stack.enter_context(ours)
            stack.enter_context(theirs)

            def tell(number: int = number) -> None:
                told.append(number)
                for ours, _ in pairs:
                    readiness.forget(ours.fileno())

            readiness.expect(ours.fileno(), tell)
            theirs.send(b"input")
        await _turns()
    assert len(told) == 1


async def test_a_turn_has_a_bounded_number_of_sockets_and_nothing_stays_open() -> None:
    loop = asyncio.get_running_loop()
    readiness = InputReadiness.of(loop)
    told = 0

    def tell() -> None:
        nonlocal told
        told += 1

    with ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(MOST_AT_ONCE + 10)]
        for ours, theirs in pairs:
            stack.enter_context(ours)
            stack.enter_context(theirs)
            readiness.expect(ours.fileno(), tell)
            theirs.close()
        readiness._look()
        assert told == MOST_AT_ONCE
        readiness._look()
        assert told == len(pairs)
        for ours, _ in pairs:
            readiness.forget(ours.fileno())
    assert readiness._epoll is None


async def test_what_the_kernel_cannot_watch_leaves_nothing_behind(tmp_path: Path) -> None:
    readiness = InputReadiness.of(asyncio.get_running_loop())
    with (tmp_path / "file").open("w") as file, pytest.raises(PermissionError):
        readiness.expect(file.fileno(), lambda: None)
    assert readiness._epoll is None
    readiness.forget(0)
