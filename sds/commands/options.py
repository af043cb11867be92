"""Defines what the options of all commands share: types of values, and the check of idle options.

Invariant: an option that is given and would change nothing is an error of usage, so that a command
never does less than its line says.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from click.core import ParameterSource

from sds.errors import IdentityError
from sds.identity import SpiffeId
from sds.rules.moment import parse_moment
from sds.settings.paths import waits_for_a_shell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_Decorated = TypeVar("_Decorated", bound="Callable[..., Any] | click.Command")


class NamedPath(click.Path):
    """A path as the person meant it.

    It is not empty, as one of a variable that is not set is, and has nothing that a shell replaces:
    of ``--out=~/keys`` most shells leave it.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse it."""
        text = os.fsdecode(value)
        if not text:
            self.fail("the path is empty", param, ctx)
        if waits_for_a_shell(text):
            self.fail(f"the shell did not replace ~ or $NAME in {text!r}", param, ctx)
        return super().convert(value, param, ctx)


class Moment(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on
    """Parses an RFC 3339 moment with its offset."""

    name = "RFC3339"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse it."""
        try:
            return parse_moment(value)
        except ValueError as error:
            self.fail(f"{error}; found {value!r}", param, ctx)


class SpiffeIdType(click.ParamType):  # type: ignore[type-arg]  # as above
    """Parses a SPIFFE ID."""

    name = "SPIFFE-ID"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse it."""
        if isinstance(value, SpiffeId):
            return value
        try:
            return SpiffeId.parse(value)
        except IdentityError as error:
            self.fail(str(error), param, ctx)


MOMENT: Final = Moment()
SPIFFE_ID: Final = SpiffeIdType()


def output(*forms: str) -> Callable[[_Decorated], _Decorated]:
    """Make the option ``--output``; the first of its forms is the default."""
    return click.option(
        "--output",
        type=click.Choice(forms),
        default=forms[0],
        show_default=True,
        help="Format of the output.",
    )


def written(name: str) -> bool:
    """Return whether this parameter is on the running command's line."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def refuse_idle(names: Iterable[str], why: str) -> None:
    """Refuse options that are given and would change nothing.

    Args:
        names: the parameters that have no effect beside the others.
        why: the reason, in words that follow the option's name.

    Raises:
        click.UsageError: one of them is given.
    """
    context = click.get_current_context()
    idle = set(names)
    for parameter in context.command.params:
        if parameter.name in idle and written(parameter.name):
            raise click.UsageError(f"{parameter.opts[0]} {why}", context)
