"""Says in words for people what is wrong with text that is not YAML, or only looks right.

Owns the texts for the parser's errors. Invariant: each text says the line, what is wrong there and
what to do, and names a character that a person cannot see.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import yaml

# YAML 1.2, section 5.1; libyaml does not say where such a character is.
_NOT_YAML: Final = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Characters that look like spaces but are not, invisible characters, and typographic quotes, from
# web pages and word processors.
_LOOKALIKES: Final = re.compile(
    "[\xa0\xad\u1680\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff]"
    "|^[\u2018\u2019\u201a\u201c-\u201e\xab\xbb]|[\u2018\u2019\u201a\u201c-\u201e\xab\xbb]$"
)
_SYNTAX: Final[dict[str, tuple[str, str]]] = {
    "did not find expected key": (
        "this line does not fit the block that it is in",
        "give all fields of a block the same indentation, and each a ':' with a space after it",
    ),
    "did not find expected '-' indicator": (
        "this line does not fit the list that it is in",
        "give all entries of a list the same indentation",
    ),
    "mapping values are not allowed in this context": (
        "a ':' where no field can begin",
        "add a missing ':' before it, indent it less, or put its value in quotes",
    ),
    "could not find expected ':'": (
        "a ':' is missing after this field, or after the one before",
        "write each field as name: value",
    ),
    "did not find expected ',' or ']'": (
        "a list that began with [ is not ended",
        "end it with ], and put values with brackets in quotes",
    ),
    "did not find expected ',' or '}'": (
        "a block that began with { is not ended",
        "end it with }, and put values with braces in quotes",
    ),
    "did not find expected node content": (
        "no value can begin here",
        "put a value that begins with [, {, *, & or a quote in quotes",
    ),
    "did not find expected alphabetic or numeric character": (
        "a value that begins with * or & means something else: * begins an alias",
        "put the value in quotes",
    ),
    "found unexpected end of stream": (
        "the file ends within a value",
        "add the quote, ] or } that is missing before this line",
    ),
    "found character that cannot start any token": (
        "no value can begin with this character",
        "put the value in quotes",
    ),
}
"""The meaning of each of libyaml's texts, and what to do."""


def syntax_problem(content: str, error: yaml.YAMLError) -> tuple[str, str, str]:
    """Say what the parser's error means.

    Returns:
        The place (``", line 3"``, or nothing if unknown), what is wrong there, and what to do.
    """
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return _not_text(content, str(getattr(error, "reason", None) or "not YAML"))
    where = f", line {mark.line + 1}, column {mark.column + 1}"
    lines = content.split("\n")
    line = lines[mark.line] if mark.line < len(lines) else ""
    if line[mark.column :].startswith("\t"):
        return where, "a tab, where YAML allows spaces only: indent with spaces", ""
    problem = str(getattr(error, "problem", None) or "not YAML")
    return where, *(lookalike(line) or _SYNTAX.get(problem, (problem, "")))


def _not_text(content: str, reason: str) -> tuple[str, str, str]:
    """Find a character that YAML does not allow anywhere."""
    strange = _NOT_YAML.search(content)
    if strange is None:
        return "", reason, ""
    line = content.count("\n", 0, strange.start()) + 1
    advice = "save the file as UTF-8 text" if strange[0] == "\0" else "remove it"
    return f", line {line}", f"the character {_named(strange[0])} is not allowed", advice


def lookalike(text: str) -> tuple[str, str] | None:
    """Say what is wrong with text with lookalike spaces or quotes, and what to do; else None."""
    if text.isascii() or (strange := _LOOKALIKES.search(text)) is None:
        return None
    return (
        f"the character {_named(strange[0])} only looks like a space or a quote, or is invisible",
        "type a plain one, or put the text in quotes if it is meant",
    )


def _named(character: str) -> str:
    return f"U+{ord(character):04X} ({unicodedata.name(character, 'a control character')})"
