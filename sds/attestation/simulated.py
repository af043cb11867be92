"""A simulated SEV-SNP machine: for the demo, for development and for tests.

Owns a key hierarchy of its own, ARK -> ASK -> VCEK, shaped as AMD's (57230), and makes reports
that are byte-exact to AMD 56860. Invariants: its reports go through the same verification as
real ones; its root is trusted only by whoever names it in a configuration; everything here says
loudly that it is a simulation, because anybody who holds these keys can claim to be any guest.

The chip's key reaches another process by an inherited descriptor (:meth:`SimulatedMachine.send`,
:meth:`SimulatedMachine.receive`), never by a file.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Self

from asn1crypto import core
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from sds.attestation.evidence import Evidence, EvidenceKind
from sds.attestation.snp_chain import (
    HARDWARE_ID,
    HARDWARE_ID_BYTES,
    PRODUCT_NAME,
    SALT_BYTES,
    SPL,
    STRUCT_VERSION,
)
from sds.attestation.snp_report import (
    ECDSA_P384_SHA384,
    REPORT_BYTES,
    SIGNATURE_NUMBER_BYTES,
    SIGNED_BYTES,
    Product,
    Tcb,
    parse_tcb,
)
from sds.errors import EvidenceError

if TYPE_CHECKING:
    from sds.attestation.evidence import ReportData

_RSA_BITS: Final = 4096
_LIFE: Final = timedelta(days=3650)
_TCB: Final = {
    Product.MILAN: bytes.fromhex("04000000000018db"),
    Product.GENOA: bytes.fromhex("0a00000000001719"),
    Product.TURIN: bytes.fromhex("0101010400000051"),
}
_CPUID: Final = {
    Product.MILAN: (0x19, 0x01, 0x01),
    Product.GENOA: (0x19, 0x11, 0x01),
    Product.TURIN: (0x1A, 0x02, 0x01),
}
_MAX_BYTES: Final = 65_536

SIMULATED_MEASUREMENT: Final = b"attested-sds simulated guest".ljust(48, b"\0")
"""Launch measurement of a simulated guest that was given none."""


def _name(common_name: str) -> x509.Name:
    """A name as AMD writes it, with an organisation that nobody takes for AMD."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "SIMULATED, not AMD"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "attested-sds simulation"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _pss() -> padding.PSS:
    return padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=SALT_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRoot:
    """A manufacturer of simulated chips: ARK and ASK of one product.

    Attributes:
        product: what its chips are.
        ark_der: certificate of the root key: what a configuration names to trust it.
        ask_der: certificate of the key that signs the chips' certificates.
    """

    product: Product
    ark_der: bytes = field(repr=False)
    ask_der: bytes = field(repr=False)
    ark_key: rsa.RSAPrivateKey = field(repr=False)
    ask_key: rsa.RSAPrivateKey = field(repr=False)

    @classmethod
    def create(cls, product: Product = Product.GENOA) -> Self:
        """Make the keys (RSA 4096, two at a time) and their certificates."""
        with ThreadPoolExecutor(2) as pool:
            ark_key, ask_key = pool.map(
                lambda _: rsa.generate_private_key(65537, _RSA_BITS), range(2)
            )
        title = product.capitalize()
        ark = cls._authority(f"ARK-{title}", ark_key.public_key(), f"ARK-{title}", ark_key, 65536)
        ask = cls._authority(f"SEV-{title}", ask_key.public_key(), f"ARK-{title}", ark_key, 65537)
        return cls(product=product, ark_der=ark, ask_der=ask, ark_key=ark_key, ask_key=ask_key)

    @staticmethod
    def _authority(
        subject: str,
        public_key: rsa.RSAPublicKey,
        issuer: str,
        issuer_key: rsa.RSAPrivateKey,
        serial: int,
    ) -> bytes:
        now = datetime.now(UTC).replace(microsecond=0)
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=subject == issuer,
            encipher_only=False,
            decipher_only=False,
        )
        path_length = None if subject == issuer else 0
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_name(subject))
            .issuer_name(_name(issuer))
            .public_key(public_key)
            .serial_number(serial)
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + _LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
            .add_extension(usage, critical=True)
            .sign(issuer_key, hashes.SHA384(), rsa_padding=_pss())
        )
        return certificate.public_bytes(serialization.Encoding.DER)

    def machine(
        self, *, measurement: bytes = SIMULATED_MEASUREMENT, chip_id: bytes | None = None
    ) -> SimulatedMachine:
        """Make one chip with its VCEK, running a guest with this measurement (48 bytes)."""
        size = HARDWARE_ID_BYTES[self.product]
        hardware_id = secrets.token_bytes(size) if chip_id is None else chip_id[:size]
        key = ec.generate_private_key(ec.SECP384R1())
        tcb = _TCB[self.product]
        vcek = _vcek(self, key.public_key(), hardware_id, parse_tcb(tcb, self.product))
        return SimulatedMachine(
            product=self.product,
            measurement=measurement,
            chip_id=hardware_id.ljust(64, b"\0"),
            tcb=tcb,
            vcek_key=key,
            certificates=(vcek, self.ask_der, self.ark_der),
        )


def _vcek(
    root: SimulatedRoot, public_key: ec.EllipticCurvePublicKey, hardware_id: bytes, tcb: Tcb
) -> bytes:
    """A VCEK certificate as AMD 57230 has it: serial 0, no key usage, AMD's extensions only."""
    now = datetime.now(UTC).replace(microsecond=0)
    spl = dict(tcb.components())
    names = ("spl5", "spl6", "spl7") if tcb.fmc is not None else ("spl4", "spl5", "spl6", "spl7")
    spl |= dict.fromkeys(names, 0)
    extensions = [
        (STRUCT_VERSION, core.Integer(1).dump()),
        (PRODUCT_NAME, core.IA5String(root.product.capitalize()).dump()),
        *((SPL[name], core.Integer(value).dump()) for name, value in spl.items()),
        (HARDWARE_ID, hardware_id),
    ]
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name("SEV-VCEK"))
        .issuer_name(_name(f"SEV-{root.product.capitalize()}"))
        .public_key(public_key)
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + _LIFE)
    )
    for oid, value in extensions:
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
    certificate = builder.sign(root.ask_key, hashes.SHA384(), rsa_padding=_pss())
    return _with_serial_zero(certificate.public_bytes(serialization.Encoding.DER), root.ask_key)


def _with_serial_zero(der: bytes, issuer_key: rsa.RSAPrivateKey) -> bytes:
    """Sign again with the serial number 0 that every VCEK has; cryptography refuses to build it."""
    certificate = asn1_x509.Certificate.load(der)
    certificate["tbs_certificate"]["serial_number"] = 0
    signed = certificate["tbs_certificate"].dump(force=True)
    certificate["signature_value"] = issuer_key.sign(signed, _pss(), hashes.SHA384())
    raw: bytes = certificate.dump(force=True)
    return raw


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedMachine:
    """One simulated chip and the guest on it; an :class:`~sds.attestation.evidence.Attester`.

    The fields from ``version`` on are what its reports say; tests change them.
    """

    product: Product
    measurement: bytes
    chip_id: bytes
    tcb: bytes
    vcek_key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificates: tuple[bytes, ...] = field(repr=False)
    version: int = 3
    policy: int = 0x30000
    vmpl: int = 0
    platform_info: int = 0x25
    key_info: int = 0
    signature_algo: int = ECDSA_P384_SHA384
    host_data: bytes = bytes(32)
    committed_tcb: bytes | None = None
    current_tcb: bytes | None = None

    @classmethod
    def create(
        cls,
        product: Product = Product.GENOA,
        *,
        measurement: bytes = SIMULATED_MEASUREMENT,
        chip_id: bytes | None = None,
    ) -> SimulatedMachine:
        """Make a root of its own and one machine under it."""
        return SimulatedRoot.create(product).machine(measurement=measurement, chip_id=chip_id)

    @property
    def ark_der(self) -> bytes:
        """The root's certificate, DER."""
        return self.certificates[-1]

    def changed(self, **fields: object) -> SimulatedMachine:
        """The same chip with other report fields (same VCEK)."""
        return replace(self, **fields)  # type: ignore[arg-type]  # names are checked by replace

    async def attest(self, data: ReportData) -> Evidence:
        """Make a report with ``data`` as its report data."""
        return Evidence(
            kind=EvidenceKind.SEV_SNP, report=self.report(data), certificates=self.certificates
        )

    def report(self, data: bytes) -> bytes:
        """The 1184 bytes of a signed report (AMD 56860)."""
        body = bytearray(REPORT_BYTES)
        struct.pack_into("<IIQ", body, 0x00, self.version, 0, self.policy)
        struct.pack_into("<II", body, 0x30, self.vmpl, self.signature_algo)
        body[0x38:0x40] = self.current_tcb or self.tcb
        struct.pack_into("<QI", body, 0x40, self.platform_info, self.key_info)
        body[0x50:0x90] = data
        body[0x90:0xC0] = self.measurement
        body[0xC0:0xE0] = self.host_data
        body[0x140:0x160] = secrets.token_bytes(32)
        body[0x160:0x180] = b"\xff" * 32
        body[0x180:0x188] = self.tcb
        if self.version > 2:  # noqa: PLR2004  CPUID stands in reports from version 3 on
            body[0x188:0x18B] = bytes(_CPUID[self.product])
        body[0x1A0:0x1E0] = self.chip_id
        body[0x1E0:0x1E8] = self.committed_tcb or self.tcb
        body[0x1E8:0x1EB] = body[0x1EC:0x1EF] = bytes((40, 55, 1))
        body[0x1F0:0x1F8] = self.tcb
        signature = self.vcek_key.sign(bytes(body[:SIGNED_BYTES]), ec.ECDSA(hashes.SHA384()))
        r, s = decode_dss_signature(signature)
        body[SIGNED_BYTES : SIGNED_BYTES + SIGNATURE_NUMBER_BYTES] = r.to_bytes(
            SIGNATURE_NUMBER_BYTES, "little"
        )
        start = SIGNED_BYTES + SIGNATURE_NUMBER_BYTES
        body[start : start + SIGNATURE_NUMBER_BYTES] = s.to_bytes(SIGNATURE_NUMBER_BYTES, "little")
        return bytes(body)

    def to_bytes(self) -> bytes:
        """Everything another process needs to be this machine: the chip's private key too."""
        key = self.vcek_key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        fields = {
            "product": self.product.value,
            "measurement": self.measurement.hex(),
            "chip_id": self.chip_id.hex(),
            "tcb": self.tcb.hex(),
            "vcek_key": base64.b64encode(key).decode(),
            "certificates": [base64.b64encode(der).decode() for der in self.certificates],
        }
        return json.dumps(fields).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """The reverse of :meth:`to_bytes`.

        Raises:
            EvidenceError: these bytes are not a machine.
        """
        try:
            fields = json.loads(raw)
            key = serialization.load_der_private_key(base64.b64decode(fields["vcek_key"]), None)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise EvidenceError("the simulated chip's key is not on an elliptic curve")
            return cls(
                product=Product(fields["product"]),
                measurement=bytes.fromhex(fields["measurement"]),
                chip_id=bytes.fromhex(fields["chip_id"]),
                tcb=bytes.fromhex(fields["tcb"]),
                vcek_key=key,
                certificates=tuple(base64.b64decode(der) for der in fields["certificates"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise EvidenceError(
                "the descriptor holds no simulated machine",
                advice="start this process from `sds demo` or `sds dev`, or pass a machine by "
                "SimulatedMachine.send",
            ) from error

    def send(self) -> int:
        """A descriptor, inheritable, from which a child reads this machine once.

        It is an anonymous memory file: nothing reaches a disk. The caller closes it after the
        child was started.
        """
        descriptor = os.memfd_create("simulated-machine", 0)
        os.write(descriptor, self.to_bytes())
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.set_inheritable(descriptor, True)  # noqa: FBT003  the call has no keyword
        return descriptor

    @classmethod
    def receive(cls, descriptor: int) -> Self:
        """Read a machine from an inherited descriptor and close it.

        Raises:
            EvidenceError: the descriptor is not open or holds no machine.
        """
        try:
            with os.fdopen(descriptor, "rb") as stream:
                stream.seek(0)
                raw = stream.read(_MAX_BYTES)
        except OSError as error:
            raise EvidenceError(
                f"descriptor {descriptor} cannot be read: {error.strerror}",
                advice="the simulated machine comes by a descriptor that the parent opened",
            ) from error
        return cls.from_bytes(raw)
