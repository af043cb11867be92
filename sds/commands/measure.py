"""Runs ``sds evidence measure``, which computes reference values of a guest from its image.

Owns the command line. Invariant: the output says so if only the firmware is measured.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from sds.attestation.snp.launch import SNP_ACTIVE, Launch, launch_measurement
from sds.commands.options import NamedPath, output

_FILE = NamedPath(exists=True, dir_okay=False, path_type=Path)
_FIRMWARE_ALONE = (
    "note: the firmware alone is measured: the host can run any operating system under these "
    "measurements; boot a kernel directly (--kernel), or demand PCRs of a vTPM"
)


def _features(_: click.Context, __: click.Parameter, value: str) -> int:
    try:
        found = int(value, 16)
    except ValueError:
        found = -1
    if not 0 <= found < 1 << 64:
        raise click.BadParameter(f"{value!r} is not 64 bits in hexadecimal")
    return found


@click.command("measure")
@click.option("--firmware", required=True, type=_FILE, help="Firmware (OVMF) of the guest.")
@click.option("--kernel", type=_FILE, help="Kernel or UKI that the host boots directly.")
@click.option("--initrd", type=_FILE, help="Initrd that the host gives to the kernel.")
@click.option(
    "--append", "command_line", default="", help="Command line of the kernel, byte for byte."
)
@click.option(
    "--vcpus",
    required=True,
    multiple=True,
    type=click.IntRange(1, 1024),
    help="Number of vCPUs; may be repeated, once for each size of guest.",
)
@click.option(
    "--vcpu-type", required=True, help="Type of the vCPUs, as QEMU names it, such as EPYC-v4."
)
@click.option(
    "--vmm",
    type=click.Choice(["qemu", "ec2", "gce"]),
    default="qemu",
    show_default=True,
    help="What starts the guest: QEMU, AWS EC2 or Google Compute Engine.",
)
@click.option(
    "--features",
    default=f"{SNP_ACTIVE:x}",
    show_default=True,
    callback=_features,
    metavar="HEX",
    help="SEV_FEATURES of the guest.",
)
@output("text", "json")
def measure(
    *,
    firmware: Path,
    kernel: Path | None,
    initrd: Path | None,
    command_line: str,
    vcpus: tuple[int, ...],
    vcpu_type: str,
    vmm: str,
    features: int,
    output: str,
) -> None:
    """Compute the SEV-SNP launch measurements of a guest, as reference values.

    It needs the package sev-snp-measure: install attested-sds[measure]. Compare the result with
    `sds evidence show` of a guest that you started yourself.
    """
    launch = Launch(
        firmware=firmware,
        kernel=kernel,
        initrd=initrd,
        command_line=command_line,
        vcpu_type=vcpu_type,
        vmm=vmm,
        features=features,
    )
    found = {count: launch_measurement(launch, count).hex() for count in dict.fromkeys(vcpus)}
    if kernel is None:
        click.echo(_FIRMWARE_ALONE, err=True)
    if output == "json":
        click.echo(json.dumps({"measurements": list(found.values())}, indent=2))
        return
    click.echo("measurements:")
    for count, value in found.items():
        click.echo(f"  - {value}  # {count} vCPU{'s' if count > 1 else ''}")
