"""Defines the options that every daemon has: the check of its configuration, and its log.

Invariant: all daemons have the same texts and defaults.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from sds.operations import logs

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
