"""The looker: a small process that opens what callers execute, so that the agent never does.

This file runs as a program of its own (``python -I -S looker.py``, standard library only, an empty
environment); :mod:`sds.workload.executables` starts it, talks to it and kills it. So a file system
that hangs or lies harms only the looker: a thread in a hung file system cannot be ended, but a
process can be killed.

It reads JSON objects from its standard input, one on each line, and answers each with one line:

``{"pid": 7, "most": 536870912, "mounts": 65536, "digest": null}``
    → ``{"path": …, "fingerprint": […]}``: the file that process 7 executes, and its identity.
``{"pid": 7, "most": …, "mounts": …, "digest": [fingerprint]}``
    → the same and ``"sha256"``, if the file has that fingerprint before and after hashing.
Both → ``{"far": true}`` if the file's mount is not among the first ``mounts`` bytes of a list.
Failures: ``{"gone": true}``, or ``{"error": "text"}``, sometimes with ``"advice"``; and with
``"never": true`` if such a file is never read, so it is not one that was read before.

Invariants: a file is opened for reading only if its mount is known not to be FUSE; no file larger
than ``most`` is read, and of a list of mounts little more than ``mounts``; the hashed file is the
one that the process runs, not the one that has its path now.

Sources: proc(5) for ``exe``, ``fdinfo`` and ``mountinfo``; open(2) for O_PATH.
"""

# ruff: noqa: PTH115, PTH123  pathlib would double the time that this program takes to start
from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from io import FileIO

_DELETED: Final = " (deleted)"
_CHUNK_BYTES: Final = 1 << 20
MOST_MOUNTS_BYTES: Final = 4 << 20
"""The longest mountinfo; a user with its own mount namespace can mount 100,000 times."""
NEAR_MOUNTS_BYTES: Final = 64 << 10
"""Where the mounts of nearly all executables are: mountinfo has the oldest ones first. To read
4 MiB of it takes a tenth of a second."""
_FORGEABLE: Final = frozenset({"fuse", "fuseblk", "virtiofs"})
"""Kinds of file systems; a program may add a name of its own behind a dot."""
_FORGED: Final = "its user may serve it, and show us other content than the kernel"


class _UnreadableError(Exception):
    """Nothing can be said about this executable; has the reason and an advice.

    Attributes:
        never: whether such a file is never read, whenever we look.
    """

    never = True

    def __init__(self, why: str, advice: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.advice = advice


class _FarError(Exception):
    """The mount is farther down the list than this request may read."""


class _ChangedError(_UnreadableError):
    """Something changed during the look; another look may succeed."""

    never = False


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Answer one request."""
    pid, most, wanted = request["pid"], request["most"], request["digest"]
    mounts = request["mounts"]
    try:
        path = os.readlink(f"/proc/{pid}/exe")
        handle = os.open(f"/proc/{pid}/exe", os.O_PATH | os.O_CLOEXEC)
        try:
            if os.readlink(f"/proc/{pid}/exe") != path:
                raise _ChangedError("its process executed another file meanwhile")
            _check_mount(pid, handle, mounts)
            # Open the same file again for reading, and never another one that has its path.
            file = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(handle)
        with os.fdopen(file, "rb", buffering=0) as opened:
            return _look(opened, path, most, wanted)
    except (FileNotFoundError, ProcessLookupError):
        return {"gone": True}
    except _FarError:
        return {"far": True}
    except _UnreadableError as error:
        return {"error": error.why, "advice": error.advice, "never": error.never}
    except OSError as error:
        return {
            "error": f"it cannot be read: {error.strerror}",
            "advice": "give the agent CAP_SYS_PTRACE, or write no rule on unix:path, unix:sha256",
        }


def _look(opened: FileIO, path: str, most: int, wanted: list[int] | None) -> dict[str, Any]:
    found = os.fstat(opened.fileno())
    if not stat.S_ISREG(found.st_mode):
        raise _UnreadableError("it is not an ordinary file")
    if found.st_size > most:
        raise _UnreadableError(
            f"it has {found.st_size} bytes, more than {most}",
            "raise node.largest_executable, or write no rule on its content",
        )
    # The file was replaced while it runs, as upgrades do, but it was started from there.
    said: dict[str, Any] = {
        "path": _shown(path.removesuffix(_DELETED)),
        "fingerprint": _fingerprint(found),
    }
    if wanted is not None:
        if said["fingerprint"] != wanted:
            raise _ChangedError("it changed while the agent looked at it")
        said["sha256"] = _sha256(opened, most)
        if _fingerprint(os.fstat(opened.fileno())) != wanted:
            raise _ChangedError("it changed while it was read")
    return said


def _shown(path: str) -> str:
    """Return a path as text; bytes that are not UTF-8 (a file's name may have any) are replaced."""
    return os.fsencode(path).decode("utf-8", "replace")


def _sha256(opened: FileIO, most: int) -> str:
    digest = hashlib.sha256()
    left = most
    while chunk := opened.read(min(_CHUNK_BYTES, left + 1)):
        left -= len(chunk)
        if left < 0:
            raise _ChangedError("it grew while it was read")
        digest.update(chunk)
    return digest.hexdigest()


def _fingerprint(found: os.stat_result) -> list[int]:
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _check_mount(pid: int, handle: int, most: int) -> None:
    """Refuse file systems whose content their own user can forge, without accessing them."""
    mount = _line(f"/proc/self/fdinfo/{handle}", "mnt_id:")
    # Look at the process's own mounts, then at ours (it may be in a chroot), then at the node's.
    for whose in (pid, "self", 1):
        kind = _kind_of_mount(whose, mount, most)
        if kind is not None:
            break
    else:
        raise _UnreadableError(
            "the agent cannot see its mount", "run it from an ordinary file system"
        )
    if kind.partition(".")[0] in _FORGEABLE:
        raise _UnreadableError(
            f"it is on a FUSE file system ({kind}): {_FORGED}", "run it elsewhere"
        )
    if kind == "overlay" and _user_namespace(pid) != _user_namespace("self"):
        raise _UnreadableError(
            f"it is on an overlay and its process has a user namespace of its own: {_FORGED}",
            "write no rule on executables for such processes",
        )


def _kind_of_mount(whose: int | str, mount: bytes, most: int) -> str | None:
    begins, read = mount + b" ", 0
    try:
        with open(f"/proc/{whose}/mountinfo", "rb") as file:
            for line in file:
                if line.startswith(begins):
                    # The kernel escapes only spaces, tabs and line feeds in names, so a user who
                    # may mount can put any other white space into a directory's name.
                    fields = line.split(b" ")
                    return fields[fields.index(b"-") + 1].decode("ascii", "replace")
                read += len(line)
                if read > most:
                    if most < MOST_MOUNTS_BYTES:
                        raise _FarError
                    raise _UnreadableError("its process has too many mounts")
    except PermissionError:
        pass
    return None


def _user_namespace(whose: int | str) -> str:
    return os.readlink(f"/proc/{whose}/ns/user")


def _line(path: str, name: str) -> bytes:
    with open(path, "rb") as file:
        for line in file:
            if line.startswith(name.encode()):
                return line.split()[1]
    raise _UnreadableError(f"{path} has no {name}")


def main() -> None:
    """Answer until the agent hangs up; the argument is the niceness of the process (nice(2))."""
    os.nice(int(sys.argv[1]))
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(json.dumps(answer(json.loads(line))).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
