"""Runs ``sds agent``, the agent of a node, until a signal stops it.

Owns the command line, signals and logging. Invariant: the first SIGTERM or SIGINT drains, and a
second one ends the process at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click
import uvloop

from sds.agent.app import run
from sds.agent.config import AgentConfig
from sds.clock import SystemClock
from sds.commands.daemon_options import CHECK_CONFIG, log_options
from sds.commands.options import NamedPath
from sds.faults import watch_loop
from sds.operations import logs
from sds.operations.configuration_file import ConfigurationFile
from sds.operations.garbage_collection import only_when_told
from sds.secrets.allocator import is_wanted, use_wiping_allocator
from sds.secrets.hardening import harden
from sds.secrets.heap_trim import give_back
from sds.settings import yamlfile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sds.secrets.hardening import MemoryProtection

_LOGGER = logging.getLogger("sds.commands.agent")


@click.command("agent")
@click.option(
    "--config",
    "path",
    required=True,
    type=NamedPath(path_type=Path),
    help="The configuration file (YAML).",
)
@CHECK_CONFIG
@log_options
def agent(path: Path, *, check_config: bool, log_format: str, log_level: str) -> None:
    """Run the agent: serve secrets to the Envoys of this node.

    It asks the authority for certificates, keeps keys in memory only, and serves both on Unix
    sockets under the run directory. SIGTERM drains it; a second SIGTERM ends it at once.
    """
    is_wanted(os.environ)  # refuses a value without a meaning
    if check_config:
        # Measured: the modules of the check alone take 1 MB, which a running agent saves.
        from sds.agent.check import check_configuration  # noqa: PLC0415

        logs.silence()
        config = yamlfile.load_file(path, AgentConfig)
        warnings = check_configuration(
            config, what=str(path), clock=SystemClock(), environment=os.environ
        )
        click.echo(f"{path}: every file and reference of the configuration can be used")
        for sentence in warnings:
            click.echo(f"warning: {sentence}")
        return
    use_wiping_allocator()  # sds.entry did this already, for options in their usual place
    with _made_to_stay():
        file = ConfigurationFile(path, AgentConfig)
    logs.configure(style=log_format, level=log_level)
    memory = harden()
    for sentence in memory.missing():
        _LOGGER.warning(sentence)
    if not uvloop.run(_until_stopped(file, memory)):
        raise SystemExit(1)


@contextlib.contextmanager
def _made_to_stay() -> Iterator[None]:
    """Keep the objects that the block makes for as long as the process lives.

    The garbage collector would search all of them again and again, which takes a tenth of a cold
    start; it ignores them from now on. No secret is among them. Memory that loading needed and
    freed goes back to the system: 10 MiB if Python had to compile the modules.
    """
    gc.disable()
    try:
        yield
    finally:
        give_back()
        gc.freeze()
        only_when_told()
        gc.enable()


async def _until_stopped(file: ConfigurationFile[AgentConfig], memory: MemoryProtection) -> bool:
    """Run the agent; return False if a second signal ended it before it was drained."""
    loop = asyncio.get_running_loop()
    watch_loop(loop)
    clock, stop = SystemClock(), asyncio.Event()

    async def followed() -> None:
        async with file.followed(clock=clock):
            await run(file.config, clock=clock, stop=stop, memory=memory, notices=file.notices)

    running = asyncio.create_task(followed(), name="agent")

    def on_signal() -> None:
        if stop.is_set():
            _LOGGER.warning("second signal: ending at once")
            running.cancel()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        await running
    except asyncio.CancelledError:
        return False
    return True
