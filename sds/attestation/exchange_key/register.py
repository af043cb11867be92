"""A runtime register of the guest, through the kernel's files (Linux 6.16).

Owns reading and extending one register. Source: Documentation/ABI/testing/
sysfs-devices-virtual-misc-tdx_guest and drivers/virt/coco/guest/tsm-mr.c: reading gives the
register's value; a write of exactly one digest extends it (TDG.MR.RTMR.EXTEND), and any other
length is EINVAL. The name ends with the algorithm: ``rtmr3:sha384``.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

from sds.errors import ConfigurationError

RTMR3: Final = Path("/sys/class/misc/tdx_guest/measurements/rtmr3:sha384")
"""RTMR3 of a TDX guest, which firmware and boot loader leave alone."""


class MeasurementRegister:
    """A register behind its file.

    Args:
        path: the file; its name ends with a colon and the algorithm.

    Raises:
        ConfigurationError: the name has no known algorithm.
    """

    def __init__(self, path: Path = RTMR3) -> None:
        self._path = path
        name, _, self.algorithm = path.name.rpartition(":")
        if not name or self.algorithm not in {"sha256", "sha384", "sha512"}:
            raise ConfigurationError(
                f"attestation.exchange_key: {path} does not end with its algorithm",
                advice=f"name a register as the kernel does, such as {RTMR3}",
            )
        self._size = hashlib.new(self.algorithm).digest_size

    def read(self) -> bytes:
        """Read the register's value now.

        Raises:
            ConfigurationError: ``runtime_register``: there is no such register, or it cannot be
                read.
        """
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                value = os.read(descriptor, self._size + 1)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._failure("read", error) from error
        if len(value) != self._size:
            raise ConfigurationError(
                f"the register {self._path} has {len(value)} bytes, not {self._size}",
                reason="runtime_register",
            )
        return value

    def extend(self, event: bytes) -> None:
        """Extend the register by one digest, which stays until the machine starts again.

        Raises:
            ConfigurationError: ``runtime_register``: it cannot be written.
        """
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                # One write: the kernel takes a digest as a whole.
                os.write(descriptor, event)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._failure("extended", error) from error

    def _failure(self, what: str, error: OSError) -> ConfigurationError:
        return ConfigurationError(
            f"the register {self._path} cannot be {what}: {error.strerror}",
            advice="run as root in a TDX guest with Linux 6.16 or later; SEV-SNP has no runtime "
            "register, so leave attestation.exchange_key out there",
            reason="runtime_register",
        )
