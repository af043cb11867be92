"""Decodes field blocks (HPACK, RFC 7541) with the library ``hpack``.

Owns the decoder of each connection and a memory that all connections share: Envoys of one version
send the same few blocks in the same order, so these are decoded once. Invariants: the memory is
bounded, and gives the same result as decoding; the work for a block is proportional to its bytes,
whatever its content.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from hpack import Decoder
from hpack.exceptions import HPACKError

from sds.errors import Http2Error
from sds.transport.frames import ErrorCode
from sds.transport.headers import MAX_HEADER_LIST

if TYPE_CHECKING:
    from sds.transport.headers import Fields

_REMEMBERED_BYTES: Final = 1024
_REMEMBERED_DEPTH: Final = 8
_REMEMBERED_BLOCKS: Final = 512
_REMEMBERED_FIELDS: Final = 32
"""The most fields of a remembered block; one octet of a block may become 100 bytes here."""
_DECODER_BYTES: Final = 8 * 1024
_FIELD_BYTES: Final = 320
"""Bytes of memory of a decoder with its own table, and of each field in the table."""
_MOST_RESIZES: Final = 2
_INTEGER_OCTETS: Final = 5
"""The most octets after the prefix of an integer (RFC 7541, section 5.1), enough for 2**35."""


class _Passage:
    """The meaning of one field block at one point of a conversation, and what may follow it.

    Decoding depends on all earlier blocks (RFC 7541, section 2.2), and on nothing else.
    """

    __slots__ = ("block", "fields", "following")

    def __init__(self, block: bytes = b"", fields: Fields = ()) -> None:
        self.block = block
        self.fields = fields
        self.following: dict[bytes, _Passage] = {}

    def forget(self) -> None:
        """Forget everything that may follow, at most :data:`_REMEMBERED_BLOCKS` entries."""
        following, self.following = self.following, {}
        for passage in following.values():
            passage.forget()


class HeaderDecoder:
    """Decodes the field blocks of one connection, in order.

    The meaning of the first blocks is remembered for all connections, in a tree of
    :class:`_Passage` of bounded size. A connection that sends other blocks gets a decoder with its
    own table. A full tree is forgotten, so that nobody can fill it for good.
    """

    __slots__ = ("_decoder", "_passage", "_said", "held")

    _ROOT: ClassVar[_Passage] = _Passage()
    _known: ClassVar[int] = 0

    def __init__(self) -> None:
        self._decoder: Decoder | None = None
        self._passage = self._ROOT
        self._said: tuple[bytes, ...] = ()
        self.held = 0
        """Bytes of memory of the table, or of the blocks that lead to it."""

    def decode(self, block: bytes) -> Fields:
        """Decode the fields of one block.

        Raises:
            Http2Error: the block cannot be decoded, so no later one can be either (RFC 9113,
                section 4.3), or its fields are larger than
                :data:`~sds.transport.headers.MAX_HEADER_LIST`.
        """
        if self._decoder is None:
            known = self._passage.following.get(block)
            if known is not None:
                self._passage = known
                # All connections share this object, until the tree is forgotten.
                self._said += (known.block,)
                self.held += len(known.block)
                return known.fields
            self._decoder = Decoder(max_header_list_size=MAX_HEADER_LIST)
            for earlier in self._said:
                _decode(self._decoder, earlier)
            fields = _decode(self._decoder, block)
            self._remember(block, fields)
            self._said, self._passage = (), self._ROOT  # the table says all that they said
        else:
            fields = _decode(self._decoder, block)
        self.held = _DECODER_BYTES + _FIELD_BYTES * len(self._decoder.header_table.dynamic_entries)
        return fields

    def _remember(self, block: bytes, fields: Fields) -> None:
        """Put a block into the tree, if it is short and early."""
        short = len(block) <= _REMEMBERED_BYTES and len(fields) <= _REMEMBERED_FIELDS
        if not short or len(self._said) >= _REMEMBERED_DEPTH:
            return
        if HeaderDecoder._known >= _REMEMBERED_BLOCKS:
            self._ROOT.forget()
            HeaderDecoder._known = 0
            return
        HeaderDecoder._known += 1
        self._passage.following[block] = _Passage(block, fields)


def _decode(decoder: Decoder, block: bytes) -> Fields:
    _check_lengths(block)
    try:
        return tuple((bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True))
    except HPACKError as error:
        raise _cannot(type(error).__name__) from None


def _check_lengths(block: bytes) -> None:
    """Refuse blocks for which the library would take long.

    It reads integers of any length, in time that grows with the square of the length, and any
    number of changes of the table's size, of which at most two make sense (RFC 7541, section 4.2).

    Raises:
        Http2Error: an integer is too long, or the table's size changes too often.
    """
    at, end = 0, len(block)
    resizes = 0
    while at < end:
        octet = block[at]
        if octet & 0x80:
            _, at = _integer(block, at, 0x7F)
            continue
        if octet & 0xE0 == 0x20:  # noqa: PLR2004  RFC 7541, section 6.3
            resizes += 1
            if resizes > _MOST_RESIZES:
                raise _cannot("the table's size changes too often")
            _, at = _integer(block, at, 0x1F)
            continue
        index, at = _integer(block, at, 0x3F if octet & 0x40 else 0x0F)
        for _ in range(1 if index else 2):
            if at < end:
                length, at = _integer(block, at, 0x7F)
                at += length


def _integer(block: bytes, at: int, limit: int) -> tuple[int, int]:
    """Return the integer at ``at`` whose prefix has the bits ``limit``, and where it ends."""
    value = block[at] & limit
    at += 1
    if value < limit:
        return value, at
    for shift in range(0, 7 * _INTEGER_OCTETS, 7):
        if at >= len(block):
            return value, at  # the library reports what is wrong
        octet = block[at]
        at += 1
        value += (octet & 0x7F) << shift
        if octet < 0x80:  # noqa: PLR2004  the last one
            return value, at
    raise _cannot("an integer is too long")


def _cannot(why: str) -> Http2Error:
    return Http2Error(f"a header block cannot be decoded: {why}", code=ErrorCode.COMPRESSION_ERROR)
