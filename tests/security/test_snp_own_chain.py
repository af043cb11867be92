"""Cases that no real machine shows, under a chain of our own: each refused for its reason."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from sds.attestation.evidence import Evidence, EvidenceKind
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.revocation import read_revocation_list
from sds.attestation.snp.authenticity import P384_ORDER
from sds.attestation.snp.leaf import HARDWARE_ID, PRODUCT_NAME
from sds.attestation.snp.report import TCB_COMPONENTS, Product, SigningKey
from sds.attestation.snp.revocation import read_amd_list
from sds.attestation.snp.simulated import SIMULATED_CSP_ID, SimulatedMachine, SimulatedRoot
from sds.attestation.snp.simulated_certificates import (
    certificate,
    issuer_extensions,
    leaf_extensions,
    name,
)
from sds.attestation.snp.verifier import SnpVerifier
from sds.errors import EvidenceError
from tests.support.machines import NOW, crl, simulated

DATA = bytes(range(64))
SPAN = (NOW - timedelta(days=1), NOW + timedelta(days=365))


def reason(
    report: bytes,
    certificates: tuple[bytes, ...],
    ark: bytes,
    *,
    now: datetime = NOW,
    lists: tuple[bytes, ...] = (),
    snp: dict[str, object] | None = None,
) -> str:
    read = tuple(map(read_revocation_list, lists))
    verifier = SnpVerifier(
        values=ReferenceValues.model_validate({"snp": snp or {}}),
        trusted_roots=[ark],
        lists=lambda: read,
    )
    shown = Evidence(kind=EvidenceKind.SEV_SNP, report=report, certificates=certificates)
    try:
        verifier.examine(shown, data=None, now=now).claims_or_raise()
    except EvidenceError as error:
        return error.reason
    return "accepted"


def of(machine: SimulatedMachine, **snp: object) -> str:
    return reason(machine.report(DATA), machine.certificates, machine.ark_der, snp=snp)


@pytest.mark.parametrize("product", list(Product))
@pytest.mark.parametrize("kind", [SigningKey.VCEK, SigningKey.VLEK])
@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_what_is_right_is_accepted(product: Product, kind: SigningKey, version: int) -> None:
    assert of(simulated(product, kind).machine().changed(version=version)) == "accepted"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"version": 1}, "report_version"),
        ({"version": 6}, "report_version"),
        ({"signature_algo": 0}, "signature_algorithm"),
        ({"signature_algo": 2}, "signature_algorithm"),
        ({"key_info": 2}, "masked_chip_key"),
        ({"key_info": 7 << 2}, "signing_key_mismatch"),
        ({"key_info": 1 << 2}, "signing_key_mismatch"),
        ({"key_info": 1 << 5}, "reserved_bytes"),
        ({"policy": 0x30000 | 1 << 18}, "migration_agent"),
        ({"report_id_ma": b"\1" * 32}, "migration_agent"),
        ({"policy": 0x30000 | 1 << 19}, "debug_allowed"),
        ({"policy": 0x30000 | 1 << 26}, "reserved_bytes"),
        ({"policy": 0x10000}, "reserved_bytes"),
        ({"platform_info": 1 << 8}, "reserved_bytes"),
        ({"vmpl": 1}, "vmpl"),
        ({"vmpl": 0xFFFFFFFF}, "vmpl"),
        (
            {"current_firmware": (1, 55, 41), "committed_firmware": (1, 55, 40)},
            "provisional_firmware",
        ),
        ({"chip_id": bytes(64)}, "endorsement_chip_mismatch"),
    ],
)
def test_fields(fields: dict[str, object], expected: str) -> None:
    assert of(simulated().machine().changed(**fields)) == expected


@pytest.mark.parametrize("product", list(Product))
def test_each_component_of_each_tcb_is_held_by_itself(product: Product) -> None:
    high = bytes([9] * 8)
    tcb = bytearray(8)
    for index in TCB_COMPONENTS[product].values():
        tcb[index] = high[index]
    machine = simulated(product).machine(tcb=bytes(tcb))
    for component, index in TCB_COMPONENTS[product].items():
        minimum = {product.value: {component: 9}}
        assert of(machine, minimum_tcb=minimum) == "accepted"
        low = bytearray(tcb)
        low[index] = 8
        for field in ("current_tcb", "committed_tcb", "launch_tcb"):
            changed = machine.changed(**{field: bytes(low)})
            assert (
                of(changed, minimum_tcb=minimum, permit_provisional_firmware=True)
                == "tcb_below_minimum"
            )
        lower = simulated(product).machine(tcb=bytes(low))
        assert of(lower, minimum_tcb=minimum) == "tcb_below_minimum"
        # A reported TCB other than the leaf's, up or down.
        assert of(machine.changed(tcb=bytes(low))) == "endorsement_tcb_mismatch"
    for index in set(range(8)) - set(TCB_COMPONENTS[product].values()):
        odd = bytearray(tcb)
        odd[index] = 1
        changed = machine.changed(launch_tcb=bytes(odd))
        assert of(changed) == "reserved_bytes"


@pytest.mark.parametrize(
    ("r", "s", "expected"),
    [
        (0, 1, "signature_range"),
        (1, 0, "signature_range"),
        (P384_ORDER, 1, "signature_range"),
        (1, P384_ORDER, "signature_range"),
        (2**384 - 1, 1, "signature_range"),
        (P384_ORDER - 1, P384_ORDER - 1, "signature_invalid"),
        (1, 1, "signature_invalid"),
    ],
)
def test_r_and_s(r: int, s: int, expected: str) -> None:
    machine = simulated().machine()
    report = machine.body(DATA) + r.to_bytes(72, "little") + s.to_bytes(72, "little") + bytes(368)
    assert reason(report, machine.certificates, machine.ark_der) == expected


@pytest.mark.parametrize("offset", [0x2D0, 0x2E7, 0x318, 0x32F, 0x330, 0x49F])
def test_bytes_around_r_and_s(offset: int) -> None:
    machine = simulated().machine()
    report = bytearray(machine.report(DATA))
    report[offset] = 1
    assert reason(bytes(report), machine.certificates, machine.ark_der) == "reserved_bytes"


def test_reserved_bytes_that_are_signed_are_refused_all_the_same() -> None:
    machine = simulated().machine()
    for version, spans in {
        2: (0x4C, 0x188, 0x19F, 0x1EB, 0x1EF, 0x1F8, 0x29F),
        3: (0x4F, 0x18B, 0x19F, 0x1F8, 0x207, 0x208),
        4: (0x18B, 0x208),
        5: (0x18B, 0x208, 0x29F),
    }.items():
        for offset in spans:
            body = bytearray(machine.changed(version=version).body(DATA))
            body[offset] = 1
            report = machine.sign(bytes(body))
            assert reason(report, machine.certificates, machine.ark_der) == "reserved_bytes"


def test_processors() -> None:
    machine = simulated().machine()
    for family, model, expected in (
        (0x19, 0x1F, "accepted"),
        (0x19, 0xA0, "accepted"),
        (0x19, 0xAF, "accepted"),
        (0x19, 0x01, "product_mismatch"),
        (0x1A, 0x02, "product_mismatch"),
        (0x1A, 0x50, "product_mismatch"),
        (0x17, 0x31, "product_mismatch"),
        (0, 0, "product_mismatch"),
    ):
        body = bytearray(machine.body(DATA))
        body[0x188:0x18A] = bytes((family, model))
        report = machine.sign(bytes(body))
        assert reason(report, machine.certificates, machine.ark_der) == expected


# --- leaves ---------------------------------------------------------------------------------------


def leaf_of(
    root: SimulatedRoot,
    machine: SimulatedMachine,
    extensions: tuple[tuple[str, bool, bytes], ...] | None = None,
    *,
    subject: str = "SEV-VCEK",
    issuer: str = "SEV-Genoa",
    signer: rsa.RSAPrivateKey | None = None,
    public_key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey | None = None,
) -> tuple[bytes, ...]:
    right = leaf_extensions(root.product, root.kind, tcb=machine.tcb, identity=machine.chip_id)
    leaf = certificate(
        issuer=name(issuer),
        subject=name(subject),
        public_key=public_key or machine.vcek_key.public_key(),
        extensions=right if extensions is None else extensions,
        signer=signer or root.ask_key,
        serial=0,
        validity=SPAN,
    )
    return (leaf, root.ask_der, root.ark_der)


def test_a_leaf_holds_each_extension_once_and_no_other() -> None:
    root, machine = simulated(), simulated().machine()
    right = leaf_extensions(root.product, root.kind, tcb=machine.tcb, identity=machine.chip_id)
    report = machine.report(DATA)

    def found(extensions: tuple[tuple[str, bool, bytes], ...]) -> str:
        return reason(report, leaf_of(root, machine, extensions), root.ark_der)

    assert found(right) == "accepted"
    for index, (oid, critical, value) in enumerate(right):
        rest = right[:index] + right[index + 1 :]
        assert found(rest) == "certificate_malformed", f"without {oid}"
        assert found((*right, (oid, critical, value))) == "certificate_malformed", f"twice {oid}"
        for wrong in (
            b"",
            b"\x02\x02\x00\x01",
            b"\x02\x01\xff",
            b"\x02\x02\x01\x00",
            value + b"\0",
        ):
            changed = (*right[:index], (oid, critical, wrong), *right[index + 1 :])
            assert found(changed) == "certificate_malformed", f"{oid} {wrong.hex()}"
    for unknown in ("1.3.6.1.4.1.3704.1.9", "2.5.29.19", "1.3.6.1.4.1.3704.1.3.9"):
        assert found((*right, (unknown, False, b"\x02\x01\x00"))) == "certificate_malformed"
    wrapped = tuple(
        (oid, critical, b"\x04\x40" + value if oid == HARDWARE_ID else value)
        for oid, critical, value in right
    )
    assert found(wrapped) == "accepted"
    other = tuple(
        (oid, critical, b"\x16\x05Milan" if oid == PRODUCT_NAME else value)
        for oid, critical, value in right
    )
    assert found(other) in {"chain_untrusted", "product_mismatch"}


def test_a_leaf_signed_by_somebody_else() -> None:
    root, machine = simulated(), simulated().machine()
    report = machine.report(DATA)
    stranger = rsa.generate_private_key(65537, 4096)
    assert (
        reason(report, leaf_of(root, machine, signer=stranger), root.ark_der) == "chain_untrusted"
    )
    # The ARK itself, or a leaf that names the ARK.
    by_root = leaf_of(root, machine, signer=root.ark_key, issuer="ARK-Genoa")
    assert reason(report, by_root, root.ark_der) == "chain_untrusted"
    rsa_leaf = leaf_of(root, machine, public_key=stranger.public_key())
    assert reason(report, rsa_leaf, root.ark_der) == "certificate_malformed"
    p256 = ec.generate_private_key(ec.SECP256R1()).public_key()
    assert reason(report, leaf_of(root, machine, public_key=p256), root.ark_der) == (
        "certificate_malformed"
    )


def test_a_vlek_given_as_vcek_and_the_other_way_round() -> None:
    vcek, vlek = simulated(), simulated(Product.GENOA, SigningKey.VLEK)
    chip, cloud = vcek.machine(), vlek.machine()
    # The report says the other kind.
    assert of(cloud.changed(key_info=0)) == "signing_key_mismatch"
    assert of(chip.changed(key_info=1 << 2)) == "signing_key_mismatch"
    # The certificate's name says the other kind.
    renamed = leaf_of(vcek, chip, subject="SEV-VLEK")
    assert reason(chip.report(DATA), renamed, vcek.ark_der) == "certificate_malformed"
    # A VCEK under the ASVK.
    under = certificate(
        issuer=name("SEV-VLEK-Genoa"),
        subject=name("SEV-VCEK"),
        public_key=cloud.vcek_key.public_key(),
        extensions=leaf_extensions(
            Product.GENOA, SigningKey.VCEK, tcb=cloud.tcb, identity=bytes([1] * 64)
        ),
        signer=vlek.ask_key,
        serial=0,
        validity=SPAN,
    )
    shown = cloud.changed(key_info=0, chip_id=bytes([1] * 64)).report(DATA)
    assert reason(shown, (under, vlek.ask_der, vlek.ark_der), vlek.ark_der) == "chain_untrusted"


def test_issuers_must_be_authorities() -> None:
    root, machine = simulated(), simulated().machine()
    report = machine.report(DATA)
    for extensions in (
        (),
        issuer_extensions(path_length=0)[:1],
        issuer_extensions(path_length=0)[1:],
        (("2.5.29.15", True, bytes.fromhex("03020780")), issuer_extensions(path_length=0)[1]),
        (issuer_extensions(path_length=0)[0], ("2.5.29.19", True, b"\x30\x00")),
        (*issuer_extensions(path_length=0), ("1.2.3.4", True, b"\5\0")),
    ):
        ask = certificate(
            issuer=name("ARK-Genoa"),
            subject=name("SEV-Genoa"),
            public_key=root.ask_key.public_key(),
            extensions=extensions,
            signer=root.ark_key,
            serial=2,
            validity=SPAN,
        )
        found = reason(report, (machine.certificates[0], ask, root.ark_der), root.ark_der)
        assert found == "certificate_malformed"


def test_a_root_of_the_same_name_is_not_the_pinned_one() -> None:
    root, other = simulated(), SimulatedRoot.create(now=NOW)
    assert of(root.machine()) == "accepted"
    machine = other.machine()
    assert reason(machine.report(DATA), machine.certificates, root.ark_der) == "chain_untrusted"


@pytest.mark.parametrize("days", [-2, 365 * 8])
def test_time(days: int) -> None:
    machine = simulated().machine()
    found = reason(
        machine.report(DATA),
        machine.certificates,
        machine.ark_der,
        now=NOW + timedelta(days=days),
    )
    assert found == "certificate_validity"


# --- revocation -----------------------------------------------------------------------------------


def test_revocation_lists() -> None:
    root, machine = simulated(), simulated().machine()
    ask_serial = 0x10001

    def found(*lists: bytes) -> str:
        return reason(machine.report(DATA), machine.certificates, root.ark_der, lists=lists)

    assert found(crl(root)) == "accepted"
    assert found(crl(root, 7)) == "accepted"
    # A VCEK's serial number 0 is not the root's to revoke.
    assert found(crl(root, ask_serial)) == "certificate_revoked"
    assert found(crl(root), crl(root, ask_serial)) == "certificate_revoked"
    assert found(crl(root, key=root.ask_key)) == "revocation_list"
    assert found(crl(root, age=timedelta(days=3))) == "revocation_list_stale"
    # An expired list beside a current one takes nothing away, and adds what it revoked.
    assert found(crl(root), crl(root, age=timedelta(days=3))) == "accepted"
    assert found(crl(root), crl(root, ask_serial, age=timedelta(days=3))) == "certificate_revoked"
    # Another issuer of the same name says nothing.
    assert found(crl(root), crl(root, ask_serial, key=root.ask_key)) == "accepted"
    assert found(crl(root, age=timedelta(hours=-2))) == "revocation_list_stale"
    assert found(crl(simulated(Product.MILAN))) == "revocation_list"
    assert found(crl(root, salt=32)) == "revocation_list"
    with pytest.raises(EvidenceError, match="not signed as AMD signs"):
        read_amd_list(crl(root, salt=32), issuers=())
    for broken in (crl(root, critical=True), b"\x30\x00", crl(root) + b"\0"):
        with pytest.raises(EvidenceError) as refused:
            found(broken)
        assert refused.value.reason == "revocation_list"


def test_without_lists_the_verdict_says_so_and_a_policy_can_demand_them() -> None:
    root, machine = simulated(), simulated().machine()
    verdict = SnpVerifier(trusted_roots=[root.ark_der]).examine(
        machine.evidence(DATA), data=None, now=NOW
    )
    said = {check.name: check.found_text for check in verdict.checks}
    assert said["revocation"].startswith("not checked")
    assert verdict.accepted
    assert of(machine, permit_unchecked_revocation=False) == "revocation_list"


def test_providers_keep_vceks_out() -> None:
    chip = simulated().machine()
    cloud = simulated(Product.GENOA, SigningKey.VLEK).machine()
    ours = [SIMULATED_CSP_ID]
    assert of(cloud, csp_ids=ours) == "accepted"
    assert of(cloud, csp_ids=["CN=other"]) == "csp_id"
    assert of(chip, csp_ids=ours) == "csp_id"
    assert of(chip, csp_ids=ours, permit_vcek=True) == "accepted"
    assert of(chip, permit_vcek=False) == "platform"
    assert of(cloud, permit_vcek=False) == "accepted"
    assert of(cloud, permit_vlek=False) == "platform"


def test_mitigation_vectors_are_those_of_version_5() -> None:
    machine = simulated().machine()
    assert of(machine.changed(version=5), mitigations=3) == "accepted"
    assert of(machine.changed(version=4), mitigations=3) == "mitigation_missing"
    body = bytearray(machine.changed(version=4).body(DATA))
    body[0x1F8] = 1
    report = machine.sign(bytes(body))
    assert reason(report, machine.certificates, machine.ark_der) == "reserved_bytes"


def test_a_version_that_is_too_new_says_what_to_upgrade() -> None:
    machine = simulated().machine()
    for version, advice in ((6, "upgrade attested-sds"), (1, "update the host's SEV firmware")):
        evidence = machine.changed(version=version).evidence(DATA)
        verdict = SnpVerifier(trusted_roots=[machine.ark_der]).examine(evidence, data=None, now=NOW)
        assert verdict.error is not None
        assert verdict.error.reason == "report_version"
        assert advice in verdict.error.advice


@pytest.mark.no_cover
def test_every_byte_of_a_revocation_list_counts() -> None:
    root, machine = simulated(), simulated().machine()
    good = crl(root, 7)
    for index in range(len(good)):
        mutant = bytearray(good)
        mutant[index] ^= 1 << index % 8
        try:
            found = reason(
                machine.report(DATA), machine.certificates, root.ark_der, lists=(bytes(mutant),)
            )
        except EvidenceError as error:
            found = error.reason
        assert found != "accepted", index


def test_an_issuer_with_several_certificates_over_one_key() -> None:
    """What a host gives beside the leaf takes nothing from what the verifier has itself."""
    root = simulated()
    machine = root.machine()
    leaf, ask, ark = machine.certificates

    def issuer(span: tuple[datetime, datetime], signer: rsa.RSAPrivateKey) -> bytes:
        return certificate(
            issuer=name("ARK-Genoa"),
            subject=name("SEV-Genoa"),
            public_key=root.ask_key.public_key(),
            extensions=issuer_extensions(path_length=0),
            signer=signer,
            serial=7,
            validity=span,
        )

    over = issuer((NOW - timedelta(days=9), NOW - timedelta(days=1)), root.ark_key)
    damaged = issuer((NOW - timedelta(days=9), NOW + timedelta(days=9999)), root.ask_key)
    report = machine.report(DATA)
    for other, alone in ((over, "certificate_validity"), (damaged, "chain_untrusted")):
        assert reason(report, (leaf, other, ark), root.ark_der) == alone
        assert reason(report, (leaf, other, ask, ark), root.ark_der) == "accepted"
        assert reason(report, (leaf, ask, other, ark), root.ark_der) == "accepted"
        verifier = SnpVerifier(trusted_roots=[root.ark_der], certificates=[ask])
        shown = Evidence(kind=EvidenceKind.SEV_SNP, report=report, certificates=(leaf, other, ark))
        assert verifier.examine(shown, data=None, now=NOW).error is None
