"""Runs the command ``sds``: finds a subcommand, runs it, and turns errors into exit statuses.

Owns the exit statuses (0: success, 1: refused or failed, 2: usage or configuration) and the last
line that a person sees. Invariant: no other module exits the process. Commands are imported when
they are called, so that ``sds --help`` is fast and a long-running command loads only what it uses.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

import sds
from sds.errors import ConfigurationError, SdsError
from sds.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMANDS: Final[dict[str, str]] = {
    "admission": "sds.commands.admission:admission",
    "agent": "sds.commands.agent:agent",
    "bootstrap": "sds.commands.bootstrap:bootstrap",
    "ca": "sds.commands.ca:ca",
    "collateral": "sds.commands.collateral:collateral",
    "completion": "sds.commands.completion:completion",
    "demo": "sds.commands.demo:demo",
    "dev": "sds.commands.demo:dev",
    "csr": "sds.commands.csr:csr",
    "evidence": "sds.commands.evidence:evidence",
    "get": "sds.commands.get:get",
    "policy": "sds.commands.policy:policy",
    "simulate": "sds.commands.simulate:simulate",
    "status": "sds.commands.status:status",
    "whoami": "sds.commands.whoami:whoami",
}
"""The ``module:attribute`` of each command's click command, by name."""
SUMMARIES: Final[dict[str, str]] = {
    "admission": "Let the container runtime start only what a signed rule lists.",
    "agent": "Run the agent: serve secrets to the Envoys of this node.",
    "bootstrap": "Print a complete Envoy bootstrap for a socket of the agent.",
    "ca": "Run a certificate authority that signs for measured machines.",
    "collateral": "Fetch the public collateral that verifiers of evidence need.",
    "completion": "Print the completion script of a shell.",
    "csr": "Make and check CSRs that carry evidence of their machine.",
    "demo": "Two real Envoys talk mTLS with certificates that last seconds.",
    "dev": "An authority and an agent for an Envoy of your own.",
    "evidence": "Collect, show and verify attestation evidence.",
    "get": "Show the secrets that a client on a socket receives.",
    "policy": "Write, sign, check and explain signed policies.",
    "simulate": "Run your own configuration on a simulated machine.",
    "status": "Show identities, expiry, rotations and errors of an agent.",
    "whoami": "Show what the agent recognises this process as, and why.",
}
"""The line of each command in the list of commands, which imports none of them."""

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Collect no garbage while modules are loaded: they all stay (saves a sixth of the time)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class LazyGroup(click.Group):
    """A click group that imports a command only when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, sorted."""
        return sorted({*super().list_commands(ctx), *COMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command of this name, or None if there is none."""
        target = COMMANDS.get(cmd_name)
        if target is None:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = target.partition(":")
        with _uncollected():
            command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any, which would take a second."""
        rows = [(name, self._summary(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return names of commands and options, without importing any command."""
        found = [
            CompletionItem(name, help=self._summary(ctx, name))
            for name in self.list_commands(ctx)
            if name.startswith(incomplete)
        ]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def _summary(self, ctx: click.Context, name: str) -> str:
        if name in SUMMARIES:
            return SUMMARIES[name]
        command = self.get_command(ctx, name)
        return "" if command is None else command.get_short_help_str()

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; if it raises one of our errors, write that in one line to stderr."""
        try:
            _require_working_directory()
            return super().invoke(ctx)
        except (SdsError, BaseExceptionGroup) as raised:
            error = _ours(raised)
            if error is None:
                raise
            _say(error)
            usage = isinstance(error, ConfigurationError)
            ctx.exit(EXIT_USAGE if usage else EXIT_FAILED)


def _require_working_directory() -> None:
    """Check that the working directory exists, because relative paths begin there.

    Raises:
        ConfigurationError: the working directory was removed.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise ConfigurationError(
            f"the working directory cannot be found: {error.strerror}",
            advice="change to a directory that exists",
        ) from error


def _ours(raised: BaseException) -> SdsError | None:
    """Return our error, even if tasks that ran side by side raised it in groups; else None."""
    if isinstance(raised, BaseExceptionGroup):
        found = [_ours(each) for each in raised.exceptions]
        return next((each for each in found if each is not None), None)
    return raised if isinstance(raised, SdsError) else None


def _say(error: SdsError) -> None:
    """Write the last line: as text, or as an event if the process writes its log as JSON."""
    logs = sys.modules.get("sds.operations.logs")
    if logs is not None and logs.writes_json():
        logging.getLogger("sds.cli").error("%s", error, extra={"reason": error.reason})
    else:
        click.echo(f"sds: {printable(str(error), lines=True)}", err=True)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(sds.__version__, prog_name="sds")
def main() -> None:
    """A node-local secret discovery service for Envoy."""
