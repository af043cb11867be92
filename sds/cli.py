"""The command ``sds``: finds a command, runs it, turns errors into exit statuses.

Owns exit statuses and the last line a person sees: 0 good, 1 refused or failed, 2 usage or
configuration. Invariant: the only place that exits. Commands are imported when they are called,
so that ``sds --help`` is fast and a long-running command holds only what it uses.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

import click

import sds
from sds.errors import ConfigurationError, SdsError

COMMANDS: Final[dict[str, str]] = {
    "agent": "sds.commands.agent:agent",
    "bootstrap": "sds.commands.bootstrap:bootstrap",
    "ca": "sds.commands.ca:ca",
    "completion": "sds.commands.completion:completion",
    "demo": "sds.commands.demo:demo",
    "dev": "sds.commands.demo:dev",
    "csr": "sds.commands.csr:csr",
    "evidence": "sds.commands.evidence:evidence",
    "get": "sds.commands.get:get",
    "policy": "sds.commands.policy:policy",
    "status": "sds.commands.status:status",
    "whoami": "sds.commands.whoami:whoami",
}
"""Name of each command -> ``module:attribute`` of its click command."""

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2


class LazyGroup(click.Group):
    """A click group that imports a command only when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, sorted."""
        return sorted({*super().list_commands(ctx), *COMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command of this name, or None where there is none."""
        target = COMMANDS.get(cmd_name)
        if target is None:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; one clear line on stderr where it raises one of our errors."""
        try:
            return super().invoke(ctx)
        except SdsError as error:
            click.echo(f"sds: {error}", err=True)
            usage = isinstance(error, ConfigurationError)
            ctx.exit(EXIT_USAGE if usage else EXIT_FAILED)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(sds.__version__, prog_name="sds")
def main() -> None:
    """A node-local secret discovery service for Envoy."""
