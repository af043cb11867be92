"""Writes fetched collateral to the disk.

Owns how answers that were verified become files of a folder. Invariants: a file is replaced as a
whole, and never by an older one, nor by one of an earlier TCB recovery, unless that was asked for;
a folder never keeps a document for which its chain does not vouch, because its files count only
together.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sds.attestation.revocation import highest_numbers, read_revocation_list, require_no_older
from sds.attestation.tdx.collateral import MAX_DOCUMENT_BYTES, SIGNING_CHAIN, TCB_INFOS
from sds.errors import ConfigurationError, EvidenceError
from sds.files import listed, read_file, replace_file
from sds.untrusted_input import EXHAUSTED, reading

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from pathlib import Path

    from sds.attestation.revocation import RevocationList

_LOGGER = logging.getLogger(__name__)
_FORMER: Final = ".former"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A file that is up to date now.

    Attributes:
        path: the file.
        next_update: until when it is valid.
        changed: whether this call wrote it.
    """

    path: Path
    next_update: datetime
    changed: bool


def store(
    files: Sequence[tuple[Path, bytes, datetime]],
    lists: Sequence[tuple[Path, RevocationList]],
    held: Callable[[bytes], bool] = lambda _: True,
    *,
    any_recovery: bool = False,
) -> list[Fetched]:
    """Write what was verified, unless something of it is older than what is stored. It blocks.

    Args:
        files: path, content and end of each document, and of their chain.
        lists: path and content of each revocation list.
        held: says whether the new chain vouches for a TCB info.
        any_recovery: whether documents may be of an earlier TCB recovery than the stored ones.

    Raises:
        EvidenceError: ``collateral_untrusted``, ``revocation_list``: one is older.
        ConfigurationError: the folder cannot be written.
    """
    for path, one in lists:
        _require_newer(path, one)
    for path, body, _ in files:
        if path.name != SIGNING_CHAIN:
            _require_no_older_document(path, body, any_recovery=any_recovery)
    _set_aside({path for path, _, _ in files}, held)
    found = [_stored(*file) for file in files]
    return found + [_stored(path, one.der, one.next_update) for path, one in lists]


def _require_newer(path: Path, one: RevocationList) -> None:
    """Check that a list is not older than the stored one, if that can be read."""
    try:
        before = read_revocation_list(_read(path), origin=str(path))
    except (OSError, EvidenceError):
        return
    require_no_older([one], highest_numbers([before]))


def _require_no_older_document(path: Path, body: bytes, *, any_recovery: bool) -> None:
    """Check that a document is not older than the stored one."""
    try:
        with reading(str(path), EvidenceError):
            issued, recovery = _age(_read(path))
    except EvidenceError:
        return  # it is replaced
    now, number = _age(body)
    if number < recovery and not any_recovery:
        raise EvidenceError(
            f"{path} is of TCB recovery {recovery}, the answer of {number}",
            reason="collateral_untrusted",
            advice="ask another cache: this one went back; to go back on purpose, name the "
            "recovery (tcb_evaluation_data_number) or remove the file",
        )
    if number == recovery and now < issued:
        raise EvidenceError(
            f"{path} was issued at {issued}, the answer at {now}",
            reason="collateral_untrusted",
            advice="ask another cache: this one went back",
        )


def _read(path: Path) -> bytes:
    """Read a stored file that is to be replaced.

    Raises:
        ConfigurationError: nothing can be read now, so nobody knows whether it is older.
        OSError: this file cannot be read.
    """
    try:
        return read_file(path, max_bytes=MAX_DOCUMENT_BYTES)
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise _unwritable(path, error) from error
        raise


def _age(body: bytes) -> tuple[str, int]:
    """Return when a document was issued, and the number of its TCB recovery."""
    (document,) = (part for part in json.loads(body).values() if isinstance(part, dict))
    return str(document["issueDate"]), int(document["tcbEvaluationDataNumber"])


def _set_aside(written: set[Path], held: Callable[[bytes], bool]) -> None:
    """Rename the documents of former platforms for which the new chain does not vouch.

    Nobody fetches them again, and a folder with one of them could not be used at all.
    """
    for folder in {path.parent for path in written}:
        try:
            former = [path for path in listed(folder, TCB_INFOS) if path not in written]
            for path in former:
                if not held(read_file(path, max_bytes=MAX_DOCUMENT_BYTES)):
                    path.replace(path.with_name(f"{path.name}{_FORMER}"))
                    _LOGGER.warning(
                        "%s does not hold under the chain that was fetched: it was renamed",
                        path,
                        extra={"path": str(path)},
                    )
        except OSError as error:
            raise _unwritable(folder, error) from error


def _stored(path: Path, content: bytes, next_update: datetime) -> Fetched:
    """Write a file as a whole (by rename), if its content changed."""
    try:
        if path.is_file() and path.read_bytes() == content:
            return Fetched(path=path, next_update=next_update, changed=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content, mode=0o644)  # public data, for every reader of the folder
    except OSError as error:
        raise _unwritable(path, error) from error
    return Fetched(path=path, next_update=next_update, changed=True)


def _unwritable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{path} cannot be written: {error.strerror}",
        advice="give a folder that this user may write; what was there stays",
    )
