"""Header fields of requests and responses.

Owns the rules of RFC 9113, section 8, and of "gRPC over HTTP2" about header fields. Encoding needs
no state: every field that is sent is a literal without indexing (RFC 7541, section 6.2.2), so the
client's table settings do not matter.

Invariants: a request that breaks a rule raises :class:`~sds.errors.Http2StreamError`, which ends
its stream only; what is sent fits into one frame of every client.
"""

from __future__ import annotations

import functools
import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote_to_bytes

from sds.errors import Http2StreamError
from sds.transport.frames import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Iterable

Fields = tuple[tuple[bytes, bytes], ...]
"""Names and values, in order."""
MAX_HEADER_LIST: Final = 16 * 1024
"""The most bytes of one request's fields together, as RFC 9113, section 6.5.2, counts them."""
MAX_HEADER_BLOCK: Final = 16 * 1024
"""The most bytes of encoded fields, which are never more than those of the fields above."""
MAX_SAID: Final = 4 * 1024
"""The most bytes of an encoded ``grpc-message``. Clients may limit trailers to 8 KiB ("gRPC over
HTTP2"): gRPC's C core loses the status of much longer ones. A frame of more than 16 KiB ends the
connection (RFC 9113, section 4.2), as gRPC-Go does."""
_MOST_DIGITS: Final = 15
"""The most digits of a ``content-length``; a longer one cannot be meant."""
_CACHED_FIELDS: Final = 16
_CACHED_BYTES: Final = 2048
_FIELD_BYTES: Final = 144
"""Bytes of memory of a field beside its content: a tuple and two objects."""
_PSEUDO: Final = frozenset({b":method", b":scheme", b":path", b":authority"})
_FORBIDDEN: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
_NAME: Final = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE: Final = re.compile(rb"[^\0\r\n]*")
_INDEXED_STATUS_200: Final = b"\x88"
_INDEX_STATUS: Final = 8
_INDEX_CONTENT_TYPE: Final = 31
_UNIMPLEMENTED: Final = 12
_TABLE_SIZE_0: Final = b"\x20"


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The header fields that start a request.

    Attributes:
        method: ``POST`` for gRPC.
        path: ``/package.Service/Method``.
        metadata: the other fields, in order; bytes as they came.
        held: bytes of memory of all fields; 0 if they are shared with other requests.
    """

    method: bytes
    path: str
    metadata: tuple[tuple[bytes, bytes], ...]
    held: int = 0

    def get(self, name: bytes) -> bytes | None:
        """Return the first value of a field, or None."""
        for key, value in self.metadata:
            if key == name:
                return value
        return None


def request_head(fields: Fields) -> RequestHead:
    """Check the fields that open a stream (RFC 9113, sections 8.2 and 8.3).

    Raises:
        Http2StreamError: the request is malformed.
    """
    size = sum(map(len, itertools.chain.from_iterable(fields)))
    if len(fields) <= _CACHED_FIELDS and size <= _CACHED_BYTES:
        return _remembered_head(fields)
    return _checked_head(fields, size + _FIELD_BYTES * len(fields))


def _checked_head(fields: Fields, held: int = 0) -> RequestHead:
    pseudo: dict[bytes, bytes] = {}
    metadata: list[tuple[bytes, bytes]] = []
    for name, value in fields:
        _check(name, value)
        if not name.startswith(b":"):
            metadata.append((name, value))
            continue
        if metadata or name in pseudo or name not in _PSEUDO:
            raise _malformed(f"the pseudo-header {name!r} is unknown, repeated or late")
        pseudo[name] = value
    if not pseudo.get(b":method") or not pseudo.get(b":scheme") or not pseudo.get(b":path"):
        raise _malformed("a request needs :method, :scheme and :path")
    path = pseudo[b":path"].decode("utf-8", "replace")
    return RequestHead(pseudo[b":method"], path, tuple(metadata), held)


_remembered_head = functools.lru_cache(maxsize=256)(_checked_head)
"""Remembers heads, because every stream of every Envoy opens with the same few fields."""


def check_trailers(fields: Fields) -> None:
    """Check the fields that end a request (RFC 9113, section 8.1).

    Raises:
        Http2StreamError: the trailers are malformed.
    """
    for name, value in fields:
        _check(name, value)
        if name.startswith(b":"):
            raise _malformed("trailers have a pseudo-header")


def content_length(head: RequestHead) -> int | None:
    """Return the ``content-length``, None if there is none.

    Raises:
        Http2StreamError: it is not a number, or there are two different ones.
    """
    values = {value for name, value in head.metadata if name == b"content-length"}
    if not values:
        return None
    (first, *more) = values
    if more or not first.isdigit() or len(first) > _MOST_DIGITS:
        raise _malformed(f"content-length is not one number of at most {_MOST_DIGITS} digits")
    return int(first)


# --- responses ----------------------------------------------------------------------------------


def _integer(value: int, prefix: int, first: int) -> bytes:
    """Encode ``value`` in the lower ``prefix`` bits of the octet ``first`` (RFC 7541, 5.1)."""
    limit = (1 << prefix) - 1
    if value < limit:
        return bytes((first | value,))
    out = bytearray((first | limit,))
    value -= limit
    while value >= 0x80:  # noqa: PLR2004  seven bits an octet
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _string(text: bytes) -> bytes:
    return _integer(len(text), 7, 0) + text


def _field(name: bytes | int, value: bytes) -> bytes:
    """Encode a literal field without indexing; ``name`` may be an index of the static table."""
    if isinstance(name, int):
        return _integer(name, 4, 0) + _string(value)
    return b"\0" + _string(name) + _string(value)


RESPONSE_HEAD: Final = _INDEXED_STATUS_200 + _field(_INDEX_CONTENT_TYPE, b"application/grpc")
"""The block that starts a gRPC response."""


def trailers(status: int, message: str, *, alone: bool) -> bytes:
    """Encode the block that ends a gRPC response.

    Args:
        status: the number of a ``grpc.StatusCode``.
        message: for people; percent-encoded as "gRPC over HTTP2" says, and cut if it is long.
        alone: whether no head was sent, so that this is a "Trailers-Only" response.
    """
    block = (RESPONSE_HEAD if alone else b"") + _field(b"grpc-status", str(status).encode())
    if status == _UNIMPLEMENTED:  # perhaps because of the encoding ("gRPC Compression")
        block += _field(b"grpc-accept-encoding", b"identity")
    if message:
        block += _field(b"grpc-message", _said(message).encode())
    return block


_UNQUOTED: Final = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
"""The octets that are not percent-encoded: 0x20 to 0x7E without ``%``."""


def _said(message: str) -> str:
    """Percent-encode a text for people; of a long one the beginning, in whole characters."""
    said = _quoted(message[:MAX_SAID])
    if len(said) <= MAX_SAID and len(message) <= MAX_SAID:
        return said
    begins = said[: MAX_SAID - len(_MORE)]
    if "%" in begins[-2:]:
        begins = begins[: begins.rindex("%")]
    return _quoted(unquote_to_bytes(begins).decode(errors="ignore")) + _MORE


def _quoted(text: str) -> str:
    return quote(text, safe=_UNQUOTED, errors="replace")  # it may have a lone surrogate


_MORE: Final = _quoted("…")


def plain_response(status: int, more: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """Encode an answer to something that is not a gRPC request: an HTTP status alone."""
    return _field(_INDEX_STATUS, str(status).encode()) + b"".join(_field(*field) for field in more)


def resized_table(block: bytes) -> bytes:
    """Put an update of the table's size to 0 before ``block`` (RFC 7541, section 4.2).

    Some decoders require it after they have changed the size of their table.
    """
    return _TABLE_SIZE_0 + block


# --- inside -------------------------------------------------------------------------------------


def _check(name: bytes, value: bytes) -> None:
    if _NAME.fullmatch(name) is None:
        raise _malformed("a field's name has an octet that names may not have")
    if _VALUE.fullmatch(value) is None or value != value.strip(b" \t"):
        raise _malformed(f"the value of {name!r} has an octet that values may not have")
    if name in _FORBIDDEN or (name == b"te" and value != b"trailers"):
        raise _malformed(f"the field {name!r} belongs to HTTP/1.1")


def _malformed(text: str) -> Http2StreamError:
    return Http2StreamError(text, code=ErrorCode.PROTOCOL_ERROR)
