"""The collateral and revocation lists against which TDX quotes are checked.

Owns how a folder and configured lists become one value. Invariant: a list or document that cannot
be used is an error that a verdict shows, and is never left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sds.attestation.revocation import read_revocation_list
from sds.attestation.snp.revocation import of_amds_kind
from sds.attestation.tdx.chain import (
    TCB_SIGNING_CHAIN,
    link_chain,
    root_digest,
)
from sds.attestation.tdx.collateral import (
    QE_IDENTITY,
    SIGNING_CHAIN,
    Collateral,
    load_collateral,
    load_lists,
    signed_document,
)
from sds.attestation.tdx.revocation import read_intel_list
from sds.attestation.tdx.tcb import read_enclave_identity, read_tcb_info
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
    collateral_error: EvidenceError | None = field(default=None, compare=False)
    lists_error: EvidenceError | None = field(default=None, compare=False)

    @property
    def nothing(self) -> bool:
        """Say whether there is neither collateral nor a list."""
        return self.collateral is None and not self.lists and self.lists_error is None

    def require(self, *, collateral: bool) -> None:
        """Check that everything that was configured can be used.

        Args:
            collateral: whether a folder is configured.

        Raises:
            EvidenceError: something cannot be used.
        """
        if self.lists_error is not None:
            raise self.lists_error
        if collateral and self.collateral_error is not None:
            raise self.collateral_error


def require_documents(collateral: Collateral, *, roots: Iterable[bytes]) -> None:
    """Check chain, signature and form of every document, but not whether it is current.

    Args:
        collateral: the files.
        roots: configured roots in DER, beside Intel's.

    Raises:
        EvidenceError: ``certificate_malformed``, ``chain_untrusted``, ``collateral_untrusted``: one
            cannot be used; the message names it.
    """
    key = link_chain(
        collateral.signing_chain,
        names=TCB_SIGNING_CHAIN,
        trusted=tuple(map(root_digest, roots)),
        what=SIGNING_CHAIN,
    ).key
    documents = [(origin, raw, "tcbInfo", read_tcb_info) for origin, raw in collateral.tcb_infos]
    identity = (QE_IDENTITY, collateral.qe_identity, "enclaveIdentity", read_enclave_identity)
    for origin, raw, expected, read in (*documents, identity):
        try:
            read(signed_document(raw, key=key, expected=expected, now=None))
        except EvidenceError as error:
            raise EvidenceError(
                f"{origin}: {error.message}",
                reason=error.reason,
                advice="put the publisher's answer back, with the chain that came with it",
            ) from error


def not_amds(lists: Iterable[tuple[Path, bytes]]) -> list[tuple[Path, bytes]]:
    """Return the lists that AMD's algorithm did not sign: a folder may have AMD's lists too."""
    found = []
    for origin, der in lists:
        try:
            if of_amds_kind(read_revocation_list(der, origin=str(origin))):
                continue
        except EvidenceError:
            pass  # it is refused as one of Intel's, with the reason
        found.append((origin, der))
    return found


def material_now(
    folder: Path | None,
    lists: Iterable[tuple[Path, bytes]] = (),
    *,
    roots: Iterable[bytes] = (),
) -> Material:
    """Read the folder and the lists as they are now.

    Args:
        folder: the folder of collateral, or None.
        lists: file and DER of each list beside the folder's.
        roots: configured roots in DER that may have signed lists.
    """
    collateral: Collateral | None = None
    missing: EvidenceError | None = None
    if folder is None:
        missing = EvidenceError(
            "no collateral is configured, so neither TCB nor revocation can be checked",
            reason="collateral_missing",
            advice="give a folder, see docs/attestation.md",
        )
    else:
        try:
            collateral = load_collateral(folder)
        except EvidenceError as error:
            missing = error
    roots = tuple(roots)
    try:
        of_folder = load_lists(folder) if folder is not None else ()
        read = tuple(
            read_intel_list(der, roots=roots, origin=str(origin))
            for origin, der in (*lists, *not_amds(of_folder))
        )
    except EvidenceError as error:
        return Material(collateral=collateral, collateral_error=missing, lists_error=error)
    return Material(collateral=collateral, lists=read, collateral_error=missing)
