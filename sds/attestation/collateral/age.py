"""Shows how current the collateral in force is, for metrics and for people.

Owns the reading of when each file was issued and when it ends. Invariants: nothing is decided by
it; a document that cannot be read is left out, because the verifier refuses it with a reason.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sds.attestation.collateral.followed_files import InForce
    from sds.attestation.revocation import RevocationList


@dataclass(frozen=True, slots=True, kw_only=True)
class CollateralFile:
    """One file of collateral.

    Attributes:
        name: the file's name, without its folder.
        issued: when its publisher made it.
        until: until when it is valid.
        about: what a signed document is about: its kind and the kind of platform.
        recovery: the number of its TCB recovery (tcbEvaluationDataNumber).
    """

    name: str
    issued: datetime
    until: datetime
    about: str = ""
    recovery: int = 0

    @property
    def age(self) -> tuple[int, datetime]:
        """Return what orders documents about one thing: a later recovery counts, then the time."""
        return self.recovery, self.issued


def standing(files: InForce) -> tuple[CollateralFile, ...]:
    """Return the newest list of each issuer, and one document of each name."""
    found: dict[str, CollateralFile] = {}
    for one in (*_lists(files), *documents(files)):
        before = found.get(one.name)
        if before is None or before.until < one.until:
            found[one.name] = one
    return tuple(found.values())


def _lists(files: InForce) -> Iterator[CollateralFile]:
    newest: dict[tuple[bytes, bytes], RevocationList] = {}
    for one in files.lists:
        before = newest.setdefault((one.issuer, one.authority), one)
        if before.next_update < one.next_update:
            newest[one.issuer, one.authority] = one
    for one in newest.values():
        name = PurePath(one.origin).name
        yield CollateralFile(name=name, issued=one.this_update, until=one.next_update)


def documents(files: InForce) -> Iterator[CollateralFile]:
    """Yield issue and end of each signed document, as it states them."""
    collateral = files.intel.collateral
    if collateral is None:
        return
    for path, body in (*collateral.tcb_infos, ("qe_identity.json", collateral.qe_identity)):
        try:
            (document,) = (part for part in json.loads(body).values() if isinstance(part, dict))
            issued, until = (
                datetime.fromisoformat(document[name]).astimezone(UTC)
                for name in ("issueDate", "nextUpdate")
            )
            recovery = int(document["tcbEvaluationDataNumber"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            continue
        about = " ".join(str(document.get(name)).lower() for name in ("id", "fmspc", "pceId"))
        name = PurePath(path).name
        yield CollateralFile(name=name, issued=issued, until=until, about=about, recovery=recovery)


def newest_documents(files: InForce) -> dict[str, CollateralFile]:
    """Return the newest document about each thing, by what it is about."""
    found: dict[str, CollateralFile] = {}
    for one in documents(files):
        before = found.setdefault(one.about, one)
        if before.age < one.age:
            found[one.about] = one
    return found
