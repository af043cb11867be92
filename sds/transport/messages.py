"""Finds gRPC's messages in the bytes of a stream.

Owns the length-prefixed message and the ``grpc-timeout`` field of "gRPC over HTTP2". Invariant: a
message is never larger than its limit, which is checked before a byte of it is kept.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Final

from sds.errors import LimitError, MalformedRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

PREFIX_BYTES: Final = 5
_PREFIX: Final = struct.Struct(">BI").unpack_from
_DROPPED_AT_ONCE: Final = 64 * 1024
"""The rest is moved to the front once this many bytes before it were taken."""
_TIMEOUT: Final = re.compile(rb"(\d{1,8})([HMSmun])")
_UNIT_SECONDS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


def prefix(length: int) -> bytes:
    """Encode the prefix of an uncompressed message of ``length`` bytes."""
    return b"\0" + length.to_bytes(4, "big")


def timeout_seconds(value: bytes) -> float:
    """Return the seconds of a ``grpc-timeout``.

    Raises:
        MalformedRequestError: it does not have the form that gRPC prescribes.
    """
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise MalformedRequestError(f"grpc-timeout {value[:32]!r} is not a number and a unit")
    return int(match[1]) * _UNIT_SECONDS[match[2]]


class MessageReader:
    """Cuts the bytes of one stream into messages, one when it is asked for one.

    Only the received bytes wait, however many messages they contain, and the caller that takes a
    message does the work for it. A message that comes alone and whole, as nearly all do, is copied
    once, and one that comes alone in parts is copied once more at most.
    """

    __slots__ = ("_at", "_held", "_most", "_size", "held", "whole")

    def __init__(self, most: int) -> None:
        """Make a reader for messages of at most ``most`` bytes."""
        self._most = most
        self._held = bytearray()
        self.held = 0
        """How many received bytes were not yet taken."""
        self._at = 0
        """The offset at which the next message begins."""
        self._size = 0
        """The length of the next message with its prefix; 0 while it is unknown."""
        self.whole: bytes | None = None
        """The next message, if it came alone; the bytes of any others wait elsewhere."""

    def feed(self, pieces: Sequence[memoryview]) -> int:
        """Take the next bytes, in order, and return how many; they are copied, no view is kept."""
        size = 0
        for piece in pieces:
            size += len(piece)
        self.held += size
        first = self._held or (pieces[0] if pieces else self._held)
        if self.whole is None and not self._at and self._is_one(first, len(self._held) + size):
            if self._held:
                pieces = [memoryview(self._held), *pieces]
                self._held, self._size = bytearray(), 0
            self.whole = b"".join([pieces[0][PREFIX_BYTES:], *pieces[1:]])
            return size
        for piece in pieces:
            self._held += piece
        return size

    def _is_one(self, first: memoryview | bytearray, size: int) -> bool:
        """Return whether ``size`` bytes that begin with ``first`` are exactly one message."""
        if len(first) < PREFIX_BYTES or first[0]:
            return False
        _, length = _PREFIX(first)
        return bool(length == size - PREFIX_BYTES <= self._most)

    def has_message(self) -> bool:
        """Say whether the next message is complete.

        Raises:
            LimitError: it is larger than the limit.
            MalformedRequestError: ``compressed_message``: it is compressed.
        """
        if self.whole is not None:
            return True
        left = len(self._held) - self._at
        if not self._size:
            if left < PREFIX_BYTES:
                return False
            self._size = PREFIX_BYTES + self._length()
        return left >= self._size

    def take(self) -> bytes | None:
        """Take the next message, None while it is incomplete.

        Raises:
            ProtocolError: as for :meth:`has_message`.
        """
        if self.whole is not None:
            whole, self.whole = self.whole, None
            self.held -= PREFIX_BYTES + len(whole)
            return whole
        if not self.has_message():
            return None
        stop = self._at + self._size
        with memoryview(self._held) as view:
            message = bytes(view[self._at + PREFIX_BYTES : stop])
        self.held -= self._size
        self._at, self._size = stop, 0
        if stop == len(self._held):
            self._held = bytearray()  # a large buffer gives its memory back
            self._at = 0
        elif stop >= _DROPPED_AT_ONCE:
            del self._held[:stop]
            self._at = 0
        return message

    def _length(self) -> int:
        """Return the length that the next message's prefix says."""
        held, at = self._held, self._at
        if held[at]:
            raise MalformedRequestError(
                "a message is compressed",
                advice="send with grpc-encoding identity",
                reason="compressed_message",
            )
        length = int.from_bytes(held[at + 1 : at + PREFIX_BYTES], "big")
        if length > self._most:
            raise LimitError(
                f"a message has {length} bytes, and at most {self._most} are accepted",
                advice="ask for fewer resources, or raise limits.message",
            )
        return length
