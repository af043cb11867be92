"""Runs ``sds completion``: prints the script that completes commands and options in a shell.

Invariant: it only prints; the user decides where the script goes.
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from sds.errors import ConfigurationError


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    bash, zsh:  eval "$(sds completion bash)"
    fish:       sds completion fish | source
    """  # noqa: D301  click reads the character, not its escape
    kind = get_completion_class(shell)
    if kind is None:
        raise ConfigurationError(f"there is no completion for {shell!r}")
    command = context.find_root().command
    click.echo(kind(command, {}, "sds", "_SDS_COMPLETE").source())
