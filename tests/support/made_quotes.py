"""Quotes as a TPM makes them (TCG Part 2), by keys that tests have: every field can be set."""

from __future__ import annotations

import functools
import hashlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from sds.attestation.tpm import commands
from sds.attestation.tpm.attest import SHA256_BANK, Bank, selection
from sds.attestation.tpm.parcel import Piece, parts_of
from sds.attestation.tpm.quote import SignedQuote, qualifying_data
from sds.attestation.tpm.wire import ATTEST_QUOTE, GENERATED, Algorithm, sized

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sds.attestation.evidence import ReportData

VALUES = tuple(hashlib.sha256(bytes([pcr])).digest() for pcr in range(24))
"""What the PCRs have, where a test does not say."""


@dataclass(frozen=True)
class Key:
    """An attestation key on P-256."""

    private: ec.EllipticCurvePrivateKey

    def sign(self, signed: bytes) -> bytes:
        """A TPMT_SIGNATURE."""
        r, s = decode_dss_signature(self.private.sign(signed, ec.ECDSA(hashes.SHA256())))
        head = struct.pack(">HH", Algorithm.ECDSA, Algorithm.SHA256)
        return head + sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))


@functools.cache
def key() -> Key:
    return Key(ec.generate_private_key(ec.SECP256R1()))


def public(*, attributes: int = commands.AK_ATTRIBUTES, of: Key | None = None) -> bytes:
    """A TPMT_PUBLIC."""
    point = (of or key()).private.public_key().public_numbers()
    template = commands.AK_TEMPLATE
    head = template[:4] + struct.pack(">I", attributes) + template[8:-4]
    return head + sized(point.x.to_bytes(32, "big")) + sized(point.y.to_bytes(32, "big"))


def head(kind: int, data: bytes, *, magic: int = GENERATED) -> bytes:
    """The beginning of a TPMS_ATTEST."""
    clock = struct.pack(">QIIB", 90_000, 4, 1, 1)
    return struct.pack(">IH", magic, kind) + sized(bytes(34)) + sized(data) + clock + bytes(8)


def attest(
    data: bytes = b"nonce",
    *,
    values: Sequence[bytes] = VALUES,
    banks: tuple[Bank, ...] = (SHA256_BANK,),
    magic: int = GENERATED,
) -> bytes:
    """A TPMS_ATTEST of a quote, whose digest is by SHA-256."""
    digest = hashlib.sha256(b"".join(values)).digest()
    return head(ATTEST_QUOTE, data, magic=magic) + selection(banks) + sized(digest)


def nv_attest(data: bytes = b"nonce", contents: bytes = bytes(8)) -> bytes:
    """A TPMS_ATTEST of NV contents (TPM_ST_ATTEST_NV), which is no quote."""
    return head(0x8014, data) + sized(bytes(34)) + bytes(2) + sized(contents)


def rsa_signature(value: bytes, *, scheme: int = Algorithm.RSASSA) -> bytes:
    """A TPMT_SIGNATURE around an RSA signature."""
    return struct.pack(">HH", scheme, Algorithm.SHA256) + sized(value)


def quote(data: ReportData, *, values: Sequence[bytes] = VALUES) -> SignedQuote:
    """A quote by :func:`key`, bound to report data."""
    said = attest(qualifying_data(data), values=values)
    return SignedQuote(attest=said, signature=key().sign(said), values=b"".join(values))


@functools.cache
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@functools.cache
def other_rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def rsa_parts(data: ReportData, *, key: rsa.RSAPrivateKey | None = None) -> dict[Piece, bytes]:
    """A quote by an RSA key, as a vTPM makes it."""
    said = attest(qualifying_data(data))
    value = (key or rsa_key()).sign(said, padding.PKCS1v15(), hashes.SHA256())
    values = b"".join(VALUES)
    return parts_of(SignedQuote(attest=said, signature=rsa_signature(value), values=values))
