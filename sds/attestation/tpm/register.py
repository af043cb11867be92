"""A PCR of a vTPM as a runtime register (TCG Part 1, section 17; PC Client Profile, section 3.3).

Owns reading and extending one PCR of the SHA-256 bank. Invariant: only PCRs 0 to 15 count, because
the others can be reset while the machine runs, and a register that can be reset proves nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sds.attestation.tpm import commands
from sds.attestation.tpm.attest import Bank
from sds.attestation.tpm.device import open_tpm
from sds.attestation.tpm.wire import Algorithm
from sds.errors import ConfigurationError, EvidenceError

if TYPE_CHECKING:
    from pathlib import Path

LAST_PCR: Final = 15
"""The last PCR that nothing resets before the next boot."""
ALGORITHM: Final = "sha256"


class PcrRegister:
    """A register of :mod:`sds.attestation.exchange_key`, through TPM commands. It blocks.

    Args:
        device: the TPM.
        pcr: a PCR from 0 to 15 that the boot chain leaves at zero.
    """

    algorithm = ALGORITHM

    def __init__(self, device: Path, pcr: int) -> None:
        self._device = device
        self._pcr = pcr

    def read(self) -> bytes:
        """Read the register's value now.

        Raises:
            ConfigurationError: ``runtime_register``: the TPM does not return it.
        """
        try:
            with open_tpm(self._device) as tpm:
                bank = Bank(algorithm=Algorithm.SHA256, pcrs=(self._pcr,))
                return commands.read_pcrs(tpm, bank)[self._pcr]
        except EvidenceError as error:
            raise self._failure("read", error) from error

    def extend(self, event: bytes) -> None:
        """Extend the register by one digest.

        Raises:
            ConfigurationError: ``runtime_register``: the TPM does not accept it.
        """
        try:
            with open_tpm(self._device) as tpm:
                commands.extend_pcr(tpm, self._pcr, event)
        except EvidenceError as error:
            raise self._failure("extended", error) from error

    def _failure(self, what: str, error: EvidenceError) -> ConfigurationError:
        return ConfigurationError(
            f"PCR {self._pcr} of {self._device} cannot be {what}: {error.message}",
            advice="check attestation.tpm_device; the TPM needs a bank of SHA-256",
            reason="runtime_register",
        )
