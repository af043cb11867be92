"""Reads and checks istiod's answers: chain, roots, identity, refusals (pure functions).

Owns the reading of ``cert_chain`` and the meaning of istiod's statuses. Invariants: only what the
authority put at the end of the chain is a root; a refusal is retriable exactly if the same call can
succeed later without a change by a person. The statuses are those that istiod 1.29 was seen to
give. It says "request authenticate failure" for every bad token, so this module looks at the token
to explain the fault.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import grpc
from cryptography import x509

from sds._proto.istio.v1.auth import ca_pb2
from sds.authority.connection_failure import ISTIO, explained
from sds.errors import (
    AuthorityAnswerError,
    AuthorityError,
    AuthorityRefusedError,
    AuthorityUnavailableError,
    CertificateError,
)
from sds.exchange.item import IssuedChain
from sds.pki import certificate_der, certificates_from_pem, load_certificate, read_root
from sds.pki.chain import MAX_CHAIN
from sds.pki.constraints import extension
from sds.pki.path import MAX_CANDIDATES, sorted_path
from sds.pki.pem import MAX_BLOCKS
from sds.untrusted_input import reading

if TYPE_CHECKING:
    from sds.authority.istio_token import TokenProblem
    from sds.identity import Identity

_MAX_ANSWER_CHARACTERS: Final = 1_000_000
_MAX_CERTIFICATES: Final = 1 + MAX_CANDIDATES + MAX_BLOCKS
"""The most certificates: the leaf, those in which a path is sought, and a PEM text's roots."""
_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_NO_ANSWER: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,  # istiod's CA is not ready, or its signing failed
        grpc.StatusCode.UNKNOWN,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class IstioAnswer:
    """One answer, parsed and not yet verified.

    Attributes:
        chain: leaf and intermediates.
        roots: the roots that came with it, in DER.
        spiffe_ids: the URI SANs of the leaf, unchanged.
    """

    chain: IssuedChain
    roots: tuple[bytes, ...] = field(repr=False)
    spiffe_ids: tuple[str, ...]


def elements(raw: bytes) -> tuple[str, ...]:
    """Return ``cert_chain`` of an ``IstioCertificateResponse``.

    Raises:
        AuthorityUnavailableError: it is not such a response.
    """
    with reading("the answer of Istio's authority", AuthorityUnavailableError):
        return tuple(ca_pb2.IstioCertificateResponse.FromString(raw).cert_chain)


def parse(elements: tuple[str, ...]) -> IstioAnswer:
    """Read ``cert_chain``: leaf first, root last; an element may have several PEM certificates.

    1. The first certificate is the leaf.
    2. If there are several elements, the last one has the roots: its self-issued certificates, or
    all of them if none is self-issued (an operator may anchor trust at an intermediate).
    3. If there is one element, the roots are the self-issued certificates after the leaf.
    4. All others are intermediates. They may come in any order, repeatedly or needlessly (RFC 8446,
    section 4.4.2); the path from the leaf to a root is taken out of them.

    Raises:
        AuthorityAnswerError: there is no certificate, no root or none that can be used, bad PEM, or
            too many certificates.
    """
    if not elements or sum(map(len, elements)) > _MAX_ANSWER_CHARACTERS:
        raise AuthorityAnswerError("Istio's authority answered without a chain, or with a huge one")
    count = sum(element.count(_BEGIN) for element in elements)
    if count > _MAX_CERTIFICATES:
        raise AuthorityAnswerError(
            f"Istio's authority answered with {count} certificates; at most {_MAX_CERTIFICATES} "
            f"are read, {MAX_BLOCKS} of them roots",
            advice="take the roots under which nothing is issued any more out of istiod's "
            "root-cert.pem and of the mesh's caCertificates",
        )
    parsed = [_certificates(index, element) for index, element in enumerate(elements)]
    leaf, *rest = parsed[0]
    if len(parsed) == 1:
        roots = [certificate for certificate in rest if _self_issued(certificate)]
    else:
        rest += [certificate for element in parsed[1:] for certificate in element]
        last = parsed[-1]
        roots = [certificate for certificate in last if _self_issued(certificate)] or last
    if not roots:
        raise AuthorityAnswerError(
            "Istio's authority answered with a chain without a root",
            advice="the root must be the last certificate of cert_chain",
        )
    anchors = tuple(sorted({certificate_der(root) for root in roots}))
    _check_roots(anchors)
    between = [certificate for certificate in rest if certificate not in roots]
    # If no path is found, the chain stays as it came, as far as any chain may go, and its
    # verification says what is missing.
    path = sorted_path(leaf, between, roots) or (leaf, *between)[: MAX_CHAIN + 1]
    return IstioAnswer(
        chain=IssuedChain(chain=tuple(certificate_der(one) for one in path)),
        roots=anchors,
        spiffe_ids=_uris(leaf),
    )


def _check_roots(roots: tuple[bytes, ...]) -> None:
    """Check that each root can be used: otherwise it would cost a whole batch its answers.

    Raises:
        AuthorityAnswerError: one cannot.
    """
    for root in roots:
        try:
            read_root(root)
        except CertificateError as error:
            raise AuthorityAnswerError(
                f"Istio's authority answered with a root that cannot be used: {error.message}",
                advice=error.advice or "the root must be the last certificate of cert_chain",
            ) from error


def check_identity(answer: IstioAnswer, identity: Identity, *, impersonating: bool) -> None:
    """Check that the leaf names exactly the requested SPIFFE ID (X.509-SVID, section 2).

    Raises:
        AuthorityAnswerError: it names another one, several or none.
    """
    if answer.spiffe_ids != (str(identity.spiffe_id),):
        got = ", ".join(answer.spiffe_ids) or "nobody"
        raise AuthorityAnswerError(
            f"Istio's authority gave a certificate for {got}; {identity.spiffe_id} was asked for",
            advice="check the trust domain and the account that istiod impersonates"
            if impersonating
            else "istiod certifies the owner of the token: set spiffe_id to that account, or use "
            "impersonate with a node account that istiod trusts",
        )


def refusal(
    code: grpc.StatusCode,
    details: str,
    *,
    where: str,
    token_problem: TokenProblem | None,
    impersonating: bool,
) -> AuthorityError:
    """Return the error that a gRPC status of istiod means.

    Args:
        code: the status.
        details: the status's text, as istiod gave it.
        where: which authority answered.
        token_problem: what is visibly wrong with the token, to explain UNAUTHENTICATED.
        impersonating: whether the call named an ``ImpersonatedIdentity``.
    """
    said = f"{where} said {code.name}: {details[:500]}"
    if code in _NO_ANSWER:
        return AuthorityUnavailableError(said, advice=_connection_advice(details))
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return AuthorityRefusedError(
            said, wire_reason="resource_exhausted", reason="authority_refused_for_now"
        )
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return _unauthenticated(
            details, said=said, token_problem=token_problem, impersonating=impersonating
        )
    advice = ""
    if code is grpc.StatusCode.INVALID_ARGUMENT and "TTL" in details:
        advice = "ask for a shorter lifetime, or raise MAX_WORKLOAD_CERT_TTL of istiod"
    elif code is grpc.StatusCode.UNIMPLEMENTED:
        advice = "this is not istiod's certificate port with TLS (15012)"
    return AuthorityRefusedError(said, wire_reason=code.name.lower(), advice=advice)


def _unauthenticated(
    details: str, *, said: str, token_problem: TokenProblem | None, impersonating: bool
) -> AuthorityError:
    if impersonating and "impersonat" in details:
        # istiod learns of a new pod a moment after we do: the same call can succeed later.
        return AuthorityRefusedError(
            said,
            wire_reason="impersonation",
            advice="istiod's CA_TRUSTED_NODE_ACCOUNTS must list the token's account, and a "
            "pod of the impersonated account must run on this node",
            reason="authority_refused_for_now",
        )
    if token_problem is None:
        return AuthorityRefusedError(
            said,
            wire_reason="unauthenticated",
            advice="the token looks right: check that istiod trusts its issuer and can reach the "
            "issuer's keys",
            reason="authority_refused_for_now",
        )
    return AuthorityRefusedError(
        said,
        wire_reason="unauthenticated",
        reason="authority_refused_for_now" if token_problem.passes else None,
        advice=token_problem.text,
    )


def _connection_advice(details: str) -> str:
    found = explained(details, ISTIO)
    if found is not None:
        return f"{found[0]}: {found[1]}"
    if any(word in details.lower() for word in ("certificate", "handshake", "ssl", "verification")):
        return "istiod's TLS certificate cannot be verified: check authority.root and server_name"
    return "check that istiod is running and that authority.addresses is right"


def _certificates(index: int, element: str) -> list[x509.Certificate]:
    where = f"element {index} of the chain of Istio's authority"
    with reading(f"{where} is not a PEM certificate", AuthorityAnswerError):
        try:
            blocks = certificates_from_pem(element.encode("ascii"))
            return [load_certificate(der, f"certificate in {where}") for der in blocks]
        except CertificateError as error:
            raise AuthorityAnswerError(
                f"{where} is not a PEM certificate: {error.message}"
            ) from error


def _self_issued(certificate: x509.Certificate) -> bool:
    return certificate.subject == certificate.issuer


def _uris(leaf: x509.Certificate) -> tuple[str, ...]:
    with reading("the names in the leaf of Istio's authority cannot be read", AuthorityAnswerError):
        names = extension(leaf, x509.SubjectAlternativeName)
        if names is None:
            return ()
        return tuple(names.get_values_for_type(x509.UniformResourceIdentifier))
