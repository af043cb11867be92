"""Matches text with a star at its end, and patterns that are lists of such parts.

Owns the meaning of a star in rules: ``text*`` matches every text that starts with ``text``, and
``*`` matches any text. A :class:`Glob` is a list of parts that each match one part of a name (a
path segment, a DNS label), with ``rest`` for one or more further parts; a star never crosses from
one part into the next.

Invariants: matching never backtracks; globs are closed under intersection
(:meth:`Glob.intersection`), because a validation context for a service needs that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


def has_star(pattern: str) -> bool:
    """Say whether the pattern stands for more than itself."""
    return pattern.endswith("*")


def text_matches(pattern: str, text: str) -> bool:
    """Say whether ``text`` is the pattern itself or, if that ends in a star, starts like it."""
    return text.startswith(pattern[:-1]) if has_star(pattern) else text == pattern


def check_text_pattern(pattern: str) -> str:
    """Return the pattern itself if it is a value, ``text*`` or ``*``.

    Raises:
        ValueError: it is empty, or has a star that is not at its end.
    """
    if not pattern or "*" in pattern[:-1]:
        raise ValueError(
            f"{pattern[:200]!r}: write a value, 'text*' or '*' (a star only at the end)"
        )
    return pattern


@dataclass(frozen=True, slots=True)
class Glob:
    """A pattern as a list of parts.

    Attributes:
        parts: literal parts, or ``text*``; the first one of a SPIFFE ID is its trust domain.
        rest: whether one or more further parts, of any kind, must follow.
    """

    parts: tuple[str, ...]
    rest: bool = False

    @property
    def is_literal(self) -> bool:
        """Say whether exactly one name matches."""
        return not self.rest and not any(map(has_star, self.parts))

    def matches(self, name: tuple[str, ...]) -> bool:
        """Say whether these literal parts match."""
        if len(name) < len(self.parts) + self.rest:
            return False
        if not self.rest and len(name) != len(self.parts):
            return False
        return all(map(text_matches, self.parts, name))

    def intersection(self, other: Glob) -> Glob | None:
        """Return the pattern of exactly the names that match both, or None if there is none."""
        short, long = sorted((self, other), key=lambda glob: len(glob.parts))
        if len(short.parts) < len(long.parts):
            if not short.rest:
                return None
            rest = long.rest
        else:
            rest = short.rest and long.rest
            if short.rest != long.rest:
                # One needs more parts, the other has none left.
                return None
        parts = []
        for left, right in zip(short.parts, long.parts, strict=False):
            both = _part_intersection(left, right)
            if both is None:
                return None
            parts.append(both)
        return Glob((*parts, *long.parts[len(parts) :]), rest)

    def covers(self, other: Glob) -> bool:
        """Say whether every name that matches ``other`` matches this too."""
        return self.intersection(other) == other


def _part_intersection(left: str, right: str) -> str | None:
    if not has_star(left):
        return left if text_matches(right, left) else None
    if not has_star(right):
        return right if text_matches(left, right) else None
    longer, shorter = sorted((left, right), key=len, reverse=True)
    return longer if longer.startswith(shorter[:-1]) else None


class _Node(Generic[T]):
    """One position in the tree of patterns with stars."""

    __slots__ = ("ends", "literals", "prefixes", "rests")

    def __init__(self) -> None:
        self.literals: dict[str, _Node[T]] = {}
        self.prefixes: dict[str, _Node[T]] = {}
        self.ends: list[T] = []
        self.rests: list[T] = []


class GlobIndex(Generic[T]):
    """Finds values by pattern, in time that depends on the name's length and not on their number.

    Literal patterns are in one dictionary. Patterns with stars are in a tree by part, where each
    part of a name is looked up once as a literal and once for each of its prefixes.
    """

    def __init__(self) -> None:
        self._literal: dict[tuple[str, ...], list[T]] = {}
        self._root: _Node[T] = _Node()

    def add(self, glob: Glob, value: T) -> None:
        """Let :meth:`find` return ``value`` for every name that ``glob`` matches."""
        if glob.is_literal:
            self._literal.setdefault(glob.parts, []).append(value)
            return
        node = self._root
        for part in glob.parts:
            table, key = (node.prefixes, part[:-1]) if has_star(part) else (node.literals, part)
            found = table.get(key)
            if found is None:
                found = table[key] = _Node()
            node = found
        (node.rests if glob.rest else node.ends).append(value)

    def find(self, name: tuple[str, ...]) -> list[T]:
        """Return the values of all patterns that match, literal ones first."""
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
