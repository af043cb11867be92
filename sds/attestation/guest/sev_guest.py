"""Evidence through ``/dev/sev-guest``, for kernels without configfs-tsm.

Owns the ioctl SNP_GET_EXT_REPORT (Linux, include/uapi/linux/sev-guest.h; AMD 56421, extended
guest request). Invariants: buffers outlive the call; the size of the certificates is bounded; the
answer contains the requested report data.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from sds import threads
from sds.attestation.attempts import attempted
from sds.attestation.guest.tsm import (
    ATTEMPTS,
    PAUSES,
    TsmReport,
    evidence_of,
)
from sds.attestation.snp.certificate_table import MAX_TABLE_BYTES
from sds.attestation.snp.report import REPORT_BYTES
from sds.errors import EvidenceError, EvidenceUnavailableError
from sds.untrusted_input import EXHAUSTED

if TYPE_CHECKING:
    from sds.attestation.evidence import Evidence, ReportData
    from sds.clock import Clock

DEVICE: Final = Path("/dev/sev-guest")
SNP_GET_EXT_REPORT: Final = 0xC0205302
"""_IOWR('S', 0x2, struct snp_guest_request_ioctl), of 32 bytes."""
# struct snp_guest_request_ioctl: msg_version, padding, req_data, resp_data, exitinfo2.
_REQUEST: Final = struct.Struct("<B7xQQQ")
# struct snp_ext_report_req: user_data, vmpl, reserved, certs_address, certs_len, padding.
_EXTENDED: Final = struct.Struct("<64sI28xQI4x")
_CERTS_LENGTH_OFFSET: Final = 104
_RESPONSE_BYTES: Final = 4000
# MSG_REPORT_RSP (56860, table 24): status, size, reserved, report.
_REPORT_OFFSET: Final = 32
_FIRST_TABLE_BYTES: Final = 16 * 1024
_VMM_INVALID_LENGTH: Final = 1
_VMM_BUSY: Final = 2
_PASSING: Final = EXHAUSTED | {errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT}


class Ioctl(Protocol):
    """The system call."""

    def __call__(self, descriptor: int, request: int, argument: bytearray) -> int:
        """Call ``fcntl.ioctl`` with a buffer that it changes."""
        ...


def system_ioctl(descriptor: int, request: int, argument: bytearray) -> int:
    """Call the kernel's ioctl."""
    result: int = fcntl.ioctl(descriptor, request, argument, True)  # noqa: FBT003  mutate_flag
    return result


class SevGuestAttester:
    """Collects evidence of an SEV-SNP guest through its device."""

    def __init__(
        self,
        clock: Clock,
        *,
        device: Path = DEVICE,
        privilege_level: int = 0,
        ioctl: Ioctl = system_ioctl,
    ) -> None:
        """Configure it; nothing is opened yet."""
        self._clock = clock
        self._device = device
        self._privilege_level = privilege_level
        self._ioctl = ioctl

    async def attest(self, data: ReportData) -> Evidence:
        """Collect evidence that contains ``data``; try again if the host throttles.

        Raises:
            EvidenceError: ``evidence_unsupported``: there is no such device, or it refuses the
                request.
            EvidenceUnavailableError: the host was busy at every attempt.
        """
        return await attempted(
            lambda: threads.EVIDENCE.run(self._attempt, data),
            most=ATTEMPTS,
            pauses=PAUSES,
            clock=self._clock,
        )

    def _attempt(self, data: ReportData) -> Evidence:
        try:
            descriptor = os.open(self._device, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in _PASSING:
                raise EvidenceUnavailableError(
                    f"{self._device} cannot be opened now: {error.strerror}"
                ) from error
            raise EvidenceError(
                f"{self._device} cannot be opened: {error.strerror}",
                advice="this needs an SEV-SNP guest, and the right to its device",
                reason="evidence_unsupported",
            ) from error
        try:
            report, table = self._extended_report(descriptor, data, _FIRST_TABLE_BYTES)
        finally:
            os.close(descriptor)
        return evidence_of(TsmReport(provider="sev_guest", outblob=report, auxblob=table), data)

    def _extended_report(
        self, descriptor: int, data: bytes, table_bytes: int
    ) -> tuple[bytes, bytes]:
        table = ctypes.create_string_buffer(table_bytes)
        extended = ctypes.create_string_buffer(
            _EXTENDED.pack(data, self._privilege_level, ctypes.addressof(table), table_bytes),
            _EXTENDED.size,
        )
        response = ctypes.create_string_buffer(_RESPONSE_BYTES)
        request = bytearray(
            _REQUEST.pack(1, ctypes.addressof(extended), ctypes.addressof(response), 0)
        )
        try:
            self._ioctl(descriptor, SNP_GET_EXT_REPORT, request)
        except OSError as error:
            firmware, host = struct.unpack_from("<II", request, 24)
            (needed,) = struct.unpack_from("<I", extended.raw, _CERTS_LENGTH_OFFSET)
            if host == _VMM_INVALID_LENGTH and table_bytes < needed <= MAX_TABLE_BYTES:
                return self._extended_report(descriptor, data, needed)
            message = f"SNP_GET_EXT_REPORT: {error.strerror}, firmware {firmware}, host {host}"
            if host == _VMM_BUSY or error.errno in _PASSING:
                raise EvidenceUnavailableError(message) from error
            raise EvidenceError(message, reason="evidence_unsupported") from error
        status, size = struct.unpack_from("<II", response.raw)
        if status or size != REPORT_BYTES:
            raise EvidenceError(
                f"the firmware answered with status {status} and a report of {size} bytes",
                reason="evidence_unsupported",
            )
        report = response.raw[_REPORT_OFFSET : _REPORT_OFFSET + REPORT_BYTES]
        # A host without certificates leaves the table unchanged, which is zeros.
        return report, table.raw if any(table.raw[:24]) else b""
