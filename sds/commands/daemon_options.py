"""Defines what every daemon's command line has: its check, its log, and how it says READY.

Invariants: all daemons have the same texts and defaults; a daemon never waits for whoever reads
READY, and serves even if nobody can.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from sds.operations import logs
from sds.operations.log_sink import LogSink

if TYPE_CHECKING:
    from collections.abc import Callable

_Decorated = TypeVar("_Decorated", bound="Callable[..., Any] | click.Command")

CHECK_CONFIG: Final = click.option(
    "--check-config",
    is_flag=True,
    help="Check the configuration and every file that it names, and exit. Uses no network.",
)


def log_options(command: _Decorated) -> _Decorated:
    """Add the options ``--log-format`` and ``--log-level``."""
    level = click.option(
        "--log-level",
        type=click.Choice(logs.LEVELS),
        default="info",
        show_default=True,
        help="Drop events below this level.",
    )
    form = click.option(
        "--log-format",
        type=click.Choice(logs.FORMATS),
        default="text",
        show_default=True,
        help="Format of log lines: text for people, or one JSON object per line.",
    )
    return form(level(command))


def say_ready(line: str) -> None:
    """Print a line for whoever waits for this daemon, without waiting for them.

    A full disk or a reader that is gone is no reason not to serve: then nobody learns of it.
    """
    if sys.stdout is None:  # it was closed before the start
        return
    with contextlib.suppress(OSError, ValueError):
        descriptor = sys.stdout.fileno()
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            LogSink(sys.stdout).write(f"{line}\n")
        else:  # past the buffer, which would fail again at the end
            os.write(descriptor, f"{line}\n".encode())
