"""Parses patterns of SPIFFE IDs and of DNS names.

Owns their grammar. A pattern is a list of parts (path segments of a SPIFFE ID after its literal
trust domain; labels of a DNS name from the last to the first):

* a literal part matches itself;
* ``text*`` matches one whole part that starts with ``text``; ``*`` matches any one part. A star
  never crosses a ``/`` or a ``.``;
* ``**`` matches one or more parts and is allowed only at the open end: the last segment of a
  SPIFFE ID (``spiffe://example.org/ns/shop/**``), the first label of a DNS name
  (``**.example.org``).

Invariant: the trust domain is always literal, so no pattern matches names of another trust domain.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Final

from sds.errors import IdentityError
from sds.identity import SpiffeId, parse_dns_name, parse_trust_domain
from sds.rules.glob import Glob, has_star

if TYPE_CHECKING:
    from collections.abc import Iterable

_SCHEME: Final = "spiffe://"
_REST: Final = "**"
_SEGMENT: Final = re.compile(r"[a-zA-Z0-9._-]*\*?", re.ASCII)
_LABEL: Final = re.compile(r"[a-z0-9-]*\*?", re.ASCII)
_SEGMENT_CLASS: Final = "[a-zA-Z0-9._-]"
_MAX_PATTERN: Final = 2048

# --- SPIFFE IDs ---------------------------------------------------------------------------------


def spiffe_parts(name: SpiffeId) -> tuple[str, ...]:
    """Split a SPIFFE ID into its parts: trust domain, then path segments."""
    return (name.trust_domain, *name.path.split("/")[1:])


def parse_spiffe_pattern(text: str) -> Glob:
    """Parse a pattern of SPIFFE IDs, such as ``spiffe://example.org/ns/*/sa/web-*``.

    Raises:
        IdentityError: it is not a SPIFFE ID with stars where the grammar above allows them.
    """
    if "*" not in text:
        # Interned, because large policies name the same namespaces and labels many times.
        return Glob(tuple(map(sys.intern, spiffe_parts(SpiffeId.parse(text)))))
    if not text.startswith(_SCHEME) or len(text) > _MAX_PATTERN:
        raise IdentityError(
            f"SPIFFE ID pattern {text[:300]!r} does not start with {_SCHEME!r} or is too long",
            advice="write it as spiffe://<trust domain>/<segments>, a star standing for a segment",
        )
    domain, *segments = text.removeprefix(_SCHEME).split("/")
    rest = bool(segments) and segments[-1] == _REST
    if rest:
        segments.pop()
    for segment in segments:
        if not segment or segment in {".", ".."} or not _SEGMENT.fullmatch(segment):
            raise IdentityError(
                f"SPIFFE ID pattern {text[:300]!r} has the segment {segment[:80]!r}, "
                "which is not valid",
                advice="use a literal segment, 'text*' or '*' for one segment, and '**' for one "
                "or more only as the last",
            )
    return Glob((parse_trust_domain(domain), *segments), rest)


def format_spiffe_pattern(glob: Glob) -> str:
    """Return the pattern as text; :func:`parse_spiffe_pattern` gives the same pattern back."""
    return _SCHEME + "/".join((*glob.parts, _REST) if glob.rest else glob.parts)


def format_spiffe_patterns(globs: Iterable[Glob]) -> str:
    """Return patterns as text, for people."""
    return ", ".join(map(format_spiffe_pattern, globs))


def spiffe_regex(glob: Glob) -> str:
    """Return a regular expression (RE2, for the whole name) that matches the same SPIFFE IDs."""
    parts = [
        re.escape(part[:-1]) + _SEGMENT_CLASS + ("*" if len(part) > 1 else "+")
        if has_star(part)
        else re.escape(part)
        for part in glob.parts
    ]
    rest = f"(/{_SEGMENT_CLASS}+)+" if glob.rest else ""
    return "spiffe://" + "/".join(parts) + rest


# --- DNS names ----------------------------------------------------------------------------------


def dns_parts(name: str) -> tuple[str, ...]:
    """Split a DNS name into its parts: its labels from the last to the first."""
    return tuple(reversed(name.split(".")))


def parse_dns_pattern(text: str) -> Glob:
    """Parse a pattern of DNS names, such as ``*.shop.svc.cluster.local`` or ``**.example.org``.

    Raises:
        IdentityError: it is not a DNS name with stars where the grammar above allows them.
    """
    if "*" not in text:
        return Glob(tuple(map(sys.intern, dns_parts(parse_dns_name(text)))))
    labels = list(dns_parts(text))
    rest = labels[-1] == _REST
    if rest:
        labels.pop()
    bad = [label for label in labels if not label or not _LABEL.fullmatch(label)]
    if bad or len(text) > _MAX_PATTERN or not labels:
        raise IdentityError(
            f"DNS name pattern {text[:300]!r} is not valid",
            advice="use lower-case labels, 'text*' or '*' for one label, and '**' for one or more "
            "only as the first",
        )
    return Glob(tuple(labels), rest)


def format_dns_pattern(glob: Glob) -> str:
    """Return the pattern as text; :func:`parse_dns_pattern` gives the same pattern back."""
    return ".".join(reversed((*glob.parts, _REST) if glob.rest else glob.parts))
