"""A manufacturer made like Intel: root, authorities, platform, quoting enclave, collateral."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from tests.support.der import integer, octets, oid, sequence

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 6, 1, tzinfo=UTC)
FMSPC, PCE_ID = bytes.fromhex("90c06f000000"), b"\0\0"
ARC = "1.2.840.113741.1.13.1"
COMPONENTS = [5] * 16
QE_SIGNER = bytes(range(32))
PPID, PLATFORM_INSTANCE_ID = b"p" * 16, b"i" * 16
BODIES = {1: 584, 2: 584, 3: 648, 4: 885}


def key() -> ec.EllipticCurvePrivateKey:
    """A key on P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def raw_signature(signer: ec.EllipticCurvePrivateKey, content: bytes) -> bytes:
    r, s = decode_dss_signature(signer.sign(content, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def damaged(content: bytes) -> bytes:
    """The same with another last byte, whichever it was."""
    return content[:-1] + bytes([content[-1] ^ 1])


def pck_extension() -> bytes:
    """Intel's extension of a PCK certificate (PCK profile, section 1.3.5)."""
    tcb = (
        sequence(oid(f"{ARC}.2.{index}"), integer(value))
        for index, value in enumerate([*COMPONENTS, 13], start=1)
    )
    return sequence(
        sequence(oid(f"{ARC}.1"), octets(PPID)),
        sequence(oid(f"{ARC}.2"), sequence(*tcb)),
        sequence(oid(f"{ARC}.3"), octets(PCE_ID)),
        sequence(oid(f"{ARC}.4"), octets(FMSPC)),
        sequence(oid(f"{ARC}.6"), octets(PLATFORM_INSTANCE_ID)),
    )


class Intel:
    """A root, its CAs, a platform and a quoting enclave, as they are at ``now``."""

    def __init__(self, *, now: datetime = NOW) -> None:
        self.now = now
        self.root_key, self.ca_key, self.pck_key = key(), key(), key()
        self.tcb_key, self.attestation_key = key(), key()
        root, ca = "Intel SGX Root CA", "Intel SGX PCK Platform CA"
        self.root = self._issue(root, self.root_key, root, self.root_key, path=1)
        self.ca = self._issue(ca, self.ca_key, root, self.root_key, path=0)
        self.pck = self._issue(
            "Intel SGX PCK Certificate", self.pck_key, ca, self.ca_key, extension=pck_extension()
        )
        self.tcb = self._issue("Intel SGX TCB Signing", self.tcb_key, root, self.root_key)

    def renew_signer(self) -> None:
        """Sign documents with another key and certificate from now on."""
        self.tcb_key = key()
        name = "Intel SGX TCB Signing"
        self.tcb = self._issue(name, self.tcb_key, "Intel SGX Root CA", self.root_key)

    def platform(self) -> dict[str, str]:
        """What :meth:`of_platform` makes quotes with, as JSON can carry it: in another process."""
        secrets = {"pck_key": self.pck_key, "attestation_key": self.attestation_key}
        chain = {"pck": self.pck, "ca": self.ca, "root": self.root}
        return {
            name: one.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
            for name, one in secrets.items()
        } | {name: one.public_bytes(Encoding.PEM).decode() for name, one in chain.items()}

    @classmethod
    def of_platform(cls, platform: dict[str, str]) -> Self:
        """A machine that makes quotes and nothing else."""
        made = cls.__new__(cls)
        for name, text in platform.items():
            pem = text.encode()
            one = load_pem_private_key if name.endswith("_key") else x509.load_pem_x509_certificate
            setattr(made, name, one(pem, None))
        return made

    def _issue(
        self,
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
            .not_valid_before(self.now - timedelta(days=10))
            .not_valid_after(self.now + timedelta(days=100))
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

    @property
    def tcb_chain(self) -> bytes:
        return b"".join(part.public_bytes(Encoding.PEM) for part in (self.tcb, self.root))

    def recoveries(self, *numbers: int) -> bytes:
        """The signed list of TCB recoveries."""
        listed = [
            {
                "tcbEvaluationDataNumber": number,
                "tcbRecoveryEventDate": "2025-05-13T00:00:00Z",
                "tcbDate": "2025-05-14T00:00:00Z",
            }
            for number in numbers
        ]
        document = {"id": "TDX", "version": 1, **dates(self.now), "tcbEvalNumbers": listed}
        return signed("tcbEvaluationDataNumbers", document, self.tcb_key)

    def quote(
        self,
        *,
        version: int = 4,
        tee_tcb_svn: bytes = bytes([5] * 1 + [0] + [5] * 14),
        attributes: int = 1 << 28,
        body_type: int = 3,
        fields: dict[int, bytes] | None = None,
    ) -> bytes:
        """A quote: ``body_type`` for version 5, and ``fields`` of the body by their offset."""
        header = (
            version.to_bytes(2, "little")
            + (2).to_bytes(2, "little")
            + (0x81).to_bytes(4, "little")
            + bytes(4)
            + bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
            + bytes(20)
        )
        body = bytearray(584 if version == 4 else BODIES[body_type])
        body[0:16] = tee_tcb_svn
        body[120:128] = attributes.to_bytes(8, "little")
        body[136:184] = b"m" * 48
        for offset, value in (fields or {}).items():
            body[offset : offset + len(value)] = value
        size = b""
        if version == 5:
            size = body_type.to_bytes(2, "little") + len(body).to_bytes(4, "little")
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
        """A folder of collateral; ``changes`` by document: ``info``, ``identity``, ``signer``.

        ``lists`` are the revocation lists by file name; a current one of each issuer without it.
        """
        folder.mkdir(exist_ok=True)
        for old in folder.glob("*.crl"):
            old.unlink()
        for name, der in changes.get("lists", self.lists()).items():
            (folder / name).write_bytes(der)
        signer = changes.get("signer", self.tcb_key)
        for name, title, document in (
            ("tcb_info.json", "tcbInfo", tcb_info(self.now) | changes.get("info", {})),
            (
                "qe_identity.json",
                "enclaveIdentity",
                qe_identity(self.now) | changes.get("identity", {}),
            ),
        ):
            (folder / name).write_bytes(signed(title, document, signer))
        (folder / "tcb_signing_chain.pem").write_bytes(self.tcb_chain)
        return folder

    def lists(self) -> dict[str, bytes]:
        """A current list of each issuer that revokes nothing."""
        return {
            "root.crl": self.crl(self.root, self.root_key),
            "pck.crl": self.crl(self.ca, self.ca_key),
        }

    def crl(
        self,
        issuer: x509.Certificate,
        signer: ec.EllipticCurvePrivateKey,
        *serials: int,
        number: int = 1,
        age: timedelta = timedelta(days=1),
        life: timedelta = timedelta(days=2),
        extension: x509.ExtensionType | None = None,
        entry: x509.ExtensionType | None = None,
    ) -> bytes:
        """A revocation list, DER, that was made ``age`` ago; ``entry`` is in each entry."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(issuer.subject)
            .last_update(self.now - age)
            .next_update(self.now - age + life)
            .add_extension(x509.CRLNumber(number), critical=False)
        )
        if extension is not None:
            critical = isinstance(extension, x509.DeltaCRLIndicator)
            builder = builder.add_extension(extension, critical=critical)
        for serial in serials:
            one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(self.now)
            if entry is not None:
                one = one.add_extension(entry, critical=False)
            builder = builder.add_revoked_certificate(one.build())
        return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.DER)


def signed(title: str, document: dict[str, Any], signer: ec.EllipticCurvePrivateKey) -> bytes:
    """A body as Intel's API answers: the document and the signature over its exact bytes."""
    exact = json.dumps(document, separators=(",", ":")).encode()
    signature = raw_signature(signer, exact).hex()
    return b'{"%s":%s,"signature":"%s"}' % (title.encode(), exact, signature.encode())


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


def dates(now: datetime) -> dict[str, str]:
    """A document of twelve days ago, as Intel's: for 31 days."""
    issued = now - timedelta(days=12)
    return {
        "issueDate": f"{issued:%FT%TZ}",
        "nextUpdate": f"{issued + timedelta(days=31):%FT%TZ}",
    }


def tcb_info(now: datetime = NOW) -> dict[str, Any]:
    return {
        "id": "TDX",
        "version": 3,
        **dates(now),
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


def qe_identity(now: datetime = NOW) -> dict[str, Any]:
    return {
        "id": "TD_QE",
        "version": 2,
        **dates(now),
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
