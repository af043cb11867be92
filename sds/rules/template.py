"""Fills templates of names: text with fields in braces, as in ``spiffe://{trust_domain}/{name}``.

Owns the grammar. A field is a name in braces; the caller says which names exist. Invariant: a value
that is filled in is one segment of a SPIFFE path, one DNS label or one DNS name; the result
contains only text of the template's author and such values.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from sds.errors import IdentityError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_FIELD: Final = re.compile(r"\{([^{}]*)\}")
_VALUE: Final = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,255}", re.ASCII)


def template_fields(template: str) -> list[str]:
    """Return the names of the fields, in their order."""
    return _FIELD.findall(template)


def check_template(
    template: str, *, known: Iterable[str], is_known: Callable[[str], bool] | None = None
) -> str:
    """Return the template itself if each of its fields is known.

    Args:
        template: the text of a configuration or policy.
        known: the names of fields, for the check and for the advice.
        is_known: tells whether another name is known, for names that cannot be listed.

    Raises:
        ValueError: the template has an unknown field, or braces that are not around a field.
    """
    names = set(known)
    wanted = "a template with " + ", ".join(f"{{{name}}}" for name in sorted(names))
    for name in template_fields(template):
        if name not in names and not (is_known and is_known(name)):
            raise ValueError(f"unknown field {{{name[:200]}}}: {wanted} is expected")
    if {"{", "}"} & set(_FIELD.sub("", template)):
        raise ValueError(f"unbalanced braces in {template[:200]!r}: {wanted} is expected")
    return template


def check_result(template: str, parse: Callable[[str], object]) -> str:
    """Return the template itself if it gives a valid name once its fields are filled.

    Args:
        template: the text of a configuration or policy; its fields are known.
        parse: parses such a name; raises :class:`IdentityError`.

    Raises:
        ValueError: no values make a valid name of it.
    """
    try:
        parse(fill(template, lambda _: "x"))
    except IdentityError as error:
        raise ValueError(f"no caller can get a name of {template[:200]!r}: {error}") from error
    return template


def fill(template: str, value_of: Callable[[str], str]) -> str:
    """Fill the template: replace each field by ``value_of`` its name.

    Raises:
        IdentityError: a value cannot be part of a name. Errors of ``value_of`` pass through.
    """

    def value(match: re.Match[str]) -> str:
        found = value_of(match[1])
        if not _VALUE.fullmatch(found):
            raise IdentityError(f"{{{match[1]}}} is {found[:200]!r}, which no name can contain")
        return found

    return _FIELD.sub(value, template)
