"""Parses names of workloads: trust domains, SPIFFE IDs, DNS names, and identities of them.

Invariant: a value of these types follows its specification; parsing is strict (``fullmatch`` over
ASCII, no normalisation), so two equal names are equal strings.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NewType, Self

from sds.errors import IdentityError

TrustDomain = NewType("TrustDomain", str)
"""A valid trust domain name without scheme; :func:`parse_trust_domain` makes it."""

# SPIFFE-ID specification, section 2: lower-case letters, digits, dots, dashes, underscores.
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}", re.ASCII)
# Section 2.2: path segments of letters, digits, dots, dashes, underscores; never empty, '.', '..'.
_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[a-zA-Z0-9._-]+)*", re.ASCII)
# RFC 1123, section 2.1 and RFC 5890 labels; wildcards are never issued.
_DNS_NAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
    r"(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*",
    re.ASCII,
)
_SCHEME = "spiffe://"
_MAX_SPIFFE_ID_BYTES = 2048
MAX_DNS_NAMES = 100
"""The most DNS names of one certificate: an authority refuses a request for more."""


class KeyType(enum.StrEnum):
    """The kinds of private key, by the name that configuration and policy use."""

    EC_P256 = "ec-p256"
    EC_P384 = "ec-p384"
    RSA_2048 = "rsa-2048"
    RSA_3072 = "rsa-3072"
    RSA_4096 = "rsa-4096"
    ED25519 = "ed25519"


def parse_trust_domain(text: str) -> TrustDomain:
    """Parse a trust domain name (no scheme).

    Raises:
        IdentityError: the name is empty, too long or has a character outside ``a-z0-9._-``
            (SPIFFE-ID specification, section 2.1).
    """
    if not _TRUST_DOMAIN.fullmatch(text):
        raise IdentityError(
            f"trust domain {text[:300]!r} is not valid",
            advice="use 1 to 255 characters of a-z, 0-9, '.', '-', '_', without a scheme",
        )
    return TrustDomain(text)


def parse_dns_name(text: str) -> str:
    """Parse one DNS name for a certificate: lower case, LDH labels, no wildcard.

    Raises:
        IdentityError: the text is not such a name (RFC 1123, section 2.1).
    """
    if not _DNS_NAME.fullmatch(text):
        raise IdentityError(
            f"DNS name {text[:300]!r} is not valid",
            advice="use lower-case letters, digits and '-' in labels of at most 63 characters",
        )
    return text


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """A SPIFFE ID: ``spiffe://<trust domain><path>``; the path is empty or starts with ``/``."""

    trust_domain: TrustDomain
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a SPIFFE ID.

        Raises:
            IdentityError: the text breaks the SPIFFE-ID specification, sections 2.1 to 2.3
                (scheme, characters, empty or relative segments, length of 2048 bytes).
        """
        if not text.startswith(_SCHEME):
            raise IdentityError(
                f"SPIFFE ID {text[:300]!r} does not start with {_SCHEME!r}",
                advice="write it as spiffe://<trust domain>/<path>",
            )
        if len(text) > _MAX_SPIFFE_ID_BYTES:
            raise IdentityError(f"SPIFFE ID is longer than {_MAX_SPIFFE_ID_BYTES} bytes")
        rest = text.removeprefix(_SCHEME)
        domain, slash, tail = rest.partition("/")
        path = slash + tail
        trust_domain = parse_trust_domain(domain)
        if not _PATH.fullmatch(path):
            raise IdentityError(
                f"SPIFFE ID {text[:300]!r} has an invalid path",
                advice="use segments of a-zA-Z0-9._- between single slashes, none of them '.', "
                "'..' or empty, and no slash at the end",
            )
        return cls(trust_domain, path)

    def __str__(self) -> str:
        """Return the ID as a URI."""
        return f"{_SCHEME}{self.trust_domain}{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The properties that a certificate is requested with: names, lifetime and kind of key.

    Hashable and compared by value, because the store keeps SVIDs by identity. Two pods of one
    service account that different Services select are two identities with one SPIFFE ID.

    Attributes:
        spiffe_id: the only URI SAN of the certificate.
        dns_names: the DNS SANs, sorted, without repeats.
        lifetime: the requested lifetime; an authority may shorten it.
        key_type: the kind of private key.
    """

    spiffe_id: SpiffeId
    dns_names: tuple[str, ...] = ()
    lifetime: timedelta = timedelta(hours=1)
    key_type: KeyType = KeyType.EC_P256
    _hash: int = field(init=False, repr=False, compare=False)
    """Every push looks up an identity three times, and its parts take long to hash."""

    def __post_init__(self) -> None:
        """Check the DNS names and the lifetime; sort the names and remove repeats."""
        names = tuple(sorted({parse_dns_name(name) for name in self.dns_names}))
        object.__setattr__(self, "dns_names", names)
        values = (self.spiffe_id, names, self.lifetime, self.key_type)
        object.__setattr__(self, "_hash", hash(values))
        if self.lifetime <= timedelta(0):
            raise IdentityError(f"the lifetime of {self.spiffe_id} is not positive")

    def __hash__(self) -> int:
        """Return the hash of all values."""
        return self._hash
