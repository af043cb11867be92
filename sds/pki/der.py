"""Reads and writes DER element by element (X.690), where the exact bytes matter.

Owns the step between DER and its elements, each with its header. Invariants: only the distinguished
encoding is accepted, to the last byte; every error of reading is a :class:`ValueError`; an object
is made of each element only if there are few, because strangers send certificates and CSRs, and an
element of two bytes costs as much time as one of a thousand. The parser is ``cryptography``'s
(``hazmat.asn1``).
"""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat import asn1

if TYPE_CHECKING:
    from datetime import datetime

INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
UTF8_STRING: Final = 0x0C
PRINTABLE_STRING: Final = 0x13
SEQUENCE: Final = 0x30
SET: Final = 0x31
MOST_ELEMENTS: Final = 64
"""The most elements of one SEQUENCE or SET. Of what is read here, the extensions of a certificate
and the parts of a PCK's TCB are the most: about 20."""
_LONG_TAG: Final = 0x1F
_LONG_LENGTH: Final = 0x80
_FIRST_GENERALIZED_YEAR: Final = 2050


@asn1.sequence
class _Elements:
    items: typing.List[asn1.TLV]  # noqa: UP006  read when the class is made


# --- reading ------------------------------------------------------------------------------------


def all_elements(content: bytes) -> list[tuple[int, bytes]]:
    """Return tag and content of every element in ``content``, in order.

    Raises:
        ValueError: they are not DER, there are more than :data:`MOST_ELEMENTS`, or a tag has more
            than one byte.
    """
    return [(_tag(one), bytes(one.data)) for one in _items(sequence(content))]


def content_of(der: bytes, tag: int) -> bytes:
    """Return the content of ``der``, which must be exactly one element.

    Raises:
        ValueError: it is not one element with this tag.
    """
    found = asn1.decode_der(asn1.TLV, der)
    if _tag(found) != tag:
        raise ValueError(f"not one element with the tag {tag:#04x}")
    return bytes(found.data)


def elements(der: bytes, tag: int = SEQUENCE) -> list[bytes]:
    """Return the elements of a SEQUENCE (or of what ``tag`` names), each with its header.

    Raises:
        ValueError: it is not one such element, has more than :data:`MOST_ELEMENTS` inside, or one
            inside is not DER.
    """
    if tag != SEQUENCE:
        der = sequence(content_of(der, tag))
    return [emit(_tag(one), bytes(one.data)) for one in _items(der)]


def _items(one_sequence: bytes) -> list[asn1.TLV]:
    _require_few(one_sequence)
    # The parser reads declared classes only, so the elements are the one field of a class.
    return asn1.decode_der(_Elements, sequence(one_sequence)).items


def _require_few(one_sequence: bytes) -> None:
    """Count the elements of a SEQUENCE by their headers (X.690, 8.1.3); the parser says the rest.

    Raises:
        ValueError: there are too many, or a tag has more than one byte.
    """
    position, _ = _content(one_sequence, 0)
    count = 0
    while position < len(one_sequence):
        count += 1
        if count > MOST_ELEMENTS:
            raise ValueError(f"more than {MOST_ELEMENTS} elements in one SEQUENCE or SET")
        if one_sequence[position] & _LONG_TAG == _LONG_TAG:
            raise ValueError("a tag of more than one byte")
        _, position = _content(one_sequence, position)


def _content(encoded: bytes, position: int) -> tuple[int, int]:
    """Return where the content of the element at this position begins and ends."""
    start = position + 2
    length = int.from_bytes(encoded[position + 1 : start])
    if length >= _LONG_LENGTH:
        digits = encoded[start : start + length - _LONG_LENGTH]
        start, length = start + len(digits), int.from_bytes(digits)
    return start, start + length


def _tag(element: asn1.TLV) -> int:
    first, *more = element.tag_bytes
    if more:
        raise ValueError("a tag of more than one byte")
    return first


def integer(der: bytes) -> int:
    """Read an INTEGER.

    Raises:
        ValueError: it is not one.
    """
    return asn1.decode_der(int, der)


def object_identifier(der: bytes) -> str:
    """Read an OBJECT IDENTIFIER in dotted form.

    Raises:
        ValueError: it is not one.
    """
    return asn1.decode_der(x509.ObjectIdentifier, der).dotted_string


def ia5_string(der: bytes) -> str:
    """Read an IA5String.

    Raises:
        ValueError: it is not one.
    """
    return asn1.decode_der(asn1.IA5String, der).as_str()


def whole_bytes(der: bytes) -> bytes:
    """Read a BIT STRING of whole bytes.

    Raises:
        ValueError: it is not one, or it does not end at a whole byte (X.690, section 11.2.1).
    """
    bits = asn1.decode_der(asn1.BitString, der)
    if bits.padding_bits():
        raise ValueError("a BIT STRING that does not end at a whole byte")
    return bits.as_bytes()


def moment(der: bytes) -> datetime:
    """Read a UTCTime or GeneralizedTime (RFC 5280, section 4.1.2.5), aware, UTC.

    Raises:
        ValueError: it is neither.
    """
    try:
        return asn1.decode_der(asn1.UTCTime, der).as_datetime()
    except ValueError:
        return asn1.decode_der(asn1.GeneralizedTime, der).as_datetime()


# --- writing ------------------------------------------------------------------------------------


def emit(tag: int, content: bytes) -> bytes:
    """Encode one element: tag, length in its shortest form (X.690, section 10.1), content."""
    if len(content) < 0x80:  # noqa: PLR2004  X.690, section 8.1.3: the short form
        return bytes([tag, len(content)]) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def sequence(*parts: bytes) -> bytes:
    """Encode a SEQUENCE of elements."""
    return emit(SEQUENCE, b"".join(parts))


def set_of(*parts: bytes) -> bytes:
    """Encode a SET OF elements, sorted (X.690, section 11.6)."""
    return emit(SET, b"".join(sorted(parts)))


def from_integer(value: int) -> bytes:
    """Encode an INTEGER."""
    return asn1.encode_der(value)


def from_object_identifier(dotted: str) -> bytes:
    """Encode an OBJECT IDENTIFIER."""
    return asn1.encode_der(x509.ObjectIdentifier(dotted))


def from_ia5_string(text: str) -> bytes:
    """Encode an IA5String."""
    return asn1.encode_der(asn1.IA5String(text))


def from_utf8_string(text: str) -> bytes:
    """Encode a UTF8String."""
    return emit(UTF8_STRING, text.encode())


def from_octets(value: bytes) -> bytes:
    """Encode an OCTET STRING."""
    return emit(OCTET_STRING, value)


def from_whole_bytes(value: bytes) -> bytes:
    """Encode a BIT STRING of whole bytes."""
    return emit(BIT_STRING, b"\0" + value)


def from_moment(value: datetime) -> bytes:
    """Write UTCTime through 2049, GeneralizedTime from 2050 (RFC 5280, section 4.1.2.5)."""
    value = value.replace(microsecond=0)
    if value.year < _FIRST_GENERALIZED_YEAR:
        return asn1.encode_der(asn1.UTCTime(value))
    return asn1.encode_der(asn1.GeneralizedTime(value))
