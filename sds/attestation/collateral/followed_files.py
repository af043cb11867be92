"""Reads and follows the files that verification needs: revocation lists and collateral.

Invariants: if a configured file cannot be used at the start, nothing starts; if this process
fetches the file itself, it starts, and accepts nothing that needs the file; afterwards the files
count only as a whole, and if one cannot be used, the earlier content stays in force and the problem
is logged once with file and reason; an issuer's list is never replaced by an older one or by none,
and a document about a platform never by one that was issued before it, whatever the files' names.
The content in force is one value, so a verdict never mixes two states of the files. A file that is
still to be fetched counts as missing, and not as unconfigured.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from sds import threads
from sds.attestation.collateral.age import newest_documents, standing
from sds.attestation.pem import der_revocation_lists
from sds.attestation.revocation import (
    RevocationList,
    highest_numbers,
    read_revocation_list,
    require_no_fewer,
    require_no_older,
)
from sds.attestation.snp.chain import amd_certificates, pinned_roots
from sds.attestation.snp.kind import is_amd_root
from sds.attestation.snp.revocation import of_amds_kind, read_amd_list
from sds.attestation.tdx.chain import root_digest
from sds.attestation.tdx.collateral import load_lists
from sds.attestation.tdx.material import (
    Material,
    material_now,
    not_amds,
    require_documents,
)
from sds.attestation.tdx.revocation import of_intels_kind, read_intel_list
from sds.errors import ConfigurationError, EvidenceError, without_frames
from sds.problems import Problems
from sds.settings.watching import follow_folders
from sds.settings.yamlfile import read

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sds.attestation.collateral.age import CollateralFile
    from sds.attestation.snp.certificate import Certificate
    from sds.clock import Clock

_LOGGER = logging.getLogger(__name__)
_ANSWER_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the files are, and who may have signed lists.

    Attributes:
        revocation_lists: files with lists, in PEM or DER.
        collateral: the folder for TDX, or None.
        filled: whether this process fills the folder itself, so that it may be empty at first.
        amd_wanted: whether the folder is to have AMD's lists.
        any_recovery: whether documents of an earlier TCB recovery may come, because the
            configuration names the recovery.
        roots: configured roots in DER, of AMD's kind and of Intel's.
        certificates: configured ASKs, ASVKs and ARKs, in DER.
    """

    revocation_lists: Sequence[Path] = ()
    collateral: Path | None = None
    filled: bool = False
    amd_wanted: bool = False
    any_recovery: bool = False
    roots: Sequence[bytes] = field(default=(), repr=False)
    certificates: Sequence[bytes] = field(default=(), repr=False)

    @property
    def any(self) -> bool:
        """Say whether there is any file to follow."""
        return bool(self.revocation_lists) or self.collateral is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """The content of the files when they were last read.

    Attributes:
        amd: AMD's lists.
        amd_error: why they cannot be used.
        intel: collateral, and Intel's lists.
    """

    amd: tuple[RevocationList, ...] = ()
    amd_error: EvidenceError | None = field(default=None, compare=False)
    intel: Material = field(default_factory=Material)

    @property
    def lists(self) -> tuple[RevocationList, ...]:
        """Return every list."""
        return self.amd + self.intel.lists

    def amd_lists(self) -> tuple[RevocationList, ...]:
        """Return AMD's lists.

        Raises:
            EvidenceError: ``revocation_list``: they cannot be used.
        """
        if self.amd_error is not None:
            raise without_frames(self.amd_error)
        return self.amd


def read_files(places: Places, *, first: bool = False) -> InForce:
    """Read everything. It blocks.

    Args:
        places: where the files are.
        first: whether this is the start: what cannot be used in a folder that this process fills
            then counts as missing, because it is fetched anew.

    Raises:
        ConfigurationError: a file cannot be read, has the wrong form, or is a list or document of
            an unknown issuer or with an invalid signature. The message names the file.
    """
    anew = first and places.filled
    damaged: EvidenceError | None = None
    try:
        amd_issuers, intel_roots = _issuers(places)
        amd, intel = _configured_lists(places, amd_issuers, intel_roots)
        material = material_now(places.collateral, intel, roots=intel_roots)
        try:
            amd += _amds_of_folder(places.collateral, amd_issuers)
            material.require(collateral=places.collateral is not None and not places.filled)
        except EvidenceError as error:
            if not anew:
                raise
            damaged = error
            _LOGGER.warning("%s; it is fetched anew, and nothing is accepted until then", error)
        if not _usable(material, intel_roots, refuse=not anew):
            material = replace(material, collateral=None)
    except EvidenceError as error:
        raise ConfigurationError(f"verification: {error.message}", advice=error.advice) from error
    # A list that cannot be read does not say whether AMD or Intel made it.
    amd_error = damaged
    if damaged is not None:
        material = replace(material, lists=(), lists_error=damaged)
    elif places.amd_wanted and not amd:
        amd_error = _awaited("AMD's revocation lists")
    if places.filled and material.collateral is None:
        material = replace(material, collateral_error=_awaited("collateral"))
    return InForce(amd=tuple(amd), amd_error=amd_error, intel=material)


def _configured_lists(
    places: Places, amd_issuers: Sequence[Certificate], intel_roots: Sequence[bytes]
) -> tuple[list[RevocationList], list[tuple[Path, bytes]]]:
    """Return AMD's and Intel's lists outside of the folder."""
    amd: list[RevocationList] = []
    intel: list[tuple[Path, bytes]] = []
    for path in places.revocation_lists:
        for der in der_revocation_lists(read(path), what=str(path)):
            one = read_revocation_list(der, origin=str(path))
            if of_amds_kind(one):
                amd.append(read_amd_list(der, issuers=amd_issuers, origin=str(path)))
            elif of_intels_kind(one):
                read_intel_list(der, roots=intel_roots, origin=str(path))
                intel.append((path, der))
            else:
                raise ConfigurationError(
                    f"{path} is by {one.issuer_name}, and signed neither as AMD nor as Intel signs",
                    advice="give lists of AMD's KDS and of Intel's PCS",
                )
    return amd, intel


def _usable(material: Material, roots: Sequence[bytes], *, refuse: bool) -> bool:
    """Say whether the documents can be used; with ``refuse``, raise what is wrong with them."""
    try:
        if material.collateral is not None:
            require_documents(material.collateral, roots=roots)
    except EvidenceError:
        if refuse:
            raise
        return False
    return True


def _awaited(what: str) -> EvidenceError:
    return EvidenceError(
        f"{what}: not fetched yet",
        reason="collateral_missing",
        advice="the log says why it cannot be fetched, if it cannot",
    )


def examined_files(places: Places) -> InForce:
    """Read everything for one examination; a file that cannot be used becomes part of the verdict.

    Every list is checked against the rules of AMD and of Intel; a verifier uses only its own lists.

    Raises:
        ConfigurationError: a configured root cannot be used, or a file cannot be opened.
    """
    amd_issuers, intel_roots = _issuers(places)
    lists: list[tuple[Path, bytes]] = []
    for path in places.revocation_lists:
        content = read(path)
        try:
            lists += [(path, der) for der in der_revocation_lists(content, what=str(path))]
        except EvidenceError:
            lists.append((path, content))
    amd: list[RevocationList] = []
    amd_error: EvidenceError | None = None
    for path, der in lists:
        try:
            amd.append(read_amd_list(der, issuers=amd_issuers, origin=str(path)))
        except EvidenceError as error:
            amd_error = amd_error or error
    try:
        amd += _amds_of_folder(places.collateral, amd_issuers)
    except EvidenceError as error:
        amd_error = amd_error or error
    return InForce(
        amd=tuple(amd),
        amd_error=amd_error,
        intel=material_now(places.collateral, lists, roots=intel_roots),
    )


def _amds_of_folder(folder: Path | None, issuers: Sequence[Certificate]) -> list[RevocationList]:
    """Return AMD's lists in a folder of collateral."""
    lists = load_lists(folder) if folder is not None else ()
    intels = not_amds(lists)
    return [
        read_amd_list(der, issuers=issuers, origin=str(path))
        for path, der in lists
        if (path, der) not in intels
    ]


def _issuers(places: Places) -> tuple[tuple[Certificate, ...], list[bytes]]:
    try:
        amd = pinned_roots(
            trusted_roots=filter(is_amd_root, places.roots), helpers=places.certificates
        )
        intel = [der for der in places.roots if not is_amd_root(der)]
        for der in intel:
            root_digest(der)
    except EvidenceError as error:
        raise ConfigurationError(
            f"verification: a trusted root cannot be used: {error.message}", advice=error.advice
        ) from error
    issuers = (*amd.certificates, *amd_certificates())
    return issuers, intel


def _require_no_older_documents(
    found: InForce, seen: Mapping[str, CollateralFile], *, any_recovery: bool
) -> None:
    """Check that no platform's newest document is older than one that was in force.

    Intel signs the documents of several TCB recoveries anew every day. Those of an earlier one call
    a platform up to date that the later one does not.

    Args:
        found: the files that are to replace those in force.
        seen: the newest document about each thing.
        any_recovery: whether they may be of an earlier recovery.

    Raises:
        EvidenceError: ``collateral_untrusted``: one is of an earlier recovery or was issued before.
    """
    for about, one in newest_documents(found).items():
        before = seen.get(about, one)
        if one.recovery < before.recovery:
            if any_recovery:
                continue
            raise EvidenceError(
                f"{one.name} is of TCB recovery {one.recovery}, and one of recovery "
                f"{before.recovery} was in force already",
                reason="collateral_untrusted",
                advice="put the later one back; to go back on purpose, start again",
            )
        if one.age < before.age:
            raise EvidenceError(
                f"{one.name} was issued at {one.issued:%FT%TZ}, and one that was issued at "
                f"{before.issued:%FT%TZ} was in force already",
                reason="collateral_untrusted",
                advice="put the newest one back",
            )


class FollowedFiles:
    """The files, and the content of them that is in force.

    Attributes:
        current: the content in force.
        standing: issue and end of each file in force.
        problem: why the files cannot be used as they are now; empty if they can.
        failures: how often they could not be used.
        failures_in_a_row: how often they could not be used since they last could.

    Raises:
        ConfigurationError: as for :func:`read_files`.
    """

    def __init__(self, places: Places, *, clock: Clock) -> None:
        self._places = places
        self._clock = clock
        self._asked = asyncio.Event()
        self._problems = Problems()
        self.problem = ""
        self.failures = self.failures_in_a_row = 0
        self.current = read_files(places, first=True)
        self.standing = standing(self.current)
        self._numbers = highest_numbers(self.current.lists)
        self._documents = newest_documents(self.current)

    @property
    def any(self) -> bool:
        """Say whether there is any file to follow."""
        return self._places.any

    def reload(self) -> None:
        """Read the files again. It blocks.

        Raises:
            ConfigurationError: they cannot be used; the earlier content stays in force.
        """
        found = read_files(self._places)
        try:
            require_no_older(found.lists, self._numbers)
            require_no_fewer(found.lists, self.current.lists)
            _require_no_older_documents(
                found, self._documents, any_recovery=self._places.any_recovery
            )
        except EvidenceError as error:
            raise ConfigurationError(
                f"verification: {error.message}", advice=error.advice
            ) from error
        for key, number in highest_numbers(found.lists).items():
            self._numbers[key] = max(self._numbers.get(key, number), number)
        self._documents |= newest_documents(found)
        changed, self.current = found != self.current, found
        if changed:
            self.standing = standing(found)
        had_problem = self._problems.over()
        if changed or had_problem:
            _LOGGER.info(
                "revocation lists and collateral were read again",
                extra={"lists": len(found.lists)},
            )

    def notices(self) -> tuple[str, ...]:
        """Return why what was read before is in force and not the files; nothing if they are."""
        if not self.problem:
            return ()
        return (f"what was read before stays in force: {self.problem}",)

    def ask(self) -> None:
        """Read again at once (SIGHUP)."""
        self._problems.tell_again()
        self._asked.set()

    async def follow(self) -> None:
        """Read again after every change and every minute, until cancelled."""
        await follow_folders(self._folders(), self._asked, self._look, clock=self._clock)

    async def _look(self) -> None:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await threads.COLLATERAL.run(self.reload)
        except ConfigurationError as error:
            self._failed(error)
        except TimeoutError:
            self._failed(
                ConfigurationError(
                    f"verification: the files did not answer within {_ANSWER_SECONDS:g} s",
                    advice="check whether their file system hangs",
                )
            )
        else:
            self.problem = ""
            self.failures_in_a_row = 0

    def _failed(self, error: ConfigurationError) -> None:
        self.failures += 1
        self.failures_in_a_row += 1
        self.problem = str(error)
        if self._problems.is_news(error):
            _LOGGER.error(
                "revocation lists and collateral cannot be used; what was read before stays "
                "in force: %s",
                error,
                extra={"reason": error.reason},
            )

    def _folders(self) -> set[Path]:
        # Watch the parent: a replaced file has another inode, and a swapped symlink is in the
        # parent.
        found = {path.parent for path in self._places.revocation_lists}
        return found if self._places.collateral is None else found | {self._places.collateral}
