"""A TDX guest with runtime registers, and a service manager that keeps descriptors.

The register follows the kernel (drivers/virt/coco/guest/tsm-mr.c): a write of one digest extends it
(``RTMR = SHA384(RTMR || digest)``), any other length is EINVAL, and it starts as zeros at boot. The
service manager follows sd_notify(3): it takes descriptors with ``FDSTORE=1`` and closes those of
``BARRIER=1``.
"""

from __future__ import annotations

import array
import errno
import hashlib
import os
import socket
import threading
from typing import TYPE_CHECKING

from sds.attestation.evidence import Evidence, EvidenceKind, ReportData

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.intel import Intel

RTMR3_OFFSET, REPORT_DATA_OFFSET = 472, 520


class SimulatedRegister:
    """RTMR3 of one boot."""

    algorithm = "sha384"

    def __init__(self) -> None:
        self.value = bytes(48)

    def read(self) -> bytes:
        return self.value

    def extend(self, event: bytes) -> None:
        if len(event) != len(self.value):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.value = hashlib.sha384(self.value + event).digest()


class TdxGuest:
    """Gives a quote to whoever asks, as configfs-tsm does."""

    def __init__(self, intel: Intel, register: SimulatedRegister) -> None:
        self._intel = intel
        self._register = register

    async def attest(self, data: ReportData) -> Evidence:
        fields = {RTMR3_OFFSET: self._register.read(), REPORT_DATA_OFFSET: data}
        quote = self._intel.quote(tee_tcb_svn=bytes([5, 1] + [5] * 14), fields=fields)
        return Evidence(kind=EvidenceKind.TDX, report=quote)


class ServiceManager:
    """Listens on a notification socket and keeps what it is given, until it is closed."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "notify")
        self.kept: list[tuple[str, int]] = []
        self.states: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def environment(self, pid: int | str = "") -> dict[str, str]:
        """What a service is started with; with ``pid``, the kept descriptors begin at 3."""
        found = {"NOTIFY_SOCKET": self.address}
        if self.kept and pid:
            found["LISTEN_PID"] = str(pid)
            found["LISTEN_FDS"] = str(len(self.kept))
            found["LISTEN_FDNAMES"] = ":".join(name for name, _ in self.kept)
        return found

    def _listen(self) -> None:
        while True:
            size = socket.CMSG_SPACE(4 * 8)
            message, ancillary, _, _ = self._socket.recvmsg(4096, size, socket.MSG_CMSG_CLOEXEC)
            descriptors = array.array("i")
            for _, _, content in ancillary:
                descriptors.frombytes(content[: len(content) - len(content) % 4])
            lines = dict(line.split("=", 1) for line in message.decode().splitlines())
            if lines.get("FDSTORE") == "1":
                self.kept += [(lines.get("FDNAME", "stored"), one) for one in descriptors]
                continue
            self.states.append(message.decode())
            for one in descriptors:
                os.close(one)
            if "QUIT" in lines:
                return

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"QUIT=1", self.address)
        self._thread.join()
        self._socket.close()
        for _, descriptor in self.kept:
            os.close(descriptor)
