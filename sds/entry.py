"""Begins the program, before anything is loaded.

Invariant: an agent that will execute itself again for its allocator
(:func:`sds.secrets.allocator.use_wiping_allocator`) does so with only a bare interpreter loaded,
because everything else would be loaded twice. :mod:`sds.cli` does the rest.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import os
import signal
import sys
from typing import NoReturn

from sds.first_process import is_first, let_end
from sds.secrets.allocator import has_meaning, use_wiping_allocator

_STANDARD_ERROR = 2
_ENDS_BY_ITSELF = frozenset({"--check-config", "--help", "-h"})
"""Options with which ``sds agent`` makes no keys."""


def main() -> None:
    """Run the command line ``sys.argv``."""
    if is_first():
        let_end(signal.SIGTERM)  # until a daemon takes it: a start may last for seconds
    _keep_standard_descriptors()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name that is not UTF-8, or a character that the locale lacks, is printed as an
        # escape; the default is an exception.
        sys.stdout.reconfigure(errors="backslashreplace")
    # No installed plugin may see our settings; the search for plugins would take 12 ms.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # gRPC's C core would write its own lines, in its own form, between those of the log. The error
    # that a call raises already says what failed.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if (
        sys.argv[1:2] == ["agent"]
        and _ENDS_BY_ITSELF.isdisjoint(sys.argv)
        and has_meaning(os.environ)  # the command itself refuses the others
    ):
        use_wiping_allocator()
    if sys.argv[1:2] in (["agent"], ["ca"], ["admission"]):
        # A reload may be requested before the start is over; the start reads everything anyway.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if sys.argv[1:2] == ["agent"]:
        gc.disable()  # modules stay; the command switches it on again (a tenth of a cold start)
    from sds.cli import main as command_line  # noqa: PLC0415  measured: see the module

    try:
        command_line(prog_name="sds")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO):
            raise
        _cannot_write(error)
    finally:
        _flush()


def _keep_standard_descriptors() -> None:
    """Open those of 0, 1 and 2 that are closed, so that no socket gets such a number.

    Otherwise the output of a library would go to that socket's client.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        pass
    os.close(descriptor)


def _flush() -> None:
    """Write buffered output while an error can still be reported in words."""
    if sys.stdout is None:  # it was closed before the start
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        _cannot_write(error)


def _cannot_write(error: OSError) -> NoReturn:
    """End the process, because its output cannot be written."""
    with contextlib.suppress(OSError):
        place = "stdout" if error.filename is None else error.filename
        os.write(_STANDARD_ERROR, f"sds: {place} cannot be written: {error.strerror}\n".encode())
    os._exit(1)  # the interpreter's own end would try once more, and print a traceback
