"""Describes what changes between two epochs of a policy.

Owns the lines of ``sds policy diff``, which are also logged when a new policy comes into force.
Invariants: if there is no line, nothing that is enforced differs; lines are in the order of the
document's fields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sds.rules.pattern import format_spiffe_pattern, format_spiffe_patterns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel

    from sds.policy.document import PolicyDocument

_EVERYTHING: Final = ""
_MOST: Final = 200
"""The most lines of one field; beyond that, a line says how many more there are."""


def differences(old: PolicyDocument, new: PolicyDocument) -> list[str]:
    """Return what changes from ``old`` to ``new``, one line each."""
    lines: list[str] = []
    for name in ("trust_domain", "epoch", "not_before", "not_after", "matching"):
        lines += _changed(name, _text(getattr(old, name)), _text(getattr(new, name)))
    lines += _signers(old, new)
    lines += _limited(
        "reference_values",
        _fields("reference_values", old.reference_values, new.reference_values),
    )
    for name in ("nodes", "workloads"):
        one = {item.name: item for item in getattr(old, name)}
        two = {item.name: item for item in getattr(new, name)}
        lines += _named(name, one, two)
        if [key for key in one if key in two] != [key for key in two if key in one]:
            lines.append(f"{name}: the order of the entries changes")
    lines += _limited("limits", _fields("limits", old.limits, new.limits))
    lines += _named(
        "services",
        {name: format_spiffe_patterns(globs) for name, globs in old.services.items()},
        {name: format_spiffe_patterns(globs) for name, globs in new.services.items()},
    )
    lines += _named(
        "federation",
        {str(domain.trust_domain): domain for domain in old.federation},
        {str(domain.trust_domain): domain for domain in new.federation},
    )
    lines += _limited("allow", _allow(old, new))
    lines += _named(
        "pods",
        {f"{pod.name} {pod.digest}": pod for pod in old.pods},
        {f"{pod.name} {pod.digest}": pod for pod in new.pods},
    )
    return lines


def _signers(old: PolicyDocument, new: PolicyDocument) -> list[str]:
    def who(document: PolicyDocument) -> str:
        signers = document.signers
        if signers is None:
            return "as before"
        keys = signers.trusted().keys
        return f"{signers.threshold} of " + ", ".join(
            f"{key.name} ({key.key_id[:12]})" for key in keys
        )

    return _changed("signers of later epochs", who(old), who(new))


def _allow(old: PolicyDocument, new: PolicyDocument) -> list[str]:
    before, after = _pairs(old), _pairs(new)
    gone = [pair for pair in before if pair not in after]
    come = [pair for pair in after if pair not in before]
    changed = [pair for pair in before if pair in after and before[pair] != after[pair]]
    return [
        *(f"allow: {source} may no longer talk to {target}" for source, target in gone),
        *(
            f"allow: {source} may now talk to {target}{_asking(after[source, target])}"
            for source, target in come
        ),
        *(
            f"allow: what {source} may ask of {target}: "
            f"{_asked(before[source, target])} becomes {_asked(after[source, target])}"
            for source, target in changed
        ),
    ]


def _pairs(document: PolicyDocument) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return for each pair of patterns the allowed requests in words; nothing means all."""
    found: dict[tuple[str, str], set[str]] = {}
    for rule in document.allow:
        counted = rule.requests_enforce and document.requests_enforce
        words = {
            str(pattern) + ("" if counted else " (others are counted, not denied)")
            for pattern in rule.request_patterns()
        }
        for source in rule.from_:
            for target in rule.to:
                pair = (format_spiffe_pattern(source), format_spiffe_pattern(target))
                found.setdefault(pair, set()).update(words or {_EVERYTHING})
    return {
        pair: () if _EVERYTHING in words else tuple(sorted(words)) for pair, words in found.items()
    }


def _asked(words: tuple[str, ...]) -> str:
    return " or ".join(words) or "everything"


def _asking(words: tuple[str, ...]) -> str:
    return f" and ask for {_asked(words)}" if words else ""


def _named(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    lines = [f"{what}: {name} is removed" for name in old if name not in new]
    lines += [f"{what}: {name} is added ({_text(new[name])})" for name in new if name not in old]
    for name in old:
        if name in new and old[name] != new[name]:
            if isinstance(old[name], str):
                lines += _changed(f"{what}: {name}", old[name], new[name])
            else:
                lines += _fields(f"{what}: {name}", old[name], new[name])
    return _limited(what, lines)


def _fields(what: str, old: BaseModel, new: BaseModel) -> list[str]:
    before, after = (model.model_dump(mode="json", by_alias=True) for model in (old, new))
    return [
        line
        for name in before
        if before[name] != after[name]
        for line in _field(f"{what}.{name}", before[name], after[name])
    ]


def _field(what: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for name in {**old, **new}
            if old.get(name) != new.get(name)
            for line in _field(f"{what}.{name}", old.get(name), new.get(name))
        ]
    if isinstance(old, list) and isinstance(new, list):
        one, two = [_text(item) for item in old], [_text(item) for item in new]
        before, after = set(one), set(two)
        gone = [f"{what}: without {item}" for item in one if item not in after]
        come = [f"{what}: with {item}" for item in two if item not in before]
        return [*gone, *come] or [f"{what}: in another order"]
    one_text, other_text = _text(old), _text(new)
    if one_text == other_text:  # such as the text [web] and a list of web
        one_text, other_text = repr(old), repr(new)
    return _changed(what, one_text, other_text)


def _changed(what: str, old: str, new: str) -> list[str]:
    return [] if old == new else [f"{what}: {old} becomes {new}"]


def _text(value: Any) -> str:
    if hasattr(value, "model_dump"):
        return _text(value.model_dump(mode="json", by_alias=True, exclude_defaults=True))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(_text(item) for item in value) + "]"
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    return "nothing" if value is None else str(value)


def _limited(what: str, lines: list[str]) -> list[str]:
    if len(lines) <= _MOST:
        return lines
    return [*lines[:_MOST], f"{what}: and {len(lines) - _MOST} more changes"]
