"""Runs ``sds csr``, which makes and checks a CSR that carries its own evidence."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sds.attestation.build import Verification
from sds.attestation.csr import AttestedCsr, make_attested_csr, parse_attested_csr, statements
from sds.attestation.evidence import Evidence, EvidenceKind, ReportData
from sds.attestation.pem import der_certificates
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.settings import VerificationSection
from sds.clock import SystemClock
from sds.commands.collect import attester_of
from sds.commands.options import MOMENT, SPIFFE_ID, NamedPath, output, refuse_idle
from sds.commands.output import write_output
from sds.errors import ConfigurationError, EvidenceError, IdentityError, KeyTypeError, SdsError
from sds.exchange.challenge import NONCE_BYTES, attested_csr_report_data
from sds.identity import Identity
from sds.pki import key_type_of, load_private_key, spki_sha256
from sds.settings import yamlfile
from sds.settings.paths import expect_private

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sds.attestation.evidence import Claims, Verifier
    from sds.identity import SpiffeId
    from sds.pki import PrivateKey

_FILE = NamedPath(path_type=Path, dir_okay=False)
_MAX_BYTES = 256 * 1024


def _nonce(_: click.Context, __: click.Parameter, text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        nonce = bytes.fromhex(text)
    except ValueError:
        nonce = b""
    if len(nonce) != NONCE_BYTES:
        raise click.BadParameter(f"expected {2 * NONCE_BYTES} hexadecimal digits")
    return nonce


_NONCE_HELP = "The authority's nonce, in hexadecimal: 64 digits."
_KEY = click.option("--key", required=True, type=_FILE, help="Private key, PEM, unencrypted.")


@click.group("csr")
def csr() -> None:
    """Make and check a CSR that carries its own evidence (PKCS#10, id-aa-attestation).

    The evidence binds the CSR's key and a nonce of the authority that will verify it.
    """


@csr.command("report-data")
@_KEY
@click.option("--nonce", required=True, callback=_nonce, help=_NONCE_HELP)
def report_data(key: Path, nonce: bytes) -> None:
    """Print the 64 bytes, in hexadecimal, that the evidence must contain."""
    click.echo(_report_data(_read_key(key), nonce).hex())


@csr.command("new")
@_KEY
@click.option("--spiffe-id", required=True, type=SPIFFE_ID, help="The SPIFFE ID to ask for.")
@click.option("--dns-name", "dns_names", multiple=True, help="A DNS name; may be repeated.")
@click.option("--report", type=_FILE, help="A raw report or quote that was collected already.")
@click.option(
    "--kind",
    type=click.Choice([kind.value for kind in statements()]),
    default=EvidenceKind.SEV_SNP.value,
    show_default=True,
    help="What --report is.",
)
@click.option(
    "--chain", "chain", type=_FILE, multiple=True, help="Certificates of the report, PEM or DER."
)
@click.option(
    "--attestation",
    type=_FILE,
    help="Instead of --report: a YAML file with an `attestation` section, to collect evidence now.",
)
@click.option("--nonce", callback=_nonce, help=f"{_NONCE_HELP} Needed with --attestation.")
@click.option("--out", required=True, type=_FILE, help="File to write the CSR to, DER.")
def new(  # noqa: PLR0917  click passes every option
    key: Path,
    spiffe_id: SpiffeId,
    dns_names: Sequence[str],
    report: Path | None,
    kind: str,
    chain: Sequence[Path],
    attestation: Path | None,
    nonce: bytes | None,
    out: Path,
) -> None:
    """Make an attested CSR from a key and evidence."""
    if (report is None) == (attestation is None):
        raise click.UsageError("give --report or --attestation")
    if report is not None:
        refuse_idle({"nonce"}, "is for --attestation: a report contains its nonce already")
    else:
        refuse_idle({"kind", "chain"}, "is for --report: collected evidence brings its own")
    private = _read_key(key)
    if report is not None:
        evidence = Evidence(
            kind=EvidenceKind(kind),
            report=yamlfile.read(report, max_bytes=_MAX_BYTES),
            certificates=tuple(der for path in chain for der in _certificates(path)),
        )
    elif attestation is not None and nonce is not None:
        evidence = _collect(attestation, private, nonce)
    else:
        raise click.UsageError("--attestation needs --nonce")
    identity = _identity(spiffe_id, dns_names, private)
    der = make_attested_csr(private, identity, evidence)
    write_output(out, der)
    click.echo(f"{out}: {len(der)} bytes, {identity.spiffe_id}, {evidence.kind} evidence")


@csr.command("verify")
@click.argument("path", metavar="CSR", type=_FILE)
@click.option("--nonce", required=True, callback=_nonce, help=_NONCE_HELP)
@click.option("--reference-values", type=_FILE, help="What the evidence must show (YAML).")
@click.option(
    "--trusted-root",
    "roots",
    type=_FILE,
    multiple=True,
    help="A root to trust in addition to the manufacturer's.",
)
@click.option(
    "--chain",
    "certificates",
    type=_FILE,
    multiple=True,
    help="Certificates that may be missing from the evidence; they never add trust.",
)
@click.option(
    "--collateral",
    type=NamedPath(path_type=Path, exists=True, file_okay=False),
    help="Folder of signed collateral, for TDX quotes.",
)
@click.option("--crl", type=_FILE, multiple=True, help="Revocation list, PEM or DER.")
@click.option("--at", type=MOMENT, help="The time of the check.  [default: now]")
@output("text", "json")
def verify(  # noqa: PLR0917  click passes every option
    path: Path,
    nonce: bytes,
    reference_values: Path | None,
    roots: Sequence[Path],
    certificates: Sequence[Path],
    collateral: Path | None,
    crl: Sequence[Path],
    at: datetime | None,
    output: str,
) -> None:
    """Check a CSR, its evidence and their binding, as the authority does.

    Ends with status 0 if all of it is valid, 1 if it is refused.
    """
    now = at or SystemClock().now().wall
    verifier = _verifier(
        reference_values, roots=roots, certificates=certificates, collateral=collateral, crl=crl
    )
    parsed: AttestedCsr | None = None
    try:
        parsed = parse_attested_csr(yamlfile.read(path, max_bytes=_MAX_BYTES))
        data = attested_csr_report_data(nonce=nonce, key_digest=spki_sha256(parsed.public_key))
        claims = verifier.verify(parsed.evidence, data=data, now=now)
    except ConfigurationError:
        raise
    except SdsError as error:
        if output == "json":
            click.echo(json.dumps(_answer(parsed, None, error)))
            raise click.exceptions.Exit(1) from None
        raise
    if output == "json":
        click.echo(json.dumps(_answer(parsed, claims, None)))
    else:
        click.echo(f"accepted: {parsed.spiffe_id}, key {key_type_of(parsed.public_key)}")
        click.echo(f"evidence: {claims.kind}, measurement {claims.measurement}")
        if claims.simulated:
            click.echo("SIMULATION: this evidence proves nothing about hardware")


def _answer(
    parsed: AttestedCsr | None, claims: Claims | None, error: SdsError | None
) -> dict[str, Any]:
    return {
        "verdict": "accepted" if error is None else "refused",
        "reason": error.reason if error is not None else None,
        "message": str(error) if error is not None else None,
        "spiffe_id": str(parsed.spiffe_id) if parsed else None,
        "dns_names": list(parsed.dns_names) if parsed else None,
        "key_type": str(key_type_of(parsed.public_key)) if parsed else None,
        "key_digest": spki_sha256(parsed.public_key).hex() if parsed else None,
        "evidence": {"kind": str(parsed.evidence.kind), "digest": parsed.evidence.digest}
        if parsed
        else None,
        "claims": {
            "measurement": claims.measurement,
            "simulated": claims.simulated,
            **claims.attributes,
        }
        if claims
        else {},
    }


def _identity(spiffe_id: SpiffeId, dns_names: Sequence[str], key: PrivateKey) -> Identity:
    try:
        return Identity(spiffe_id=spiffe_id, dns_names=tuple(dns_names), key_type=key_type_of(key))
    except IdentityError as error:
        raise ConfigurationError(error.message, advice=error.advice) from error


def _report_data(key: PrivateKey, nonce: bytes) -> ReportData:
    return attested_csr_report_data(nonce=nonce, key_digest=spki_sha256(key.public_key()))


def _read_key(path: Path) -> PrivateKey:
    content = yamlfile.read(path, max_bytes=_MAX_BYTES)
    expect_private(path)
    try:
        return load_private_key(content)
    except KeyTypeError as error:
        raise ConfigurationError(f"{path}: {error.message}", advice=error.advice) from None


def _certificates(path: Path) -> list[bytes]:
    try:
        return [*der_certificates(yamlfile.read(path, max_bytes=_MAX_BYTES), what=str(path))]
    except EvidenceError as error:
        raise ConfigurationError(error.message, advice=error.advice) from error


def _collect(path: Path, key: PrivateKey, nonce: bytes) -> Evidence:
    return asyncio.run(attester_of(path).attest(_report_data(key, nonce)))


def _verifier(
    reference_values: Path | None,
    *,
    roots: Sequence[Path],
    certificates: Sequence[Path],
    collateral: Path | None,
    crl: Sequence[Path],
) -> Verifier:
    values = (
        yamlfile.load_file(reference_values, ReferenceValues)
        if reference_values is not None
        else ReferenceValues()
    )
    section = VerificationSection(
        trusted_roots=list(roots),
        certificates=list(certificates),
        collateral=collateral,
        revocation_lists=list(crl),
        reference_values=values,
    )
    return Verification(section).verifier()
