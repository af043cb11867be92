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
    help="Check the configuration and every file that it names, without the network, and end.",
)


def log_options(command: _Decorated) -> _Decorated:
    """Add the options ``--log-format`` and ``--log-level``."""
    level = click.option(
        "--log-level",
        type=click.Choice(logs.LEVELS),
        default="info",
        show_default=True,
        help="Events below this level are dropped.",
    )
    form = click.option(
        "--log-format",
        type=click.Choice(logs.FORMATS),
        default="text",
        show_default=True,
        help="Log lines for people, or one JSON object a line.",
    )
    return form(level(command))
