"""Runs ``sds collateral``, which fetches the public collateral that verifiers need.

Owns the command line. Invariants: only valid files reach the folder; the exit status is 0 only if
every file is there and current.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sds.attestation.collateral.fetching import INTEL_ROOT_LIST, KDS, PCS, Fetcher, Wanted
from sds.attestation.pem import der_certificates
from sds.attestation.snp.report import Product
from sds.clock import SystemClock
from sds.commands.options import NamedPath, output, refuse_idle, written
from sds.errors import ConfigurationError, EvidenceError
from sds.settings.https_url import check_http_url, without_password
from sds.settings.yamlfile import read

if TYPE_CHECKING:
    from collections.abc import Sequence

_FMSPC_DIGITS = 12
_OF_INTEL = frozenset({"authorities", "update", "recovery", "pcs", "root_list"})


def _fmspcs(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if len(value) != _FMSPC_DIGITS or not set(value.lower()) <= set("0123456789abcdef"):
            raise click.BadParameter(f"{value!r} is not an FMSPC of 12 hexadecimal digits")
    return values


def _url(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    try:
        return check_http_url(value).rstrip("/")
    except ValueError as error:
        raise click.BadParameter(f"{error}, found {without_password(value)!r}") from error


_PCS_OPTION = click.option(
    "--pcs", default=PCS, show_default=True, callback=_url, help="Intel's PCS, or a PCCS."
)
_ROOTS_OPTION = click.option(
    "--trusted-root",
    "roots",
    multiple=True,
    type=NamedPath(exists=True, dir_okay=False, path_type=Path),
    help="A root to trust in addition to Intel's.",
)


@click.group("collateral")
def collateral() -> None:
    """Public collateral: TCB info, QE identity and revocation lists of Intel and AMD."""


@collateral.command("fetch")
@click.option(
    "--out",
    "folder",
    required=True,
    type=NamedPath(file_okay=False, path_type=Path),
    help="Folder that gets the files: `verification.collateral` of agent and authority.",
)
@click.option(
    "--fmspc",
    "fmspcs",
    multiple=True,
    callback=_fmspcs,
    help="Kind of TDX platform: 12 hexadecimal digits, the claim `fmspc` of a verified quote; may "
    "be repeated.",
)
@click.option(
    "--ca",
    "authorities",
    multiple=True,
    type=click.Choice(["platform", "processor"]),
    default=("platform", "processor"),
    show_default=True,
    help="PCK authority whose revocation list is needed; may be repeated.",
)
@click.option(
    "--update",
    type=click.Choice(["standard", "early"]),
    default="standard",
    show_default=True,
    help="Which of Intel's TCB recoveries: the one that platforms must have by now, or the newest.",
)
@click.option(
    "--tcb-evaluation-data-number",
    "recovery",
    type=click.IntRange(min=1),
    help="Exactly this TCB recovery, instead of --update.",
)
@click.option(
    "--product",
    "products",
    multiple=True,
    type=click.Choice([product.value for product in Product]),
    help="AMD's product whose revocation list is needed; may be repeated.",
)
@_PCS_OPTION
@click.option(
    "--root-list",
    callback=_url,
    help="URL of the revocation list of Intel's root.  [default: Intel's with Intel's PCS, else "
    "the PCCS's]",
)
@click.option("--kds", default=KDS, show_default=True, callback=_url, help="AMD's KDS, or a cache.")
@_ROOTS_OPTION
@click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="Seconds to wait for a file if its publisher asks us to try again later.",
)
@output("text", "json")
def fetch(  # noqa: PLR0917  click passes every option
    folder: Path,
    fmspcs: tuple[str, ...],
    authorities: tuple[str, ...],
    update: str,
    recovery: int | None,
    products: tuple[str, ...],
    pcs: str,
    root_list: str | None,
    kds: str,
    roots: Sequence[Path],
    patience: float,
    output: str,
) -> None:
    """Fetch collateral, check it, and store it in a folder.

    It replaces each file as a whole, and only by a current file whose signature it has verified.
    Run it from a timer; agent and authority follow the folder while they run.
    """
    if not fmspcs and not products:
        raise click.UsageError("give --fmspc, --product, or both")
    if not fmspcs:
        refuse_idle(_OF_INTEL, "is about Intel's collateral: it needs --fmspc")
    if not products:
        refuse_idle({"kds"}, "is about AMD's lists: it needs --product")
    if recovery is not None and written("update"):
        raise click.UsageError("--update and --tcb-evaluation-data-number exclude each other")
    if root_list is None and pcs == PCS:
        root_list = INTEL_ROOT_LIST
    wanted = Wanted(
        fmspcs=fmspcs,
        authorities=tuple(dict.fromkeys(authorities)),
        update=update,
        recovery=recovery,
        products=tuple(map(Product, products)),
        pcs=pcs,
        root_list=root_list,
        kds=kds,
        roots=_roots(roots),
    )
    found = asyncio.run(Fetcher(wanted, clock=SystemClock(), patience=patience).fetch(folder))
    if output == "json":
        rows = [
            {
                "file": str(one.path),
                "next_update": f"{one.next_update:%FT%TZ}",
                "changed": one.changed,
            }
            for one in found
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    for one in found:
        said = "new" if one.changed else "the same"
        click.echo(f"{one.path}: {said}, until {one.next_update:%FT%TZ}")


@collateral.command("recoveries")
@_PCS_OPTION
@_ROOTS_OPTION
@output("text", "json")
def recoveries(pcs: str, roots: Sequence[Path], output: str) -> None:
    """List Intel's TCB recoveries for TDX, the newest first; the signature is verified.

    The numbers are those of `--tcb-evaluation-data-number` and of
    `minimum_tcb_evaluation_number` in reference values.
    """
    wanted = Wanted(pcs=pcs, roots=_roots(roots))
    found = asyncio.run(Fetcher(wanted, clock=SystemClock()).recoveries())
    rows = [
        {
            "tcb_evaluation_data_number": one.number,
            "announced": one.event[:10],
            "tcb_date": one.tcb_date[:10],
        }
        for one in found
    ]
    if output == "json":
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        said = "announced {announced}, TCB of {tcb_date}".format(**row)
        click.echo(f"{row['tcb_evaluation_data_number']}: {said}")


def _roots(paths: Sequence[Path]) -> tuple[bytes, ...]:
    try:
        return tuple(der for path in paths for der in der_certificates(read(path), what=str(path)))
    except EvidenceError as error:
        raise ConfigurationError(f"--trusted-root: {error.message}", advice=error.advice) from error
