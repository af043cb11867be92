"""Sends commands to a TPM, in the frame that they all share (TCG Part 1, section 18).

Owns one open connection: the kernel's resource manager (``/dev/tpmrm0``), or the socket of a TPM
in software (swtpm). It blocks, so callers use a thread. Invariants: sizes and times are bounded; an
answer counts only if its header is right; our transient objects are flushed at the end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, Self

from sds.attestation.tpm.wire import TpmReader, sized
from sds.errors import EvidenceError, EvidenceUnavailableError
from sds.untrusted_input import EXHAUSTED

RESOURCE_MANAGER: Final = Path("/dev/tpmrm0")
"""The device that is used if the configuration names none."""
_HEADER: Final = struct.Struct(">HII")
_NO_SESSIONS: Final = 0x8001
_SESSIONS: Final = 0x8002
_PASSWORD: Final = 0x4000_0009  # TPM_RS_PW
_CONTINUE: Final = b"\1"
_FLUSH_CONTEXT: Final = 0x165
_SUCCESS: Final = 0
_MAX_ANSWER: Final = 8192
_TIMEOUT_SECONDS: Final = 30.0
# TPM_RC (Part 2, section 6.6.3): warnings that pass by themselves.
_PASSING: Final = frozenset(
    {0x901, 0x902, 0x903, 0x904, 0x905, 0x906, 0x907, 0x908, 0x909, 0x90A, 0x920, 0x922, 0x923}
)
_RESUBMIT: Final = frozenset({0x908, 0x90A, 0x922})
"""YIELDED, TESTING, RETRY: the command was not started and must be sent again unchanged."""
_RESUBMISSIONS: Final = 10
_FIRST_PAUSE_SECONDS: Final = 0.005
_PASSING_ERRORS: Final = EXHAUSTED | {errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT}


class TpmTransport(Protocol):
    """Carries one command to a TPM, and its answer back."""

    def transmit(self, command: bytes) -> bytes:
        """Send a whole command, and return the whole answer.

        Raises:
            OSError: the TPM cannot be reached any more.
        """
        ...

    def close(self) -> None:
        """End the connection."""
        ...


class _File:
    """A character device, where one write is one command and one read is one answer."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def transmit(self, command: bytes) -> bytes:
        if os.write(self._descriptor, command) != len(command):
            raise OSError(errno.EIO, "a command was not taken as a whole")
        return os.read(self._descriptor, _MAX_ANSWER)

    def close(self) -> None:
        os.close(self._descriptor)


class _Socket:
    """The Unix socket of a TPM in software, where the header says how long an answer is."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(_TIMEOUT_SECONDS)
            self._socket.connect(str(path))
        except BaseException:
            self._socket.close()
            raise

    def transmit(self, command: bytes) -> bytes:
        until = time.monotonic() + _TIMEOUT_SECONDS
        self._socket.settimeout(_TIMEOUT_SECONDS)
        self._socket.sendall(command)
        answer = b""
        wanted = _HEADER.size
        while len(answer) < wanted:
            # For the whole answer, which may come byte by byte.
            self._socket.settimeout(max(0.001, until - time.monotonic()))
            block = self._socket.recv(_MAX_ANSWER)
            answer += block
            if not block or len(answer) > _MAX_ANSWER:
                raise OSError(errno.EIO, "the answer is cut short, or too long")
            if len(answer) >= _HEADER.size:
                wanted = _HEADER.unpack_from(answer)[1]
        return answer

    def close(self) -> None:
        self._socket.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmAnswer:
    """The answer to a command.

    Attributes:
        handle: the handle that it made, or None.
        parameters: reads the rest; each command knows its layout.
    """

    handle: int | None
    parameters: TpmReader


@dataclass(frozen=True, slots=True)
class PolicySession:
    """A policy session that authorizes a handle, in place of an empty password."""

    session: int


class Tpm:
    """An open TPM, over what carries commands to it."""

    def __init__(self, transport: TpmTransport) -> None:
        self._transport = transport
        self._ours: list[int] = []

    def __enter__(self) -> Self:  # noqa: D105
        return self

    def __exit__(self, *_: object) -> None:  # noqa: D105
        # The resource manager flushes them itself; a TPM behind a socket does not.
        while self._ours:
            with contextlib.suppress(EvidenceError):
                self.flush(self._ours[-1])
        with contextlib.suppress(OSError):
            self._transport.close()

    def keep(self, handle: int) -> int:
        """Note a transient handle to flush at the end, and return it."""
        self._ours.append(handle)
        return handle

    def flush(self, handle: int) -> None:
        """Run TPM2_FlushContext on one of our handles (Part 3, section 28.4)."""
        self._ours.remove(handle)
        self.execute(_FLUSH_CONTEXT, parameters=struct.pack(">I", handle))

    def execute(
        self,
        code: int,
        *,
        handles: tuple[int, ...] = (),
        authorizations: tuple[PolicySession | None, ...] = (),
        parameters: bytes = b"",
        makes_handle: bool = False,
    ) -> TpmAnswer:
        """Run one command.

        Args:
            code: the TPM_CC.
            handles: the handles, those with an authorization first.
            authorizations: one for each of those; None is an empty password.
            parameters: the parameters, marshalled.
            makes_handle: whether the answer begins with a handle.

        Raises:
            EvidenceError: ``tpm_refused``: the TPM refuses the command.
            EvidenceUnavailableError: the TPM is busy, or does not answer.
        """
        body = b"".join(struct.pack(">I", handle) for handle in handles)
        if authorizations:
            area = b"".join(map(_authorization, authorizations))
            body += struct.pack(">I", len(area)) + area
        body += parameters
        tag = _SESSIONS if authorizations else _NO_SESSIONS
        command = _HEADER.pack(tag, _HEADER.size + len(body), code) + body
        pause = _FIRST_PAUSE_SECONDS
        for _ in range(_RESUBMISSIONS):
            raw = self._transmit(command, code)
            if _result(raw, code) not in _RESUBMIT:
                break
            time.sleep(pause)
            pause *= 2
        return _answer(raw, code, makes_handle=makes_handle)

    def _transmit(self, command: bytes, code: int) -> bytes:
        try:
            return self._transport.transmit(command)
        except OSError as error:
            raise EvidenceUnavailableError(
                f"the TPM does not answer command {code:#x}: {error.strerror or error}"
            ) from error


def _authorization(policy: PolicySession | None) -> bytes:
    # TPMS_AUTH_COMMAND (Part 2, section 10.13.2): session, nonce, attributes, password or HMAC.
    handle = _PASSWORD if policy is None else policy.session
    return struct.pack(">I", handle) + sized(b"") + _CONTINUE + sized(b"")


def _result(raw: bytes, code: int) -> int:
    if len(raw) < _HEADER.size or _HEADER.unpack_from(raw)[1] != len(raw):
        raise EvidenceUnavailableError(
            f"the TPM's answer to command {code:#x} is not as long as it says"
        )
    found: int = _HEADER.unpack_from(raw)[2]
    return found


def _answer(raw: bytes, code: int, *, makes_handle: bool) -> TpmAnswer:
    tag, result = _HEADER.unpack_from(raw)[0], _result(raw, code)
    if result != _SUCCESS:
        message = f"the TPM refuses command {code:#x} with response code {result:#x}"
        if result in _PASSING:
            raise EvidenceUnavailableError(message)
        raise EvidenceError(
            message,
            reason="tpm_refused",
            advice="`tpm2_rc_decode` of tpm2-tools says what the code means",
        )
    reader = TpmReader(raw[_HEADER.size :], what=f"the TPM's answer to command {code:#x}")
    handle = reader.number(4) if makes_handle else None
    if tag == _SESSIONS:
        parameters = reader.take(reader.number(4))
        reader = TpmReader(parameters, what=f"the TPM's answer to command {code:#x}")
    return TpmAnswer(handle=handle, parameters=reader)


def open_tpm(path: Path) -> Tpm:
    """Open the TPM at a device file, or at a Unix socket.

    Raises:
        EvidenceError: ``evidence_unsupported``: there is none, or this user may not open it.
        EvidenceUnavailableError: another process uses it now.
    """
    try:
        kind = path.stat().st_mode
        if stat.S_ISSOCK(kind):
            return Tpm(_Socket(path))
        if stat.S_ISCHR(kind):
            return Tpm(_File(os.open(path, os.O_RDWR | os.O_CLOEXEC)))
    except OSError as error:
        if error.errno in _PASSING_ERRORS:
            raise EvidenceUnavailableError(f"{path}: {error.strerror}") from error
        raise EvidenceError(
            f"the TPM at {path} cannot be opened: {error.strerror or error}",
            reason="evidence_unsupported",
            advice="name an existing device, and let this user read and write it (group tss)",
        ) from error
    raise EvidenceError(
        f"{path} is neither a device nor a socket",
        reason="evidence_unsupported",
        advice="give /dev/tpmrm0, or the socket of a TPM in software",
    )
