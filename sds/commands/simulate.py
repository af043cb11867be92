"""Runs ``sds simulate``: a configuration of the user's on a simulated machine.

Owns the command line. Invariant: stderr at the start, the log, ``sds status`` and the status page
all say clearly that the machine is simulated.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import click

from sds.attestation.snp.simulated import SIMULATED_MEASUREMENT
from sds.commands.options import NamedPath
from sds.demo.simulation import configuration_of, manufacturer, overlaid, separated
from sds.errors import ConfigurationError

_MEASUREMENT_BYTES = 48


@click.command(
    "simulate", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.option(
    "--measurement",
    metavar="HEX",
    help="Launch measurement of the machine (96 digits): what your rules or your policy name.  "
    "[default: a fixed one, printed at the start]",
)
@click.option(
    "--machines",
    "folder",
    type=NamedPath(path_type=Path),
    help="Folder of the simulated manufacturer; agents and authorities that share it trust each "
    "other.  [default: /tmp/sds-simulated-UID]",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="-- sds agent --config FILE")
def simulate(command: tuple[str, ...], folder: Path | None, measurement: str | None) -> None:
    """Run `sds agent` or `sds ca` with your configuration on a SIMULATED machine.

    The configuration is used as it is, except for two blocks: `attestation` names the simulated
    machine, and `verification` trusts its manufacturer. Policy, rules and sockets are yours.
    Evidence of a simulated machine proves nothing: use this on a laptop or in tests.
    """
    command = separated(command[1:] if command[:1] == ("--",) else command)
    where = configuration_of(command)
    measured = SIMULATED_MEASUREMENT if measurement is None else _measurement(measurement)
    machines = folder or Path("/tmp") / f"sds-simulated-{os.getuid()}"  # noqa: S108  made 0700
    root, ark = manufacturer(machines.absolute())
    descriptor = root.machine(measurement=measured).send()
    path, changes = overlaid(
        Path(command[where]), descriptor=descriptor, ark=ark, into=machines.absolute()
    )
    click.secho("SIMULATED MACHINE: its evidence proves nothing.", bold=True, fg="yellow", err=True)
    click.echo(f"  measurement: {measured.hex()}", err=True)
    for change in changes:
        click.echo(f"  {change}", err=True)
    arguments = [*command[1:where], str(path), *command[where + 1 :]]
    sys.stderr.flush()
    # -P: import nothing from the current directory, which may belong to another user.
    ourselves = [sys.executable, "-P", "-m", "sds", *arguments]
    os.execv(sys.executable, ourselves)  # noqa: S606  ourselves


def _measurement(text: str) -> bytes:
    if not re.fullmatch(r"(?:[0-9a-f]{2})+", text):
        raise ConfigurationError(
            "--measurement: expected lower-case hexadecimal digits, two for each byte"
        )
    measured = bytes.fromhex(text)
    if len(measured) != _MEASUREMENT_BYTES:
        raise ConfigurationError(
            f"--measurement has {len(measured)} bytes", advice="a launch measurement has 48"
        )
    return measured
