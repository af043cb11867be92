"""Simulates a machine for a user's configuration: the manufacturer on disk, and the overlay.

Owns the folder that all ``sds simulate`` commands of one user share, so that an agent and an
authority that are started separately trust each other's simulated evidence. Invariants: the folder
belongs to this user alone; an overlay reports what it changes, and changes nothing else in a
configuration. The keys prove nothing to anybody who does not trust this root.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import yaml
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from sds.attestation.snp.report import Product, SigningKey
from sds.attestation.snp.simulated import SimulatedRoot
from sds.demo.node import private_directory, writing
from sds.errors import ConfigurationError
from sds.files import replace_file
from sds.pki import certificate_pem
from sds.settings import yamlfile
from sds.untrusted_input import reading

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_MANUFACTURER: Final = "manufacturer.json"
_OPTION: Final = "--config"


def manufacturer(folder: Path) -> tuple[SimulatedRoot, Path]:
    """Return the manufacturer of this folder, and the PEM file of its root; make both if missing.

    Raises:
        ConfigurationError: the folder's content is not a manufacturer, or cannot be written.
        SocketError: the folder cannot be used, or is not this user's alone.
    """
    private_directory(folder, option="--machines")
    ark, kept = folder / "ark.pem", folder / _MANUFACTURER
    with writing(folder), (folder / "lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if kept.exists():
            return _read(kept), ark
        made = SimulatedRoot.create()
        replace_file(ark, certificate_pem([made.ark_der]), mode=0o644)
        # The last step, and done as a whole: what is interrupted begins anew.
        replace_file(kept, json.dumps(_plain(made)).encode("ascii"), mode=0o600)
        return made, ark


def _plain(root: SimulatedRoot) -> dict[str, str]:
    def pem(key: rsa.RSAPrivateKey) -> str:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()

    return {
        "product": root.product.value,
        "kind": root.kind.name,
        "ark": root.ark_der.hex(),
        "ask": root.ask_der.hex(),
        "ark_key": pem(root.ark_key),
        "ask_key": pem(root.ask_key),
        "start": root.start.isoformat(),
    }


def _read(path: Path) -> SimulatedRoot:
    with reading(
        f"{path} is not a simulated manufacturer",
        ConfigurationError,
        advice=f"remove the folder {path.parent}: the next start makes a new one",
    ):
        plain = json.loads(path.read_text(encoding="ascii"))
        return SimulatedRoot(
            product=Product(plain["product"]),
            kind=SigningKey[plain["kind"]],
            ark_der=bytes.fromhex(plain["ark"]),
            ask_der=bytes.fromhex(plain["ask"]),
            ark_key=_key(plain["ark_key"]),
            ask_key=_key(plain["ask_key"]),
            start=datetime.fromisoformat(plain["start"]),
        )


def _key(pem: str) -> rsa.RSAPrivateKey:
    key = load_pem_private_key(pem.encode(), password=None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise TypeError("not an RSA key")
    return key


def configuration_of(command: Sequence[str]) -> int:
    """Return the index of the configuration file in the command line.

    Args:
        command: the words, such as ``["sds", "agent", "--config", "agent.yaml"]``.

    Raises:
        ConfigurationError: the command is not ``sds agent`` or ``sds ca`` with a configuration.
    """
    if tuple(command[:2]) not in (("sds", "agent"), ("sds", "ca")):
        raise ConfigurationError(
            "sds simulate runs `sds agent` or `sds ca`",
            advice="write: sds simulate -- sds agent --config agent.yaml",
        )
    if _OPTION not in command[:-1]:
        raise ConfigurationError(
            f"the command has no {_OPTION} FILE", advice=f"add {_OPTION} and the file's path"
        )
    return list(command).index(_OPTION) + 1


def overlaid(path: Path, *, descriptor: int, ark: Path, into: Path) -> tuple[Path, list[str]]:
    """Write a copy of a configuration with a simulated machine; return its path and the changes.

    Raises:
        ConfigurationError: the file cannot be read or is not a mapping, it has no evidence, or its
            copy cannot be written.
    """
    given = yamlfile.parse(yamlfile.read(path), what=str(path))
    if not isinstance(given, dict):
        raise ConfigurationError(f"{path} has no mapping of fields at its top")
    if not _knows_evidence(given):
        raise ConfigurationError(
            f"{path}: its authority neither takes nor gives evidence, so there is no machine to "
            "simulate",
            advice="start it without `sds simulate`",
        )
    changes = [f"attestation: a simulated machine in place of {_kind(given)}"]
    given["attestation"] = {"kind": "simulated", "descriptor": descriptor}
    signer = given.get("signer")
    sections = [given.setdefault("verification", {})]
    if isinstance(signer, dict) and isinstance(signer.get("verification"), dict):
        sections.append(signer["verification"])
    for section in sections:
        if isinstance(section, dict):
            _trust(section, ark)
    changes.append(f"verification: the simulated root {ark} is trusted, and nothing is revoked")
    # Two configurations of the same name may be started at the same time.
    where = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:8]
    made = into / f"{path.stem}-{where}.simulated.yaml"
    changes.append(f"configuration: {made} is the changed copy of {path}; what follows names it")
    with writing(into):
        replace_file(made, yaml.safe_dump(given, sort_keys=False).encode(), mode=0o600)
    return made, changes


def separated(command: Sequence[str]) -> tuple[str, ...]:
    """Split ``--config=FILE`` of a command line into two words."""
    found: list[str] = []
    for word in command:
        if word.startswith(f"{_OPTION}="):
            found += [_OPTION, word.removeprefix(f"{_OPTION}=")]
        else:
            found.append(word)
    return tuple(found)


def _knows_evidence(given: dict[str, Any]) -> bool:
    """Say whether this is an authority's file, or an agent's whose authority is our own."""
    authority = given.get("authority")
    return not isinstance(authority, dict) or authority.get("kind", "sds") == "sds"


def _trust(section: dict[str, Any], ark: Path) -> None:
    roots = section.get("trusted_roots")
    section["trusted_roots"] = [*(roots if isinstance(roots, list) else []), str(ark)]
    section.pop("revocation_lists", None)


def _kind(given: dict[str, Any]) -> str:
    section = given.get("attestation")
    kind = section.get("kind") if isinstance(section, dict) else None
    return f"kind {kind}" if kind else "none"
