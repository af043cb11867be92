"""A simulated SEV-SNP machine: for the demo, for development and for tests.

Owns a key hierarchy of its own, ARK -> ASK -> VCEK, shaped as AMD's (57230), and makes reports
that are byte-exact to AMD 56860. Invariants: its reports go through the same verification as real
ones; only a configuration that names its root trusts it; everything here logs a warning that it is
a simulation, because anybody who has these keys can claim to be any guest.

ARK and ASK are RSA-4096 like AMD's, so that verification has one rule; both keys are made at the
same time, and one root serves any number of chips. A chip's key reaches another process by an
inherited descriptor (:meth:`SimulatedMachine.send`, :meth:`SimulatedMachine.receive`), never by
a file.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from sds.attestation.evidence import Evidence, EvidenceKind
from sds.attestation.snp.certificate import RSA_BITS
from sds.attestation.snp.leaf import CHIP_ID_BYTES
from sds.attestation.snp.report import (
    ALGORITHM_ECDSA_P384_SHA384,
    CPUID_VERSION,
    MITIGATION_VERSION,
    SIGNED_BYTES,
    TURIN_CHIP_ID_BYTES,
    Product,
    SigningKey,
)
from sds.attestation.snp.simulated_certificates import (
    authority_extensions,
    certificate,
    leaf_extensions,
    name,
)
from sds.clock import SystemClock
from sds.errors import EvidenceError
from sds.untrusted_input import words_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

    from sds.attestation.evidence import ReportData

_BEFORE: Final = timedelta(days=1)
_ISSUER_LIFE: Final = timedelta(days=20 * 365)
_VCEK_LIFE: Final = timedelta(days=7 * 365)
_VLEK_LIFE: Final = timedelta(days=365)
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
_AUTHOR_KEY_EN: Final = 1

SIMULATED_MEASUREMENT: Final = b"attested-sds simulated guest".ljust(48, b"\0")
"""The launch measurement of a simulated guest that was given none."""
SIMULATED_CSP_ID: Final = "CN=simulated.invalid"
"""The provider of a simulated VLEK."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRoot:
    """A manufacturer of simulated chips: ARK, and ASK (or ASVK, for VLEKs) of one product.

    Attributes:
        product: the product of its chips.
        kind: whether they sign with a VCEK or a VLEK.
        ark_der: the certificate of the root key, which a configuration names to trust it.
        ask_der: the certificate of the key that signs the chips' certificates.
        start: the beginning of all its certificates' validity.
    """

    product: Product
    kind: SigningKey
    ark_der: bytes = field(repr=False)
    ask_der: bytes = field(repr=False)
    ark_key: rsa.RSAPrivateKey = field(repr=False)
    ask_key: rsa.RSAPrivateKey = field(repr=False)
    start: datetime

    @classmethod
    def create(
        cls,
        product: Product = Product.GENOA,
        *,
        kind: SigningKey = SigningKey.VCEK,
        now: datetime | None = None,
    ) -> Self:
        """Make the keys (RSA-4096, two at a time) and their certificates, valid from a day ago."""
        with ThreadPoolExecutor(2) as pool:
            ark_key, ask_key = pool.map(
                lambda _: rsa.generate_private_key(65537, RSA_BITS), range(2)
            )
        start = (now or SystemClock().now().wall).replace(microsecond=0) - _BEFORE
        validity = (start, start + _ISSUER_LIFE)
        root = name(f"ARK-{product.certificate_name}")
        return cls(
            product=product,
            kind=kind,
            ark_der=certificate(
                issuer=root,
                subject=root,
                public_key=ark_key.public_key(),
                extensions=authority_extensions(
                    product, SigningKey.VCEK, key=ark_key.public_key(), issuer=None
                ),
                signer=ark_key,
                serial=0x10000,
                validity=validity,
            ),
            ask_der=certificate(
                issuer=root,
                subject=name(_issuer_name(product, kind)),
                public_key=ask_key.public_key(),
                extensions=authority_extensions(
                    product, kind, key=ask_key.public_key(), issuer=ark_key.public_key()
                ),
                signer=ark_key,
                serial=0x10001,
                validity=validity,
            ),
            ark_key=ark_key,
            ask_key=ask_key,
            start=start,
        )

    def machine(
        self,
        *,
        measurement: bytes = SIMULATED_MEASUREMENT,
        chip_id: bytes | None = None,
        tcb: bytes | None = None,
    ) -> SimulatedMachine:
        """Make one chip with its VCEK or VLEK, running a guest with this measurement (48 bytes).

        Args:
            measurement: the guest's measurement, 48 bytes.
            chip_id: 64 bytes, of which Turin has eight; random if None.
            tcb: eight bytes as in REPORTED_TCB; a plausible one if None.
        """
        size = TURIN_CHIP_ID_BYTES if self.product is Product.TURIN else CHIP_ID_BYTES
        hardware_id = secrets.token_bytes(size) if chip_id is None else chip_id[:size]
        key = ec.generate_private_key(ec.SECP384R1())
        reported = tcb or _TCB[self.product]
        vcek = self.kind is SigningKey.VCEK
        leaf = certificate(
            issuer=name(_issuer_name(self.product, self.kind)),
            subject=name("SEV-VCEK" if vcek else "SEV-VLEK"),
            public_key=key.public_key(),
            extensions=leaf_extensions(
                self.product,
                self.kind,
                tcb=reported,
                identity=hardware_id if vcek else SIMULATED_CSP_ID,
            ),
            signer=self.ask_key,
            serial=0,
            validity=(self.start, self.start + (_VCEK_LIFE if vcek else _VLEK_LIFE)),
        )
        return SimulatedMachine(
            product=self.product,
            measurement=measurement,
            # With a VLEK, the firmware does not report the chip.
            chip_id=hardware_id.ljust(CHIP_ID_BYTES, b"\0") if vcek else bytes(CHIP_ID_BYTES),
            tcb=reported,
            vcek_key=key,
            certificates=(leaf, self.ask_der, self.ark_der),
            key_info=self.kind << 2,
        )


def _issuer_name(product: Product, kind: SigningKey) -> str:
    title = product.certificate_name
    return f"SEV-{title}" if kind is SigningKey.VCEK else f"SEV-VLEK-{title}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedMachine:
    """One simulated chip and the guest on it; an :class:`~sds.attestation.evidence.Attester`.

    The fields from ``version`` on are what its reports say, by the names of 56860; tests change
    them. TCBs are eight bytes, or ``tcb`` (the reported one) if None; firmware versions are (major,
    minor, build).
    """

    product: Product
    measurement: bytes
    chip_id: bytes
    tcb: bytes
    vcek_key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificates: tuple[bytes, ...] = field(repr=False)
    version: int = 3
    guest_svn: int = 0
    policy: int = 0x30000
    vmpl: int = 0
    platform_info: int = 0x25
    key_info: int = 0
    signature_algo: int = ALGORITHM_ECDSA_P384_SHA384
    family_id: bytes = bytes(16)
    image_id: bytes = bytes(16)
    host_data: bytes = bytes(32)
    id_key_digest: bytes = bytes(48)
    author_key_digest: bytes = bytes(48)
    report_id_ma: bytes = b"\xff" * 32
    committed_tcb: bytes | None = None
    current_tcb: bytes | None = None
    launch_tcb: bytes | None = None
    current_firmware: tuple[int, int, int] = (1, 55, 40)
    committed_firmware: tuple[int, int, int] | None = None
    mitigations: int = 0x3F

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
        """Return the root's certificate in DER."""
        return self.certificates[-1]

    def changed(self, **fields: object) -> SimulatedMachine:
        """Return the same chip with other report fields (same VCEK)."""
        return replace(self, **fields)  # type: ignore[arg-type]  # names are checked by replace

    async def attest(self, data: ReportData) -> Evidence:
        """Make a report with ``data`` as its report data."""
        return self.evidence(data)

    def evidence(self, data: bytes) -> Evidence:
        """Make what :meth:`attest` gives, without an event loop."""
        return Evidence(
            kind=EvidenceKind.SEV_SNP, report=self.report(data), certificates=self.certificates
        )

    def report(self, data: bytes) -> bytes:
        """Make the 1184 bytes of a signed report (56860, table 23)."""
        return self.sign(self.body(data))

    def body(self, data: bytes) -> bytes:
        """Make bytes 0 to 0x29F of a report, which the signature covers."""
        body = bytearray(SIGNED_BYTES)
        for offset, value in self._fields(data):
            body[offset : offset + len(value)] = value
        return bytes(body)

    def sign(self, body: bytes) -> bytes:
        """Append the signature (table 141) to bytes 0 to 0x29F, whatever they say."""
        r, s = decode_dss_signature(self.vcek_key.sign(body, ec.ECDSA(hashes.SHA384())))
        return body + r.to_bytes(72, "little") + s.to_bytes(72, "little") + bytes(368)

    def _fields(self, data: bytes) -> list[tuple[int, bytes]]:
        author = _AUTHOR_KEY_EN if any(self.author_key_digest) else 0
        fields = [
            (0x00, _little(self.version, 4)),
            (0x04, _little(self.guest_svn, 4)),
            (0x08, _little(self.policy, 8)),
            (0x10, self.family_id),
            (0x20, self.image_id),
            (0x30, _little(self.vmpl, 4)),
            (0x34, _little(self.signature_algo, 4)),
            (0x38, self.current_tcb or self.tcb),
            (0x40, _little(self.platform_info, 8)),
            (0x48, _little(self.key_info | author, 4)),
            (0x50, data),
            (0x90, self.measurement),
            (0xC0, self.host_data),
            (0xE0, self.id_key_digest),
            (0x110, self.author_key_digest),
            (0x140, secrets.token_bytes(32)),
            (0x160, self.report_id_ma),
            (0x180, self.tcb),
            (0x1A0, self.chip_id),
            (0x1E0, self.committed_tcb or self.tcb),
            (0x1E8, bytes(reversed(self.current_firmware))),
            (0x1EC, bytes(reversed(self.committed_firmware or self.current_firmware))),
            (0x1F0, self.launch_tcb or self.tcb),
        ]
        if self.version >= CPUID_VERSION:
            fields.append((0x188, bytes(_CPUID[self.product])))
        if self.version >= MITIGATION_VERSION:
            fields.append((0x1F8, _little(self.mitigations, 8) * 2))
        return fields

    def to_bytes(self) -> bytes:
        """Encode everything that another process needs to be this machine, the chip's key too.

        Only chip, guest measurement and TCB travel, not what :meth:`changed` changed.
        """
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
            "key_info": self.key_info,
            "vcek_key": base64.b64encode(key).decode(),
            "certificates": [base64.b64encode(der).decode() for der in self.certificates],
        }
        return json.dumps(fields).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Decode a machine; the reverse of :meth:`to_bytes`.

        Raises:
            EvidenceError: these bytes are not a machine.
        """
        try:
            fields = json.loads(raw)
            key = serialization.load_der_private_key(base64.b64decode(fields["vcek_key"]), None)
            return cls(
                product=Product(fields["product"]),
                measurement=bytes.fromhex(fields["measurement"]),
                chip_id=bytes.fromhex(fields["chip_id"]),
                tcb=bytes.fromhex(fields["tcb"]),
                key_info=int(fields["key_info"]),
                vcek_key=_elliptic(key),
                certificates=tuple(base64.b64decode(der) for der in fields["certificates"]),
            )
        except (
            ValueError,
            KeyError,
            TypeError,
            OverflowError,
            RecursionError,
            UnsupportedAlgorithm,
        ):
            # Leave out the cause, because its text could contain the key.
            raise EvidenceError(
                "the descriptor has no simulated machine",
                advice="start this process from `sds demo` or `sds dev`, or pass a machine by "
                "SimulatedMachine.send",
            ) from None

    def send(self) -> int:
        """Make an inheritable descriptor from which a child reads this machine.

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
            EvidenceError: the descriptor is not open or has no machine.
        """
        try:
            with os.fdopen(descriptor, "rb") as stream:
                stream.seek(0)
                raw = stream.read(_MAX_BYTES)
        except OSError as error:
            raise EvidenceError(
                f"descriptor {descriptor} cannot be read: {words_of(error)}",
                advice="the simulated machine comes by a descriptor that the parent opened",
            ) from error
        return cls.from_bytes(raw)


def _elliptic(key: PrivateKeyTypes) -> ec.EllipticCurvePrivateKey:
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("not a key on an elliptic curve")
    return key


def _little(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little")
