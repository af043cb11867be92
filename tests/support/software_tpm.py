"""A TPM in software (swtpm) in a process of its own, and what a platform's owner does to it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sds.attestation.tpm import commands
from sds.attestation.tpm.device import open_tpm
from sds.attestation.tpm.wire import Algorithm, sized
from tests.support import need

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sds.attestation.tpm.device import Tpm

AUTH_READ_WRITE = 0x0004_0004
"""TPMA_NV: AUTHWRITE and AUTHREAD."""
OWNER_READ_WRITE = 0x0002_0002
_START_SECONDS = 20.0


@contextlib.contextmanager
def software_tpm() -> Iterator[Path]:
    """The socket of a new TPM, started and empty."""
    program = need.tool("swtpm")
    folder = Path(tempfile.mkdtemp(prefix="tpm-"))
    path = folder / "tpm.sock"
    process = subprocess.Popen(
        [
            program,
            "socket",
            "--tpm2",
            f"--tpmstate=dir={folder}",
            f"--server=type=unixio,path={path}",
            f"--ctrl=type=unixio,path={folder}/ctrl.sock",
            "--flags=not-need-init,startup-clear",
            "--seccomp=action=none",
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + _START_SECONDS
        while not _listens(path):
            assert process.poll() is None, "swtpm ended"
            assert time.monotonic() < until, "swtpm does not listen"
            time.sleep(0.01)
        yield path
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder)


def _listens(path: Path) -> bool:
    # It serves one connection after the other, and ends none of its own accord.
    try:
        with socket.socket(socket.AF_UNIX) as found:
            found.connect(str(path))
    except OSError:
        return False
    return True


def define(tpm: Tpm, index: int, contents: bytes, *, attributes: int = AUTH_READ_WRITE) -> None:
    """TPM2_NV_DefineSpace by the owner, and TPM2_NV_Write."""
    public = struct.pack(">IHI", index, Algorithm.SHA256, attributes) + sized(b"")
    public += struct.pack(">H", len(contents))
    tpm.execute(
        0x12A,
        handles=(commands.OWNER,),
        authorizations=(None,),
        parameters=sized(b"") + sized(public),
    )
    write(tpm, index, contents, attributes=attributes)


def write(tpm: Tpm, index: int, contents: bytes, *, attributes: int = AUTH_READ_WRITE) -> None:
    """TPM2_NV_Write of all of an index."""
    authority = commands.OWNER if attributes & 2 else index
    for offset in range(0, len(contents), 512):
        tpm.execute(
            0x137,
            handles=(authority, index),
            authorizations=(None,),
            parameters=sized(contents[offset : offset + 512]) + struct.pack(">H", offset),
        )


def persist(tpm: Tpm, handle: int, at: int) -> None:
    """TPM2_EvictControl: keep a transient key at a persistent handle."""
    tpm.execute(
        0x120,
        handles=(commands.OWNER, handle),
        authorizations=(None,),
        parameters=struct.pack(">I", at),
    )


def extend(tpm: Tpm, pcr: int, digest: bytes) -> None:
    """TPM2_PCR_Extend of the SHA-256 bank."""
    tpm.execute(
        0x182,
        handles=(pcr,),
        authorizations=(None,),
        parameters=struct.pack(">IH", 1, Algorithm.SHA256) + digest,
    )


__all__ = ["define", "extend", "open_tpm", "persist", "software_tpm", "write"]
