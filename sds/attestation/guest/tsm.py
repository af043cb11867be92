"""Evidence through configfs-tsm (Linux, Documentation/ABI/testing/configfs-tsm-report).

Owns one attempt at a report: a directory of our own, the blob written, ``generation`` checked
around every read, and the directory removed. Invariants: the answer contains the requested report
data, even if others write there too; nothing blocks the event loop; the number of attempts is
bounded.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sds import threads
from sds.attestation.attempts import attempted
from sds.attestation.evidence import Evidence, EvidenceKind
from sds.attestation.registry import KINDS, kind_module
from sds.backoff import Backoff
from sds.errors import EvidenceError, EvidenceUnavailableError
from sds.files import is_folder
from sds.untrusted_input import EXHAUSTED

if TYPE_CHECKING:
    from sds.attestation.evidence import ReportData
    from sds.clock import Clock

TSM_REPORTS: Final = Path("/sys/kernel/config/tsm/report")
IN_A_CONTAINER: Final = Path("/run/tsm-reports")
"""Where a container has that directory (deploy/overlays).

A container has a sysfs of its own, without configfs: nothing can be mounted that deep in it. Where
nodes have AppArmor, the runtime's profile denies every write below /sys as well (containerd,
``contrib/apparmor/template.go``).
"""
_MAX_BLOB_BYTES: Final = 1024 * 1024
# EBUSY and EAGAIN: another request is in flight; ETIMEDOUT and EIO: the host throttles.
_PASSING: Final = frozenset(
    {errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.EIO, errno.EWOULDBLOCK}
    | EXHAUSTED
)
ATTEMPTS: Final = 8
PAUSES: Final = Backoff(first=0.1, longest=4.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TsmReport:
    """The answer in one directory.

    Attributes:
        provider: the driver, such as ``sev_guest``.
        outblob: report or quote.
        auxblob: the host's certificates; empty if there are none.
    """

    provider: str
    outblob: bytes = field(repr=False)
    auxblob: bytes = field(repr=False)


class TsmAttester:
    """Collects evidence of this guest, SEV-SNP or TDX, through the kernel's common interface."""

    def __init__(
        self, clock: Clock, *, reports: Path = TSM_REPORTS, privilege_level: int | None = None
    ) -> None:
        """Configure it; nothing is touched yet.

        Args:
            clock: makes the pauses between attempts.
            reports: the directory of reports.
            privilege_level: the VMPL to ask for; None means the driver's default.
        """
        self._clock = clock
        self._reports = reports
        self._privilege_level = privilege_level

    async def attest(self, data: ReportData) -> Evidence:
        """Collect evidence that contains ``data``; try again if the failure can pass.

        Raises:
            EvidenceError: ``evidence_unsupported``: there is no such interface, or an unknown
                provider.
            EvidenceUnavailableError: the interface was busy, throttled or disturbed at every
                attempt.
        """
        return await attempted(
            lambda: self._attempt(data), most=ATTEMPTS, pauses=PAUSES, clock=self._clock
        )

    async def _attempt(self, data: ReportData) -> Evidence:
        report = await threads.EVIDENCE.run(read_report, self._reports, data, self._privilege_level)
        return evidence_of(report, data)


def directory_of_reports(usual: Path = TSM_REPORTS, in_container: Path = IN_A_CONTAINER) -> Path:
    """Return configfs-tsm's directory, or where a container has it."""
    return in_container if not is_folder(usual) and is_folder(in_container) else usual


def has_provider(reports: Path) -> bool:
    """Say whether a driver gives reports here. It blocks.

    The directory exists as soon as the kernel's core is loaded. Without a driver, no directory can
    be made in it (ENXIO, ``tsm_report_make_item``), and there is no other sign. If another error
    prevents us from making one, that is no answer: the first request reports it.
    """
    folder = reports / f"sds-{os.getpid()}-{secrets.token_hex(8)}"
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        return error.errno not in {errno.ENXIO, errno.ENOENT, errno.ENOTDIR}
    with contextlib.suppress(OSError):
        folder.rmdir()
    return True


def read_report(reports: Path, data: bytes, privilege_level: int | None) -> TsmReport:
    """Make one attempt in a directory of its own. It blocks.

    Raises:
        EvidenceError: ``evidence_unsupported``: there is no such interface here, or it refuses what
            we write.
        EvidenceUnavailableError: it is busy, or another process wrote into our directory.
    """
    folder = reports / f"sds-{os.getpid()}-{secrets.token_hex(8)}"
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise _failure(error, f"{folder.parent} takes no directory") from error
    try:
        return _exchange(folder, data, privilege_level)
    except OSError as error:
        raise _failure(error, f"{error.filename or folder} does not answer") from error
    finally:
        # The kernel removes the attributes with the directory.
        with contextlib.suppress(OSError):
            folder.rmdir()


def _exchange(folder: Path, data: bytes, privilege_level: int | None) -> TsmReport:
    writes = 0
    if privilege_level is not None:
        _write(folder / "privlevel", str(privilege_level).encode())
        writes += 1
    _write(folder / "inblob", data)
    writes += 1
    before = _generation(folder)
    outblob = _read(folder / "outblob")
    provider = _read(folder / "provider").decode("ascii", "replace").strip()
    auxblob = _optional(folder / "auxblob")
    after = _generation(folder)
    # Every write of an attribute raises it by one, from zero; we count our own writes.
    if before != writes or after != writes:
        raise EvidenceUnavailableError(
            f"another process wrote to {folder}: generation {before}, then {after}, "
            f"after {writes} writes of ours"
        )
    return TsmReport(provider=provider, outblob=outblob, auxblob=auxblob)


def evidence_of(report: TsmReport, data: bytes) -> Evidence:
    """Return the evidence in a report, once it is known to be the requested one.

    Raises:
        EvidenceError: ``evidence_unsupported``: the provider is unknown.
        EvidenceUnavailableError: it contains other report data, or it cannot be parsed.
    """
    providers = {one.provider: name for name, one in KINDS.items() if one.provider}
    kind = providers.get(report.provider)
    if kind is None:
        raise EvidenceError(
            f"the TSM provider {report.provider[:64]!r} is not known here",
            advice=f"known are {', '.join(map(str, providers))}",
            reason="evidence_unsupported",
        )
    read = kind_module(kind).contained
    assert read is not None  # a kind with a provider has one
    try:
        contained, chain = read(report.outblob, report.auxblob)
    except EvidenceError as error:
        raise EvidenceUnavailableError(f"the kernel's answer is malformed: {error}") from error
    if contained != data:
        raise EvidenceUnavailableError("the kernel's answer is for another request")
    return Evidence(kind=EvidenceKind(kind), report=report.outblob, certificates=chain)


def _write(path: Path, content: bytes) -> None:
    # One write: the kernel hands a binary attribute to the driver at close, which reports errors.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        written = os.write(descriptor, content)
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    if written != len(content):
        raise OSError(errno.EIO, "short write", str(path))


def _read(path: Path) -> bytes:
    with path.open("rb", buffering=0) as file:
        content = b""
        while block := file.read(65_536):
            content += block
            if len(content) > _MAX_BLOB_BYTES:
                raise OSError(errno.EFBIG, "a blob above 1 MiB", str(path))
        return content


def _optional(path: Path) -> bytes:
    """Read a blob that older kernels do not have and that hosts may leave empty."""
    try:
        return _read(path)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENXIO, errno.EOPNOTSUPP}:
            return b""
        raise


def _generation(folder: Path) -> int:
    text = _read(folder / "generation").strip()
    if not text.isdigit():
        raise OSError(errno.EIO, "generation is not a number", str(folder / "generation"))
    return int(text)


def _failure(error: OSError, what: str) -> EvidenceError:
    message = f"{what}: {error.strerror or error}"
    if error.errno in _PASSING:
        return EvidenceUnavailableError(message)
    return EvidenceError(
        message,
        advice="this needs a confidential guest with configfs-tsm (Linux 6.7 or later), mounted "
        "and writable",
        reason="evidence_unsupported",
    )
