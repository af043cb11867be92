"""The smallest things that a mesh allows, and what is left of them under a denial.

Owns :class:`Atom` and :class:`Denial`. Invariant: :func:`remainder` returns only what the atom
allows and the denial does not touch; a part that our rules cannot express is left out, never added.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from sds.policy.requests import RequestPattern
from sds.rules.glob import Glob, has_star

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


EVERYTHING: Final = RequestPattern()
METHODS: Final = ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")
"""The methods of RFC 9110 and RFC 5789, which express "every method except these"."""


ANY_PATH: Final = Glob((), rest=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Atom:
    """One permission: ``source`` may send ``request`` to ``target``.

    Attributes:
        source: a pattern of clients.
        target: a pattern of servers.
        request: the allowed requests; empty allows every request.
    """

    source: Glob
    target: Glob
    request: RequestPattern = EVERYTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One condition of a rule.

    Attributes:
        what: ``source``, ``methods``, ``paths``, ``hosts`` or ``ports``; ``always`` if every
            request meets it, ``never`` if none does.
        globs: patterns of a source, of paths or of hosts.
        texts: methods.
        numbers: ports.
        negated: whether it matches everything except these.
    """

    what: str
    globs: tuple[Glob, ...] = ()
    texts: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    negated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """What is denied: requests to one of the targets that meet every condition."""

    targets: tuple[Glob, ...]
    conditions: tuple[Condition, ...]


def remainder(atom: Atom, denial: Denial) -> list[Atom]:
    """Return what the atom still allows."""
    if not any(target.intersection(atom.target) for target in denial.targets):
        return [atom]
    left: dict[Atom, None] = {}
    for condition in denial.conditions:
        # A request escapes the denial if it does not meet one of the conditions.
        left.update(dict.fromkeys(_unmet(atom, condition)))
    return list(left)


def _unmet(atom: Atom, condition: Condition) -> Iterator[Atom]:
    """Return the part of the atom that does not meet the condition."""
    if condition.what == "never":
        yield atom
    elif condition.what == "source":
        for source in _rest((atom.source,), condition):
            yield replace(atom, source=source)
    elif condition.what != "always":
        for request in _unmet_requests(atom.request, condition):
            yield replace(atom, request=request)


def _unmet_requests(request: RequestPattern, condition: Condition) -> Iterator[RequestPattern]:
    named = condition.negated
    match condition.what:
        case "methods":
            known = request.methods or (condition.texts if named else METHODS)
            methods = tuple(one for one in known if (one in condition.texts) is named)
            found: dict[str, Any] = {"methods": methods}
        case "ports":
            numbers = request.ports or (condition.numbers if named else ())
            found = {"ports": tuple(one for one in numbers if (one in condition.numbers) is named)}
        case "paths":
            whole = (ANY_PATH,) if named else ()
            found = {"paths": tuple(_rest(request.paths or whole, condition))}
        case _:
            hosts = tuple(_rest(request.hosts, condition))
            found = {"hosts": hosts if request.hosts or not named else condition.globs}
    if all(found.values()):
        yield replace(request, **found)


def _rest(globs: Iterable[Glob], condition: Condition) -> Iterator[Glob]:
    """Yield the part of these patterns that does not meet the condition."""
    for glob in globs:
        met = [
            both
            for one in condition.globs
            if (both := glob.intersection(one)) is not None
            and _without_empty(both, glob)
            and _without_empty(both, one)
        ]
        if condition.negated:
            yield from met
        elif not met:
            yield glob


def _without_empty(both: Glob, glob: Glob) -> bool:
    """Say whether no star stands for an empty segment, which an intersection cannot know."""
    return all(part or not has_star(own) for own, part in zip(glob.parts, both.parts, strict=False))
