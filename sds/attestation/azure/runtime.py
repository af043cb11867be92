"""The runtime data of an Azure paravisor: the JSON whose hash is in the hardware report.

Owns its layout. Invariant: the attestation key is taken only from a document with exactly one key
of that name. Sources: OpenHCL, crate
``openhcl_attestation_protocol``, module ``igvm_attest::get``; Microsoft, "Virtual TPMs in Azure
confidential VMs".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sds.attestation.evidence import REPORT_DATA_BYTES
from sds.attestation.tpm.keys import rsa_key
from sds.errors import EvidenceMalformedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cryptography.hazmat.primitives.asymmetric import rsa

ATTESTATION_KEY: Final = "HCLAkPub"
MAX_BYTES: Final = 8192
# Type of hash in the blob (OpenHCL, IgvmAttestHashType).
_HASHES: Final = {1: "sha256", 2: "sha384", 3: "sha512"}
_CONFIGURATION: Final = "vm-configuration"
_MAX_NUMBER_CHARACTERS: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeData:
    """Runtime data, parsed.

    Attributes:
        key: the vTPM's attestation key.
        configuration: what the paravisor says about the VM: name -> value, as text.
    """

    key: rsa.RSAPublicKey = field(repr=False)
    configuration: Mapping[str, str]


def report_data_of(runtime: bytes, hash_type: int) -> bytes:
    """Return the report data that vouches for runtime data: its hash, and zeros.

    Raises:
        EvidenceMalformedError: the type of hash is unknown.
    """
    name = _HASHES.get(hash_type)
    if name is None:
        raise EvidenceMalformedError(
            f"the runtime data's hash is of type {hash_type}",
            advice="known are 1 (SHA-256), 2 (SHA-384) and 3 (SHA-512)",
        )
    return hashlib.new(name, runtime).digest().ljust(REPORT_DATA_BYTES, b"\0")


def parse_runtime(raw: bytes) -> RuntimeData:
    """Parse the JSON of runtime data.

    Raises:
        EvidenceMalformedError: it is not such JSON, or does not have exactly one attestation key.
    """
    try:
        if len(raw) > MAX_BYTES:
            raise ValueError(f"{len(raw)} bytes")  # noqa: TRY301  as any other fault of it
        document = json.loads(raw, object_pairs_hook=_object)
        found = [key for key in document["keys"] if key["kid"] == ATTESTATION_KEY]
        (key,) = found
        if key["kty"] != "RSA":
            raise ValueError(f"a key of type {key['kty']!r}")  # noqa: TRY301
        configuration = document.get(_CONFIGURATION, {})
        numbers = [_number(key[name]) for name in ("n", "e")]
        return RuntimeData(
            key=rsa_key(*numbers),
            configuration={
                str(name).replace("-", "_").lower(): _text(value)
                for name, value in configuration.items()
                if not isinstance(value, dict | list)
            },
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise EvidenceMalformedError(
            f"the paravisor's runtime data cannot be read: {error!r}"[:300],
            advice=f"it must be JSON with one RSA key {ATTESTATION_KEY}",
        ) from error


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name that is there twice")
    return found


def _number(text: str) -> int:
    """Read a Base64urlUInt (RFC 7518, section 2)."""
    if len(text) > _MAX_NUMBER_CHARACTERS:
        raise ValueError(f"a number of {len(text)} characters")
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("a number that is not base64url") from error
    return int.from_bytes(raw, "big")


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)[:128]
