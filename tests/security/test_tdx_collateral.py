"""TDX quotes with collateral, under a root of our own made like Intel's."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from asn1crypto import core
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from sds.attestation.evidence import Evidence, EvidenceKind
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.tdx.verifier import TdxVerifier

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 6, 1, tzinfo=UTC)
FMSPC, PCE_ID = bytes.fromhex("90c06f000000"), b"\0\0"
ARC = "1.2.840.113741.1.13.1"
COMPONENTS = [5] * 16
QE_SIGNER = bytes(range(32))


def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def raw_signature(signer: ec.EllipticCurvePrivateKey, content: bytes) -> bytes:
    r, s = decode_dss_signature(signer.sign(content, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def pair(oid: str, value: core.Asn1Value) -> bytes:
    return sequence(core.ObjectIdentifier(oid).dump() + value.dump())


def sequence(content: bytes) -> bytes:
    return bytes(core.Sequence(contents=content).dump())


def pck_extension() -> bytes:
    tcb = b"".join(
        pair(f"{ARC}.2.{index}", core.Integer(value))
        for index, value in enumerate([*COMPONENTS, 13], start=1)
    )
    return sequence(
        sequence(core.ObjectIdentifier(f"{ARC}.2").dump() + sequence(tcb))
        + pair(f"{ARC}.3", core.OctetString(PCE_ID))
        + pair(f"{ARC}.4", core.OctetString(FMSPC))
    )


class Intel:
    """A root, its CAs, a platform and a quoting enclave."""

    def __init__(self) -> None:
        self.root_key, self.ca_key, self.pck_key = key(), key(), key()
        self.tcb_key, self.attestation_key = key(), key()
        root, ca = "Intel SGX Root CA", "Intel SGX PCK Platform CA"
        self.root = self._issue(root, self.root_key, root, self.root_key, path=1)
        self.ca = self._issue(ca, self.ca_key, root, self.root_key, path=0)
        self.pck = self._issue(
            "Intel SGX PCK Certificate", self.pck_key, ca, self.ca_key, extension=pck_extension()
        )
        self.tcb = self._issue("Intel SGX TCB Signing", self.tcb_key, root, self.root_key)

    @staticmethod
    def _issue(
        subject: str,
        subject_key: ec.EllipticCurvePrivateKey,
        issuer: str,
        issuer_key: ec.EllipticCurvePrivateKey,
        *,
        path: int | None = None,
        extension: bytes | None = None,
    ) -> x509.Certificate:
        authority = path is not None
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(subject_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=10))
            .not_valid_after(NOW + timedelta(days=100))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=path), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not authority,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    key_cert_sign=authority,
                    crl_sign=authority,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
        )
        if extension is not None:
            unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier(ARC), extension)
            builder = builder.add_extension(unknown, critical=False)
        return builder.sign(issuer_key, hashes.SHA256())

    @property
    def root_der(self) -> bytes:
        return self.root.public_bytes(Encoding.DER)

    def quote(
        self,
        *,
        version: int = 4,
        tee_tcb_svn: bytes = bytes([5] * 1 + [0] + [5] * 14),
        attributes: int = 1 << 28,
    ) -> bytes:
        header = (
            version.to_bytes(2, "little")
            + (2).to_bytes(2, "little")
            + (0x81).to_bytes(4, "little")
            + bytes(4)
            + bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
            + bytes(20)
        )
        body = bytearray(584 if version == 4 else 648)
        body[0:16] = tee_tcb_svn
        body[120:128] = attributes.to_bytes(8, "little")
        body[136:184] = b"m" * 48
        size = (3).to_bytes(2, "little") + (648).to_bytes(4, "little") if version == 5 else b""
        signed = header + size + bytes(body)
        point = self.attestation_key.public_key().public_bytes(
            Encoding.X962, PublicFormat.UncompressedPoint
        )[1:]
        report = bytearray(384)
        report[128:160] = QE_SIGNER
        report[256:258] = (2).to_bytes(2, "little")
        report[258:260] = (8).to_bytes(2, "little")
        report[320:352] = hashlib.sha256(point + b"auth").digest()
        chain = b"".join(
            certificate.public_bytes(Encoding.PEM) for certificate in (self.pck, self.ca, self.root)
        )
        certification = (
            bytes(report)
            + raw_signature(self.pck_key, bytes(report))
            + (4).to_bytes(2, "little")
            + b"auth"
            + (5).to_bytes(2, "little")
            + len(chain).to_bytes(4, "little")
            + chain
        )
        data = (
            raw_signature(self.attestation_key, signed)
            + point
            + (6).to_bytes(2, "little")
            + len(certification).to_bytes(4, "little")
            + certification
        )
        return signed + len(data).to_bytes(4, "little") + data

    def collateral(self, folder: Path, **changes: Any) -> Path:
        """A folder of collateral; ``changes`` by document: ``info``, ``identity``, ``signer``."""
        folder.mkdir(exist_ok=True)
        signer = changes.get("signer", self.tcb_key)
        for name, title, document in (
            ("tcb_info.json", "tcbInfo", tcb_info() | changes.get("info", {})),
            ("qe_identity.json", "enclaveIdentity", qe_identity() | changes.get("identity", {})),
        ):
            exact = json.dumps(document, separators=(",", ":")).encode()
            signature = raw_signature(signer, exact).hex()
            body = b'{"%s":%s,"signature":"%s"}' % (title.encode(), exact, signature.encode())
            (folder / name).write_bytes(body)
        chain = b"".join(part.public_bytes(Encoding.PEM) for part in (self.tcb, self.root))
        (folder / "tcb_signing_chain.pem").write_bytes(chain)
        return folder

    def crl(
        self, issuer: x509.Certificate, signer: ec.EllipticCurvePrivateKey, *serials: int
    ) -> bytes:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(issuer.subject)
            .last_update(NOW - timedelta(days=1))
            .next_update(NOW + timedelta(days=1))
        )
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.DER)


def level(svn: int, status: str, *advisories: str) -> dict[str, Any]:
    return {
        "tcb": {
            "sgxtcbcomponents": [{"svn": svn}] * 16,
            "tdxtcbcomponents": [{"svn": svn}] * 16,
            "pcesvn": 13,
        },
        "tcbDate": "2026-01-01T00:00:00Z",
        "tcbStatus": status,
        "advisoryIDs": list(advisories),
    }


def tcb_info() -> dict[str, Any]:
    return {
        "id": "TDX",
        "version": 3,
        "issueDate": "2026-05-20T00:00:00Z",
        "nextUpdate": "2026-06-20T00:00:00Z",
        "fmspc": FMSPC.hex().upper(),
        "pceId": PCE_ID.hex(),
        "tcbType": 0,
        "tcbEvaluationDataNumber": 17,
        "tdxModule": {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "ff" * 8},
        "tdxModuleIdentities": [
            {
                "id": "TDX_01",
                "mrsigner": "00" * 48,
                "attributes": "00" * 8,
                "attributesMask": "ff" * 8,
                "tcbLevels": [
                    {
                        "tcb": {"isvsvn": 4},
                        "tcbDate": "2026-01-01T00:00:00Z",
                        "tcbStatus": "UpToDate",
                    }
                ],
            }
        ],
        "tcbLevels": [level(5, "UpToDate"), level(3, "OutOfDate", "INTEL-SA-00001")],
    }


def qe_identity() -> dict[str, Any]:
    return {
        "id": "TD_QE",
        "version": 2,
        "issueDate": "2026-05-20T00:00:00Z",
        "nextUpdate": "2026-06-20T00:00:00Z",
        "tcbEvaluationDataNumber": 17,
        "miscselect": "00000000",
        "miscselectMask": "ffffffff",
        "attributes": "00" * 16,
        "attributesMask": "ff" * 16,
        "mrsigner": QE_SIGNER.hex(),
        "isvprodid": 2,
        "tcbLevels": [
            {"tcb": {"isvsvn": 8}, "tcbDate": "2026-01-01T00:00:00Z", "tcbStatus": "UpToDate"}
        ],
    }


@pytest.fixture(scope="module")
def intel() -> Intel:
    return Intel()


def reason(
    intel: Intel, quote: bytes, folder: Path | None, *, now: datetime = NOW, **tdx: Any
) -> str:
    verdict = TdxVerifier(
        values=ReferenceValues.model_validate({"tdx": tdx}),
        trusted_roots=[intel.root_der],
        collateral=folder,
    ).examine(Evidence(kind=EvidenceKind.TDX, report=quote), data=None, now=now)
    assert verdict.claims is None or verdict.claims.simulated
    return verdict.error.reason if verdict.error else "accepted"


MODULE_1_5 = bytes([5, 1] + [5] * 14)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("svn", [bytes([5, 0] + [5] * 14), MODULE_1_5])
def test_with_collateral_it_is_accepted(
    intel: Intel, tmp_path: Path, version: int, svn: bytes
) -> None:
    if svn[1] == 0:
        # A module before 1.5 is compared as a whole: its second component is zero everywhere.
        low = level(5, "UpToDate")
        low["tcb"]["tdxtcbcomponents"] = [{"svn": 0 if index == 1 else 5} for index in range(16)]
        folder = intel.collateral(tmp_path / "c", info={"tcbLevels": [low]})
    else:
        folder = intel.collateral(tmp_path / "c")
    assert reason(intel, intel.quote(version=version, tee_tcb_svn=svn), folder) == "accepted"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"info": {"fmspc": "00906ea10000"}}, "collateral_untrusted"),
        ({"info": {"pceId": "0001"}}, "collateral_untrusted"),
        ({"info": {"id": "SGX"}}, "collateral_untrusted"),
        ({"info": {"version": 2}}, "collateral_untrusted"),
        ({"info": {"nextUpdate": "2026-05-31T00:00:00Z"}}, "collateral_stale"),
        ({"info": {"issueDate": "2026-06-02T00:00:00Z"}}, "collateral_stale"),
        ({"info": {"issueDate": "yesterday"}}, "collateral_untrusted"),
        ({"info": {"tcbLevels": [level(5, "OutOfDate")]}}, "tcb_status"),
        ({"info": {"tcbLevels": [level(5, "Revoked")]}}, "tcb_status"),
        ({"info": {"tcbLevels": [level(6, "UpToDate")]}}, "tcb_status"),
        ({"info": {"tcbLevels": [level(6, "UpToDate"), level(3, "OutOfDate")]}}, "tcb_status"),
        ({"info": {"tcbLevels": [{}]}}, "collateral_untrusted"),
        ({"info": {"tdxModuleIdentities": []}}, "tdx_module"),
        ({"identity": {"mrsigner": "11" * 32}}, "quoting_enclave"),
        ({"identity": {"isvprodid": 1}}, "quoting_enclave"),
        ({"identity": {"attributes": "01" + "00" * 15}}, "quoting_enclave"),
        ({"identity": {"id": "QE"}}, "collateral_untrusted"),
        ({"identity": {"tcbLevels": []}}, "collateral_untrusted"),
        ({"signer": key()}, "collateral_untrusted"),
    ],
)
def test_collateral_that_does_not_hold(
    intel: Intel, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    folder = intel.collateral(tmp_path / "c", **changes)
    assert reason(intel, intel.quote(tee_tcb_svn=MODULE_1_5), folder) == expected


def test_statuses_and_advisories(intel: Intel, tmp_path: Path) -> None:
    levels = [level(5, "SWHardeningNeeded", "INTEL-SA-00001", "INTEL-SA-00002")]
    folder = intel.collateral(tmp_path / "c", info={"tcbLevels": levels})
    quote = intel.quote(tee_tcb_svn=MODULE_1_5)
    accepted = ["UpToDate", "SWHardeningNeeded"]
    assert reason(intel, quote, folder) == "tcb_status"
    assert reason(intel, quote, folder, tcb_statuses=accepted) == "accepted"
    one = ["INTEL-SA-00001"]
    assert (
        reason(intel, quote, folder, tcb_statuses=accepted, permitted_advisories=one)
        == "tcb_status"
    )
    both = [*one, "INTEL-SA-00002"]
    assert (
        reason(intel, quote, folder, tcb_statuses=accepted, permitted_advisories=both) == "accepted"
    )
    assert (
        reason(intel, quote, folder, tcb_statuses=accepted, minimum_tcb_evaluation_number=18)
        == "collateral_untrusted"
    )


def test_bytes_and_files_of_collateral_count(intel: Intel, tmp_path: Path) -> None:
    quote = intel.quote(tee_tcb_svn=MODULE_1_5)
    for name in ("tcb_info.json", "qe_identity.json", "tcb_signing_chain.pem"):
        folder = intel.collateral(tmp_path / "c")
        good = (folder / name).read_bytes()
        for index in range(0, len(good), 41):
            mutant = bytearray(good)
            mutant[index] ^= 1
            (folder / name).write_bytes(bytes(mutant))
            # White space between lines of PEM means nothing.
            assert reason(intel, quote, folder) != "accepted" or good[index] in b"\n", index
        (folder / name).unlink()
        assert reason(intel, quote, folder) == "collateral_missing"


def test_revocation(intel: Intel, tmp_path: Path) -> None:
    quote = intel.quote(tee_tcb_svn=MODULE_1_5)
    cases = (
        (intel.crl(intel.ca, intel.ca_key), "accepted"),
        (intel.crl(intel.ca, intel.ca_key, intel.pck.serial_number), "certificate_revoked"),
        (intel.crl(intel.root, intel.root_key, intel.ca.serial_number), "certificate_revoked"),
        (intel.crl(intel.root, intel.root_key, intel.tcb.serial_number), "certificate_revoked"),
        (intel.crl(intel.ca, intel.root_key), "revocation_list"),
    )
    for content, expected in cases:
        folder = intel.collateral(tmp_path / "c")
        (folder / "list.crl").write_bytes(content)
        assert reason(intel, quote, folder) == expected


def test_the_td_and_the_root(intel: Intel, tmp_path: Path) -> None:
    folder = intel.collateral(tmp_path / "c")
    for attributes, expected in (
        (1, "debug_allowed"),
        (1 << 3, "debug_allowed"),
        (1 << 29, "migration_agent"),
        (1 << 40, "reserved_bytes"),
        (0, "accepted"),
    ):
        quote = intel.quote(tee_tcb_svn=MODULE_1_5, attributes=attributes)
        assert reason(intel, quote, folder) == expected
    quote = intel.quote(tee_tcb_svn=MODULE_1_5, attributes=0)
    assert reason(intel, quote, folder, require_sept_ve_disable=True) == "td_attributes"
    assert reason(intel, quote, folder, rtmr0=["11" * 48]) == "measurement"
    late = NOW + timedelta(days=200)
    assert reason(intel, quote, folder, now=late) == "certificate_validity"
    verdict = TdxVerifier(collateral=folder).examine(
        Evidence(kind=EvidenceKind.TDX, report=quote), data=None, now=NOW
    )
    assert verdict.error is not None
    assert verdict.error.reason == "chain_untrusted"
