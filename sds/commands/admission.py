"""Runs ``sds admission``: nothing starts or enters a container unless a signed rule allows it."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sds.admission.node_check import check_node
from sds.admission.script import script
from sds.admission.server import serve
from sds.admission.settings import AdmissionConfig
from sds.clock import SystemClock
from sds.commands.daemon_options import log_options, say_ready
from sds.commands.options import NamedPath
from sds.errors import ConfigurationError
from sds.faults import watch_loop
from sds.operations import logs
from sds.operations.configuration_file import ConfigurationFile
from sds.operations.instruments import AdmissionInstruments
from sds.operations.listeners import metrics_listener
from sds.operations.notify import notify
from sds.policy.holder import PolicyHolder
from sds.policy.reload import PolicyFiles
from sds.settings import yamlfile
from sds.settings.checking import ConfigurationChecks

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOGGER = logging.getLogger("sds.commands.admission")
_CONFIG = click.option(
    "--config",
    "path",
    required=True,
    type=NamedPath(path_type=Path, dir_okay=False),
    help="The YAML file of `sds admission`; it belongs in the measured image.",
)


@click.group()
def admission() -> None:
    """Let the container runtime start only what a signed rule lists.

    A wrapper takes the place of the OCI runtime and asks this service before it starts a container
    or a process in one. The rules are the policy's `pods`.
    """


@admission.command("serve")
@_CONFIG
@log_options
def serve_command(path: Path, log_format: str, log_level: str) -> None:
    """Answer the wrapper. Prints "READY" once it can.

    While this service is down, nothing starts on the node (if `enforce` is true).
    """
    file = ConfigurationFile(path, AdmissionConfig)
    config = _checked(path, file.config)
    logs.configure(style=log_format, level=log_level)
    for sentence in _unchecked(config):
        _LOGGER.warning(sentence)

    def ready() -> None:
        say_ready("READY")
        notify("READY=1")

    async def run() -> None:
        watch_loop(asyncio.get_running_loop())
        clock = SystemClock()
        instruments = AdmissionInstruments(clock=clock)
        async with file.followed(clock=clock), metrics_listener(config.metrics, instruments):
            await serve(
                config,
                clock=clock,
                observer=instruments,
                watcher=instruments,
                ready=ready,
                watch=instruments.watch_policy,
            )

    asyncio.run(run())


@admission.command("check")
@_CONFIG
def check(path: Path) -> None:
    """Check that containerd and the kubelet leave no way around the wrapper."""
    config = _checked(path, yamlfile.load_file(path, AdmissionConfig))
    logs.silence()
    found = [
        words
        for file, words in (
            (config.containerd_config, "every handler runs the wrapper"),
            (config.kubelet_config, "debugging handlers are off"),
        )
        if file is not None
    ]
    checks = ConfigurationChecks(str(path), now=SystemClock().now().wall)
    overlooked = (*_unchecked(config), *_without_policy(config, checks))
    click.echo(f"{path}: {', and '.join(found) or 'the wrapper was made for this configuration'}")
    for sentence in overlooked:
        click.echo(f"warning: {sentence}")


@admission.command("wrapper")
@_CONFIG
@click.option(
    "--python",
    default=sys.executable,
    show_default="this one",
    help="The interpreter on the node; the standard library is enough.",
)
def wrapper(path: Path, python: str) -> None:
    """Print the wrapper: the executable for the path that `wrapper` names in FILE.

    Name that path as `BinaryName` in every handler of containerd.
    """
    config = yamlfile.load_file(path, AdmissionConfig)
    click.echo(script(config, python=python), nl=False)


def _unchecked(config: AdmissionConfig) -> Iterator[str]:
    for name in ("containerd_config", "kubelet_config"):
        if getattr(config, name) is None:
            yield f"{name} is null: nothing checks for ways around the wrapper"


def _without_policy(config: AdmissionConfig, checks: ConfigurationChecks) -> Iterator[str]:
    with checks.of("policy"):
        clock = SystemClock()
        holder = PolicyHolder(config.policy.start(config.trust_domain), clock=clock)
        PolicyFiles(config.policy.place, holder, clock=clock).load()
        if why := holder.absence:
            what = holder.last_error or why
            yield f"{what}: until a policy is in force, only pods under always start"
    checks.raise_all()


def _checked(path: Path, config: AdmissionConfig) -> AdmissionConfig:
    checks = ConfigurationChecks(str(path), now=SystemClock().now().wall)
    with checks.of("policy"):
        config.policy.start(config.trust_domain)
    checks.raise_all()
    if found := check_node(config):
        raise ConfigurationError(
            f"{len(found)} ways around the wrapper: " + "; ".join(found),
            advice="correct these files in the image; docs/kubernetes.md shows them",
        )
    return config
