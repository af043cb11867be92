"""Real reports get the verdict and the reason that a strict appraisal must give them."""

from __future__ import annotations

import os
import tracemalloc
from dataclasses import replace

import pytest

from sds.attestation.evidence import Evidence, EvidenceKind
from sds.attestation.pem import der_certificates
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.snp.chain import AMD_ROOTS, amd_certificates
from sds.attestation.snp.report import Product, Report
from sds.attestation.snp.verifier import SnpVerifier
from sds.errors import EvidenceError
from tests.support import evidence_vectors as vectors
from tests.support import need


def verdict(name: str, **snp: object) -> tuple[str | None, set[str]]:
    """The reason of the refusal, and every check that failed."""
    values = ReferenceValues.model_validate({"snp": snp})
    found = SnpVerifier(values=values).examine(
        vectors.evidence(name), data=None, now=vectors.at(name)
    )
    assert found.accepted is (found.error is None)
    return (
        found.error.reason if found.error else None,
        {check.name for check in found.checks if not check.ok},
    )


@pytest.mark.parametrize(
    ("name", "reason", "failed"),
    [
        ("milan-v2", None, set()),
        ("milan-v2-debug", "debug_allowed", {"policy_debug"}),
        ("milan-v2-provisional", "provisional_firmware", {"firmware_committed"}),
        ("milan-v3-vlek-vmpl1", "vmpl", {"vmpl", "firmware_committed"}),
        ("genoa-v3", None, set()),
        ("turin-v5", None, set()),
    ],
)
def test_defaults(name: str, reason: str | None, failed: set[str]) -> None:
    assert verdict(name) == (reason, failed)


def test_what_is_permitted_or_demanded_turns_the_verdict() -> None:
    assert verdict("milan-v2", require_alias_check=True)[0] == "platform"
    assert verdict("milan-v2-debug", permit_debug=True)[0] is None
    assert verdict("milan-v2-provisional", permit_provisional_firmware=True)[0] is None
    assert verdict("milan-v3-vlek-vmpl1", maximum_vmpl=1)[0] == "provisional_firmware"
    accepted = {"maximum_vmpl": 1, "permit_provisional_firmware": True}
    assert verdict("milan-v3-vlek-vmpl1", **accepted)[0] is None
    assert verdict("milan-v3-vlek-vmpl1", **accepted, permit_vlek=False)[0] == "platform"
    # A report that names no chip may come from one that is denied.
    for name, more in (("milan-v3-vlek-vmpl1", accepted), ("genoa-v3", {})):
        chip = Report.parse(vectors.evidence(name).report).chip_id
        assert verdict(name, **more, denied_chip_ids=["11" * 64])[0] == (
            None if any(chip) else "chip_refused"
        )
    amazon = "CN=cc-us-east-2.amazonaws.com"
    assert verdict("milan-v3-vlek-vmpl1", **accepted, csp_ids=[amazon])[0] is None
    assert verdict("milan-v3-vlek-vmpl1", **accepted, csp_ids=["CN=other"])[0] == "csp_id"


def test_the_chain_of_another_vcek_is_refused() -> None:
    good = vectors.evidence("milan-v2-provisional")
    path = need.vectors() / "milan-v2-provisional" / "vcek-wrong-chain.cer"
    wrong = der_certificates(path.read_bytes(), what="leaf")
    found = SnpVerifier().examine(
        Evidence(
            kind=EvidenceKind.SEV_SNP,
            report=good.report,
            certificates=(*wrong, *good.certificates[1:]),
        ),
        data=None,
        now=vectors.AT,
    )
    assert found.error is not None
    assert found.error.reason == "chain_untrusted"
    # What can still run, runs: the appraisal and the comparison with the leaf.
    assert {"leaf_tcb", "report_signature", "firmware_committed"} <= {c.name for c in found.checks}


def test_a_vlek_whose_year_has_passed_is_refused() -> None:
    with pytest.raises(EvidenceError) as refused:
        SnpVerifier().examine(
            vectors.evidence("milan-v3-vlek-vmpl1"), data=None, now=vectors.AT
        ).claims_or_raise()
    assert refused.value.reason == "certificate_validity"


def test_the_leaf_of_another_product_is_refused() -> None:
    reasons = {}
    for name in vectors.VECTORS:
        for other in vectors.VECTORS:
            if name == other:
                continue
            found = SnpVerifier().examine(
                Evidence(
                    kind=EvidenceKind.SEV_SNP,
                    report=vectors.evidence(name).report,
                    certificates=vectors.evidence(other).certificates,
                ),
                data=None,
                now=vectors.at(other),
            )
            assert found.error is not None, (name, other)
            failed = {check.name for check in found.checks if not check.ok}
            assert "report_signature" in failed
            reasons[name, other] = found.error.reason
    assert reasons["genoa-v3", "turin-v5"] == "product_mismatch"
    assert reasons["turin-v5", "milan-v2"] == "product_mismatch"
    assert reasons["milan-v2", "milan-v2-debug"] == "endorsement_tcb_mismatch"


def test_an_expected_product_is_held() -> None:
    found = SnpVerifier(product=Product.TURIN).examine(
        vectors.evidence("milan-v2"), data=None, now=vectors.AT
    )
    assert found.error is not None
    assert found.error.reason == "product_mismatch"


def test_no_certificate_and_no_issuer() -> None:
    good = vectors.evidence("genoa-v3")
    for certificates, reason in (
        ((), "endorsement_missing"),
        (good.certificates[:1], "chain_untrusted"),
        (good.certificates[:2], "chain_untrusted"),
        ((good.certificates[1],), "certificate_malformed"),
    ):
        found = SnpVerifier().examine(
            Evidence(kind=good.kind, report=good.report, certificates=certificates),
            data=None,
            now=vectors.AT,
        )
        assert found.error is not None
        assert found.error.reason == reason
        # The appraisal ran all the same.
        assert "policy_debug" in {check.name for check in found.checks}
    # Configured certificates complete a chain, and AMD's ship with the package.
    for certificates in (good.certificates[1:], tuple(one.der for one in amd_certificates())):
        SnpVerifier(certificates=certificates).examine(
            Evidence(kind=good.kind, report=good.report, certificates=good.certificates[:1]),
            data=None,
            now=vectors.AT,
        ).claims_or_raise()


def test_amds_certificates_ship_with_the_package_and_are_the_pinned_ones() -> None:
    shipped = amd_certificates()
    assert {one.common_name for one in shipped} == {
        name
        for product in ("Milan", "Genoa", "Turin")
        for name in (f"ARK-{product}", f"SEV-{product}", f"SEV-VLEK-{product}")
    }
    roots = {one.digest for one in shipped if one.common_name.startswith("ARK-")}
    assert roots == set(AMD_ROOTS)
    for one in shipped:
        one.require_issuer()
        root = next(other for other in shipped if other.subject == one.issuer)
        assert one.signed_by(root)


def test_azure_keeps_a_report_at_0x20() -> None:
    blob = (need.vectors() / "azure-hcl" / "hcl-report.bin").read_bytes()
    report = Report.parse(blob[0x20 : 0x20 + 1184])
    assert report.version in {2, 3}
    assert len(report.measurement) == 48
    assert any(report.measurement)


def test_bytes_that_anybody_sends_beside_a_published_vcek_are_not_kept() -> None:
    verifier, genuine = SnpVerifier(), vectors.evidence("milan-v2")
    tracemalloc.start()
    try:
        for _ in range(16):
            junk = tuple(os.urandom(64 * 1024) for _ in range(8))
            evidence = replace(genuine, certificates=(*genuine.certificates, *junk))
            verdict = verifier.examine(evidence, data=None, now=vectors.at("milan-v2"))
            assert verdict.accepted
        del junk, evidence, verdict
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 16 * 8 * 64 * 1024 / 4
