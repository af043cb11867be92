"""gRPC's messages in the bytes of a stream.

Owns the length-prefixed message and the ``grpc-timeout`` field of "gRPC over HTTP2". Invariant: a
message is never larger than its limit, and that is known before a byte of it is kept.
"""

from __future__ import annotations

import re
from typing import Final

from sds.errors import LimitError, MalformedRequestError

PREFIX_BYTES: Final = 5
_TIMEOUT: Final = re.compile(rb"(\d{1,8})([HMSmun])")
_UNIT_SECONDS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


def prefix(length: int) -> bytes:
    """What stands before an uncompressed message of ``length`` bytes."""
    return b"\0" + length.to_bytes(4, "big")


def timeout_seconds(value: bytes) -> float:
    """The seconds of a ``grpc-timeout``.

    Raises:
        MalformedRequestError: not of the form that gRPC prescribes.
    """
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise MalformedRequestError(f"grpc-timeout {value[:32]!r} is not a number and a unit")
    return int(match[1]) * _UNIT_SECONDS[match[2]]


class MessageReader:
    """Cuts the bytes of one stream into messages."""

    __slots__ = ("_held", "_most")

    def __init__(self, most: int) -> None:
        """``most``: bytes of the largest message."""
        self._most = most
        self._held = bytearray()

    @property
    def held(self) -> int:
        """Bytes of a message that is not complete."""
        return len(self._held)

    def feed(self, data: memoryview) -> list[bytes]:
        """The messages that ``data`` completes.

        Raises:
            LimitError: a message is larger than the limit.
            MalformedRequestError: ``compressed_message``: a message is compressed.
        """
        held = self._held
        held += data
        found: list[bytes] = []
        at = 0
        while len(held) - at >= PREFIX_BYTES:
            if held[at]:
                raise MalformedRequestError(
                    "a message is compressed",
                    advice="send with grpc-encoding identity",
                    reason="compressed_message",
                )
            length = int.from_bytes(held[at + 1 : at + PREFIX_BYTES], "big")
            if length > self._most:
                raise LimitError(
                    f"a message has {length} bytes, at most {self._most} are taken",
                    advice="ask for fewer resources, or raise limits.message_bytes",
                )
            stop = at + PREFIX_BYTES + length
            if len(held) < stop:
                break
            with memoryview(held) as view:
                found.append(bytes(view[at + PREFIX_BYTES : stop]))
            at = stop
        if at == len(held):
            self._held = bytearray()  # a list that was large gives its memory back
        elif at:
            del held[:at]
        return found
