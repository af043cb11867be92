"""An Istio certificate authority for tests: answers as istiod 1.29 was measured to answer.

``IstioCA`` is the counterpart in Python; :func:`reference` finds Istio's own authority, where
``SDS_ISTIO_CA`` names one as ``ADDRESS,FOLDER``: the folder holds ``root-cert.pem`` and tokens
(``token``, ``bad-aud.token``, ``expired.token``, ...) of ``ns1/sa1`` in ``cluster.local``. One test
body serves both.
"""

from __future__ import annotations

import datetime as dt
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import jwt
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sds._proto.istio.v1.auth import ca_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

AUDIENCE = "istio-ca"
ISSUER = "https://counterpart.test"
SERVER_NAME = "istiod.istio-system.svc"
NODE_AGENT = "system:serviceaccount:istio-system:attested-sds"
ACCOUNT = "spiffe://cluster.local/ns/ns1/sa/sa1"
_BACKDATE = dt.timedelta(seconds=120)
_DEFAULT_TTL = dt.timedelta(hours=24)
_MAX_TTL = dt.timedelta(days=90)
_NO_TOKEN = "request authenticate failure"

Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where an authority listens, and the folder with its root and tokens."""

    address: str
    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "root-cert.pem"

    def token(self, name: str = "") -> Path:
        return self.folder / (f"{name}.token" if name else "token")


def kinds() -> list[str]:
    """The authorities that tests run against: the counterpart, and Istio's own where one runs.

    Nobody is made to have Istio's own (its code takes minutes and gigabytes to build), so without
    ``SDS_ISTIO_CA`` there is nothing to skip.
    """
    return ["counterpart", "istio"] if os.environ.get("SDS_ISTIO_CA") else ["counterpart"]


def reference() -> Endpoint:
    """Istio's own authority, as ``SDS_ISTIO_CA`` names it."""
    address, _, folder = os.environ["SDS_ISTIO_CA"].partition(",")
    assert folder, "SDS_ISTIO_CA is ADDRESS,FOLDER"
    return Endpoint(address=address, folder=Path(folder))


@dataclass(slots=True, kw_only=True)
class Issuer:
    """A signing certificate with its key."""

    certificate: x509.Certificate
    key: Key

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @classmethod
    def make(cls, name: str, parent: Issuer | None = None) -> Issuer:
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(parent.certificate.subject if parent else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATE)
            .not_valid_after(now + dt.timedelta(days=365))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=False,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    key_cert_sign=True,
                    crl_sign=True,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
        )
        if parent is not None:
            named = x509.AuthorityKeyIdentifier.from_issuer_public_key(parent.key.public_key())
            certificate = certificate.add_extension(named, critical=False)
        signed = certificate.sign(parent.key if parent else key, hashes.SHA256())
        return cls(certificate=signed, key=key)


def _leaf(
    issuer: Issuer,
    public_key: Any,
    names: list[x509.GeneralName],
    lifetime: dt.timedelta,
) -> str:
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.certificate.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + lifetime)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=True,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=False,
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .sign(issuer.key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


class _RefusedError(Exception):
    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@dataclass(slots=True, kw_only=True)
class IstioCA:
    """The counterpart: TLS, JWT authentication, signing; ``start`` and ``stop`` its server.

    ``shape`` says how the answer's chain is laid out: ``separate`` elements, or ``one-block``.
    ``extra_roots`` stand in the last element beside the root (a root being replaced). ``before``
    runs before each answer, with the identity that is asked for; it may refuse with a status, or
    give other bytes to answer with.
    """

    folder: Path
    intermediate: bool = False
    extra_roots: tuple[Issuer, ...] = ()
    shape: str = "separate"
    port: int = 0
    root: Issuer = field(default_factory=lambda: Issuer.make("cluster.local"))
    seen: list[Mapping[str, str]] = field(default_factory=list)
    peers: list[str] = field(default_factory=list)
    before: Callable[[str], Awaitable[grpc.StatusCode | bytes | None]] | None = None
    _jwt_key: rsa.RSAPrivateKey = field(
        default_factory=lambda: rsa.generate_private_key(65537, 2048)
    )
    _server: grpc.aio.Server | None = None

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(address=f"127.0.0.1:{self.port}", folder=self.folder)

    async def start(self) -> Endpoint:
        self._write()
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _leaf(
            self.root,
            key.public_key(),
            [x509.DNSName("localhost"), x509.DNSName(SERVER_NAME)],
            _DEFAULT_TTL,
        )
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "istio.v1.auth.IstioCertificateService",
                    {
                        "CreateCertificate": grpc.unary_unary_rpc_method_handler(
                            self._create,
                            request_deserializer=ca_pb2.IstioCertificateRequest.FromString,
                            response_serializer=_serialized,
                        )
                    },
                ),
            )
        )
        credentials = grpc.ssl_server_credentials(
            [
                (
                    key.private_bytes(
                        serialization.Encoding.PEM,
                        serialization.PrivateFormat.PKCS8,
                        serialization.NoEncryption(),
                    ),
                    certificate.encode(),
                )
            ]
        )
        self.port = self._server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        await self._server.start()
        return self.endpoint

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(grace=0)
            self._server = None

    # --- tokens -----------------------------------------------------------------------------------

    def mint(self, *, key: rsa.RSAPrivateKey | None = None, **over: Any) -> str:
        now = int(dt.datetime.now(dt.UTC).timestamp())
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "sub": "system:serviceaccount:ns1:sa1",
            "aud": [AUDIENCE],
            "iat": now,
            "nbf": now,
            "exp": now + 3600,
        } | over
        return jwt.encode(claims, key or self._jwt_key, algorithm="RS256")

    def _write(self) -> None:
        now = int(dt.datetime.now(dt.UTC).timestamp())
        other = rsa.generate_private_key(65537, 2048)
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, token in {
            "token": self.mint(),
            "bad-aud.token": self.mint(aud=["other"]),
            "string-aud.token": self.mint(aud=AUDIENCE),
            "expired.token": self.mint(exp=now - 3600),
            "bad-key.token": self.mint(key=other),
            "bad-iss.token": self.mint(iss="https://other"),
            "bad-sub.token": self.mint(sub="alice"),
        }.items():
            (self.folder / name).write_text(token)
        (self.folder / "root-cert.pem").write_text(self.root.pem)

    # --- the call ---------------------------------------------------------------------------------

    async def _create(
        self,
        request: ca_pb2.IstioCertificateRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> ca_pb2.IstioCertificateResponse | bytes:
        metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        self.seen.append(metadata)
        self.peers.append(context.peer())
        try:
            account = self._authenticate(metadata.get("authorization", ""))
            wanted = request.metadata.fields.get("ImpersonatedIdentity")
            identity = self._impersonate(account, wanted.string_value if wanted else "")
            lifetime = _lifetime(request.validity_duration)
            csr = _csr(request.csr)
        except _RefusedError as refused:
            await context.abort(refused.code, refused.text)
        instead = None if self.before is None else await self.before(identity)
        if isinstance(instead, bytes):
            return instead
        if instead is not None:
            await context.abort(instead, "not now")
        return ca_pb2.IstioCertificateResponse(cert_chain=self._sign(csr, identity, lifetime))

    def _sign(
        self, csr: x509.CertificateSigningRequest, identity: str, lifetime: dt.timedelta
    ) -> list[str]:
        issuer = Issuer.make("intermediate", self.root) if self.intermediate else self.root
        san = x509.UniformResourceIdentifier(identity)
        elements = [_leaf(issuer, csr.public_key(), [san], lifetime)]
        if self.intermediate:
            elements.append(issuer.pem)
        elements.append("".join(root.pem for root in (self.root, *self.extra_roots)))
        return ["".join(elements)] if self.shape == "one-block" else elements

    def _authenticate(self, header: str) -> str:
        scheme, _, token = header.partition(" ")
        if scheme != "Bearer":
            raise _RefusedError(grpc.StatusCode.UNAUTHENTICATED, _NO_TOKEN)
        try:
            claims = jwt.decode(
                token,
                self._jwt_key.public_key(),
                algorithms=["RS256"],
                audience=AUDIENCE,
                issuer=ISSUER,
                options={"require": ["exp", "sub"]},
            )
        except jwt.InvalidTokenError:
            raise _RefusedError(grpc.StatusCode.UNAUTHENTICATED, _NO_TOKEN) from None
        subject = str(claims["sub"])
        parts = subject.split(":")
        if (
            not isinstance(claims["aud"], list)
            or parts[:2] != ["system", "serviceaccount"]
            or len(parts) != 4
        ):
            raise _RefusedError(grpc.StatusCode.UNAUTHENTICATED, _NO_TOKEN)
        return subject

    def _impersonate(self, account: str, wanted: str) -> str:
        _, _, namespace, name = account.split(":")
        if not wanted:
            return f"spiffe://cluster.local/ns/{namespace}/sa/{name}"
        if account != NODE_AGENT:
            raise _RefusedError(
                grpc.StatusCode.UNAUTHENTICATED, "request impersonation authentication failure"
            )
        return wanted


def _serialized(answer: ca_pb2.IstioCertificateResponse | bytes) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


def _lifetime(seconds: int) -> dt.timedelta:
    if seconds <= 0:
        return _DEFAULT_TTL
    if seconds > _MAX_TTL.total_seconds():
        raise _RefusedError(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"CSR signing error (requested TTL {seconds}s is greater than the max allowed TTL "
            "2160h0m0s)",
        )
    return dt.timedelta(seconds=seconds)


def _csr(pem: str) -> x509.CertificateSigningRequest:
    improper = "CSR signing error (certificate signing request is not properly encoded)"
    try:
        csr = x509.load_pem_x509_csr(pem.encode())
        if csr.is_signature_valid:
            return csr
    except (ValueError, InvalidSignature):
        raise _RefusedError(grpc.StatusCode.INVALID_ARGUMENT, improper) from None
    raise _RefusedError(
        grpc.StatusCode.INVALID_ARGUMENT, "CSR signing error (x509: ECDSA verification failure)"
    )


def break_signature(csr_der: bytes) -> bytes:
    """The same CSR with the last byte of its signature changed."""
    return csr_der[:-1] + bytes([csr_der[-1] ^ 1])
