"""Patterns of SPIFFE IDs and of DNS names, and an index that finds those that match.

Owns the one language of patterns that policy uses. A pattern is a list of parts (path segments of
a SPIFFE ID after its literal trust domain; labels of a DNS name from the last to the first):

* a literal part stands for itself;
* ``text*`` stands for one whole part that starts with ``text``; ``*`` for any one part. A star
  never crosses a ``/`` or a ``.``;
* ``**`` stands for one or more parts and is only allowed at the open end: the last segment of a
  SPIFFE ID (``spiffe://example.org/ns/shop/**``), the first label of a DNS name
  (``**.example.org``).

Invariants: the trust domain is always literal, so no pattern reaches into another trust domain;
the language is closed under intersection (:meth:`Glob.intersection`), which is what a validation
context for a service needs; matching never backtracks.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from sds.errors import IdentityError
from sds.identity import SpiffeId, parse_dns_name, parse_trust_domain

_SCHEME: Final = "spiffe://"
_REST: Final = "**"
_SEGMENT: Final = re.compile(r"[a-zA-Z0-9._-]*\*?", re.ASCII)
_LABEL: Final = re.compile(r"[a-z0-9-]*\*?", re.ASCII)
_SEGMENT_CLASS: Final = "[a-zA-Z0-9._-]"
_MAX_PATTERN: Final = 2048

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Glob:
    """A pattern as parts; see the module.

    Attributes:
        parts: literal parts, or ``text*``; the first one of a SPIFFE ID is its trust domain.
        rest: one or more further parts of any kind must follow.
    """

    parts: tuple[str, ...]
    rest: bool = False

    @property
    def is_literal(self) -> bool:
        """Whether exactly one name matches."""
        return not self.rest and not any(part.endswith("*") for part in self.parts)

    def matches(self, name: tuple[str, ...]) -> bool:
        """Whether these literal parts match."""
        if len(name) < len(self.parts) + self.rest:
            return False
        if not self.rest and len(name) != len(self.parts):
            return False
        return all(map(_part_matches, self.parts, name))

    def intersection(self, other: Glob) -> Glob | None:
        """The pattern of exactly the names that match both, or None where there is none."""
        short, long = sorted((self, other), key=lambda glob: len(glob.parts))
        if len(short.parts) < len(long.parts):
            if not short.rest:
                return None
            rest = long.rest
        else:
            rest = short.rest and long.rest
            if short.rest != long.rest:
                # One wants more parts, the other has none left.
                return None
        parts = []
        for left, right in zip(short.parts, long.parts, strict=False):
            both = _part_intersection(left, right)
            if both is None:
                return None
            parts.append(both)
        return Glob((*parts, *long.parts[len(parts) :]), rest)

    def covers(self, other: Glob) -> bool:
        """Whether every name that matches ``other`` matches this too."""
        return self.intersection(other) == other


def _part_matches(pattern: str, part: str) -> bool:
    if pattern.endswith("*"):
        # An empty part exists in paths of requests only ("/orders/"): no star stands for it.
        return bool(part) and part.startswith(pattern[:-1])
    return pattern == part


def _part_intersection(left: str, right: str) -> str | None:
    if not left.endswith("*"):
        return left if _part_matches(right, left) else None
    if not right.endswith("*"):
        return right if _part_matches(left, right) else None
    longer, shorter = sorted((left, right), key=len, reverse=True)
    return longer if longer.startswith(shorter[:-1]) else None


# --- SPIFFE IDs ---------------------------------------------------------------------------------


def spiffe_parts(name: SpiffeId) -> tuple[str, ...]:
    """The parts of a SPIFFE ID: trust domain, then path segments."""
    return (name.trust_domain, *name.path.split("/")[1:])


def parse_spiffe_pattern(text: str) -> Glob:
    """Parse a pattern of SPIFFE IDs, such as ``spiffe://example.org/ns/*/sa/web-*``.

    Raises:
        IdentityError: not a SPIFFE ID with stars at the places that the module names.
    """
    if "*" not in text:
        # Interned: large policies name the same namespaces and labels over and over.
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
    """The pattern as text; :func:`parse_spiffe_pattern` gives the same pattern back."""
    return _SCHEME + "/".join((*glob.parts, _REST) if glob.rest else glob.parts)


def spiffe_regex(glob: Glob) -> str:
    """A regular expression (RE2 syntax, to be matched as a whole) of the same SPIFFE IDs."""
    parts = [
        re.escape(part[:-1]) + _SEGMENT_CLASS + ("*" if len(part) > 1 else "+")
        if part.endswith("*")
        else re.escape(part)
        for part in glob.parts
    ]
    rest = f"(/{_SEGMENT_CLASS}+)+" if glob.rest else ""
    return "spiffe://" + "/".join(parts) + rest


# --- DNS names ----------------------------------------------------------------------------------


def dns_parts(name: str) -> tuple[str, ...]:
    """The parts of a DNS name: its labels from the last to the first."""
    return tuple(reversed(name.split(".")))


def parse_dns_pattern(text: str) -> Glob:
    """Parse a pattern of DNS names, such as ``*.shop.svc.cluster.local`` or ``**.example.org``.

    Raises:
        IdentityError: not a DNS name with stars at the places that the module names.
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
    """The pattern as text; :func:`parse_dns_pattern` gives the same pattern back."""
    return ".".join(reversed((*glob.parts, _REST) if glob.rest else glob.parts))


# --- finding ------------------------------------------------------------------------------------


class _Node(Generic[T]):
    """One position in the tree of patterns with stars."""

    __slots__ = ("ends", "literals", "prefixes", "rests")

    def __init__(self) -> None:
        self.literals: dict[str, _Node[T]] = {}
        self.prefixes: dict[str, _Node[T]] = {}
        self.ends: list[T] = []
        self.rests: list[T] = []


class GlobIndex(Generic[T]):
    """Values by pattern: finding takes time in the length of the name, not in their number.

    Literal patterns lie in one dictionary. Those with stars lie in a tree by part, in which a
    name's part is looked up once as a literal and once for each of its own prefixes.
    """

    def __init__(self) -> None:
        """An empty index."""
        self._literal: dict[tuple[str, ...], list[T]] = {}
        self._root: _Node[T] = _Node()

    def add(self, glob: Glob, value: T) -> None:
        """Let :meth:`find` return ``value`` for every name that ``glob`` matches."""
        if glob.is_literal:
            self._literal.setdefault(glob.parts, []).append(value)
            return
        node = self._root
        for part in glob.parts:
            table, key = (node.prefixes, part[:-1]) if part.endswith("*") else (node.literals, part)
            found = table.get(key)
            if found is None:
                found = table[key] = _Node()
            node = found
        (node.rests if glob.rest else node.ends).append(value)

    def find(self, name: tuple[str, ...]) -> list[T]:
        """The values of all patterns that match, literal ones first."""
        found = list(self._literal.get(name, ()))
        nodes = [self._root]
        for part in name:
            following: list[_Node[T]] = []
            for node in nodes:
                found.extend(node.rests)
                literal = node.literals.get(part)
                if literal is not None:
                    following.append(literal)
                if node.prefixes:
                    following.extend(
                        prefixed
                        for length in range(len(part) + 1)
                        if (prefixed := node.prefixes.get(part[:length])) is not None
                    )
            if not following:
                return found
            nodes = following
        for node in nodes:
            found.extend(node.ends)
        return found
