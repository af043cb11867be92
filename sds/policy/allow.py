"""Tables of the ``allow`` rules: who may talk to whom, and which requests they may send.

Owns :class:`AllowTable`. Invariant: the time of a lookup depends on the length of the names and on
the number of patterns that match them, not on the number of rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from sds.rules.glob import Glob, GlobIndex

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from sds.policy.requests import RequestPattern
    from sds.policy.ruleset import AllowRule

_Member = TypeVar("_Member")

_FEW: Final = 8
_MANY: Final = 512
"""If a list has more wildcards than this, it is not shortened by comparing them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The requests that a rule allows.

    Attributes:
        requests: patterns, of which one must match; empty allows every request.
        enforced: whether Envoy denies other requests, or only counts them.
    """

    requests: tuple[RequestPattern, ...] = ()
    enforced: bool = True


ANYTHING: Final = Terms()


class AllowTable:
    """Who may talk to whom, found from either side, with the allowed requests.

    Each distinct pattern of a side has a number, and a rule is a pair of numbers. A decision looks
    both names up and checks for each pair of matching patterns whether a rule joins them.
    """

    def __init__(self, rules: Sequence[AllowRule], *, enforce: bool) -> None:
        self._globs: list[Glob] = []
        numbers: dict[Glob, int] = {}
        made_targets: dict[int, set[int]] = {}
        made_sources: dict[int, set[int]] = {}
        limited: dict[int, dict[Terms, set[int]]] = {}
        self._unlimited: set[tuple[int, int]] | None = None
        if any(rule.requests for rule in rules):
            self._unlimited = set()
        for rule in rules:
            sources = [self._number(glob, numbers) for glob in rule.from_]
            targets = [self._number(glob, numbers) for glob in rule.to]
            for source in sources:
                made_targets.setdefault(source, set()).update(targets)
            for target in targets:
                made_sources.setdefault(target, set()).update(sources)
            if rule.requests:
                terms = Terms(
                    requests=rule.request_patterns(), enforced=enforce and rule.requests_enforce
                )
                for target in targets:
                    limited.setdefault(target, {}).setdefault(terms, set()).update(sources)
            elif self._unlimited is not None:
                self._unlimited.update((one, two) for one in sources for two in targets)
        self._limited = {
            target: tuple((terms, tuple(numbers)) for terms, numbers in by_terms.items())
            for target, by_terms in limited.items()
        }
        self._targets = {one: members(tuple(many)) for one, many in made_targets.items()}
        self._sources = {one: members(tuple(many)) for one, many in made_sources.items()}
        self._from: GlobIndex[int] = GlobIndex()
        self._to: GlobIndex[int] = GlobIndex()
        for number in self._targets:
            self._from.add(self._globs[number], number)
        for number in self._sources:
            self._to.add(self._globs[number], number)

    def _number(self, glob: Glob, numbers: dict[Glob, int]) -> int:
        number = numbers.setdefault(glob, len(self._globs))
        if number == len(self._globs):
            self._globs.append(glob)
        return number

    def allows(self, source: tuple[str, ...], target: tuple[str, ...]) -> bool:
        targets = self._to.find(target)
        return bool(targets) and any(
            one in allowed
            for number in self._from.find(source)
            for allowed in (self._targets[number],)
            for one in targets
        )

    def sources_of(self, target: tuple[str, ...]) -> set[Glob]:
        return {
            self._globs[source]
            for number in self._to.find(target)
            for source in self._sources[number]
        }

    def terms_of(self, target: tuple[str, ...]) -> dict[Terms, set[Glob]]:
        """Return who may ask ``target`` for what."""
        found: dict[Terms, set[Glob]] = {}
        for number in self._to.find(target):
            for source in self._sources[number]:
                if self._unlimited is None or (source, number) in self._unlimited:
                    found.setdefault(ANYTHING, set()).add(self._globs[source])
            for terms, sources in self._limited.get(number, ()):
                found.setdefault(terms, set()).update(self._globs[one] for one in sources)
        return found

    def targets_of(self, source: tuple[str, ...]) -> set[Glob]:
        return {
            self._globs[target]
            for number in self._from.find(source)
            for target in self._targets[number]
        }


def members(values: tuple[_Member, ...]) -> Collection[_Member]:
    """Return a tuple for few values: it has a fifth of a set's size and is as fast."""
    return values if len(values) <= _FEW else frozenset(values)


def shortest(globs: Iterable[Glob]) -> tuple[Glob, ...]:
    """Return the patterns without those that others cover, sorted: small and stable on the wire."""
    unique = sorted(set(globs), key=lambda glob: (glob.parts, glob.rest))
    wild = [glob for glob in unique if not glob.is_literal]
    if not wild:
        return tuple(unique)
    index: GlobIndex[Glob] = GlobIndex()
    for glob in wild:
        index.add(glob, glob)
    if len(wild) <= _MANY:
        wild = [
            glob for glob in wild if not any(other != glob and other.covers(glob) for other in wild)
        ]
    kept = set(wild)
    return tuple(
        glob
        for glob in unique
        if (glob in kept if not glob.is_literal else not index.find(glob.parts))
    )
