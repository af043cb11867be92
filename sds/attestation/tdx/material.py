"""What a TDX quote is judged by beside itself: collateral and revocation lists that are at hand.

Owns how a folder and configured lists become one value. Invariant: what cannot be used is an error
that a verdict shows, never a list or document that is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sds.attestation.tdx.chain import read_intel_list
from sds.attestation.tdx.collateral import Collateral, load_collateral
from sds.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from sds.attestation.revocation import RevocationList


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """Collateral and lists, read.

    Attributes:
        collateral: the folder's files, or None.
        lists: revocation lists of folder and configuration.
        collateral_error: why there is no collateral.
        lists_error: why the lists cannot be used.
    """

    collateral: Collateral | None = field(default=None, repr=False)
    lists: tuple[RevocationList, ...] = field(default=(), repr=False)
    collateral_error: EvidenceError | None = None
    lists_error: EvidenceError | None = None

    def require(self) -> None:
        """Hold that everything that was configured can be used.

        Raises:
            EvidenceError: it cannot.
        """
        for error in (self.lists_error, self.collateral_error):
            if error is not None:
                raise error


def material_now(
    folder: Path | None,
    lists: Iterable[bytes | RevocationList] = (),
    *,
    roots: Iterable[bytes] = (),
) -> Material:
    """Read the folder and the lists as they are now.

    Args:
        folder: of collateral, or None.
        lists: DER, or read already.
        roots: DER of configured roots that lists may be by.
    """
    collateral: Collateral | None = None
    missing: EvidenceError | None = None
    if folder is None:
        missing = EvidenceError(
            "no collateral is configured",
            reason="collateral_missing",
            advice="give a folder, see docs/attestation.md",
        )
    else:
        try:
            collateral = load_collateral(folder)
        except EvidenceError as error:
            missing = error
    roots = tuple(roots)
    given = [("the list", one) if isinstance(one, bytes) else ("", one) for one in lists]
    of_folder = collateral.revocation_lists if collateral is not None else ()
    try:
        read = tuple(
            read_intel_list(one, roots=roots, origin=origin) if isinstance(one, bytes) else one
            for origin, one in (*given, *of_folder)
        )
    except EvidenceError as error:
        return Material(collateral=collateral, collateral_error=missing, lists_error=error)
    return Material(collateral=collateral, lists=read, collateral_error=missing)
