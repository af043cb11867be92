"""Makes attesters and verifiers from the sections ``attestation:`` and ``verification:``.

Owns what the composition roots of agent, authority and command line share. Invariants: nothing is
simulated unless the section says so, and a simulation is logged as a warning; a root that is not
the manufacturer's counts only if the section names it; if something configured cannot be used,
nothing starts.

A node has one kind of evidence, so the code for other kinds is loaded only if the section names
them.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from sds.attestation.azure.blob import azure_kind
from sds.attestation.collateral.followed_files import FollowedFiles, Places
from sds.attestation.evidence import EvidenceKind
from sds.attestation.exchange_key.events import key_digest
from sds.attestation.exchange_key.holding import KeyedAttester, hold_key
from sds.attestation.exchange_key.register import MeasurementRegister
from sds.attestation.kind import Demands
from sds.attestation.pem import der_certificates
from sds.attestation.registry import KINDS, kind_module
from sds.attestation.tpm.device import RESOURCE_MANAGER
from sds.attestation.tpm.register import PcrRegister
from sds.attestation.verifier import EvidenceVerifier
from sds.clock import SystemClock
from sds.errors import ConfigurationError, EvidenceError
from sds.settings.yamlfile import read

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path

    from sds.attestation.collateral.age import CollateralFile
    from sds.attestation.collateral.refreshing import CollateralRefresher
    from sds.attestation.evidence import Attester, Verifier
    from sds.attestation.exchange_key.holding import Register
    from sds.attestation.reference_values import ReferenceValues
    from sds.attestation.settings import (
        AttestationSection,
        ExchangeKeySection,
        VerificationSection,
    )
    from sds.clock import Clock

_LOGGER = logging.getLogger(__name__)


class Verification:
    """Verifies the other side's evidence, and follows the files that this needs.

    Attributes:
        section: the configuration.
        roots: the DER of the configured roots, of every kind.
        certificates: the DER of the configured issuers.

    Raises:
        ConfigurationError: a root, list, certificate or document cannot be read or used.
    """

    def __init__(self, section: VerificationSection, *, clock: Clock | None = None) -> None:
        self.section = section
        self._clock = clock or SystemClock()
        self.roots = roots = _certificates(section.trusted_roots)
        if roots:
            _LOGGER.warning(
                "roots of SIMULATED machines are trusted: evidence under them proves nothing",
                extra={"roots": [str(path) for path in section.trusted_roots]},
            )
        self.certificates = _certificates(section.certificates)
        self.files = FollowedFiles(
            Places(
                revocation_lists=section.revocation_lists,
                collateral=section.collateral,
                filled=section.fetch is not None,
                amd_wanted=section.fetch is not None and bool(section.fetch.products),
                any_recovery=section.fetch is not None
                and section.fetch.tcb_evaluation_data_number is not None,
                roots=roots,
                certificates=self.certificates,
            ),
            clock=self._clock,
        )
        self.refresher = _refresher(section, roots, clock=self._clock, missed=self._is_missed)
        # Report a wrong root or value now, and not when evidence comes.
        self.verifier()

    def collateral(self) -> tuple[CollateralFile, ...]:
        """Return issue and end of each file that is used to verify evidence now."""
        return self.files.standing

    def _is_missed(self) -> bool:
        """Say whether evidence is refused now because collateral is missing or has expired."""
        now, fetch = self._clock.now().wall, self.section.fetch
        files = self.files.current
        # What one manufacturer published does not help with the evidence of the other.
        lost = files.amd_error is not None or files.intel.lists_error is not None
        if fetch is not None and fetch.fmspcs and files.intel.collateral is None:
            lost = True
        return lost or any(one.until <= now for one in self.files.standing)

    def collateral_failures(self) -> tuple[int, int]:
        """Return how often the files could not be used, and how often they could not be fetched."""
        return self.files.failures, 0 if self.refresher is None else self.refresher.failed

    def collateral_failing(self) -> tuple[int, int]:
        """Return the same numbers since the last success."""
        return (
            self.files.failures_in_a_row,
            0 if self.refresher is None else self.refresher.failures,
        )

    def tasks(self) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
        """Return name and function of each task that follows or fills the files.

        Raises:
            ConfigurationError: the folder that is to be filled cannot be made.
        """
        found: list[tuple[str, Callable[[], Awaitable[None]]]] = []
        if self.files.any:
            found.append(("verification-files", self.files.follow))
        if self.refresher is not None and self.section.collateral is not None:
            _make_folder(self.section.collateral)
            found.append(("collateral", self.refresher.run))
        return found

    def verifier(self, values: ReferenceValues | None = None) -> Verifier:
        """Make a verifier of every kind of evidence from the files that are in force.

        Args:
            values: reference values to use instead of the section's (a signed policy's).
        """
        demands = Demands(
            values=self.section.reference_values if values is None else values,
            roots=self.roots,
            certificates=self.certificates,
            files=lambda: self.files.current,
        )
        try:
            return EvidenceVerifier(
                {
                    EvidenceKind(name): make(demands)
                    for name, registered in KINDS.items()
                    if registered.verified and (make := kind_module(name).examiner) is not None
                }
            )
        except EvidenceError as error:
            raise ConfigurationError(
                f"verification: {error.message}", advice=error.advice
            ) from error


def _refresher(
    section: VerificationSection,
    roots: tuple[bytes, ...],
    *,
    clock: Clock,
    missed: Callable[[], bool],
) -> CollateralRefresher | None:
    fetch, folder = section.fetch, section.collateral
    if fetch is None or folder is None:
        return None
    # This loads an HTTP client, so only a process that fetches imports it.
    from sds.attestation.collateral.fetching import (  # noqa: PLC0415  see the module
        INTEL_ROOT_LIST,
        PCS,
        Fetcher,
        Wanted,
    )
    from sds.attestation.collateral.refreshing import CollateralRefresher  # noqa: PLC0415  see the module

    pcs = fetch.pcs.rstrip("/")
    wanted = Wanted(
        fmspcs=tuple(fetch.fmspcs),
        authorities=tuple(fetch.authorities),
        update=fetch.update,
        recovery=fetch.tcb_evaluation_data_number,
        products=tuple(fetch.products),
        pcs=pcs,
        root_list=fetch.root_list or (INTEL_ROOT_LIST if pcs == PCS else None),
        kds=fetch.kds.rstrip("/"),
        roots=roots,
    )
    return CollateralRefresher(Fetcher(wanted, clock=clock), folder, clock=clock, missed=missed)


def make_attester(section: AttestationSection) -> Attester | None:
    """Make the attester of our evidence, or return None if the section names no kind.

    Raises:
        ConfigurationError: it cannot be made.
    """
    if section.kind is None:
        return None
    if section.kind in KINDS and (make := kind_module(section.kind).attester) is not None:
        return make(section)
    if section.kind == "simulated":
        return _simulated(section)
    return _guest(section)


def keyed(attester: Attester, section: AttestationSection) -> Attester:
    """Give the attester the exchange key of this boot, if the section asks for one.

    Only a real start calls this, because it extends the register, and nothing undoes that until the
    machine starts again.

    Raises:
        ConfigurationError: the register cannot be used, or the key cannot be kept.
    """
    if section.exchange_key is None:
        return attester
    register, named = _register(section, section.exchange_key)
    held = hold_key(register, environment=os.environ, pid=os.getpid())
    _LOGGER.info(
        "the exchange key of this boot is measured",
        extra={
            "register": named,
            "exchange_key": key_digest(held.public_key),
        },
    )
    return KeyedAttester(attester, held)


def _register(section: AttestationSection, key: ExchangeKeySection) -> tuple[Register, str]:
    """Return the register that a section names, and its name for people."""
    if key.pcr is None:
        return MeasurementRegister(key.runtime_register), str(key.runtime_register)
    device = section.tpm_device or RESOURCE_MANAGER
    return PcrRegister(device, key.pcr), f"PCR {key.pcr} of {device}"


def _simulated(section: AttestationSection) -> Attester:
    if section.descriptor is None:
        raise ConfigurationError(
            "attestation.descriptor is missing",
            advice="a simulated machine comes by an inherited descriptor: use `sds "
            "simulate -- sds agent --config FILE`, which passes one",
        )
    from sds.attestation.snp.simulated import SimulatedMachine  # noqa: PLC0415  see the module

    try:
        machine = SimulatedMachine.receive(section.descriptor)
    except EvidenceError as error:
        raise ConfigurationError(
            f"attestation.descriptor: {error.message}", advice=error.advice
        ) from error
    _LOGGER.warning(
        "SIMULATED machine: its evidence proves nothing to anybody who does not trust its root",
        extra={"measurement": machine.measurement.hex()},
    )
    return machine


def _guest(section: AttestationSection) -> Attester:
    from sds.attestation.guest.attester import guest_attester  # noqa: PLC0415  see the module
    from sds.attestation.snp.endorsements import endorsed  # noqa: PLC0415  see the module

    clock = SystemClock()
    kind = None if section.kind == "auto" else EvidenceKind(str(section.kind))
    try:
        attester = guest_attester(clock, kind=kind, privilege_level=section.privilege_level)
    except EvidenceError as error:
        if kind is None and (through := _through_vtpm(section, error)) is not None:
            return through
        raise ConfigurationError(
            f"attestation.kind {section.kind}: {error.message}", advice=error.advice
        ) from error
    return endorsed(attester, section, clock)


def _through_vtpm(section: AttestationSection, missing: EvidenceError) -> Attester | None:
    """Make the attester of an Azure confidential VM, if this is one: it has no other interface.

    Args:
        section: the configuration.
        missing: the error that says that there is no other interface.
    """
    device = section.tpm_device or RESOURCE_MANAGER
    try:
        name = azure_kind(device)
    except EvidenceError as error:
        raise ConfigurationError(
            f"attestation.kind auto: {missing.message}, and the TPM does not tell whether it is an "
            f"Azure paravisor's: {error.message}",
            advice=f"{missing.advice}; {error.advice}",
        ) from error
    if name is None:
        return None
    _LOGGER.info("this machine gives evidence through its paravisor's vTPM", extra={"kind": name})
    make = kind_module(name).attester
    assert make is not None  # each vTPM kind has one
    return make(section)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"verification.collateral: {folder} cannot be made: {error.strerror}",
            advice="give a folder that this process may write, because fetch fills it",
        ) from error


def _certificates(paths: Iterable[Path]) -> tuple[bytes, ...]:
    try:
        return tuple(der for path in paths for der in der_certificates(read(path), what=str(path)))
    except EvidenceError as error:
        raise ConfigurationError(error.message, advice=error.advice) from error
