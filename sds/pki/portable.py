"""Finds what other parsers refuse although our library accepts it.

Owns the rules by which a certificate is readable for every client of a bundle. Go's ``crypto/x509``
(go-spiffe, SPIRE, Istio) parses a whole certificate at once, and one that it refuses costs its
client the whole answer, its own identity included; BoringSSL (Envoy) refuses a whole validation
context. Invariant: Go 1.26 parses, and Envoy 1.40 loads, every certificate that passes here; the
rules are never looser than RFC 5280.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sds.pki import der
from sds.pki.constraints import extension

if TYPE_CHECKING:
    from collections.abc import Iterator

_NEVER_CRITICAL: Final = {
    x509.SubjectKeyIdentifier.oid: "subject key identifier",
    x509.AuthorityKeyIdentifier.oid: "authority key identifier",
    x509.AuthorityInformationAccess.oid: "authority information access",
}
_POLICY_MAPPINGS: Final = x509.ObjectIdentifier("2.5.29.33")
_MOST_EXPONENT: Final = 2**31 - 1
_NUMERIC: Final = 0x12
_STRINGS: Final = frozenset(
    {der.UTF8_STRING, der.PRINTABLE_STRING, 0x14, 0x16, _NUMERIC, 0x1E}  # T61, IA5, BMP
)
_DOMAIN: Final = re.compile(r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\Z")
_MOST_DOMAIN: Final = 253
_MAILBOX: Final = re.compile(r"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*\Z")
_TREES: Final = (x509.DNSName, x509.UniformResourceIdentifier, x509.RFC822Name)
_IP_V4: Final = re.compile(r"[0-9.]+\Z")
_URI: Final = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*:"
    r"(?://(?P<host>[A-Za-z0-9._-]*)(?::[0-9]{1,5})?(?=[/?#]|\Z)|(?!//))"
    r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?#-]|%[0-9A-Fa-f]{2})*\Z"
)


def unportable(certificate: x509.Certificate) -> str:
    """Return, in words, what another parser refuses in a certificate; empty if nothing.

    Args:
        certificate: an authority's certificate, all of whose extensions our library could parse.

    Raises:
        ValueError: a part cannot be parsed.
    """
    return next(_findings(certificate), "")


def _findings(certificate: x509.Certificate) -> Iterator[str]:
    if certificate.version is not x509.Version.v3:
        yield "has extensions without being of version 3 (RFC 5280, section 4.1.2.1)"
    for one in certificate.extensions:
        if one.critical and one.oid in _NEVER_CRITICAL:
            yield f"marks its {_NEVER_CRITICAL[one.oid]} as critical (RFC 5280, section 4.2)"
    yield from _of_key(certificate)
    for name in (certificate.subject, certificate.issuer):
        yield from _of_name(name)
    yield from _of_uris(certificate)
    yield from _of_constraints(certificate)
    yield from _of_policies(certificate)


def _of_key(certificate: x509.Certificate) -> Iterator[str]:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.public_numbers().e > _MOST_EXPONENT:
        yield "has an RSA key whose exponent has more than 31 bits"
    # Compressed points, RSA without its NULL, RSASSA-PSS keys: RFC 3279, 2.3.1; RFC 5480, 2.2.
    usual = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if usual not in certificate.tbs_certificate_bytes:
        yield "has its key in an unusual encoding"


def _of_name(name: x509.Name) -> Iterator[str]:
    for relative in der.elements(name.public_bytes()):
        for attribute in der.elements(relative, der.SET):
            _, (tag, value) = der.all_elements(der.content_of(attribute, der.SEQUENCE))
            if tag not in _STRINGS:
                yield f"has a name with a value of the type {tag:#04x}"
            if tag == _NUMERIC and not re.fullmatch(rb"[0-9 ]*", value):
                yield "has a name with a NumericString of other characters"


def _of_uris(certificate: x509.Certificate) -> Iterator[str]:
    names = extension(certificate, x509.SubjectAlternativeName)
    for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if names else ():
        found = _URI.match(uri)
        if found is None or (found["host"] and not _is_domain(found["host"])):
            yield f"has the name {uri[:100]!r}, which is not a URI that every client reads"


def _of_constraints(certificate: x509.Certificate) -> Iterator[str]:
    constraints = extension(certificate, x509.NameConstraints)
    if constraints is None:
        return
    for tree in (*(constraints.permitted_subtrees or ()), *(constraints.excluded_subtrees or ())):
        if isinstance(tree, _TREES) and not _is_tree(tree):
            yield f"has a name constraint on {tree.value[:100]!r}, which is not a domain"


def _is_tree(tree: x509.DNSName | x509.UniformResourceIdentifier | x509.RFC822Name) -> bool:
    """Say whether a constraint names a domain (RFC 5280, section 4.2.1.10), or one mailbox."""
    text = tree.value
    if isinstance(tree, x509.RFC822Name) and "@" in text:
        mailbox, _, text = text.rpartition("@")
        if not text or not _MAILBOX.match(mailbox):
            return False
    host = text.removeprefix(".")
    if isinstance(tree, x509.UniformResourceIdentifier) and _IP_V4.match(host):
        return False
    return not host or _is_domain(host)


def _of_policies(certificate: x509.Certificate) -> Iterator[str]:
    policies = extension(certificate, x509.CertificatePolicies)
    found = [one.policy_identifier for one in policies or ()]
    if len(set(found)) < len(found):
        yield "names a certificate policy twice (RFC 5280, section 4.2.1.4)"
    for one in certificate.extensions:
        if one.oid == _POLICY_MAPPINGS and not _are_mappings(one.value.public_bytes()):
            yield "has policy mappings that cannot be read (RFC 5280, section 4.2.1.5)"


def _are_mappings(content: bytes) -> bool:
    """Say whether this is a sequence of pairs of object identifiers."""
    try:
        pairs = [der.elements(pair) for pair in der.elements(content)]
        for pair in pairs:
            for policy in pair:
                der.object_identifier(policy)
    except ValueError:
        return False
    return bool(pairs) and all(len(pair) == 2 for pair in pairs)  # noqa: PLR2004  a pair


def _is_domain(host: str) -> bool:
    return len(host) <= _MOST_DOMAIN and _DOMAIN.match(host) is not None
