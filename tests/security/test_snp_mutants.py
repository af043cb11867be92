"""Real evidence, changed in every way that can be listed: nothing of it is accepted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sds.attestation.evidence import Evidence, EvidenceKind
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.snp.verifier import SnpVerifier
from sds.errors import EvidenceError
from tests.support import evidence_vectors as vectors

if TYPE_CHECKING:
    from collections.abc import Callable

PERMITTED = ReferenceValues.model_validate(
    {"snp": {"maximum_vmpl": 3, "permit_provisional_firmware": True}}
)
"""So that only authenticity stands between the VLEK's report and acceptance."""


def refuser(name: str) -> tuple[Evidence, Callable[[bytes, tuple[bytes, ...]], str]]:
    """A vector that is accepted, and a function that gives the reason of a refusal."""
    good = vectors.evidence(name)
    verifier = SnpVerifier(values=PERMITTED)

    def reason(report: bytes, certificates: tuple[bytes, ...]) -> str:
        shown = Evidence(kind=EvidenceKind.SEV_SNP, report=report, certificates=certificates)
        try:
            verifier.examine(shown, data=None, now=vectors.at(name)).claims_or_raise()
        except EvidenceError as error:
            return error.reason
        return "accepted"

    assert reason(good.report, good.certificates) == "accepted"
    return good, reason


@pytest.mark.no_cover
def test_every_bit_of_a_report_counts() -> None:
    good, reason = refuser("genoa-v3")
    seen: dict[str, int] = {}
    for index in range(len(good.report) * 8):
        mutant = bytearray(good.report)
        mutant[index // 8] ^= 1 << index % 8
        found = reason(bytes(mutant), good.certificates)
        assert found != "accepted", f"byte {index // 8:#x}, bit {index % 8}"
        seen[found] = seen.get(found, 0) + 1
    assert sum(seen.values()) == 1184 * 8
    # Not everything falls by one check: each names what it found.
    assert {
        "report_version",
        "reserved_bytes",
        "signature_algorithm",
        "masked_chip_key",
        "signing_key_mismatch",
        "product_mismatch",
        "endorsement_tcb_mismatch",
        "endorsement_chip_mismatch",
        "signature_invalid",
    } <= seen.keys()


@pytest.mark.no_cover
@pytest.mark.parametrize("place", [0, 1, 2], ids=["leaf", "second", "third"])
@pytest.mark.parametrize("name", ["genoa-v3", "turin-v5", "milan-v3-vlek-vmpl1"])
def test_every_byte_of_a_certificate_counts(name: str, place: int) -> None:
    good, reason = refuser(name)
    changed = list(good.certificates)
    mutant = bytearray(changed[place])
    # Issuers have the same form for every product: one product's are changed at every byte.
    step = 1 if place == 0 or name == "genoa-v3" else 4
    for index, byte in list(enumerate(good.certificates[place]))[place % step :: step]:
        mutant[index] = byte ^ (1 << index % 8)
        changed[place] = bytes(mutant)
        assert reason(good.report, tuple(changed)) != "accepted", f"byte {index}"
        mutant[index] = byte


@pytest.mark.parametrize("name", ["genoa-v3", "turin-v5"])
def test_every_truncation_and_extension_is_refused(name: str) -> None:
    good, reason = refuser(name)
    for length in range(len(good.report)):
        assert reason(good.report[:length], good.certificates) == "report_length"
    for extra in (*range(1, 65), 512, 1184, 65536):
        assert reason(good.report + bytes(extra), good.certificates) == "report_length"
    for place, der in enumerate(good.certificates):
        for cut in range(0, len(der), 7):
            for mutant in (der[:cut], der + bytes(cut + 1)):
                changed = list(good.certificates)
                changed[place] = mutant
                assert reason(good.report, tuple(changed)) != "accepted"


def test_certificates_in_another_order_or_missing() -> None:
    good, reason = refuser("genoa-v3")
    leaf, ask, ark = good.certificates
    # Helpers add no trust, so their order does not matter; the leaf comes first.
    assert reason(good.report, (leaf, ark, ask)) == "accepted"
    for given in ((ask, leaf, ark), (ark, ask, leaf), (leaf, ark), (leaf, ask), (leaf,), ()):
        assert reason(good.report, given) != "accepted"


def test_thousands_of_helpers_cost_nothing() -> None:
    good, reason = refuser("genoa-v3")
    leaf, *others = good.certificates
    assert reason(good.report, (leaf, *[b"\x30\x03junk"] * 10_000, *others)) == "chain_untrusted"
