"""Which connections of strangers give way, and what is known of each connection."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from sds.ca import listening as listening_module
from sds.ca.connections import Connections, KnownConnection, authority_budgets
from sds.ca.listening import open_listeners, peer_name
from sds.ca.server import ExchangeLimits
from sds.ca.stranger_connections import YOUNG_SECONDS, Stage, Strangers, strangers_room
from sds.ca.tls import self_signed_tls
from sds.clock import SystemClock
from sds.errors import ConfigurationError
from sds.operations.instruments import AuthorityInstruments
from sds.operations.metrics.port import RESULTS
from tests.support.cost import assert_linear
from tests.support.hostile_stranger import HELLO

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sds.transport.budget import Owner

NOW = 100.0


def crowd(
    *connections: tuple[int, str], stage: Stage = Stage.SILENT, among: Any = None
) -> Strangers[int]:
    """Connections by number and address, which came one after the other."""
    strangers: Strangers[int] = among if among is not None else Strangers()
    for number, owner in connections:
        strangers.join(number, owner, now=NOW)
        strangers.advance(number, stage)
    return strangers


def of_one(*numbers: int, address: str = "192.0.2.1") -> list[tuple[int, str]]:
    return [(number, address) for number in numbers]


def test_nobody_ends_while_there_is_room() -> None:
    assert crowd(*of_one(*range(4))).surplus(4, now=NOW) == []
    assert Strangers[int]().surplus(0, now=NOW) == []


def test_the_address_with_the_most_gives_way() -> None:
    strangers = crowd((99, "192.0.2.2"), *of_one(*range(8)))
    assert strangers.surplus(4, now=NOW) == [0, 1, 2, 3, 4]
    assert len(strangers) == 4
    both = crowd(*((number, f"192.0.2.{number % 2}") for number in range(8)))
    assert sorted(both.surplus(4, now=NOW)) == [0, 1, 2, 3]


@pytest.mark.parametrize("flood", Stage)
@pytest.mark.parametrize("stage", Stage)
def test_a_flood_at_one_stage_drives_out_nobody_at_another(flood: Stage, stage: Stage) -> None:
    strangers = crowd((1, "192.0.2.1"), stage=stage)
    crowd(*of_one(*range(100, 400)), stage=flood, among=strangers)
    crowd((999, "192.0.2.1"), stage=stage, among=strangers)
    ends = strangers.surplus(8, now=NOW)
    assert 999 not in ends
    assert (1 in ends) is (stage is flood)


def test_who_proves_nothing_is_late_and_makes_no_progress_after_that() -> None:
    strangers = crowd(*of_one(1, 2))
    assert strangers.surplus(2, now=NOW + YOUNG_SECONDS) == []
    strangers.advance(1, Stage.HEARD)
    crowd((3, "192.0.2.1"), stage=Stage.HEARD, among=strangers)
    assert strangers.surplus(2, now=NOW + YOUNG_SECONDS) == [1]
    assert not strangers.leave(1)
    strangers.advance(1, Stage.HEARD)  # it is over
    assert len(strangers) == 2


def test_any_order_of_changes_leaves_the_table_consistent() -> None:
    """Against the same decision made slowly, from a list."""
    chosen = random.Random(5)
    strangers: Strangers[int] = Strangers()
    there: dict[int, tuple[str, Stage]] = {}
    for number in range(4_000):
        there.pop(number, None)
        address = f"192.0.2.{chosen.randrange(6)}"
        strangers.join(number, address, now=NOW)
        there[number] = (address, Stage.SILENT)
        one = chosen.choice([*there])
        if chosen.random() < 0.4:
            assert strangers.leave(one)
            del there[one]
        elif (stage := chosen.choice([*Stage])) > there[one][1]:
            strangers.advance(one, stage)
            there[one] = (there.pop(one)[0], stage)
        sizes: dict[tuple[str, Stage], int] = {}
        for group in there.values():
            sizes[group] = sizes.get(group, 0) + 1
        for gone in strangers.surplus(40, now=NOW):
            group = there[gone]
            assert sizes[group] == max(sizes.values())
            assert gone == next(other for other in there if there[other] == group)
            sizes[group] -= 1
            del there[gone]
        assert len(strangers) == len(there) <= 40


def test_many_addresses_cost_in_proportion() -> None:
    def work(count: int) -> Callable[[], object]:
        def decide() -> None:
            strangers = crowd(*((number, f"2001:db8::{number:x}") for number in range(count)))
            assert len(strangers.surplus(count // 4, now=NOW)) == count - count // 4

        return decide

    assert_linear(work, 400)


@pytest.mark.parametrize(
    ("most", "proven", "room"),
    [(20, 0, 10), (20, 10, 10), (20, 15, 5), (20, 20, 0), (20, 25, 0), (1, 0, 1), (1, 1, 0)],
)
def test_agents_take_the_room_of_strangers(most: int, proven: int, room: int) -> None:
    assert strangers_room(most=most, proven=proven) == room


# --- real sockets -------------------------------------------------------------------------------


def connections(most: int) -> Connections:
    tls = self_signed_tls()
    return Connections(
        most=most,
        limits=ExchangeLimits(),
        tls=tls.settings,
        now=lambda: SystemClock().now().monotonic,
    )


def context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.set_alpn_protocols(["h2"])
    return made


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def listening(
    most: int, listen: str = "127.0.0.1:0"
) -> AsyncIterator[tuple[Connections, int]]:
    one = connections(most)
    listeners = await open_listeners(listen)
    port = listeners[0].getsockname()[1]
    one.listen(listeners)
    try:
        yield one, port
    finally:
        await one.server.stop(0)


async def test_only_the_connection_itself_is_proven_and_it_stays() -> None:
    """Many agents may have one address."""
    async with listening(4) as (known, port):
        callers: list[KnownConnection] = []
        made = known.server.connection

        def note(**about: Any) -> Any:
            callers.append(about["caller"])
            return made(**about)

        known.server.connection = note  # type: ignore[method-assign]
        agents = []
        for _ in range(2):
            agents.append(await asyncio.open_connection("127.0.0.1", port, ssl=context()))
            await until(lambda: known.strangers == 1)
            callers[-1].heard()
            callers[-1].proved("a machine")
            callers[-1].proved("a machine")
        assert (known.proven, known.strangers) == (2, 0)
        strangers = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
        await until(lambda: known.ended == 2)
        assert (known.proven, known.strangers) == (2, 2)
        for reader, _ in strangers[:2]:  # the oldest
            assert await reader.read() == b""
        assert callers[0].served is not None
        assert callers[0].served.owner.recognised
        assert callers[-1].served is not None
        assert not callers[-1].served.owner.recognised
        for _, writer in [*agents, *strangers]:
            writer.transport.abort()
        await until(lambda: (known.proven, known.strangers) == (0, 0))
        assert [one.served for one in callers] == [None] * len(callers)


async def test_the_memory_of_half_a_handshake_counts_as_strangers() -> None:
    async with listening(4) as (known, port):
        budgets = known.server.budgets
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            await until(lambda: known.strangers == 1)
            before = budgets.strangers.held
            stranger.sendall(HELLO[:100])
            await until(lambda: budgets.strangers.held > before)
            stranger.sendall(HELLO[100:])
            await until(lambda: known.endpoints.begun == 1)
            assert budgets.strangers.held - before > 10_000
        await until(lambda: known.strangers == 0)
        assert budgets.strangers.held == 0


async def test_metrics_count_what_comes_to_the_port() -> None:
    instruments = AuthorityInstruments(clock=SystemClock())

    def exported(name: str, **labels: str) -> float | None:
        return instruments.registry.get_sample_value(name, labels)

    def handshakes() -> list[float | None]:
        return [exported("sds_ca_tls_handshakes_total", result=one) for one in RESULTS]

    assert handshakes() == [0, 0, 0]
    async with listening(2) as (known, port):
        instruments.watch_port(known)
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            await until(lambda: handshakes() == [0, 1, 0])
        await until(lambda: known.strangers == 0)  # otherwise the next one does not show
        with socket.create_connection(("127.0.0.1", port)):
            await until(lambda: known.strangers == 1)
        await until(lambda: handshakes() == [0, 1, 1])
        await until(lambda: known.strangers == 0)
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context())
        await until(lambda: handshakes() == [1, 1, 1])
        assert exported("sds_ca_connections", callers="strangers") == 1
        assert exported("sds_ca_connections", callers="proven") == 0
        assert exported("sds_ca_connections_ended_total") == 0
        with socket.create_connection(("127.0.0.1", port)):
            await until(lambda: exported("sds_ca_connections_ended_total") == 1)
        writer.transport.abort()


async def test_where_agents_have_every_place_nobody_else_gets_one() -> None:
    async with listening(1) as (known, port):
        agent = KnownConnection(known, "192.0.2.1")
        known._proven.join(agent, "a machine", now=NOW)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b""
        writer.close()
        assert (known.strangers, known.ended) == (0, 1)


async def test_turns_and_budgets_of_agents_are_apart_from_strangers() -> None:
    limits = ExchangeLimits()
    budgets = authority_budgets(limits, 100)
    one, two = budgets.owner("connection 1"), budgets.owner("connection 2")
    assert one.account is two.account is budgets.strangers
    one.recognise()
    assert one.account is not budgets.strangers
    # Whatever strangers used, they get what is free: a fleet that comes back is of strangers.
    for second in range(3_600):
        budgets.strangers.processor.use(1.0, second)
        assert budgets.strangers.processor.rest_seconds(second) == 0
    for _ in range(10_000):
        two.refused(0.0)
    # The log lines of connections that break off are bounded for all strangers together.
    assert sum(two.may_log(0.0) for _ in range(1_000)) < 60


async def test_every_agent_has_an_account_however_many_come_and_go() -> None:
    most = 20
    budgets = authority_budgets(ExchangeLimits(), most)

    def gone() -> None:
        raise AssertionError

    here: list[Owner] = []
    for number in range(1_000):
        owner = budgets.owner(f"connection {number}")
        owner.connect(gone, float(number))
        owner.recognise()
        assert owner.recognised, number
        here.append(owner)
        if len(here) == most:
            here.pop(0).disconnect(gone)
    assert len(budgets.owners) <= 2 * most + 64


# --- listening ----------------------------------------------------------------------------------


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "localhost:0", "127.0.0.1:0"])
async def test_listening(listen: str) -> None:
    async with listening(9, listen) as (known, port):
        hosts = ["127.0.0.1"]
        if listen.startswith(("0", "[")) and socket.has_dualstack_ipv6():
            hosts.append("::1")
        for host in hosts:
            with socket.create_connection((host, port)):
                await until(lambda: known.strangers == 1)
                (*_, served) = known.server._connections
                assert served.peer.startswith(
                    "ipv4:127.0.0.1:" if "." in host else "ipv6:%5B::1%5D:"
                )
                raw = served._endpoint._raw._socket  # type: ignore[union-attr]
                for option, value in ((socket.TCP_NODELAY, 1), (socket.TCP_USER_TIMEOUT, 80_000)):
                    assert raw.getsockopt(socket.IPPROTO_TCP, option) == value
                assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            await until(lambda: known.strangers == 0)
        with pytest.raises(ConfigurationError, match="cannot listen on"):
            await open_listeners(f"127.0.0.1:{port}")


@pytest.fixture
def two_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name has two addresses of this machine, and one of another."""

    async def addresses(_host: str) -> list[tuple[socket.AddressFamily, str]]:
        return [(socket.AF_INET, f"{net}.1") for net in ("127.0.0", "192.0.2", "127.0.1")]

    monkeypatch.setattr(listening_module, "_addresses", addresses)


@pytest.mark.usefixtures("two_addresses")
async def test_every_address_of_a_name_is_listened_on_or_none() -> None:
    """An address that somebody else has would lead agents to him."""
    with contextlib.ExitStack() as stack:
        here, there = [stack.enter_context(one) for one in await open_listeners("name:0")]
        assert here.getsockname()[1] == there.getsockname()[1]
        port = here.getsockname()[1]
        here.close()
        with pytest.raises(ConfigurationError, match=r"cannot listen on .* already in use"):
            await open_listeners(f"name:{port}")
        socket.create_server(("127.0.0.1", port)).close()  # nothing of it was left open


@pytest.mark.usefixtures("two_addresses")
async def test_a_free_port_is_free_at_every_address(monkeypatch: pytest.MonkeyPatch) -> None:
    bound, taken = listening_module._bound, [0]

    def sometimes(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
        if address == "127.0.1.1" and taken[0] < 3:
            taken[0] += 1
            raise OSError(errno.EADDRINUSE, "Address already in use")
        return bound(family, address, port)

    monkeypatch.setattr(listening_module, "_bound", sometimes)
    for one in await open_listeners("name:0"):
        one.close()
    assert taken == [3]


@pytest.mark.parametrize("listen", ["192.0.2.1:0", "no-such-name.invalid:0"])
async def test_an_address_of_another_machine(listen: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot listen on"):
        await open_listeners(listen)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (("192.0.2.1", 4711), "ipv4:192.0.2.1:4711"),
        (("::ffff:192.0.2.1", 4711, 0, 0), "ipv4:192.0.2.1:4711"),
        (("2001:db8::1", 4711, 0, 0), "ipv6:%5B2001:db8::1%5D:4711"),
        (("fe80::1%2", 4711, 0, 2), "ipv6:%5Bfe80::1%5D:4711"),
    ],
)
def test_peers_have_the_names_that_grpc_gives_them(address: Any, name: str) -> None:
    assert peer_name(address) == name
