"""Runs ``sds evidence collect``, which writes evidence of this machine to a file.

Owns the command line. Invariant: the file contains exactly what this machine gave over the
requested data; `sds evidence verify` decides whether it is genuine.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sds.attestation.build import make_attester
from sds.attestation.evidence import REPORT_DATA_BYTES, ReportData
from sds.attestation.registry import KINDS
from sds.attestation.settings import AttestationSection
from sds.commands.options import NamedPath, refuse_idle
from sds.commands.output import write_output
from sds.errors import ConfigurationError
from sds.pki import certificate_pem
from sds.settings import yamlfile
from sds.settings.field_types import Settings

if TYPE_CHECKING:
    from sds.attestation.evidence import Attester, Evidence

_OUT = NamedPath(dir_okay=False, path_type=Path)


class _AttestationFile(Settings):
    """A file with only the section ``attestation``."""

    attestation: AttestationSection


def attester_of(path: Path) -> Attester:
    """Make the attester that the section ``attestation`` of a file describes.

    Raises:
        ConfigurationError: the file cannot be read, or names no kind.
    """
    return _attester(yamlfile.load_file(path, _AttestationFile).attestation, str(path))


def _attester(section: AttestationSection, what: str) -> Attester:
    attester = make_attester(section)
    if attester is None:
        raise ConfigurationError(f"{what}: attestation.kind is missing")
    return attester


def report_data(_: click.Context, __: click.Parameter, text: str | None) -> ReportData | None:
    """Return the 64 bytes of an option, or None without the option.

    Raises:
        ConfigurationError: the text is not 64 bytes in hexadecimal.
    """
    if text is None:
        return None
    try:
        data = bytes.fromhex(text)
    except ValueError:
        data = b""
    if len(data) != REPORT_DATA_BYTES:
        raise ConfigurationError(
            "--report-data is not 64 bytes in hexadecimal", advice="give 128 hexadecimal digits"
        )
    return ReportData(data)


@click.command("collect")
@click.option(
    "--out", required=True, type=_OUT, help="File for the raw report, quote or TPM evidence."
)
@click.option("--chain-out", type=_OUT, help="File for the certificates that came with it, PEM.")
@click.option(
    "--kind",
    type=click.Choice(["auto", *(name for name, one in KINDS.items() if one.verified)]),
    default="auto",
    show_default=True,
    help="Kind of evidence, as in `attestation.kind`.",
)
@click.option(
    "--attestation",
    type=NamedPath(path_type=Path, dir_okay=False),
    help="Instead of --kind: a YAML file with an `attestation` section.",
)
@click.option(
    "--report-data",
    "data",
    metavar="HEX",
    callback=report_data,
    help="Report data to which the evidence is bound, 64 bytes.  [default: zeros]",
)
def collect(
    *,
    out: Path,
    chain_out: Path | None,
    kind: str,
    attestation: Path | None,
    data: ReportData | None,
) -> None:
    """Collect evidence of this machine, as the agent does.

    Run it as the agent's user in a guest that you trust, and take reference values from what `sds
    evidence show` prints of the file. `sds evidence verify` verifies the file on any machine; give
    it the certificates of --chain-out as --leaf.
    """
    if attestation is not None:
        refuse_idle({"kind"}, "is in the file of --attestation")
        attester = attester_of(attestation)
    else:
        attester = _attester(AttestationSection(kind=kind), "--kind")
    wanted = data if data is not None else ReportData(bytes(REPORT_DATA_BYTES))
    evidence = asyncio.run(attester.attest(wanted))
    write_output(out, evidence.report)
    if chain_out is not None:
        write_output(chain_out, certificate_pem(list(evidence.certificates)))
    click.echo(_said(out, evidence))


def _said(out: Path, evidence: Evidence) -> str:
    count = len(evidence.certificates)
    return (
        f"{out}: {evidence.kind} evidence, {len(evidence.report)} bytes; {count or 'no'} "
        f"certificate{'' if count == 1 else 's'} came with it"
    )
