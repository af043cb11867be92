"""A real file system that behaves as configfs-tsm: ``python -m tests.support.tsm_file_system DIR``.

``mkdir`` makes a report's attributes; ``inblob`` and ``privlevel`` are handed over at close, where
errors come; every such write raises ``generation``; reading ``outblob`` makes a report for the
blob that stands there then. Behaviour is told by a line of JSON on standard input, answered by a
line once it is in force:
``{"machine": hex, "race": n, "busy": n, "throttle": n, "certificates": true, "tdx": hex}``;
``"platform"`` (``Intel.platform``) makes a quote of each blob, as ``"machine"`` makes a report.
"""

from __future__ import annotations

import errno
import json
import stat
import sys
import threading
import time
from typing import Any

import mfusepy as fuse

from sds.attestation.snp.certificate_table import ARK, ASK, VCEK
from sds.attestation.snp.simulated import SimulatedMachine
from tests.support.certificate_table import build_certificate_table
from tests.support.intel import Intel
from tests.support.tdx_guest import REPORT_DATA_OFFSET

WRITABLE = {"inblob", "privlevel"}
TCB_SVN = bytes([5, 1] + [5] * 14)
"""Of a TD under the module TDX_01."""
READABLE = {"outblob", "auxblob", "provider", "generation", "privlevel_floor"}


class Report:
    """One directory."""

    def __init__(self) -> None:
        self.inblob: bytes | None = None
        self.generation = 0
        self.pending: dict[str, bytes] = {}


class TsmFileSystem(fuse.Operations):  # type: ignore[misc]  # the library has no types
    """The directory ``/sys/kernel/config/tsm/report``."""

    use_ns = True

    def __init__(self) -> None:
        self.machine: SimulatedMachine | None = None
        self.platform: Intel | None = None
        self.behaviour: dict[str, Any] = {}
        self.reports: dict[str, Report] = {}
        self.guard = threading.RLock()

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        now = int(time.time() * 1e9)
        times = {"st_ctime": now, "st_mtime": now, "st_atime": now}
        parts = path.strip("/").split("/") if path != "/" else []
        with self.guard:
            if not parts or (len(parts) == 1 and parts[0] in self.reports):
                return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2, **times}
            if len(parts) == 2 and parts[0] in self.reports:
                if parts[1] in WRITABLE:
                    return {"st_mode": stat.S_IFREG | 0o200, "st_nlink": 1, "st_size": 0, **times}
                if parts[1] in READABLE:
                    return {"st_mode": stat.S_IFREG | 0o444, "st_nlink": 1, "st_size": 0, **times}
        raise fuse.FuseOSError(errno.ENOENT)

    def readdir(self, path: str, fh: int) -> list[str]:
        with self.guard:
            names = list(self.reports) if path == "/" else sorted(WRITABLE | READABLE)
        return [".", "..", *names]

    def mkdir(self, path: str, mode: int) -> int:
        with self.guard:
            name = path.strip("/")
            if name in self.reports:
                raise fuse.FuseOSError(errno.EEXIST)
            if self.behaviour.get("driverless"):
                raise fuse.FuseOSError(errno.ENXIO)
            self.reports[name] = Report()
        return 0

    def rmdir(self, path: str) -> int:
        with self.guard:
            if self.reports.pop(path.strip("/"), None) is None:
                raise fuse.FuseOSError(errno.ENOENT)
        return 0

    def open(self, path: str, flags: int) -> int:
        return 0

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        return 0

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        name, attribute = path.strip("/").split("/")
        if attribute not in WRITABLE:
            raise fuse.FuseOSError(errno.EACCES)
        with self.guard:
            report = self.reports[name]
            report.pending[attribute] = report.pending.get(attribute, b"")[:offset] + data
        return len(data)

    def flush(self, path: str, fh: int) -> int:
        """What close(2) waits for: the driver takes the blob, or refuses it."""
        name, attribute = path.strip("/").split("/")
        with self.guard:
            report = self.reports.get(name)
            if report is None or attribute not in report.pending:
                return 0
            content = report.pending.pop(attribute)
            if self._spend("busy"):
                raise fuse.FuseOSError(errno.EBUSY)
            if attribute == "inblob":
                if not 32 <= len(content) <= 64:
                    raise fuse.FuseOSError(errno.EINVAL)
                report.inblob = content
            report.generation += 1
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        name, attribute = path.strip("/").split("/")
        with self.guard:
            content = self._content(self.reports[name], attribute)
        return content[offset : offset + size]

    def _content(self, report: Report, attribute: str) -> bytes:
        if attribute == "generation":
            return f"{report.generation}\n".encode()
        if attribute == "privlevel_floor":
            return b"0\n"
        if attribute == "provider":
            tdx = self.platform is not None or self.behaviour.get("tdx")
            return b"tdx_guest\n" if tdx else b"sev_guest\n"
        if attribute == "auxblob":
            return self._certificates()
        if report.inblob is None:
            raise fuse.FuseOSError(errno.EINVAL)
        if self._spend("throttle"):
            raise fuse.FuseOSError(errno.ETIMEDOUT)
        if self._spend("race"):
            # A second writer came between our write and our read.
            report.inblob = b"\xee" * 64
            report.generation += 1
        if quote := self.behaviour.get("tdx"):
            return bytes.fromhex(quote)
        return self._cached(report.inblob.ljust(64, b"\0"))

    def _cached(self, data: bytes) -> bytes:
        # A file is read in several pieces: they must be of one report.
        if self.behaviour.get("last") != data.hex():
            self.behaviour["last"] = data.hex()
            self.behaviour["report"] = self._made(data).hex()
        return bytes.fromhex(self.behaviour["report"])

    def _made(self, data: bytes) -> bytes:
        if self.platform is not None:
            return self.platform.quote(tee_tcb_svn=TCB_SVN, fields={REPORT_DATA_OFFSET: data})
        assert self.machine is not None
        return self.machine.report(data)

    def _certificates(self) -> bytes:
        if not self.behaviour.get("certificates"):
            raise fuse.FuseOSError(errno.ENXIO)
        assert self.machine is not None
        leaf, ask, ark = self.machine.certificates
        return build_certificate_table({ARK: ark, ASK: ask, VCEK: leaf})

    def _spend(self, name: str) -> bool:
        left = int(self.behaviour.get(name, 0))
        self.behaviour[name] = max(0, left - 1)
        return left > 0

    def listen(self) -> None:
        for line in sys.stdin:
            told = json.loads(line)
            with self.guard:
                if "machine" in told:
                    self.machine = SimulatedMachine.from_bytes(bytes.fromhex(told.pop("machine")))
                if "platform" in told:
                    self.platform = Intel.of_platform(told.pop("platform"))
                self.behaviour = told
            print(json.dumps({"left": len(self.reports)}), flush=True)


def main() -> None:
    system = TsmFileSystem()
    threading.Thread(target=system.listen, daemon=True).start()
    fuse.FUSE(
        system,
        sys.argv[1],
        foreground=True,
        nothreads=False,
        direct_io=True,
        attr_timeout=0,
        entry_timeout=0,
        negative_timeout=0,
        default_permissions=False,
    )


if __name__ == "__main__":
    main()
