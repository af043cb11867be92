"""Bounds what a client may send before its TLS handshake is over.

OpenSSL takes memory for a ClientHello as soon as its length is announced: 128 KiB for a caller that
sent 20 bytes. So the lengths are read before OpenSSL sees them. Owns that reading. Invariants: no
message of a handshake is announced with more than :data:`MOST_BYTES`, and the client's part of a
handshake has at most :data:`MOST_PARTS` records and messages; what is encrypted is not looked at;
the first message is complete, or refused, before the client sent much more than
:data:`MOST_BYTES`.

A record of encrypted data is skipped and not the end: after a HelloRetryRequest, OpenSSL skips such
records as early data and expects another ClientHello behind them (RFC 8446, section 4.2.10).

Sources: RFC 8446, sections 4 and 5.1. TLS libraries send a ClientHello of a few hundred bytes to
2 KiB; BoringSSL accepts 16 KiB, as this does.
"""

from __future__ import annotations

from typing import Final

from sds.errors import Http2Error
from sds.transport.frames import ErrorCode

MOST_BYTES: Final = 16 * 1024
MOST_PARTS: Final = 512
_RECORD_HEAD: Final = 5
_MESSAGE_HEAD: Final = 4
_HANDSHAKE: Final = 22


class HelloBound:
    """Reads the lengths in what one client sends; keeps its first message."""

    __slots__ = (
        "_head",
        "_in_message",
        "_in_record",
        "_message_head",
        "_parts",
        "complete",
        "hello",
    )

    def __init__(self) -> None:
        self._head = bytearray()
        """The incomplete header of a record."""
        self._message_head = bytearray()
        """The incomplete header of a message; messages may span records."""
        self._in_record = 0
        """How many bytes of the record are still to come."""
        self._in_message = 0
        self._parts = 0
        self.hello = bytearray()
        """The first message, as much of it as has come."""
        self.complete = False
        """Whether the first message is there, or what came instead of it."""

    def check(self, data: bytes | memoryview) -> None:
        """Check the next bytes of the client.

        Raises:
            Http2Error: a message is too long, or there are too many records.
        """
        at, size = 0, len(data)
        while at < size:
            if self._in_record:
                piece = data[at : at + self._in_record]
                at += len(piece)
                self._in_record -= len(piece)
                if self._head[0] == _HANDSHAKE:
                    self._messages(piece)
                if not self._in_record:
                    self._head.clear()
                continue
            missing = data[at : at + _RECORD_HEAD - len(self._head)]
            self._head += missing
            at += len(missing)
            if len(self._head) == _RECORD_HEAD:
                self._begin_record()

    def _count(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise _refused("the handshake has too many records or messages")

    def _begin_record(self) -> None:
        self._count()
        self._in_record = int.from_bytes(self._head[3:], "big")
        self.complete = self.complete or self._head[0] != _HANDSHAKE
        if not self._in_record:
            self._head.clear()

    def _messages(self, piece: bytes | memoryview) -> None:
        """Read the headers of messages in a piece of a record."""
        at = 0
        while at < len(piece):
            if self._in_message:
                skipped = min(self._in_message, len(piece) - at)
                if not self.complete:
                    self.hello += piece[at : at + skipped]
                self._in_message -= skipped
                at += skipped
                self.complete = self.complete or not self._in_message
                continue
            missing = piece[at : at + _MESSAGE_HEAD - len(self._message_head)]
            self._message_head += missing
            at += len(missing)
            if len(self._message_head) == _MESSAGE_HEAD:
                self._count()
                self._in_message = int.from_bytes(self._message_head[1:], "big")
                if not self.complete:
                    self.hello += self._message_head
                    self.complete = not self._in_message
                self._message_head.clear()
                if self._in_message > MOST_BYTES:
                    raise _refused(f"a message of the handshake has {self._in_message} bytes")


def _refused(text: str) -> Http2Error:
    return Http2Error(text, code=ErrorCode.INADEQUATE_SECURITY)
