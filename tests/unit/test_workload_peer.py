import errno
import os
import socket
from pathlib import Path

import pytest

from sds.errors import PeerGoneError
from sds.workload import peer as peer_module
from sds.workload.peer import MOST_GROUPS, SO_PEERPIDFD, Peer, process_start_time
from tests.support.refusals import refused


class Refusing(socket.socket):
    """A real socket of a kernel that answers one option differently."""

    option: int
    error: int
    answer: bytes | None = None

    def getsockopt(self, *arguments):  # type: ignore[no-untyped-def]
        if arguments[1] == self.option:
            if self.answer is not None:
                return self.answer
            raise OSError(self.error, os.strerror(self.error))
        return super().getsockopt(*arguments)


def refusing(option: int, *, error: int = 0, answer: bytes | None = None) -> Refusing:
    ours, theirs = socket.socketpair()
    theirs.close()
    wrapped = Refusing(fileno=ours.detach())
    wrapped.option, wrapped.error, wrapped.answer = option, error, answer
    return wrapped


def test_the_kernel_says_who_connected() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = Peer.of(ours)
        try:
            assert (peer.pid, peer.uid, peer.gid) == (os.getpid(), os.geteuid(), os.getegid())
            assert peer.groups == frozenset(os.getgroups())
            assert peer.pidfd is not None
            assert not os.get_inheritable(peer.pidfd)
            peer.check()
        finally:
            peer.close()
        peer.close()
        with pytest.raises(PeerGoneError, match="is closed"):
            peer.check()


def test_without_so_peerpidfd_the_start_time_is_the_second_check(
    caplog: pytest.LogCaptureFixture,
) -> None:
    peer_module._say_no_pidfd.cache_clear()
    with refusing(SO_PEERPIDFD, error=errno.ENOPROTOOPT) as connection:
        for _ in range(100):  # callers choose how often they connect
            peer = Peer.of(connection)
        assert (peer.pidfd, peer.start_time) == (None, process_start_time(os.getpid()))
        peer.check()
        peer.start_time = 1
        with pytest.raises(PeerGoneError, match="used again"):
            peer.check()
    assert caplog.text.count("has no SO_PEERPIDFD") == 1


@pytest.mark.parametrize(
    ("option", "error", "reason"),
    [
        (socket.SO_PEERCRED, errno.EINVAL, "peer_credentials"),
        (SO_PEERPIDFD, errno.EPERM, "peer_credentials"),
        (SO_PEERPIDFD, errno.ESRCH, "peer_gone"),
        (SO_PEERPIDFD, errno.EINVAL, "peer_gone"),
    ],
)
def test_what_the_kernel_refuses_is_refused(option: int, error: int, reason: str) -> None:
    with refusing(option, error=error) as connection, refused(reason):
        Peer.of(connection)


@pytest.mark.parametrize("pid", [0, -1])
def test_a_process_of_a_namespace_that_we_do_not_see_is_refused(pid: int) -> None:
    answer = peer_module._UCRED.pack(pid, 0, 0)
    with (
        refusing(socket.SO_PEERCRED, answer=answer) as connection,
        refused("peer_credentials", match="hostPID: true"),
    ):
        Peer.of(connection)


def test_more_groups_than_the_socket_option_can_return() -> None:
    with refusing(peer_module.SO_PEERGROUPS, error=errno.ERANGE) as connection:
        peer = Peer.of(connection)
        peer.close()
        assert peer.groups == frozenset(os.getgroups())


def test_no_name_of_a_process_adds_a_group() -> None:
    """The kernel writes a carriage return in a process's name as it is."""
    name = Path("/proc/self/comm")
    before = name.read_bytes()
    with refusing(peer_module.SO_PEERGROUPS, error=errno.ERANGE) as connection:
        name.write_bytes(b"\rGroups:\t0 27")
        try:
            peer = Peer.of(connection)
        finally:
            name.write_bytes(before)
        peer.close()
        assert peer.groups == frozenset(os.getgroups())


def test_a_process_in_very_many_groups_is_in_none_that_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every user with subordinate IDs can be in 65,536."""
    status = tmp_path / "status"
    read = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        return read(status if path.name == "status" else path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    for groups, expected in (
        (range(MOST_GROUPS), frozenset(range(MOST_GROUPS))),
        (range(65_536), None),
    ):
        status.write_text(f"Name:\tx\nGroups:\t{' '.join(map(str, groups))} \n")
        with refusing(peer_module.SO_PEERGROUPS, error=errno.ERANGE) as connection:
            peer = Peer.of(connection)
            peer.close()
            assert peer.groups == expected


def test_a_pid_of_nobody() -> None:
    with pytest.raises(PeerGoneError):
        process_start_time(2**22 + 1)
