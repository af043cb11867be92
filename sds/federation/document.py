"""The SPIFFE bundle document: a JWK Set (SPIFFE Trust Domain and Bundle, section 4).

Owns reading and writing it (pure functions). Invariants: only ``x509-svid`` entries with exactly
one certificate that is a certificate authority become roots; entries of other uses or key types
are ignored, as the specification demands of consumers; the output has the keys in one order, so
that equal bundles are equal bytes.
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

from sds.errors import BundleError
from sds.pki import certificate_der, certificates_from_pem

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_DOCUMENT_BYTES: Final = 1024 * 1024
MAX_ROOTS: Final = 64
_USE: Final = "x509-svid"


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleDocument:
    """A parsed bundle document.

    Attributes:
        roots: DER, sorted, without repeats; none means that the trust domain vouches for nobody.
        sequence: ``spiffe_sequence``, where it is there.
        refresh_hint: how often the publisher wants consumers to look, where it says.
    """

    roots: tuple[bytes, ...] = field(repr=False)
    sequence: int | None = None
    refresh_hint: timedelta | None = None


def parse(content: bytes, *, where: str) -> BundleDocument:
    """Parse a bundle document, or a PEM file of roots (files of operators come as either).

    Args:
        content: the bytes.
        where: file or URL, for messages.

    Raises:
        BundleError: ``bundle_malformed``: too large, no JSON, no JWK Set, a bad entry, too many
            roots.
    """
    if len(content) > MAX_DOCUMENT_BYTES:
        raise BundleError(
            f"{where}: the bundle is larger than {MAX_DOCUMENT_BYTES} bytes",
            reason="bundle_malformed",
        )
    if content.lstrip().startswith(b"-----BEGIN"):
        return BundleDocument(roots=_bounded(certificates_from_pem(content), where))
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"{where}: the bundle is no JSON: {error}",
            advice="give a JWK Set or PEM certificates",
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
        if isinstance(entry, dict) and entry.get("use") == _USE
    ]
    hint = _whole(document, "spiffe_refresh_hint", where)
    return BundleDocument(
        roots=_bounded(roots, where),
        sequence=_whole(document, "spiffe_sequence", where),
        refresh_hint=None if hint is None else timedelta(seconds=min(hint, 30 * 86400)),
    )


def render(
    roots: Iterable[bytes], *, sequence: int | None = None, refresh_hint: timedelta | None = None
) -> bytes:
    """The bundle document of these DER roots, as JSON.

    Raises:
        BundleError: ``bundle_malformed``: a root's key has no JWK form that consumers know.
    """
    document: dict[str, Any] = {"keys": [_entry(root) for root in sorted(set(roots))]}
    if sequence is not None:
        document["spiffe_sequence"] = sequence
    if refresh_hint is not None:
        document["spiffe_refresh_hint"] = int(refresh_hint.total_seconds())
    return json.dumps(document, indent=2).encode() + b"\n"


def _entry(root: bytes) -> dict[str, Any]:
    """One JWK (RFC 7517) with ``use`` and ``x5c`` as section 4.2 of the specification says."""
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
            f"no JWK stands for a root with a {type(key).__name__}", reason="bundle_malformed"
        )
    return {"use": _USE, **jwk, "x5c": [base64.b64encode(root).decode()]}


def _root(entry: dict[str, Any], where: str) -> bytes:
    chain = entry.get("x5c")
    if not isinstance(chain, list) or len(chain) != 1 or not isinstance(chain[0], str):
        raise BundleError(
            f"{where}: 'x5c' does not hold exactly one certificate", reason="bundle_malformed"
        )
    try:
        certificate = x509.load_der_x509_certificate(base64.b64decode(chain[0], validate=True))
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (ValueError, binascii.Error) as error:
        raise BundleError(
            f"{where}: 'x5c' holds no certificate: {error}", reason="bundle_malformed"
        ) from error
    except x509.ExtensionNotFound:
        constraints = None
    if constraints is None or not constraints.ca:
        raise BundleError(
            f"{where}: the certificate is no certificate authority", reason="bundle_malformed"
        )
    return certificate_der(certificate)


def _bounded(roots: Iterable[bytes], where: str) -> tuple[bytes, ...]:
    unique = tuple(sorted(set(roots)))
    if len(unique) > MAX_ROOTS:
        raise BundleError(
            f"{where}: the bundle has more than {MAX_ROOTS} roots", reason="bundle_malformed"
        )
    return unique


def _whole(document: dict[str, Any], name: str, where: str) -> int | None:
    value = document.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BundleError(
            f"{where}: {name!r} is no whole number of 0 or more", reason="bundle_malformed"
        )
    return value
