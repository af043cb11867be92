"""A client of the front door with nothing but the standard library, also as a program.

gRPC's own client cannot use a descriptor that was inherited or received, and is slow to start; so
this speaks just enough HTTP/2 (RFC 9113) and gRPC to ask ``/test.Who/Am`` on any connected socket.
As a program it says one line a step and waits for a line on stdin between steps::

    door_client.py SOCKET ask | hold | fork | exec EXECUTABLE | pass OTHER | receive OTHER
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import struct
import sys
from pathlib import Path

PATH = b"/test.Who/Am"
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, ACK, END_HEADERS = 1, 1, 4
CLOSED, REFUSED = "closed", "refused"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers(path: bytes) -> bytes:
    """HPACK: literal fields without indexing, new names, no Huffman (RFC 7541, 6.2.2)."""
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]
    return b"".join(
        b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in fields
    )


class Asker:
    """Asks who we are, again and again, on one connection."""

    def __init__(self, connection: socket.socket, *, stream: int = 1) -> None:
        connection.settimeout(30)
        self.connection = connection
        self.stream = stream
        self._rest = b""

    @classmethod
    def connect(cls, path: str) -> Asker:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
        return cls(connection)

    def ask(self, path: bytes = PATH) -> str:
        """The identities, or ``refused``, or ``closed``."""
        stream, self.stream = self.stream, self.stream + 2
        greeting = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0)
        try:
            self.connection.sendall(
                (greeting if stream == 1 else b"")
                + frame(HEADERS, END_HEADERS, stream, headers(path))
                + frame(DATA, END_STREAM, stream, bytes(5))
            )
            return self._answer(stream)
        except (BrokenPipeError, ConnectionResetError):
            return CLOSED

    def until_closed(self) -> str:
        """Read until the other side ends the connection."""
        try:
            while self.connection.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return CLOSED

    def _answer(self, stream: int) -> str:
        message = b""
        while True:
            head = self._exactly(9)
            if len(head) < 9:
                return CLOSED
            length = int.from_bytes(head[:3])
            kind, flags, number = struct.unpack(">BBI", head[3:])
            payload = self._exactly(length)
            if kind == SETTINGS and not flags & ACK:
                self.connection.sendall(frame(SETTINGS, ACK, 0))
            elif kind == PING and not flags & ACK:
                self.connection.sendall(frame(PING, ACK, 0, payload))
            elif kind == GOAWAY:
                return CLOSED
            elif number == stream and kind == RST:
                return REFUSED
            elif number == stream and kind == DATA:
                message += payload
            if number == stream and kind in {DATA, HEADERS} and flags & END_STREAM:
                return message[5:].decode() or REFUSED

    def _exactly(self, size: int) -> bytes:
        while len(self._rest) < size:
            chunk = self.connection.recv(65536)
            if not chunk:
                return b""
            self._rest += chunk
        found, self._rest = self._rest[:size], self._rest[size:]
        return found


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def wait() -> None:
    sys.stdin.readline()


def become(uid: int | None, gid: int | None, groups: str | None) -> None:
    if groups is not None:
        os.setgroups([int(group) for group in groups.split(",") if group])
    if gid is not None:
        os.setgid(gid)
    if uid is not None:
        os.setuid(uid)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("socket")
    parser.add_argument("mode")
    parser.add_argument("other", nargs="?", default="")
    parser.add_argument("--uid", type=int)
    parser.add_argument("--gid", type=int)
    parser.add_argument("--groups")
    given = parser.parse_args()
    become(given.uid, given.gid, given.groups)
    if given.mode == "receive":
        receive(given.other)
        return
    if given.mode == "continue":  # after exec: the descriptor is still open
        asker = Asker(socket.socket(fileno=int(given.other)), stream=3)
        say(f"after exec {asker.ask()}")
        say(f"then {asker.until_closed()}")
        return
    asker = Asker.connect(given.socket)
    say(f"pid {os.getpid()} is {asker.ask()}")
    if given.mode == "hold":
        wait()
        say(f"again {asker.ask()}")
        say(f"then {asker.until_closed()}")
    elif given.mode == "fork":
        fork(asker)
    elif given.mode == "exec":
        wait()
        descriptor = asker.connection.detach()
        os.set_inheritable(descriptor, True)  # noqa: FBT003  positional only
        script = str(Path(__file__).resolve())
        os.execv(given.other, [given.other, script, given.socket, "continue", str(descriptor)])
    elif given.mode == "pass":
        give(asker, given.other)


def fork(asker: Asker) -> None:
    """The child goes on with the inherited connection; the parent ends when told."""
    if os.fork():
        wait()
        os.kill(os.getpid(), signal.SIGKILL)
    say(f"child {asker.ask()}")
    say(f"then {asker.until_closed()}")
    os._exit(0)


def give(asker: Asker, other: str) -> None:
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(other)
        socket.send_fds(channel, [b"x"], [asker.connection.fileno()])
        wait()
        os.kill(os.getpid(), signal.SIGKILL)  # our own copy ends with us


def receive(other: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(other)
        listener.listen()
        say("listening")
        channel, _ = listener.accept()
        with channel:
            _data, (descriptor,), _flags, _address = socket.recv_fds(channel, 1, 1)
    asker = Asker(socket.socket(fileno=descriptor), stream=3)
    say(f"received {asker.ask()}")
    say(f"then {asker.until_closed()}")


if __name__ == "__main__":
    main()
