"""Runs ``sds evidence``, which verifies and shows attestation evidence from files.

Owns the command line and its output: a verdict with every check that ran. Invariants: exit
status 0 only if every check passed, 1 if evidence is refused, 2 for wrong usage;
certificates of ``--leaf`` and ``--chain`` never add trust.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sds.attestation.checks import Checks, Verdict
from sds.attestation.collateral.followed_files import Places, examined_files
from sds.attestation.evidence import Evidence, EvidenceKind
from sds.attestation.kind import Demands
from sds.attestation.pem import der_certificates
from sds.attestation.recognise import describe, kind_of
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.registry import kind_module
from sds.attestation.snp.report import Product
from sds.clock import SystemClock
from sds.commands.collect import collect
from sds.commands.collect import report_data as report_data_option
from sds.commands.measure import measure
from sds.commands.options import MOMENT, NamedPath, output, refuse_idle
from sds.errors import ConfigurationError, EvidenceError
from sds.printable import printable
from sds.settings.yamlfile import load_file, read

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sds.attestation.checks import Check
    from sds.attestation.evidence import ReportData

_FILE = NamedPath(exists=True, dir_okay=False, path_type=Path)
_FOLDER = NamedPath(exists=True, file_okay=False, path_type=Path)
MAX_EVIDENCE_BYTES: Final = 1024 * 1024


@click.group("evidence")
def evidence() -> None:
    """Collect, verify or show attestation evidence (SEV-SNP reports, TDX quotes, TPM quotes)."""


evidence.add_command(collect)
evidence.add_command(measure)


@evidence.command("verify")
@click.argument("report", type=_FILE)
@click.option("--leaf", type=_FILE, help="VCEK or VLEK that signed the report, PEM or DER.")
@click.option(
    "--chain", type=_FILE, multiple=True, help="Further certificates; they never add trust."
)
@click.option(
    "--product",
    type=click.Choice([product.value for product in Product]),
    help="The expected AMD product.",
)
@click.option("--at", type=MOMENT, help="Time of verification.  [default: now]")
@click.option(
    "--report-data",
    "data",
    metavar="HEX",
    callback=report_data_option,
    help="Report data that the evidence must contain, 64 bytes.",
)
@click.option("--reference-values", type=_FILE, help="What is accepted (YAML).")
@click.option(
    "--trusted-root",
    type=_FILE,
    multiple=True,
    help="A root to trust in addition to the manufacturer's.",
)
@click.option("--collateral", type=_FOLDER, help="Folder of signed collateral, for TDX quotes.")
@click.option("--crl", type=_FILE, multiple=True, help="Revocation list, PEM or DER.")
@output("text", "json")
@click.pass_context
def verify(
    ctx: click.Context,
    report: Path,
    *,
    leaf: Path | None,
    chain: tuple[Path, ...],
    product: str | None,
    at: datetime | None,
    data: ReportData | None,
    reference_values: Path | None,
    trusted_root: tuple[Path, ...],
    collateral: Path | None,
    crl: tuple[Path, ...],
    output: str,
) -> None:
    """Verify the raw report or quote in REPORT and print every check.

    The exit status is 0 if the evidence is accepted, 1 if it is refused, and 2 for wrong usage.
    Without --reference-values, the strict defaults apply, and any measurement is accepted.
    """
    if leaf is None:
        refuse_idle({"chain"}, "completes the chain of --leaf, which is missing")
    raw = read(report, max_bytes=MAX_EVIDENCE_BYTES)
    now = at or SystemClock().now().wall
    values = load_file(reference_values, ReferenceValues) if reference_values else ReferenceValues()
    roots = _trusted(trusted_root)
    certificates = _certificates([leaf, *chain] if leaf else [])
    verdict = _examine(
        raw,
        certificates,
        values=values,
        places=Places(revocation_lists=crl, collateral=collateral, roots=roots),
        product=product,
        data=data,
        now=now,
    )
    if output == "json":
        click.echo(json.dumps(verdict_document(verdict), indent=2))
    else:
        demanded = bool(values.measurements)
        click.echo(verdict_text(verdict, now, defaults=reference_values is None, demanded=demanded))
    ctx.exit(0 if verdict.accepted else 1)


@evidence.command("show")
@click.argument("report", type=_FILE)
@output("text", "json")
def show(report: Path, output: str) -> None:
    """Decode the report or quote in REPORT, without verifying it."""
    shown = describe(read(report, max_bytes=MAX_EVIDENCE_BYTES))
    if output == "json":
        document = {
            "kind": str(shown.kind),
            "platform": shown.platform,
            "verified": False,
            "claims": dict(shown.claims),
        }
        click.echo(json.dumps(document, indent=2))
        return
    width = max(map(len, shown.claims))
    click.echo(f"{shown.kind}, not verified: {shown.platform}")
    for name, value in shown.claims.items():
        click.echo(f"  {printable(name):<{width}}  {printable(value)}")


def verdict_document(verdict: Verdict) -> dict[str, Any]:
    """Return the verdict as ``--output json`` prints it."""
    claims = verdict.claims
    return {
        "verdict": "accepted" if verdict.accepted else "refused",
        "kind": verdict.kind,
        "reason": verdict.error.reason if verdict.error is not None else None,
        "checks": [
            {
                "name": check.name,
                "ok": check.ok,
                "found": check.found_text,
                "expected": check.expected_text,
            }
            for check in verdict.checks
        ],
        "claims": {}
        if claims is None
        else {
            "measurement": claims.measurement,
            "simulated": claims.simulated,
            **claims.attributes,
        },
    }


def verdict_text(verdict: Verdict, now: datetime, *, defaults: bool, demanded: bool) -> str:
    """Return the verdict as text: the reason first, then one line for each check."""
    error = verdict.error
    lines = [
        f"{verdict.kind} evidence at {now:%FT%TZ}: "
        + ("accepted" if error is None else f"REFUSED, {error.reason}")
    ]
    if error is not None:
        lines.append(f"  {printable(str(error))}")
    width = max((len(check.name) for check in verdict.checks), default=0)
    lines += [_line(check, width) for check in verdict.checks]
    if verdict.claims is not None and verdict.claims.simulated:
        lines.append("note: the root is configured, not the manufacturer's: a SIMULATED machine")
    if defaults:
        lines.append("note: no --reference-values: the strict defaults apply")
    if not demanded:
        lines.append("note: no measurement is demanded: any code would pass")
    return "\n".join(lines)


def _line(check: Check, width: int) -> str:
    mark = "✓" if check.ok else "✗"
    found = check.found_text
    expected = "" if check.ok else f"; expected: {check.expected_text}"
    return f"  {mark} {check.name:<{width}}  {printable(found + expected)}"


def _examine(
    raw: bytes,
    certificates: tuple[bytes, ...],
    *,
    values: ReferenceValues,
    places: Places,
    product: str | None,
    data: ReportData | None,
    now: datetime,
) -> Verdict:
    try:
        kind = kind_of(raw)
    except EvidenceError as error:
        checks = Checks()
        checks.attempt("kind", error, found=error.message, expected="evidence that is known here")
        return Verdict(kind="unknown", checks=tuple(checks.done), claims=None)
    _require_effect(kind)
    examiner = kind_module(kind).examiner
    if examiner is None:
        raise ConfigurationError(f"evidence of the kind {kind} is not verified from files")
    files = examined_files(places)
    try:
        verifier = examiner(
            Demands(values=values, roots=tuple(places.roots), files=lambda: files, product=product)
        )
    except EvidenceError as error:
        raise ConfigurationError(f"--trusted-root: {error.message}", advice=error.advice) from error
    shown = Evidence(kind=kind, report=raw, certificates=certificates)
    return verifier.examine(shown, data=data, now=now)


def _require_effect(kind: EvidenceKind) -> None:
    """Refuse options that are about another kind of evidence.

    Raises:
        click.UsageError: such an option is present.
    """
    if kind == EvidenceKind.TDX:
        refuse_idle({"leaf", "chain", "product"}, "is for SEV-SNP reports, and this is a TDX quote")
    if kind == EvidenceKind.SEV_SNP:
        refuse_idle({"collateral"}, "is for TDX quotes, and this is an SEV-SNP report")


def _certificates(paths: Iterable[Path]) -> tuple[bytes, ...]:
    """Return the evidence's certificates in DER; one that cannot be read is refused as evidence."""
    found: list[bytes] = []
    for path in paths:
        content = read(path)
        try:
            found += der_certificates(content, what=str(path))
        except EvidenceError:
            found.append(content)
    return tuple(found)


def _trusted(paths: Iterable[Path]) -> tuple[bytes, ...]:
    try:
        return tuple(der for path in paths for der in der_certificates(read(path), what=str(path)))
    except EvidenceError as error:
        raise ConfigurationError(f"--trusted-root: {error.message}", advice=error.advice) from error
