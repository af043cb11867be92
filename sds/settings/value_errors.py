"""Says in words for people what is wrong with a value of a configuration.

Owns the translation of pydantic's errors, whose own texts speak of tags, instances and patterns
that no file contains. Invariant: every refusal says what is expected and what was found.
"""

from __future__ import annotations

import re
from typing import Any, Final

from sds.settings.https_url import without_password

_LONGEST_SHOWN: Final = 80
_HEX: Final = re.compile(r"\^\[0-9a-f\]\{(\d+)\}\$")
_PATTERNS: Final[dict[str, str]] = {
    "^([0-9a-f]{96}|[0-9a-f]{64})$": "64 or 96 lower-case hexadecimal digits",
    "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$": "a name of at most 63 letters, digits, '.', '_' or '-' "
    "that begins with a letter or a digit",
    "^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$": "a name of at most 253 letters, digits, '.', '_' or '-' "
    "that begins with a letter or a digit",
    r"^https://[^\s]+$": "an https:// URL",
    "^/": "an absolute path",
    "^/.": "an absolute path below /",
    "^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$": "at most 63 lower-case letters, digits, '-' and '.', "
    "with a letter or a digit at both ends",
    "^[a-z0-9][a-z0-9-]*/[a-z0-9][a-z0-9.-]*$": "namespace/name of a service account",
    "^(?:[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128})$": "64, 96 or 128 lower-case hexadecimal digits",
    "^[0-9a-fA-F]{12}$": "12 hexadecimal digits",
    "^[!-~]+$": "visible ASCII characters without a space",
    "^sha256:[0-9a-f]{64}$": "sha256: and 64 lower-case hexadecimal digits",
    "^INTEL-SA-[0-9]{5}$": "an advisory such as INTEL-SA-00615",
}
"""The meaning of each pattern in a model. A test checks that every pattern is here."""
_EXPECTED: Final[dict[str, str]] = {
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "frozen_set_type"), "a list"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(
        ("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number"
    ),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), "a number"),
    **dict.fromkeys(
        ("model_type", "model_attributes_type", "dict_type", "dataclass_type"),
        "a mapping of fields",
    ),
    "string_type": "text",
    "path_type": "a path",
}

_FORMS: Final[dict[str, str]] = {
    **dict.fromkeys(("enum", "literal_error"), "{expected}"),
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "too_short": "{min_length} or more entries",
    "too_long": "at most {max_length} entries",
    "string_too_short": "{min_length} or more characters",
    "string_too_long": "at most {max_length} characters",
}


def expected_words(pattern: str) -> str | None:
    """Return what a pattern stands for; None if that is not written down."""
    if (found := _HEX.fullmatch(pattern)) is not None:
        return f"{found[1]} lower-case hexadecimal digits"
    return _PATTERNS.get(pattern)


def own_words(problem: dict[str, Any]) -> str:
    """Return the text of one of pydantic's errors; if a rule of ours raised it, its text alone."""
    return str(problem["msg"]).removeprefix("Value error, ")


def problem_words(problem: dict[str, Any]) -> str:
    """Translate one of pydantic's errors: say what was expected and what was found.

    Args:
        problem: an entry of ``ValidationError.errors()``, with its context.
    """
    kind, value = problem["type"], problem["input"]
    context = problem.get("ctx", {})
    if kind == "value_error":
        said = own_words(problem)
        # A rule about a whole block or list names the fault in it; a rule about a value does not.
        whole = isinstance(value, dict | list) and not said.startswith("expected ")
        return said if whole else f"{said}, found {shown(value)}"
    if kind == "union_tag_invalid":
        expected = str(context.get("expected_tags", "")).replace("'", "")
        return f"unknown kind {str(context.get('tag'))[:_LONGEST_SHOWN]!r}: expected {expected}"
    if kind == "union_tag_not_found":
        return f"expected a mapping with the field kind, found {shown(value)}"
    return f"expected {_expected(kind, context, str(problem['msg']))}, found {shown(value)}" + (
        ": put it in quotes" if kind == "string_type" and isinstance(value, int | float) else ""
    )


def _expected(kind: str, context: dict[str, Any], message: str) -> str:
    if kind == "string_pattern_mismatch":
        pattern = str(context["pattern"])
        return expected_words(pattern) or f"text of the form {pattern}"
    if kind in _FORMS:
        return _FORMS[kind].format(**context)
    return _EXPECTED.get(kind, message)


def shown(value: Any) -> str:
    """Return what the file has, short enough for a line."""
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    kind = "the text" if isinstance(value, str) else "the number"
    text = without_password(repr(value))
    return f"{kind} {text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + '…'}"
