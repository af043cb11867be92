"""Finds the chain from a VCEK or VLEK to a pinned root (AMD 57230, section 2; RFC 5280, 6.1).

Owns the pins and decides which chain is valid. Invariant: trust comes only from the SHA-256 of
a root's DER; certificates that arrive with evidence, or are configured as helpers, add none.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Final

from sds.attestation.pem import der_certificates
from sds.attestation.snp.certificate import Certificate
from sds.attestation.snp.report import Product
from sds.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sds.attestation.snp.leaf import Leaf

MAX_HELPERS: Final = 16
"""The most certificates that are looked at beside the leaf, to bound the work."""

AMD_ROOTS: Final = {
    "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd": Product.MILAN,
    "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1": Product.GENOA,
    "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a": Product.TURIN,
}
"""The SHA-256 of each ARK's DER, as the KDS serves it (/vcek/v1/{product}/cert_chain)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roots:
    """The roots that may end a chain.

    Attributes:
        pins: maps the SHA-256 of a root's DER to its product.
        configured: the pins that are not AMD's; a chain to one of them is called simulated.
        certificates: the available roots and helpers.
    """

    pins: Mapping[str, Product]
    configured: frozenset[str] = frozenset()
    certificates: tuple[Certificate, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain with valid signatures that ends in a pinned root; times are not checked yet.

    Attributes:
        leaf: VCEK or VLEK.
        issuer: ASK or ASVK.
        root: ARK.
        simulated: whether the root is configured and not AMD's.
    """

    leaf: Leaf
    issuer: Certificate
    root: Certificate
    simulated: bool

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """Return the certificates, leaf first."""
        return self.leaf.certificate, self.issuer, self.root


def pinned_roots(*, trusted_roots: Iterable[bytes] = (), helpers: Iterable[bytes] = ()) -> Roots:
    """Return the pins of AMD's roots and of configured ones.

    Args:
        trusted_roots: further trusted roots in DER; their common names have the product.
        helpers: certificates in DER that may complete a chain; they add no trust.

    Raises:
        EvidenceError: ``certificate_malformed``: a configured certificate cannot be read, or a root
            does not name a product (``ARK-Milan``, ``ARK-Genoa``, ``ARK-Turin``).
    """
    pins = dict(AMD_ROOTS)
    configured = set()
    certificates = [Certificate.parse(der) for der in helpers]
    for der in trusted_roots:
        root = Certificate.parse(der)
        root.require_issuer()
        names = {f"ARK-{product.certificate_name}": product for product in Product}
        if root.common_name not in names:
            raise EvidenceError(
                f"the trusted root is named {root.common_name!r}",
                advice=f"one of {list(names)}",
                reason="certificate_malformed",
            )
        if root.digest not in AMD_ROOTS:
            configured.add(root.digest)
        pins[root.digest] = names[root.common_name]
        certificates.append(root)
    return Roots(pins=pins, configured=frozenset(configured), certificates=tuple(certificates))


@functools.cache
def amd_certificates() -> tuple[Certificate, ...]:
    """Return AMD's roots and the issuers of VCEKs and VLEKs, which ship with this package.

    They complete chains and add no trust, which comes from the pins alone.
    """
    text = resources.files(__package__).joinpath("amd.pem").read_bytes()
    return tuple(map(Certificate.parse, der_certificates(text, what="amd.pem")))


def link(leaf: Leaf, offered: tuple[bytes, ...], roots: Roots) -> Chain:
    """Find and check the chain of a leaf, without looking at times.

    Args:
        leaf: the leaf, read.
        offered: the certificates that came with the evidence, in DER, in any order.
        roots: the trusted roots and the available certificates.

    Raises:
        EvidenceError: ``chain_untrusted``: 1. there is no issuer with fitting name and signature;
            2. the issuer's name is not that of the leaf's product and kind; 3. no pinned root of
            that name signed the issuer; 4. the root's product is not the leaf's.
        EvidenceError: ``certificate_malformed``: 5. issuer or root may not sign certificates. If
            the issuer's key has several certificates, the error is that of the longest valid one.
    """
    known = list({one.der: one for one in (*_readable(offered), *roots.certificates)}.values())
    # 1. The issuer: by name, then by signature.
    named = [other for other in known if other.subject == leaf.certificate.issuer]
    signers = [other for other in named if leaf.certificate.signed_by(other)]
    if not signers:
        raise EvidenceError(
            f"no known certificate signed the {leaf.certificate.common_name}: "
            + ("its signature is invalid" if named else f"{leaf.issuer_common_name} is missing"),
            advice=f"give the certificate {leaf.issuer_common_name} and its ARK",
            reason="chain_untrusted",
        )
    # Several certificates may be over the key that signed: one that was damaged or is over takes
    # nothing from another.
    failure: EvidenceError | None = None
    for issuer in sorted(signers, key=lambda one: one.not_after, reverse=True):
        try:
            return _under(issuer, leaf, known, roots)
        except EvidenceError as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _under(issuer: Certificate, leaf: Leaf, known: Iterable[Certificate], roots: Roots) -> Chain:
    """Do steps 2 to 5 with one issuer."""
    # 2. ASK for a VCEK, ASVK for a VLEK, each of the product that the leaf names.
    if issuer.common_name != leaf.issuer_common_name:
        raise EvidenceError(
            f"a {leaf.certificate.common_name} for {leaf.product.certificate_name} is signed by "
            f"{issuer.common_name}, not by {leaf.issuer_common_name}",
            reason="chain_untrusted",
        )
    # 3. The root: by name and pin, then by signature.
    named = [other for other in known if other.subject == issuer.issuer]
    trusted = [other for other in named if other.digest in roots.pins]
    signers = [other for other in trusted if issuer.signed_by(other)]
    root = max(signers, key=lambda one: one.not_after, default=None)
    if root is None:
        found = named[0].digest if named else "no ARK"
        raise EvidenceError(
            f"{issuer.common_name} does not lead to a pinned root (found {found})"
            if not trusted
            else f"{issuer.common_name} was not signed by the pinned {trusted[0].common_name}",
            advice="give the ARK; configure it as a trusted root only if it is meant to be one",
            reason="chain_untrusted",
        )
    # 4. The product of the root.
    if roots.pins[root.digest] is not leaf.product:
        raise EvidenceError(
            f"the root is {root.common_name}, the leaf is for {leaf.product.certificate_name}",
            reason="chain_untrusted",
        )
    # 5. The extensions that issuers must have.
    issuer.require_issuer()
    root.require_issuer()
    return Chain(leaf=leaf, issuer=issuer, root=root, simulated=root.digest in roots.configured)


def _readable(offered: Iterable[bytes]) -> list[Certificate]:
    """Return those that can be read; a helper certificate that cannot is left out."""
    found = []
    for der in tuple(offered)[:MAX_HELPERS]:
        try:
            found.append(Certificate.parse(der))
        except EvidenceError:
            continue
    return found
