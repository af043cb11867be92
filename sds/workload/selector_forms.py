"""Which values a selector can have, where its form is fixed: numbers of users, digests.

Owns the forms. Invariant: a value that no caller can ever show is told to whoever wrote the rule;
the rule itself stays valid, and matches nobody.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sds.workload.mapping import WorkloadRule

_NUMBER: Final = (re.compile(r"[0-9]{1,10}"), "", "a number")
_HEX: Final = (re.compile(r"[0-9a-f]{64}"), "", "64 lower-case hexadecimal digits")
_DIGEST: Final = (
    re.compile(r"sha256:[0-9a-f]{64}"),
    "sha256:",
    "sha256: and 64 hexadecimal digits",
)
_FORMS: Final = {
    "unix:uid": _NUMBER,
    "unix:gid": _NUMBER,
    "unix:supplementary-gid": _NUMBER,
    "unix:sha256": _HEX,
    "k8s:image-digest": _DIGEST,
    "cri:image-config": _DIGEST,
    "cri:container-digest": _DIGEST,
    "cri:pod-digest": _DIGEST,
}
"""Type of selector -> the form of its values, how each begins, and the form in words."""


def impossible_values(rules: Iterable[WorkloadRule]) -> Iterator[str]:
    """Yield a sentence for each value in rules that no caller can show."""
    for rule in rules:
        for kind, written in rule.match.items():
            if kind not in _FORMS:
                continue
            form, begins, words = _FORMS[kind]
            for value in [written] if isinstance(written, str) else written:
                if not _possible(value, form, begins):
                    yield (
                        f"rule {rule.name}: no caller has {kind} {value[:80]!r}: write {words}, or "
                        "the beginning and a star"
                    )


def _possible(value: str, form: re.Pattern[str], begins: str) -> bool:
    if not value.endswith("*"):
        return form.fullmatch(value) is not None
    start = value[:-1]
    if begins.startswith(start):
        return True
    # A beginning is possible if zeros can complete it.
    lacking = range(65 + len(begins) - len(start))
    return any(form.fullmatch(start + "0" * count) for count in lacking)
