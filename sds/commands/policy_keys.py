"""Contains the policy commands with keys (keygen, sign, verify), and what all of them share.

Owns command lines and files; :mod:`sds.policy` decides what is signed and which signatures count.
Invariant: ``keygen`` is the only place in the whole program that writes a private key to a file,
apart from ``sds simulate``, whose keys prove nothing. It does so for the people who sign policy, on
their own machine; no agent and no authority ever needs that file.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from sds.clock import SystemClock
from sds.commands.options import MOMENT, NamedPath, output, refuse_idle
from sds.commands.output import write_output
from sds.errors import ConfigurationError, IdentityError, PolicyError
from sds.files import is_folder
from sds.identity import parse_trust_domain
from sds.policy import examination, lint
from sds.policy.document import MAX_EPOCH
from sds.policy.envelope import (
    MAX_SIGNED_BYTES,
    SignedPolicy,
    add_signatures,
    new_envelope,
    parse_envelope,
)
from sds.policy.keys import read_verification_key
from sds.policy.signers import CommandSigner, TokenSigner, file_signer
from sds.policy.threshold import TrustedKeys
from sds.policy.yaml_document import parse_source, read_source
from sds.printable import printable
from sds.settings import yamlfile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sds.identity import TrustDomain
    from sds.policy.document import PolicyDocument
    from sds.policy.envelope import PolicySigner
    from sds.policy.keys import VerificationKey

_PRIVATE_MODE: Final = 0o600
_PUBLIC_MODE: Final = 0o644
_DIRECTORY_MODE: Final = 0o700

PATH: Final = NamedPath(path_type=Path)
OUTPUT: Final = output("text", "json")
EPOCH: Final = click.option(
    "--epoch",
    type=click.IntRange(1, MAX_EPOCH),
    default=1,
    show_default=True,
    help="Number of the policy; it rises with every change.",
)
DAYS: Final = click.option(
    "--days",
    type=click.IntRange(1, 366),
    default=30,
    show_default=True,
    help="Days from now until the policy expires.",
)


def utc_now() -> datetime:
    """Read the wall clock."""
    return SystemClock().now().wall


def first_and_keys(
    files: tuple[Path, ...], keys: tuple[Path, ...], what: str
) -> tuple[Path, tuple[Path, ...]]:
    """Return the policy file and all keys; ``--key A B`` means the same as ``--key A --key B``."""
    if not files:
        raise click.UsageError(f"Missing argument '{what}'.")
    if len(files) > 1 and not keys:
        raise click.UsageError(f"one {what} at a time; keys come after --key")
    return files[0], (*keys, *files[1:])


def read_document(path: Path) -> PolicyDocument:
    """Read the document in a YAML file, a directory of them or a signed file (not verified)."""
    payload, what = _payload(path)
    return parse_source(payload, what=what)


def _payload(path: Path) -> tuple[bytes, str]:
    if not is_folder(path):
        content = yamlfile.read(path, max_bytes=MAX_SIGNED_BYTES)
        if content.lstrip()[:1] == b"{":
            return parse_envelope(SignedPolicy(content)).payload, f"the document in {path}"
    return read_source(path), str(path)


# --- keygen -------------------------------------------------------------------------------------


@click.command("keygen")
@click.option("--out", "directory", type=PATH, required=True, help="Directory for both halves.")
@click.option("--name", required=True, help="Who signs with it; names the files.")
@click.option(
    "--type",
    "kind",
    type=click.Choice(["ed25519", "ec-p256", "ec-p384"]),
    default="ed25519",
    show_default=True,
    help="Kind of the key.",
)
def keygen(directory: Path, name: str, kind: str) -> None:
    """Make a key pair for signing policy: NAME.key (private, 0600) and NAME.pub.

    The private half is written to a file, without a passphrase, for the person who signs. Keep
    it away from nodes and authorities; they need only NAME.pub. To keep it off every disk, make
    the key on a token instead and sign with --pkcs11 or --signer-command.
    """
    if not name or not name.isprintable() or name != Path(name).name or name.startswith("."):
        raise ConfigurationError(f"{name!r} cannot name a file", advice="use letters and digits")
    private: Any
    if kind == "ed25519":
        private = ed25519.Ed25519PrivateKey.generate()
    else:
        private = ec.generate_private_key(ec.SECP256R1() if kind == "ec-p256" else ec.SECP384R1())
    pem = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    try:
        directory.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{directory} cannot be made: {error.strerror}") from error
    with contextlib.ExitStack() as halves:
        for path, content, mode in (
            (directory / f"{name}.key", pem, _PRIVATE_MODE),
            (directory / f"{name}.pub", public, _PUBLIC_MODE),
        ):
            _create(path, content, mode, halves)
        halves.pop_all()
    key = read_verification_key(directory / f"{name}.pub")
    click.echo(f"private key  {directory / f'{name}.key'}  (0600: anyone who reads it can sign)")
    click.echo(f"public key   {directory / f'{name}.pub'}")
    click.echo(f"key id       {key.key_id}")


def _create(path: Path, content: bytes, mode: int, halves: contextlib.ExitStack) -> None:
    """Create a file, which ``halves`` removes: half a key, or half a pair, is of no use."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        halves.callback(path.unlink, missing_ok=True)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
    except FileExistsError as error:
        raise ConfigurationError(
            f"{path} exists already", advice="a key is never overwritten: choose another name"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error


# --- sign ---------------------------------------------------------------------------------------


@click.command("sign")
@click.argument("files", metavar="POLICY", nargs=-1, type=PATH)
@click.option(
    "--key",
    "keys",
    metavar="PRIVATE",
    multiple=True,
    type=PATH,
    help="Private key; may be repeated.",
)
@click.option(
    "--signer-command",
    help="Command that signs: the bytes to sign on stdin, the raw signature on stdout.",
)
@click.option(
    "--pkcs11", help="Key on a token, as securesystemslib names it, such as hsm:2?label=policy."
)
@click.option(
    "--public-key", type=PATH, help="Public half of the key behind --signer-command or --pkcs11."
)
@click.option("--out", type=PATH, required=True, help="File to write the signed policy to.")
def sign(
    *,
    files: tuple[Path, ...],
    keys: tuple[Path, ...],
    signer_command: str | None,
    pkcs11: str | None,
    public_key: Path | None,
    out: Path,
) -> None:
    """Sign a policy, or add signatures to a signed one.

    POLICY is a YAML file, a directory of YAML files, or a file that this command wrote. Such a
    file keeps the signatures that it has, so that k of n people can sign one after the other.
    """
    if signer_command is None and pkcs11 is None:
        refuse_idle({"public_key"}, "belongs to --signer-command or --pkcs11")
    path, keys = first_and_keys(files, keys, "POLICY")
    signers: list[tuple[PolicySigner, VerificationKey]] = [file_signer(key) for key in keys]
    if signer_command is not None or pkcs11 is not None:
        signers.append(_external(signer_command, pkcs11, public_key))
    if not signers:
        raise click.UsageError("name a key: --key, --signer-command or --pkcs11")
    content = b"" if is_folder(path) else yamlfile.read(path, max_bytes=MAX_SIGNED_BYTES)
    if content.lstrip()[:1] == b"{":
        envelope = parse_envelope(SignedPolicy(content))
    else:
        envelope = new_envelope(read_source(path))
    document = parse_source(envelope.payload, what=str(path))
    for warning in lint.warnings(document, now=utc_now()):
        click.echo(printable(f"warning: {warning}"), err=True)
    signed = add_signatures(envelope, signers)
    if len(signed) > MAX_SIGNED_BYTES:
        raise ConfigurationError(f"the signed policy would have more than {MAX_SIGNED_BYTES} bytes")
    write_output(out, signed)
    names = ", ".join(key.name for _, key in signers)
    click.echo(
        f"epoch {document.epoch} of {document.trust_domain}, SHA-256 {envelope.digest.hex()}, "
        f"signed by {names}: {out}"
    )


def _external(
    command: str | None, pkcs11: str | None, public_key: Path | None
) -> tuple[PolicySigner, VerificationKey]:
    if public_key is None:
        raise click.UsageError("--public-key is needed with --signer-command and --pkcs11")
    key = read_verification_key(public_key)
    if command is not None:
        if pkcs11 is not None:
            raise click.UsageError("--signer-command and --pkcs11 exclude each other")
        return CommandSigner(command=command, key=key), key
    pin = click.prompt("PIN of the token", hide_input=True, err=True)
    return TokenSigner(uri=str(pkcs11), key=key, pin=pin), key


# --- verify -------------------------------------------------------------------------------------


@click.command("verify")
@click.argument("files", metavar="SIGNED", nargs=-1, type=PATH)
@click.option(
    "--key",
    "keys",
    metavar="PUBLIC",
    multiple=True,
    type=PATH,
    help="Trusted key; may be repeated.",
)
@click.option(
    "--threshold",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many of the keys must have signed.",
)
@click.option("--at", "moment", type=MOMENT, help="The time of the check.  [default: now]")
@click.option("--min-epoch", type=click.IntRange(min=0), default=0, help="Lowest epoch accepted.")
@click.option("--trust-domain", help="Trust domain that it must be for.  [default: any]")
@OUTPUT
@click.pass_context
def verify(
    context: click.Context,
    *,
    files: tuple[Path, ...],
    keys: tuple[Path, ...],
    threshold: int,
    moment: datetime | None,
    min_epoch: int,
    trust_domain: str | None,
    output: str,
) -> None:
    """Check a signed policy. Exit status 0: valid; 1: refused, with the reason; 2: usage."""
    path, keys = first_and_keys(files, keys, "SIGNED")
    if not keys:
        raise click.UsageError("name the trusted keys: --key PUBLIC")
    demands = examination.PolicyDemands(
        trusted=_trusted(keys, threshold),
        trust_domain=None if trust_domain is None else trust_domain_of(trust_domain),
        min_epoch=min_epoch,
        now=moment or utc_now(),
    )
    signed = SignedPolicy(yamlfile.read(path, max_bytes=MAX_SIGNED_BYTES))
    result = examination.examine(signed, demands)
    if output == "json":
        click.echo(json.dumps(_verdict(result)))
    else:
        _print_checks(result)
    if result.error is not None:
        context.exit(1)


def _trusted(keys: Sequence[Path], threshold: int) -> TrustedKeys:
    return TrustedKeys(keys=tuple(read_verification_key(key) for key in keys), threshold=threshold)


def trust_domain_of(text: str) -> TrustDomain:
    """Parse the trust domain of an option.

    Raises:
        ConfigurationError: it is not one.
    """
    try:
        return parse_trust_domain(text)
    except IdentityError as error:
        raise ConfigurationError(error.message, advice=error.advice) from error


def _verdict(result: examination.Examination) -> dict[str, Any]:
    error, policy = result.error, result.policy
    verdict: dict[str, Any] = {
        "verdict": "accepted" if error is None else "refused",
        "reason": None if error is None else error.reason,
        "message": None if error is None else str(error),
        "checks": [
            {
                "name": check.name,
                "ok": check.error is None,
                "found": check.found if check.error is None else check.error.message,
            }
            for check in result.checks
        ],
    }
    if policy is not None:
        verdict["policy"] = {
            "trust_domain": policy.trust_domain,
            "epoch": policy.epoch.number,
            "digest": policy.epoch.digest.hex(),
            "not_before": policy.not_before.isoformat(),
            "not_after": policy.not_after.isoformat(),
            "signed_by": list(policy.signed_by),
        }
    return verdict


def _print_checks(result: examination.Examination) -> None:
    for check in result.checks:
        mark = "✓" if check.error is None else "✗"
        text = check.found if check.error is None else str(check.error)
        click.echo(f"{mark} {check.name:<13} {text}")
    error = result.error
    click.echo("accepted" if error is None else f"refused: {_line(error)}")


def _line(error: PolicyError) -> str:
    return f"{error.reason}: {error.message}"
