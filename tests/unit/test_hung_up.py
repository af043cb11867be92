"""Which connections are not worth serving any more."""

import socket
from collections.abc import Iterator

import pytest

from sds.transport.connected_socket import hung_up


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client, and the connection as it is accepted."""
    client, accepted = socket.socketpair()
    with client, accepted:
        yield client, accepted


def test_a_client_that_waits_or_has_said_something_is_served(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    client, accepted = ends
    assert not hung_up(accepted)
    client.send(b"hello")
    assert not hung_up(accepted)
    client.shutdown(socket.SHUT_WR)  # it still reads
    assert not hung_up(accepted)


def test_one_that_is_gone_is_not_whatever_it_said(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    client, accepted = ends
    client.send(b"hello")
    client.close()
    assert hung_up(accepted)
