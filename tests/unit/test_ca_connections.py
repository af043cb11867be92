"""Which connections of strangers give way."""

from __future__ import annotations

import contextlib
import select
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sds.ca import connections as module
from sds.ca.connections import AcceptedConnection, Connections, Stage, surplus
from sds.ca.unproven import address_and_port
from tests.support.clock import FakeClock
from tests.support.cost import assert_linear

if TYPE_CHECKING:
    from collections.abc import Callable


def connected(
    number: int, address: str = "192.0.2.1", *, stage: Stage = Stage.SILENT
) -> AcceptedConnection:
    return AcceptedConnection(
        descriptor=number,
        inode=number,
        name=(address, 40_000 + number),
        owner=address,
        since=float(number),
        stage=stage,
    )


def ends(connections: list[AcceptedConnection], room: int) -> list[int]:
    return [one.descriptor for one in surplus(connections, room=room)]


def test_nobody_ends_while_there_is_room() -> None:
    assert ends([connected(number) for number in range(4)], 4) == []
    assert ends([], 0) == []


def test_the_address_with_the_most_gives_way() -> None:
    crowd = [connected(number) for number in range(8)]
    assert ends([connected(99, "192.0.2.2"), *crowd], 4) == [0, 1, 2, 3, 4]
    both = [connected(number, f"192.0.2.{number % 2}") for number in range(8)]
    assert sorted(ends(both, 4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("flood", Stage)
@pytest.mark.parametrize("stage", Stage)
def test_a_flood_at_one_stage_drives_out_nobody_at_another(flood: Stage, stage: Stage) -> None:
    crowd = [connected(number, stage=flood) for number in range(100, 400)]
    honest = connected(1, stage=stage)
    if stage is not flood:
        assert 1 not in ends([honest, *crowd], 8)
    newest = connected(999, stage=stage)
    assert 999 not in ends([newest, *crowd], 8)


def test_many_addresses_cost_in_proportion() -> None:
    def work(count: int) -> Callable[[], object]:
        crowd = [connected(number, f"2001:db8::{number:x}") for number in range(count)]
        return lambda: surplus(crowd, room=count // 4)

    assert_linear(work, 400)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_what_is_looked_at_and_ended_is_the_connection_itself(host: str) -> None:
    """Real sockets, of both families; every other descriptor is left alone."""
    family = socket.AF_INET if host == "127.0.0.1" else socket.AF_INET6
    with socket.socket(family) as listener:
        if host.startswith("::ffff"):
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::" if host.startswith("::ffff") else host, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with socket.socket(family) as client:
            client.connect((host, port))
            accepted, _ = listener.accept()
            with accepted:
                guard = Connections(most=8, clock=FakeClock())
                assert not guard.look(port, set())
                (one,) = guard._open.values()
                assert one.descriptor == accepted.fileno()
                assert one.name == (host.removeprefix("::ffff:"), client.getsockname()[1])
                assert next(iter(guard._open.values())).stage is Stage.SILENT
                accepted.send(b"xy")
                assert client.recv(2) == b"xy"
                guard.look(port, set())
                assert list(guard._open.values()) == [one]  # the same object
                assert one.stage == Stage.ANSWERED
                one.end()
                assert client.recv(1) == b""
                assert accepted.fileno() != -1
        # Another connection under the same number is not the one that was meant.
        ours, theirs = socket.socketpair()
        with ours, theirs, Path("/dev/null").open() as file:
            open_now = len(list(Path("/proc/self/fd").iterdir()))
            for number in (ours.fileno(), file.fileno(), 1 << 20):
                one.descriptor = number
                one.end()
            assert len(list(Path("/proc/self/fd").iterdir())) == open_now
            theirs.send(b"x")
            assert ours.recv(1) == b"x"
    assert module._descriptors() > 3


def test_a_connection_on_which_evidence_held_stays() -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = listener.getsockname()[1]
        guard = Connections(most=4, clock=FakeClock())

        def pair() -> socket.socket:
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            stack.enter_context(listener.accept()[0])
            return client

        agents = [pair() for _ in range(5)]
        names = [f"ipv4:127.0.0.1:{agent.getsockname()[1]}" for agent in agents]
        guard.look(port, {name for text in names if (name := address_and_port(text))})
        strangers = [pair() for _ in range(3)]
        late = pair()
        guard.prove(f"ipv4:127.0.0.1:{late.getsockname()[1]}")  # while the look is on its way
        guard.look(port, set())
        ended = select.select([*agents, *strangers, late], [], [], 0)[0]
        assert set(ended) <= set(strangers)
        assert len(ended) >= 2


async def test_who_proved_itself_is_not_forgotten_by_a_look_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Looking needs descriptors, and a flood may leave none for a moment."""
    looked: list[set[tuple[str, int]]] = []

    class Failing(Connections):
        def look(self, port: int, proven: set[tuple[str, int]]) -> bool:
            del port
            looked.append(set(proven))
            raise OSError(24, "Too many open files")

    connections = Failing(most=2, clock=FakeClock())
    connections.prove("ipv4:192.0.2.1:4711")
    for _ in range(2):
        with pytest.raises(OSError, match="Too many open files"):
            await connections.run(1)
    assert looked == [{("192.0.2.1", 4711)}] * 2
