"""The TPM 2.0 commands that attestation needs (TCG Part 3, revision 1.59).

Owns how each is written and read, with its section of the specification. All of them block.
Authorizations are empty passwords, because the keys and indices that attest have none.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sds.attestation.tpm.attest import Bank, selection
from sds.attestation.tpm.device import PolicySession
from sds.attestation.tpm.keys import Attribute
from sds.attestation.tpm.quote import SignedQuote
from sds.attestation.tpm.wire import Algorithm, TpmReader, sized
from sds.errors import EvidenceUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sds.attestation.tpm.device import Tpm

OWNER: Final = 0x4000_0001
ENDORSEMENT: Final = 0x4000_000B
_NULL: Final = 0x4000_0007
_NO_SCHEME: Final = struct.pack(">H", Algorithm.NULL)
_NV_BLOCK: Final = 512  # every TPM gives this much at once (TPM_PT_NV_BUFFER_MAX)
_MAX_NV_BYTES: Final = 32 * 1024
_OWNER_READ: Final = 1 << 17  # TPMA_NV_OWNERREAD (Part 2, section 13.4)
_POLICY_SESSION: Final = b"\1"  # TPM_SE_POLICY
_READS: Final = 24
_QUOTES: Final = 8

AK_ATTRIBUTES: Final = (
    Attribute.FIXED_TPM
    | Attribute.FIXED_PARENT
    | Attribute.SENSITIVE_DATA_ORIGIN
    | Attribute.USER_WITH_AUTH
    | Attribute.RESTRICTED
    | Attribute.SIGN
)
AK_TEMPLATE: Final = (
    struct.pack(">HHI", Algorithm.ECC, Algorithm.SHA256, AK_ATTRIBUTES)
    + sized(b"")
    + struct.pack(">HHH", Algorithm.NULL, Algorithm.ECDSA, Algorithm.SHA256)
    + struct.pack(">HH", 0x0003, Algorithm.NULL)
    + sized(b"")
    + sized(b"")
)
"""A restricted signing key on P-256; a primary key of this template is the same at every boot."""

# TCG EK Credential Profile, B.3.3 and B.3.4: PolicySecret(TPM_RH_ENDORSEMENT).
_EK_POLICY: Final = bytes.fromhex(
    "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"
)
_EK_ATTRIBUTES: Final = (
    Attribute.FIXED_TPM
    | Attribute.FIXED_PARENT
    | Attribute.SENSITIVE_DATA_ORIGIN
    | Attribute.ADMIN_WITH_POLICY
    | Attribute.RESTRICTED
    | Attribute.DECRYPT
)
_AES_128_CFB: Final = struct.pack(">HHH", Algorithm.AES, 128, Algorithm.CFB)
EK_RSA_TEMPLATE: Final = (
    struct.pack(">HHI", Algorithm.RSA, Algorithm.SHA256, _EK_ATTRIBUTES)
    + sized(_EK_POLICY)
    + _AES_128_CFB
    + struct.pack(">HHI", Algorithm.NULL, 2048, 0)
    + sized(bytes(256))
)
"""Template L-1 (EK Credential Profile, B.3.3): RSA 2048."""
EK_ECC_TEMPLATE: Final = (
    struct.pack(">HHI", Algorithm.ECC, Algorithm.SHA256, _EK_ATTRIBUTES)
    + sized(_EK_POLICY)
    + _AES_128_CFB
    + struct.pack(">HHH", Algorithm.NULL, 0x0003, Algorithm.NULL)
    + sized(bytes(32))
    + sized(bytes(32))
)
"""Template L-2 (EK Credential Profile, B.3.4): P-256."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A key in the TPM.

    Attributes:
        handle: names the key in commands.
        public: the key's TPMT_PUBLIC.
    """

    handle: int
    public: bytes = field(repr=False)


def create_primary(tpm: Tpm, hierarchy: int, template: bytes) -> Loaded:
    """Run TPM2_CreatePrimary (section 24.1); the key is flushed at the end."""
    sensitive = sized(b"") + sized(b"")
    parameters = sized(sensitive) + sized(template) + sized(b"") + selection(())
    answer = tpm.execute(
        0x131,
        handles=(hierarchy,),
        authorizations=(None,),
        parameters=parameters,
        makes_handle=True,
    )
    assert answer.handle is not None
    return Loaded(handle=tpm.keep(answer.handle), public=answer.parameters.sized())


def read_pcrs(tpm: Tpm, bank: Bank) -> dict[int, bytes]:
    """Run TPM2_PCR_Read (section 22.4) as often as needed, because it gives a few at once.

    Raises:
        EvidenceUnavailableError: the TPM does not give all of them; it may lack the bank.
    """
    found: dict[int, bytes] = {}
    for _ in range(_READS):
        left = tuple(pcr for pcr in bank.pcrs if pcr not in found)
        if not left:
            return found
        wanted = selection((Bank(algorithm=bank.algorithm, pcrs=left),))
        reader = tpm.execute(0x17E, parameters=wanted).parameters
        reader.number(4)  # pcrUpdateCounter
        given = _given(reader)
        values = [reader.sized() for _ in range(min(reader.number(4), len(given)))]
        if not values:
            break
        found.update(zip(given, values, strict=False))
    raise EvidenceUnavailableError(
        f"the TPM does not give all PCRs of the bank {bank.algorithm:#06x}"
    )


def extend_pcr(tpm: Tpm, pcr: int, digest: bytes) -> None:
    """Run TPM2_PCR_Extend (section 22.2) on the SHA-256 bank; this stays until the next boot."""
    tpm.execute(
        0x182,
        handles=(pcr,),
        authorizations=(None,),
        parameters=struct.pack(">IH", 1, Algorithm.SHA256) + digest,
    )


def _given(reader: TpmReader) -> list[int]:
    found: list[int] = []
    for _ in range(min(reader.number(4), 16)):
        reader.number(2)
        bits = int.from_bytes(reader.take(reader.number(1)), "little")
        found += [pcr for pcr in range(bits.bit_length()) if bits >> pcr & 1]
    return found


def quote(tpm: Tpm, key: int, data: bytes, bank: Bank) -> SignedQuote:
    """Run TPM2_Quote (section 18.4), and return the quote with the quoted values.

    The values are read before and after the quote; if both agree, they are the quoted ones.

    Raises:
        EvidenceUnavailableError: a PCR changed during every attempt.
    """
    parameters = sized(data) + _NO_SCHEME + selection((bank,))
    before = read_pcrs(tpm, bank)
    for _ in range(_QUOTES):
        reader = tpm.execute(
            0x158, handles=(key,), authorizations=(None,), parameters=parameters
        ).parameters
        attest, signature = reader.sized(), reader.rest()
        after = read_pcrs(tpm, bank)
        if before == after:
            return SignedQuote(attest=attest, signature=signature, values=_joined(after))
        before = after
    raise EvidenceUnavailableError("PCRs of the TPM change faster than it quotes them")


def _joined(pcrs: Mapping[int, bytes]) -> bytes:
    return b"".join(pcrs[pcr] for pcr in sorted(pcrs))


def _nv_public(tpm: Tpm, index: int) -> tuple[int, int]:
    """Return TPMA_NV and size of an NV index (TPM2_NV_ReadPublic, section 31.6)."""
    raw = tpm.execute(0x169, handles=(index,)).parameters.sized()
    # TPMS_NV_PUBLIC (Part 2, section 13.5).
    reader = TpmReader(raw, what=f"the public area of NV index {index:#x}")
    reader.take(6)  # index, nameAlg
    attributes = reader.number(4)
    reader.sized()  # authPolicy
    return attributes, reader.number(2)


def nv_read(tpm: Tpm, index: int) -> bytes:
    """Read all of an NV index (TPM2_NV_Read, section 31.13).

    Raises:
        EvidenceUnavailableError: it is too long, or gives less than it says.
    """
    attributes, length = _nv_public(tpm, index)
    if length > _MAX_NV_BYTES:
        raise EvidenceUnavailableError(f"NV index {index:#x} has {length} bytes")
    # The owner or the index itself may read it, each with an empty password.
    authority = OWNER if attributes & _OWNER_READ else index
    contents = b""
    while len(contents) < length:
        size = min(_NV_BLOCK, length - len(contents))
        block = tpm.execute(
            0x14E,
            handles=(authority, index),
            authorizations=(None,),
            parameters=struct.pack(">HH", size, len(contents)),
        ).parameters.sized()
        if len(block) != size:
            raise EvidenceUnavailableError(
                f"NV index {index:#x} gives {len(block)} bytes of {size}"
            )
        contents += block
    return contents


def activate_credential(
    tpm: Tpm, *, key: int, endorsement: int, credential: bytes, secret: bytes
) -> bytes:
    """Run TPM2_ActivateCredential (section 12.5), which only the TPM with both keys can.

    Args:
        tpm: the TPM.
        key: the attestation key.
        endorsement: the endorsement key, made from one of the profile's templates.
        credential: the TPMS_ID_OBJECT.
        secret: the encrypted seed.

    Returns:
        The content of the credential.
    """
    # PolicySecret of the endorsement hierarchy authorizes the key (EK Credential Profile, B.3).
    opened = tpm.execute(
        0x176,
        handles=(_NULL, _NULL),
        parameters=sized(os.urandom(32))
        + sized(b"")
        + _POLICY_SESSION
        + _NO_SCHEME
        + struct.pack(">H", Algorithm.SHA256),
        makes_handle=True,
    )
    assert opened.handle is not None
    session = tpm.keep(opened.handle)
    tpm.execute(
        0x151,
        handles=(ENDORSEMENT, session),
        authorizations=(None,),
        parameters=sized(b"") + sized(b"") + sized(b"") + struct.pack(">i", 0),
    )
    answer = tpm.execute(
        0x147,
        handles=(key, endorsement),
        authorizations=(None, PolicySession(session)),
        parameters=sized(credential) + sized(secret),
    )
    return answer.parameters.sized()
