"""Reads the PCK certificate, Intel's certificate of one platform (PCK profile 1.5, 1.3.5).

Owns the meaning of its extension. Invariant: a :class:`Pck` has every part that the profile
requires, each once and of its length.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from sds.attestation.pem import UNREADABLE
from sds.attestation.tdx.chain import PCK_EXTENSION
from sds.errors import EvidenceError
from sds.pki import der

_EXTENSION: Final = PCK_EXTENSION
_COMPONENTS: Final = 16
_FMSPC_BYTES: Final = 6
_PCE_ID_BYTES: Final = 2
_PLATFORM_BYTES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Pck:
    """What the PCK certificate says about the platform.

    Attributes:
        fmspc: family, model, stepping, platform type: names the platform's TCB info.
        pce_id: the ID of the provisioning certification enclave.
        components: the 16 security versions of the SGX TCB.
        pce_svn: the security version of that enclave.
        ppid: names the processor package for the provisioning service, 16 bytes, or None.
        platform_instance_id: names this platform, 16 bytes, or None: Processor CAs name none.
        public_key: the key, on P-256.
    """

    fmspc: bytes
    pce_id: bytes
    components: tuple[int, ...]
    pce_svn: int
    ppid: bytes | None
    platform_instance_id: bytes | None
    public_key: ec.EllipticCurvePublicKey = field(repr=False)


def read_pck(certificate: x509.Certificate) -> Pck:
    """Read Intel's extension of a PCK certificate (PCK profile, section 1.3.5).

    Raises:
        EvidenceError: ``certificate_malformed``: it is missing or malformed.
    """
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise EvidenceError(
            "the PCK's key is not on an elliptic curve", reason="certificate_malformed"
        )
    try:
        raw = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(_EXTENSION)).value
        if not isinstance(raw, x509.UnrecognizedExtension):
            raise TypeError("a known extension")
        top = _pairs(raw.value)
        tcb = _pairs(top[f"{_EXTENSION}.2"])
        components = tuple(
            _number(tcb[f"{_EXTENSION}.2.{index}"], 0xFF) for index in range(1, _COMPONENTS + 1)
        )
        pck = Pck(
            fmspc=_octets(top[f"{_EXTENSION}.4"], _FMSPC_BYTES),
            pce_id=_octets(top[f"{_EXTENSION}.3"], _PCE_ID_BYTES),
            components=components,
            pce_svn=_number(tcb[f"{_EXTENSION}.2.{_COMPONENTS + 1}"]),
            ppid=_optional(top.get(f"{_EXTENSION}.1"), _PLATFORM_BYTES),
            platform_instance_id=_optional(top.get(f"{_EXTENSION}.6"), _PLATFORM_BYTES),
            public_key=key,
        )
    except (KeyError, *UNREADABLE, x509.ExtensionNotFound) as error:
        raise EvidenceError(
            f"the PCK's extension cannot be read: {error}", reason="certificate_malformed"
        ) from error
    return pck


def _pairs(encoded: bytes) -> dict[str, bytes]:
    """Return object identifier -> value, in DER, of each pair of a SEQUENCE OF pairs."""
    pairs: dict[str, bytes] = {}
    for entry in der.elements(encoded):
        name, value = der.elements(entry)
        oid = der.object_identifier(name)
        if oid in pairs:
            raise ValueError(f"{oid} is given twice")
        pairs[oid] = value
    return pairs


def _number(value: bytes, most: int = 0xFFFF) -> int:
    number = der.integer(value)
    if not 0 <= number <= most:
        raise ValueError(f"a security version above {most}")
    return number


def _octets(value: bytes, length: int) -> bytes:
    octets = der.content_of(value, der.OCTET_STRING)
    if len(octets) != length:
        raise ValueError(f"not {length} bytes")
    return octets


def _optional(value: bytes | None, length: int) -> bytes | None:
    return None if value is None else _octets(value, length)
