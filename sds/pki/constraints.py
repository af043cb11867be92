"""Checks name constraints of issuers (RFC 5280, section 4.2.1.10) for URIs and DNS names.

Invariant: a critical constraint that this module cannot apply refuses the chain; no constraint is
silently skipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from cryptography import x509

from sds.errors import CertificateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_HANDLED: Final = (
    x509.UniformResourceIdentifier,
    x509.DNSName,
    # Check 9 refuses every leaf with names of these kinds, so there is nothing to constrain.
    x509.IPAddress,
    x509.RFC822Name,
)

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


def extension(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    """Return the value of an extension, or None if the certificate has none."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def check_name_constraints(path: Sequence[x509.Certificate]) -> None:
    """10. Names below a constrained issuer lie within its permitted trees (6.1.3 (b), (c)).

    Args:
        path: the leaf first, the root last. A root's constraints count too: a root is trusted only
            within its constraints.

    Raises:
        CertificateError: ``certificate_constraint``: a name is excluded or not permitted, or the
            constraint is about a kind of name that we do not handle.
    """
    for index, issuer in enumerate(path):
        constraints = extension(issuer, x509.NameConstraints)
        if constraints is None:
            continue
        name = issuer.subject.rfc4514_string()
        permitted = constraints.permitted_subtrees or []
        excluded = constraints.excluded_subtrees or []
        for tree in (*permitted, *excluded):
            if not isinstance(tree, _HANDLED):
                raise CertificateError(
                    f"the issuer {name!r} has name constraints of a kind that is not supported "
                    f"({type(tree).__name__})",
                    reason="certificate_constraint",
                )
        for kind, host, text in _names(path[:index]):
            within = _uri_within if kind is x509.UniformResourceIdentifier else _dns_within
            allowed = [tree.value for tree in permitted if type(tree) is kind]
            if any(within(host, tree.value) for tree in excluded if type(tree) is kind) or (
                allowed and not any(within(host, tree) for tree in allowed)
            ):
                raise CertificateError(
                    f"the issuer {name!r} is constrained to names that {text!r} is not among",
                    reason="certificate_constraint",
                )


def _names(below: Sequence[x509.Certificate]) -> Iterator[tuple[type[object], str, str]]:
    for certificate in below:
        for name in extension(certificate, x509.SubjectAlternativeName) or ():
            if isinstance(name, x509.UniformResourceIdentifier):
                host = name.value.partition("://")[2].partition("/")[0]
                yield x509.UniformResourceIdentifier, host, name.value
            elif isinstance(name, x509.DNSName):
                yield x509.DNSName, name.value, name.value


def _uri_within(host: str, tree: str) -> bool:
    """Say whether a host is in a tree: a leading dot means hosts below, else that host alone."""
    host, tree = host.lower(), tree.lower()
    return host.endswith(tree) if tree.startswith(".") else host == tree


def _dns_within(name: str, tree: str) -> bool:
    """Return whether the name is the tree's name, with any number of labels added on the left.

    A leading dot, of which RFC 5280 says nothing, means names below alone: peers read it so. Case
    does not count (section 7.2).
    """
    name, tree = name.lower(), tree.lower()
    if tree.startswith("."):
        return name.endswith(tree)
    return not tree or name == tree or name.endswith(f".{tree}")
