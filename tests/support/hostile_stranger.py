"""hostile_stranger.py PORT KIND COUNT SECONDS: holds connections to an authority, one process.

It keeps COUNT connections open and opens another for each that ends. Kinds: ``silent`` (TCP, then
nothing), ``half`` (half of a TLS ClientHello), ``drip`` (a ClientHello byte by byte), ``tls`` (a
whole handshake, then nothing), ``preface`` (and HTTP/2's preface), ``pings`` (and a PING a moment),
``call`` (and a call without a message), ``unknown`` (and calls that there are not, again and
again), ``flood`` (TCP, as fast as it can). Prints how many it opened. Bare Python.
"""

import contextlib
import select
import socket
import ssl
import sys
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
PING = b"\0\0\x08\6\0\0\0\0\0" + bytes(8)
EXCHANGE = b"/sds.ca.v1.CertificateAuthority/Exchange"
TLS_KINDS = {"tls", "preface", "pings", "call", "unknown"}
KINDS = ("silent", "half", "drip", *sorted(TLS_KINDS), "flood")
PAUSE = 0.02
ADDRESS = "127.0.0.9"
"""Another machine's than the agents': of one address, strangers and newcomers share a bound."""


def context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.set_alpn_protocols(["h2"])
    return made


def client_hello() -> bytes:
    """What a TLS client says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    talk = context().wrap_bio(incoming, outgoing, server_hostname="a")
    with contextlib.suppress(ssl.SSLWantReadError):
        talk.do_handshake()
    return outgoing.read()


def literal(name: bytes, value: bytes) -> bytes:
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def call(number: int, path: bytes) -> bytes:
    """HEADERS of a call (RFC 9113, 6.2; RFC 7541, 6.2.2)."""
    fields = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", path))
    more = ((b":authority", b"a"), (b"content-type", b"application/grpc"), (b"te", b"trailers"))
    block = b"".join(literal(*pair) for pair in (*fields, *more))
    return len(block).to_bytes(3, "big") + b"\1\4" + number.to_bytes(4, "big") + block


HELLO = client_hello()


class Held:
    """One connection."""

    def __init__(self, port: int, kind: str) -> None:
        self.kind = kind
        self.sent = 0
        self.socket = socket.create_connection(
            ("127.0.0.1", port), timeout=5, source_address=(ADDRESS, 0)
        )
        if kind in TLS_KINDS:
            self.socket = context().wrap_socket(self.socket, server_hostname="a")
        first = {"half": HELLO[: len(HELLO) // 2], "call": PREFACE + call(1, EXCHANGE)}
        self.send(first.get(kind, PREFACE if kind in TLS_KINDS - {"tls"} else b""))
        self.socket.settimeout(0)

    def send(self, data: bytes) -> None:
        with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError):
            self.socket.send(data)

    def go_on(self) -> None:
        """Say what keeps it alive."""
        self.sent += 1
        if self.kind == "drip":
            self.send(HELLO[self.sent % len(HELLO) :][:1])
        elif self.kind == "pings" and self.sent % 20 == 0:
            self.send(PING)
        elif self.kind == "unknown":
            self.send(call(2 * self.sent + 1, b"/no/such"))

    def is_over(self) -> bool:
        """Whether the other side closed it."""
        if not select.select([self.socket], [], [], 0)[0]:
            return False
        try:
            while self.socket.recv(65536):
                pass
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        return True


def main(port: int, kind: str, count: int, seconds: float) -> None:
    held: list[Held] = []
    opened = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for one in list(held):
            try:
                over = one.is_over()
                if not over:
                    one.go_on()
            except OSError:
                over = True
            if over:
                held.remove(one)
                one.socket.close()
        room = count - len(held)
        for _ in range(min(room, 2) if kind in TLS_KINDS else room):  # TLS costs both sides
            with contextlib.suppress(OSError):
                held.append(Held(port, kind))
                opened += 1
        if kind != "flood":
            time.sleep(PAUSE)
        else:
            while held:
                held.pop(0).socket.close()
    print("opened", opened, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
