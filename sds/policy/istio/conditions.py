"""Reads the conditions of one of Istio's rules, and finds those that cannot be expressed.

Owns the reading of ``from``, ``to`` and ``when``. Invariant: a field that cannot be expressed is a
finding with its place; an ALLOW policy then loses the rule, a DENY policy only the field.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from sds.policy.istio import rules
from sds.policy.istio.atoms import Condition
from sds.policy.istio.manifests import Spot
from sds.policy.istio.rules import CannotSayError, Names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sds.policy.istio.manifests import Finding, Manifest
    from sds.rules.glob import Glob

_SOURCE: Final = {"principals", "namespaces", "serviceAccounts"}
_OPERATION: Final = {"methods", "paths", "hosts", "ports"}
_KEYS: Final = {
    "source.principal": "principals",
    "source.namespace": "namespaces",
    "source.serviceAccount": "serviceAccounts",
    "destination.port": "ports",
}


class Conditions:
    """Reads rules; a field that cannot be expressed goes into ``findings``."""

    def __init__(self, names: Names, findings: list[Finding]) -> None:
        self._names = names
        self._findings = findings

    def _find(self, spot: Spot, text: str, *, narrows: bool = True) -> None:
        self._findings.append(spot.finding(text, narrows=narrows))

    def of(
        self, manifest: Manifest, rule: Spot, *, denies: bool
    ) -> Iterator[tuple[Condition, ...]]:
        """Return each combination of ``from`` and ``to``, with every ``when``."""
        nothing = Spot({}, rule.file, rule.node)
        sources = [one.get("source") for one in rule.get("from").items()] or [nothing]
        operations = [one.get("operation") for one in rule.get("to").items()] or [nothing]
        for source, operation in itertools.product(sources, operations):
            conditions: list[Condition] = []
            said = True
            for part, known in ((source, _SOURCE), (operation, _OPERATION)):
                for name, spot in part.fields():
                    found = self._condition(manifest, name, spot, known, denies=denies)
                    said = said and found is not None
                    conditions += [found] if found is not None else []
            for when in rule.get("when").items():
                for found in self._when(manifest, when, denies=denies):
                    said = said and found is not None
                    conditions += [found] if found is not None else []
            if denies or said:
                yield tuple(conditions)

    def _when(self, manifest: Manifest, when: Spot, *, denies: bool) -> Iterator[Condition | None]:
        key = str(when.get("key").value)
        for name in ("values", "notValues"):
            spot = when.get(name)
            if spot.value is None:
                continue
            label = mapped = _KEYS.get(key, key)
            if key in _KEYS and name == "notValues":
                label = f"not{mapped[:1].upper()}{mapped[1:]}"
            yield self._condition(manifest, label, spot, {*_KEYS.values()}, denies=denies)

    def _condition(
        self, manifest: Manifest, name: str, spot: Spot, known: set[str], *, denies: bool
    ) -> Condition | None:
        """Convert one field; None if it cannot be expressed (found and reported)."""
        plain = f"{name[3:4].lower()}{name[4:]}" if name.startswith("not") else name
        effect = "more is denied" if denies else "the rule is left out"
        if plain not in known:
            why = f"{name} cannot be expressed, because {_why(plain)}"
        elif plain != name and not denies and plain != "methods":
            why = f"{name} cannot be expressed, because rules only allow"
        else:
            try:
                return self._said(manifest, plain, spot, negated=plain != name, denies=denies)
            except CannotSayError as error:
                why = str(error)
        self._find(spot, f"{manifest.title}: {why}; {effect}")
        return None

    def _said(
        self, manifest: Manifest, plain: str, spot: Spot, *, negated: bool, denies: bool
    ) -> Condition:
        texts = [str(one.value) for one in spot.items()]
        if not texts:
            raise CannotSayError(f"{plain} is empty")
        if plain == "ports":
            numbers = tuple(rules.port(text) for text in texts)
            return Condition(what="ports", numbers=numbers, negated=negated)
        if plain == "methods":
            return self._methods(manifest, spot, texts, negated=negated)
        globs: list[Glob] = []
        for text in texts:
            found = self._globs(manifest, plain, text, denies=denies, negated=negated)
            if found is None:
                return Condition(what="never" if negated else "always")
            globs += found
        if plain == "hosts" and (negated or not denies):
            self._find(
                spot,
                f"{manifest.title}: a host matches here with any port and in any case",
                narrows=False,
            )
        what = "source" if plain in _SOURCE else plain
        return Condition(what=what, globs=tuple(globs), negated=negated)

    def _methods(
        self, manifest: Manifest, spot: Spot, texts: list[str], *, negated: bool
    ) -> Condition:
        methods = tuple(rules.method(text) for text in texts)
        if None in methods:
            return Condition(what="never" if negated else "always")
        if negated:
            self._find(
                spot,
                f"{manifest.title}: 'all but these' is said with the methods of RFC 9110 and PATCH",
            )
        named = tuple(one for one in methods if one is not None)
        return Condition(what="methods", texts=named, negated=negated)

    def _globs(
        self, manifest: Manifest, plain: str, text: str, *, denies: bool, negated: bool
    ) -> list[Glob] | None:
        match plain:
            case "principals":
                return self._names.principal(text, denies=denies)
            case "namespaces":
                return self._names.namespace(text, denies=denies)
            case "serviceAccounts":
                return self._names.account(text, manifest.namespace, denies=denies)
            case "paths":
                return rules.paths(text)
            case _:
                # A denial of all others allows these, so it must not name more than Istio's.
                host = rules.host(text, denies=denies and not negated)
                return None if host is None else [host]


def _why(name: str) -> str:
    reasons = {
        "requestPrincipals": "rules know certificates, not JWTs; check tokens in the application",
        "ipBlocks": "rules know certificates, not addresses",
        "remoteIpBlocks": "rules know certificates, not addresses",
        "source.ip": "rules know certificates, not addresses",
        "remote.ip": "rules know certificates, not addresses",
        "destination.ip": "rules know certificates, not addresses",
        "connection.sni": "rules do not know the server name of TLS",
    }
    if name.startswith(("request.auth", "requestPrincipals")):
        return reasons["requestPrincipals"]
    if name.startswith("request.headers"):
        return "rules do not know headers, which a client writes itself"
    return reasons.get(name, "rules have no such field")
