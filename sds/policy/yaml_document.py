"""Turns the author's YAML, in one file or several, into bytes to sign and a document.

Owns the payload's form: one YAML document, or several in one stream, which are joined: lists are
appended, mappings merged, and a field of any other kind may be in only one of them. A directory
becomes such a stream, file by file in the order of their names. Invariants: the signed bytes are
the author's own, including comments; the same bytes give the same document.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Any, Final

from sds.errors import ConfigurationError, PolicyError
from sds.files import is_folder
from sds.policy.document import PolicyDocument
from sds.settings import yamlfile

if TYPE_CHECKING:
    from pathlib import Path

MAX_DOCUMENT_BYTES: Final = 8 * 1024 * 1024
_ENDINGS: Final = {".yaml", ".yml"}


def read_source(path: Path) -> bytes:
    """Read the author's file, or the ``*.yaml`` and ``*.yml`` files of a directory.

    Raises:
        ConfigurationError: there is no file, one would be left out, or one cannot be read or is too
            large.
    """
    if not is_folder(path):
        return yamlfile.read(path, max_bytes=MAX_DOCUMENT_BYTES)
    try:
        found = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    except OSError as error:
        raise ConfigurationError(
            f"the directory {path} cannot be read: {error.strerror}",
            advice="check its permissions",
        ) from error
    for folder in filter(is_folder, found):  # its rules would be missing
        raise ConfigurationError(
            f"the folder {folder} would be left out",
            advice="move its files up, beside the others, or move the folder elsewhere",
        )
    files = [file for file in found if file.suffix.lower() in _ENDINGS]
    for file in files:
        if file.suffix not in _ENDINGS:  # its rules would be missing
            raise ConfigurationError(
                f"{file} would be left out", advice="let its name end in .yaml or .yml"
            )
    if not files:
        raise ConfigurationError(f"the directory {path} has no *.yaml or *.yml file")
    parts = []
    for file in files:
        content = yamlfile.read(file, max_bytes=MAX_DOCUMENT_BYTES)
        # One document for each file, so that an error can name the file.
        yamlfile.parse(content, what=str(file))
        # Within the stream, the mark of UTF-8 would be the beginning of a field's name.
        body = content.removeprefix(codecs.BOM_UTF8)
        body = body if body.endswith(b"\n") else body + b"\n"
        start = b"" if body.startswith(b"---") else b"---\n"
        parts.append(b"# " + _comment(file.name) + b"\n" + start + body)
    payload = b"".join(parts)
    if len(payload) > MAX_DOCUMENT_BYTES:
        raise ConfigurationError(f"the files of {path} have more than {MAX_DOCUMENT_BYTES} bytes")
    return payload


def _comment(name: str) -> bytes:
    """Write a file's name, which may have any character, in one line of UTF-8."""
    return name.encode("utf-8" if name.isprintable() else "unicode_escape")


def parse_source(payload: bytes, *, what: str) -> PolicyDocument:
    """Parse a document for its author; ``what`` names it in errors.

    Raises:
        ConfigurationError: it breaks YAML's rules or the document's.
    """
    if len(payload) > MAX_DOCUMENT_BYTES:
        raise ConfigurationError(
            f"{what} has {len(payload)} bytes, more than {MAX_DOCUMENT_BYTES}",
            advice="use patterns in place of one rule per workload",
        )
    documents = yamlfile.parse_all(payload, what=what)
    return yamlfile.validate(_joined(documents, what), PolicyDocument, what=what)


def parse_payload(payload: bytes) -> PolicyDocument:
    """Parse the document out of a signed policy whose signatures were checked.

    Raises:
        PolicyError: ``policy_malformed``: it breaks YAML's rules or the document's.
    """
    try:
        return parse_source(payload, what="the signed document")
    except ConfigurationError as error:
        raise PolicyError(error.message, advice=error.advice, reason="policy_malformed") from error


def _joined(documents: list[Any], what: str) -> Any:
    if len(documents) == 1:
        return documents[0]
    if not documents:
        raise ConfigurationError(f"{what} is empty")
    whole: dict[str, Any] = {}
    for number, document in enumerate(documents, start=1):
        if document is None:
            continue
        if not isinstance(document, dict):
            raise ConfigurationError(f"{what}, document {number}: no mapping of fields at its top")
        for name, value in document.items():
            there = whole.get(name)
            if name not in whole:
                whole[name] = value
            elif isinstance(there, list) and isinstance(value, list):
                whole[name] = [*there, *value]
            elif isinstance(there, dict) and isinstance(value, dict) and not there.keys() & value:
                whole[name] = {**there, **value}
            else:
                raise ConfigurationError(
                    f"{what}, document {number}: {name} was given by an earlier one already"
                )
    return whole
