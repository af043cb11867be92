"""Parses what a TPM attests: quotes of PCRs (TCG Part 2, section 10.12).

Owns the layout of TPMS_ATTEST. Invariant: bytes that do not begin with TPM_GENERATED_VALUE are
never an :class:`Attest`, so that a restricted key's signature over it means that its TPM made it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from sds.attestation.tpm.wire import ATTEST_QUOTE, GENERATED, Algorithm, TpmReader
from sds.errors import EvidenceMalformedError

PCRS: Final = 24
"""The number of PCRs in the PC client profile (PC Client Platform TPM Profile, section 3.3)."""
_MAX_BANKS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Bank:
    """PCRs of one bank (TPMS_PCR_SELECTION, section 10.6.1).

    Attributes:
        algorithm: the TPM_ALG_ID of the bank's hash; a number, because a bank may have any.
        pcrs: indices, ascending.
    """

    algorithm: int
    pcrs: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quoted:
    """TPMS_QUOTE_INFO (section 10.12.4).

    Attributes:
        banks: the banks that were quoted.
        digest: the hash over the values, bank by bank, in ascending order.
    """

    banks: tuple[Bank, ...]
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Attest:
    """A TPMS_ATTEST (section 10.12.12), parsed.

    Attributes:
        raw: the whole structure, which is signed.
        signer: the qualified name of the key that signed.
        data: the caller's data, which the quote binds.
        resets: how often the TPM was reset: a boot, or a resume from hibernation.
        restarts: how often it was resumed since then.
        clock: for how many milliseconds the TPM was powered.
        safe: whether the TPM never gave a higher clock before.
        firmware: the version of the TPM's firmware.
        quoted: the quoted PCRs.
    """

    raw: bytes = field(repr=False)
    signer: bytes
    data: bytes
    clock: int
    resets: int
    restarts: int
    safe: bool
    firmware: int
    quoted: Quoted


def parse_attest(raw: bytes) -> Attest:
    """Parse a TPMS_ATTEST of a quote.

    Raises:
        EvidenceMalformedError: it is cut short or too long, was not made by a TPM, or does not
            attest PCRs.
    """
    reader = TpmReader(raw, what="the TPM's statement")
    magic, kind = reader.number(4), reader.number(2)
    if magic != GENERATED:
        raise EvidenceMalformedError(
            f"the TPM's statement begins with {magic:#010x}, not with TPM_GENERATED_VALUE",
            advice="a TPM did not make it",
        )
    signer, data = reader.sized(), reader.sized()
    clock, resets, restarts, safe = (reader.number(size) for size in (8, 4, 4, 1))
    firmware = reader.number(8)
    if kind != ATTEST_QUOTE:
        raise EvidenceMalformedError(
            f"the TPM's statement is of type {kind:#06x}, not a quote ({ATTEST_QUOTE:#06x})",
            reason="tpm_quote",
        )
    quoted = Quoted(banks=_banks(reader), digest=reader.sized())
    reader.done()
    if safe > 1:
        raise EvidenceMalformedError(f"the TPM's statement has {safe} in place of 0 or 1")
    return Attest(
        raw=raw,
        signer=signer,
        data=data,
        clock=clock,
        resets=resets,
        restarts=restarts,
        safe=bool(safe),
        firmware=firmware,
        quoted=quoted,
    )


def _banks(reader: TpmReader) -> tuple[Bank, ...]:
    count = reader.number(4)
    if count > _MAX_BANKS:
        raise EvidenceMalformedError(f"the TPM's statement covers {count} banks of PCRs")
    banks = []
    for _ in range(count):
        algorithm, size = reader.number(2), reader.number(1)
        # Bit i of the bytes, least significant first, is PCR i.
        bits = int.from_bytes(reader.take(size), "little")
        if bits >> PCRS:
            raise EvidenceMalformedError(
                f"the TPM's statement covers PCRs above {PCRS - 1}",
                advice="a TPM of the PC client profile has none",
            )
        banks.append(Bank(algorithm=algorithm, pcrs=tuple(i for i in range(PCRS) if bits >> i & 1)))
    return tuple(banks)


def describe_attest(raw: bytes) -> dict[str, str]:
    """Describe a TPM's statement as text; nothing is verified.

    Raises:
        EvidenceMalformedError: it cannot be parsed.
    """
    said = parse_attest(raw)
    return {
        "tpm_data": said.data.hex(),
        "tpm_signer": said.signer.hex(),
        "tpm_resets": str(said.resets),
        "tpm_restarts": str(said.restarts),
        "tpm_firmware": f"{said.firmware:#018x}",
        "pcrs": ", ".join(
            f"{bank.algorithm:#06x}: {' '.join(map(str, bank.pcrs))}" for bank in said.quoted.banks
        ),
        "pcr_digest": said.quoted.digest.hex(),
    }


def selection(banks: tuple[Bank, ...]) -> bytes:
    """Encode a TPML_PCR_SELECTION (section 10.9.7)."""
    written = len(banks).to_bytes(4, "big")
    for bank in banks:
        bits = sum(1 << pcr for pcr in bank.pcrs)
        written += bank.algorithm.to_bytes(2, "big") + b"\3" + bits.to_bytes(3, "little")
    return written


SHA256_BANK: Final = Bank(algorithm=Algorithm.SHA256, pcrs=tuple(range(PCRS)))
"""All PCRs of the bank that every TPM 2.0 has."""
