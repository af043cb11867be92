"""Runs ``sds ca``, the certificate authority."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import click

from sds.ca.config import AuthorityConfig
from sds.ca.run import check, serve
from sds.clock import SystemClock
from sds.commands.daemon_options import CHECK_CONFIG, log_options, say_ready
from sds.commands.options import NamedPath
from sds.faults import watch_loop
from sds.operations import logs
from sds.operations.configuration_file import ConfigurationFile
from sds.operations.instruments import AuthorityInstruments
from sds.operations.listeners import metrics_listener
from sds.secrets.hardening import harden

_LOGGER = logging.getLogger("sds.commands.ca")


@click.command()
@click.option(
    "--config",
    "path",
    required=True,
    type=NamedPath(path_type=Path, dir_okay=False),
    help="The configuration file (YAML).",
)
@CHECK_CONFIG
@log_options
def ca(path: Path, *, check_config: bool, log_format: str, log_level: str) -> None:
    """Run a certificate authority that signs for measured machines.

    Prints one line, "READY HOST:PORT", once it can sign. SIGTERM drains it; a second SIGTERM ends
    it at once.
    """
    file = ConfigurationFile(path, AuthorityConfig)
    config = file.config
    if check_config:
        logs.silence()
        found = check(config, what=str(path))
        click.echo(f"{path}: every file and reference of the configuration can be used")
        for sentence in found:
            click.echo(f"warning: {sentence}")
        return
    logs.configure(style=log_format, level=log_level)
    # The authority's key exists as long as the process: no dump, no reading by others, no swap.
    for sentence in harden().missing(retires_keys=False):
        _LOGGER.warning(sentence)
    host = config.listen.rpartition(":")[0]

    async def run() -> None:
        watch_loop(asyncio.get_running_loop())
        clock = SystemClock()
        instruments = AuthorityInstruments(clock=clock)
        async with file.followed(clock=clock), metrics_listener(config.metrics, instruments):
            await serve(
                config,
                ready=lambda port: say_ready(f"READY {host}:{port}"),
                clock=clock,
                observer=instruments,
            )

    asyncio.run(run())
