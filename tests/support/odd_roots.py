"""Self-signed roots that our library parses: those that other clients refuse, and those they take.

Each is signed as it is, so nothing but its oddness can be a reason to refuse it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sds.pki import der as sds_der
from tests.support.certificates import ca_wish, self_signed
from tests.support.der import oid, sequence, tlv

if TYPE_CHECKING:
    from collections.abc import Callable

_KEY = ec.generate_private_key(ec.SECP256R1())
_ECDSA_SHA256 = sequence(oid("1.2.840.10045.4.3.2"))
_P256 = sequence(oid("1.2.840.10045.2.1"), oid("1.2.840.10045.3.1.7"))
_NAMES, _CONSTRAINTS, _POLICIES, _MAPPINGS = "2.5.29.17", "2.5.29.30", "2.5.29.32", "2.5.29.33"
# Places of the parts of a TBSCertificate with a version (RFC 5280, section 4.1).
_VERSION, _ISSUER, _SUBJECT, _SPKI = 0, 3, 5, 6


def _with(*extensions: tuple[x509.ExtensionType, bool]) -> bytes:
    wish = ca_wish("odd")
    return self_signed(
        type(wish)(
            subject=wish.subject,
            constraints=wish.constraints,
            usage=wish.usage,
            extended=(),
            more=extensions,
        ),
        _KEY,
    ).der


def _raw(dotted: str, content: bytes) -> bytes:
    return _with((x509.UnrecognizedExtension(x509.ObjectIdentifier(dotted), content), False))


def _uri(text: bytes) -> bytes:
    return _raw(_NAMES, sequence(tlv(0x86, text)))


def _permitted(name: bytes) -> bytes:
    return _raw(_CONSTRAINTS, sequence(tlv(0xA0, sequence(name))))


def _edited(edit: Callable[[list[bytes]], None]) -> bytes:
    """The plain root with other parts, signed again."""
    parts = sds_der.elements(sds_der.elements(_with())[0])
    edit(parts)
    tbs = sequence(*parts)
    signature = _KEY.sign(tbs, ec.ECDSA(hashes.SHA256()))
    return sequence(tbs, _ECDSA_SHA256, tlv(0x03, b"\0" + signature))


def _named(tag: int, value: bytes) -> bytes:
    name = sequence(tlv(0x31, sequence(oid("2.5.4.3"), tlv(tag, value))))

    def edit(parts: list[bytes]) -> None:
        parts[_ISSUER] = parts[_SUBJECT] = name

    return _edited(edit)


def _without_version() -> bytes:
    def edit(parts: list[bytes]) -> None:
        del parts[_VERSION]

    return _edited(edit)


def _compressed() -> bytes:
    point = _KEY.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)

    def edit(parts: list[bytes]) -> None:
        parts[_SPKI] = sequence(_P256, tlv(0x03, b"\0" + point))

    return _edited(edit)


def _exponent(bits: int) -> bytes:
    """An RSA root whose public exponent has this many bits."""
    numbers = rsa.generate_private_key(65537, 2048).private_numbers()
    p, q, e = numbers.p, numbers.q, (1 << (bits - 1)) + 1
    phi = (p - 1) * (q - 1)
    while math.gcd(e, phi) != 1:
        e += 2
    d = pow(e, -1, phi)
    key = rsa.RSAPrivateNumbers(
        p=p,
        q=q,
        d=d,
        dmp1=d % (p - 1),
        dmq1=d % (q - 1),
        iqmp=numbers.iqmp,
        public_numbers=rsa.RSAPublicNumbers(e, p * q),
    ).private_key()
    return self_signed(ca_wish("odd"), key).der


_PUBLIC = _KEY.public_key()
_ACCESS = x509.AccessDescription(
    x509.ObjectIdentifier("1.3.6.1.5.5.7.48.1"), x509.UniformResourceIdentifier("http://a.test")
)

REFUSED_BY_GO: dict[str, Callable[[], bytes]] = {
    "critical subject key identifier": lambda: _with(
        (x509.SubjectKeyIdentifier.from_public_key(_PUBLIC), True)
    ),
    "critical authority key identifier": lambda: _with(
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(_PUBLIC), True)
    ),
    "critical authority information access": lambda: _with(
        (x509.AuthorityInformationAccess([_ACCESS]), True)
    ),
    "exponent of 65 bits": lambda: _exponent(65),
    "URI with half an address": lambda: _uri(b"http://[::1"),
    "URI with a space in its host": lambda: _uri(b"spiffe://a b/"),
    "URI with an empty label": lambda: _uri(b"spiffe://a..b/"),
    "URI with an empty label behind a user": lambda: _uri(b"spiffe://u@a..b/"),
    "URI with half an escape": lambda: _uri(b"spiffe://a/%zz"),
    "URI with a control character": lambda: _uri(b"http://a/\x01"),
    "URI without a scheme": lambda: _uri(b":"),
    "constraint on an empty label": lambda: _permitted(tlv(0x82, b"a..b")),
    "constraint with a dot at its end": lambda: _permitted(tlv(0x82, b"a.")),
    "constraint on an address as URI": lambda: _permitted(tlv(0x86, b"10.0.0.1")),
    "constraint on half a mailbox": lambda: _permitted(tlv(0x81, b"a@b..")),
    "constraint on an unreadable mailbox": lambda: _permitted(tlv(0x81, b"\x01@b.c")),
    "one policy twice": lambda: _raw(_POLICIES, sequence(*[sequence(oid("1.2.3"))] * 2)),
    "policy mappings that are none": lambda: _raw(_MAPPINGS, b"noise"),
    "name of UniversalString": lambda: _named(0x1C, b"\0\0\0a"),
    "name of VisibleString": lambda: _named(0x1A, b"abc"),
    "name of octets": lambda: _named(0x04, b"abc"),
    "NumericString of letters": lambda: _named(0x12, b"abc"),
    "compressed point": _compressed,
}
"""Each makes a root that Go's parser refuses."""

REFUSED_BY_ENVOY: dict[str, Callable[[], bytes]] = {
    "extensions in version 1": _without_version,
}
"""Each makes a root for which Envoy refuses a whole validation context."""

TAKEN_BY_ALL: dict[str, Callable[[], bytes]] = {
    "plain": _with,
    "SPIFFE ID": lambda: _uri(b"spiffe://example.org"),
    "SPIFFE ID with underscore": lambda: _uri(b"spiffe://example_1.org/a/b"),
    "URN": lambda: _uri(b"urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6"),
    "URL with port, path and escape": lambda: _uri(b"https://ca.test:8443/a%20b?c=d#e"),
    "constraint on a domain": lambda: _permitted(tlv(0x82, b".example.org")),
    "constraint on a trust domain": lambda: _permitted(tlv(0x86, b"example.org")),
    "constraint on mailboxes": lambda: _permitted(tlv(0x81, b"a.b@example.org")),
    "constraint on addresses": lambda: _permitted(tlv(0x87, bytes([10, 0, 0, 0, 255, 0, 0, 0]))),
    "policies": lambda: _raw(_POLICIES, sequence(sequence(oid("2.5.29.32.0")))),
    "policy mappings": lambda: _raw(_MAPPINGS, sequence(sequence(oid("1.2.3"), oid("1.2.4")))),
    "PrintableString": lambda: _named(0x13, b"Root CA 1"),
    "TeletexString": lambda: _named(0x14, b"Root"),
    "BMPString": lambda: _named(0x1E, "Wurzel ä".encode("utf-16-be")),
    "NumericString": lambda: _named(0x12, b"12 34"),
}
"""Each makes a root that every client takes."""
