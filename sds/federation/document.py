"""Reads and writes SPIFFE bundle documents: JWK Sets (SPIFFE Trust Domain and Bundle, section 4).

Owns the pure functions that do so, and that read the files of operators, which may have roots in
PEM instead. Invariants: the first certificate of an ``x509-svid`` entry becomes a root, must be a
self-signed authority, and is parsed as a whole; entries without a certificate and those of other
uses or key types are ignored, as the specifications demand of consumers (X.509-SVID, section 6.2);
any input raises only our own errors; the output lists the keys in one order, so that equal bundles
are equal bytes.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from sds.errors import BundleError, CertificateError
from sds.pki import MAX_BUNDLE_BYTES, MAX_ROOTS, certificates_from_pem, is_self_signed, read_root
from sds.untrusted_input import reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_DOCUMENT_BYTES: Final = 1024 * 1024
_MOST: Final = 2**63 - 1
"""The highest number, as in Go's int64: a larger sequence would stay ahead of all that follow."""
_USE: Final = "x509-svid"
_KEY_TYPES: Final = ("EC", "RSA", "OKP")
"""The key types (``kty``) that are read; entries with others are ignored (section 4.2.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleDocument:
    """A parsed bundle document.

    Attributes:
        roots: the roots in DER, sorted, without repeats; empty if the trust domain vouches for
            nobody.
        refresh_hint: how often the publisher wants consumers to fetch; None if it does not say.
        sequence: a number that rises with every change (section 4.1.1); None if it is missing.
    """

    roots: tuple[bytes, ...] = field(repr=False)
    refresh_hint: timedelta | None = None
    sequence: int | None = None


def require_no_older(bundle: BundleDocument, *, seen: int | None, where: str) -> None:
    """Check that a document is not older than one that came before (section 4.1.1).

    A cache or a replica that lags behind would otherwise bring back a withdrawn root.

    Args:
        bundle: the document that was fetched or read.
        seen: the highest sequence number from that place so far.
        where: file or URL, for messages.

    Raises:
        BundleError: ``bundle_older``: its sequence number is lower.
    """
    if seen is not None and bundle.sequence is not None and bundle.sequence < seen:
        raise BundleError(
            f"{where}: the bundle has spiffe_sequence {bundle.sequence}, and {seen} came before",
            advice="a cache or a replica is behind; if the owner reset the number, restart the "
            "agent",
            reason="bundle_older",
        )


def parse_file(content: bytes, *, where: str) -> BundleDocument:
    """Parse what an operator's file has: a bundle document, or roots in PEM.

    Args:
        content: the bytes of the file.
        where: the file, for messages.

    Raises:
        BundleError: as for :func:`parse`.
        CertificateError: a certificate in PEM cannot be read, or is not usable as a root.
    """
    is_pem = content.lstrip().startswith(b"-----BEGIN")
    return _parsed(content, where, _from_pem if is_pem else _from_json)


def parse(content: bytes, *, where: str) -> BundleDocument:
    """Parse a bundle document: a JWK Set, the only form that an endpoint may serve (section 4).

    PEM is refused: an answer that is cut off after some of its roots would look like a whole one
    with fewer, and those that are missing would leave the bundle.

    Every root is parsed as a whole and must be self-signed: Envoy's SPIFFE validator, which always
    verifies under foreign bundles, does not accept an intermediate as trust anchor.

    Args:
        content: the bytes of the document.
        where: the file or URL, for messages.

    Raises:
        BundleError: ``bundle_malformed``: the document is too large, is not JSON, is not a JWK Set,
            has a bad entry, or too many or too large roots.
    """
    return _parsed(content, where, _from_json)


def _parsed(
    content: bytes, where: str, parser: Callable[[bytes, str], BundleDocument]
) -> BundleDocument:
    """Run a parser on a document of at most the largest size; only our own errors come out."""
    if len(content) > MAX_DOCUMENT_BYTES:
        raise BundleError(
            f"{where}: the bundle is larger than {MAX_DOCUMENT_BYTES} bytes",
            reason="bundle_malformed",
        )
    with reading(f"{where}: the bundle cannot be read", BundleError, reason="bundle_malformed"):
        return parser(content, where)


def usable_root(der: bytes, what: str) -> bytes:
    """Return the root unchanged if every client of a bundle can use it.

    Raises:
        CertificateError: ``certificate_malformed``, ``certificate_constraint``: the root cannot be
            parsed, or is not a self-signed certificate authority.
    """
    if not is_self_signed(read_root(der, what)):
        raise CertificateError(
            f"the {what} is an intermediate certificate, not self-signed",
            reason="certificate_constraint",
            advice="give the root above it: Envoy's SPIFFE validator verifies whole chains only",
        )
    return der


def _from_pem(content: bytes, where: str) -> BundleDocument:
    roots = certificates_from_pem(content, what=where)
    usable = (usable_root(der, f"root {number} of {where}") for number, der in enumerate(roots, 1))
    return BundleDocument(roots=_bounded(usable, where))


def _from_json(content: bytes, where: str) -> BundleDocument:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"{where}: the bundle is not JSON: {error}",
            advice="give a JWK Set (RFC 7517); a file may have certificates in PEM instead",
            reason="bundle_malformed",
        ) from error
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list):
        raise BundleError(
            f"{where}: the bundle has no list 'keys' (RFC 7517, section 5)",
            reason="bundle_malformed",
        )
    roots = [
        _root(entry, f"{where}: keys[{index}]")
        for index, entry in enumerate(keys)
        if isinstance(entry, dict)
        and entry.get("use") == _USE
        and entry.get("kty", _KEY_TYPES[0]) in _KEY_TYPES
        and entry.get("x5c") not in (None, [])
    ]
    sequence = _whole(document, "spiffe_sequence", where)
    hint = _whole(document, "spiffe_refresh_hint", where)
    return BundleDocument(
        roots=_bounded(roots, where),
        refresh_hint=None if hint is None else timedelta(seconds=min(hint, 30 * 86400)),
        sequence=sequence,
    )


def render(roots: Iterable[bytes], *, refresh_hint: timedelta | None = None) -> bytes:
    """Render these DER roots as a bundle document (JSON).

    Raises:
        BundleError: ``bundle_malformed``: a root's key has no JWK form that consumers know.
    """
    document: dict[str, Any] = {"keys": [_entry(root) for root in sorted(set(roots))]}
    if refresh_hint is not None:
        document["spiffe_refresh_hint"] = int(refresh_hint.total_seconds())
    return json.dumps(document, indent=2).encode() + b"\n"


def _entry(root: bytes) -> dict[str, Any]:
    """Make one JWK (RFC 7517) with ``use`` and ``x5c`` (the specification, section 4.2)."""
    import jwt.algorithms  # noqa: PLC0415  only where our bundle is published

    key = x509.load_der_x509_certificate(root).public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        jwk = jwt.algorithms.ECAlgorithm.to_jwk(key, as_dict=True)
    elif isinstance(key, rsa.RSAPublicKey):
        jwk = jwt.algorithms.RSAAlgorithm.to_jwk(key, as_dict=True)
        jwk.pop("key_ops", None)
    elif isinstance(key, ed25519.Ed25519PublicKey):
        jwk = jwt.algorithms.OKPAlgorithm.to_jwk(key, as_dict=True)
    else:
        raise BundleError(
            f"a root with a {type(key).__name__} cannot be written as a JWK",
            reason="bundle_malformed",
        )
    return {"use": _USE, **jwk, "x5c": [base64.b64encode(root).decode()]}


def _root(entry: dict[str, Any], where: str) -> bytes:
    chain = entry.get("x5c")
    if not isinstance(chain, list) or not isinstance(chain[0], str):
        raise BundleError(
            f"{where}: 'x5c' is not a list of certificates", reason="bundle_malformed"
        )
    try:
        return usable_root(base64.b64decode(chain[0], validate=True), "certificate")
    except (binascii.Error, CertificateError) as error:
        raise BundleError(
            f"{where}: 'x5c' has no usable certificate: {error}",
            reason="bundle_malformed",
        ) from error


def _bounded(roots: Iterable[bytes], where: str) -> tuple[bytes, ...]:
    unique = tuple(sorted(set(roots)))
    if len(unique) > MAX_ROOTS:
        raise BundleError(
            f"{where}: the bundle has more than {MAX_ROOTS} roots", reason="bundle_malformed"
        )
    if sum(map(len, unique)) > MAX_BUNDLE_BYTES:
        raise BundleError(
            f"{where}: the roots of the bundle have more than {MAX_BUNDLE_BYTES} bytes",
            reason="bundle_malformed",
        )
    return unique


def _whole(document: dict[str, Any], name: str, where: str) -> int | None:
    value = document.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST:
        raise BundleError(
            f"{where}: {name!r} is not a whole number from 0 to {_MOST}",
            reason="bundle_malformed",
        )
    return value
